"""Capture: equal to transformers' own values at every site, no more work than needed, hooks gone, bad runs refused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from models.capture import capture, capture_examples, plan_batches
from models.hooks import CaptureError
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.sites import Site, all_sites
from models.tokens import patch, token_mask
from tasks.example import Box, Example
from tests.conftest import make_examples, tiny_config
from tests.models.oracles import language_by_transformers, vision_by_transformers

TOLERANCE: dict[str, Any] = {
    "rtol": 1e-4,
    "atol": 2e-5,
}  # float32, values of order 1 to 10, other batch shapes and attention kernels


@pytest.fixture(scope="session")
def eager() -> dict[bool, Llava]:
    """The weights of ``llava`` and ``llava_plain`` under eager attention, by whether queries are grouped."""
    return {g: load(tiny_config(grouped=g), seed=0 if g else 1, attn="eager", validate=False) for g in (True, False)}


def _both(llava: Llava, llava_plain: Llava) -> list[tuple[bool, Llava]]:
    return [(True, llava), (False, llava_plain)]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_every_language_site_equals_transformers_own(
    llava: Llava, llava_plain: Llava, eager: dict[bool, Llava], attn: str, padding_side: str
) -> None:
    for grouped, model in _both(llava, llava_plain):
        examples = make_examples(3, n_pictures=(1, 2, 0))
        inputs = prepare(model, examples, padding_side=padding_side)  # type: ignore[arg-type]
        sites = [site for site in all_sites(model) if site.part == "language_model"]
        theirs = language_by_transformers(eager[grouped], inputs)
        ours = capture(model if attn == "sdpa" else eager[grouped], inputs, sites, tokens="all")
        assert set(theirs) == set(ours)
        assert len(ours) == 10 * model.n_layers + 1
        assert not inputs.attention_mask.all()  # there is padding
        for site in sites:
            for row, span in enumerate(layout.real for layout in inputs.layout):
                got, expected = ours[site][row][ours.mask[site][row]], theirs[site][row, span.start : span.stop]
                if site.name == "pattern":  # keys of a row that starts at its first token
                    expected = expected[..., span.start : span.stop]
                    assert float(got[..., len(expected) :].abs().sum()) == 0
                    got = got[..., : len(expected)]
                assert_close(got, expected, msg=lambda m, site=site: f"{site}: {m}", **TOLERANCE)
                columns = ours.positions[site][row][ours.mask[site][row]]
                assert columns.tolist() == list(range(*span))


def test_every_vision_and_projector_site_equals_transformers_own(
    llava: Llava, llava_plain: Llava, eager: dict[bool, Llava]
) -> None:
    for grouped, model in _both(llava, llava_plain):
        inputs = prepare(model, make_examples(3, n_pictures=(1, 2)))
        assert inputs.pixel_values is not None
        theirs = vision_by_transformers(eager[grouped], inputs.pixel_values)
        sites = [site for site in all_sites(model) if site.part != "language_model"]
        whole = capture(model, inputs, sites, tokens="all")
        patches = capture(model, inputs, sites, tokens="image")
        assert set(theirs) == set(whole)
        assert len(whole) == 10 * model.n_vision_layers + 4
        for site in sites:
            for row, pictures in enumerate(inputs.image_of):
                expected = torch.cat([theirs[site][p] for p in pictures])
                assert_close(whole[site][row][whole.mask[site][row]], expected, **TOLERANCE)
                first = 1 if site.part == "vision_tower" else 0
                expected = torch.cat([theirs[site][p][first:] for p in pictures])
                assert_close(patches[site][row][patches.mask[site][row]], expected, **TOLERANCE)


def test_the_first_of_two_pictures_is_taken_alone(llava: Llava) -> None:
    inputs = prepare(llava, make_examples(1, n_pictures=(2,)))
    first = inputs.layout[0].images[0]
    wanted = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    wanted[0, first.start : first.stop] = True
    sites = [Site("vision_tower", 1, "resid_post"), Site("projector", None, "out")]
    alone, both = (capture(llava, inputs, sites, tokens=t) for t in (wanted, "image"))
    for site in sites:
        assert alone[site].shape[:2] == (1, 16)
        assert_close(alone[site], both[site][:, :16], rtol=0, atol=0)


def test_the_last_resid_post_is_not_normed_and_gives_the_logits(llava: Llava) -> None:
    inputs = prepare(llava, make_examples(2))
    last = Site("language_model", llava.n_layers - 1, "resid_post")
    found = capture(llava, inputs, [last], tokens="last")
    with torch.inference_mode():
        out = llava.model(**inputs.model_kwargs(), output_hidden_states=True)
    ends = [layout.prompt_stop - 1 for layout in inputs.layout]
    assert_close(llava.unembed(found[last][:, 0]), out.logits[torch.arange(2), ends], **TOLERANCE)
    assert not torch.allclose(found[last][:, 0], out.hidden_states[-1][torch.arange(2), ends], atol=0.1)


@pytest.mark.parametrize("pool", ["mean", "max", "box"])
def test_pooling_equals_pooling_by_hand(llava: Llava, pool: str) -> None:
    examples = make_examples(4)
    inputs = prepare(llava, examples)
    sites = [
        Site("language_model", 1, "resid_post"), Site("language_model", 0, "z"), Site("vision_tower", 1, "mlp_out")
    ]  # fmt: skip
    found = capture(llava, inputs, sites, tokens="image", pool=pool, examples=examples)  # type: ignore[arg-type]
    each = capture(llava, inputs, sites, tokens="object" if pool == "box" else "image", examples=examples)
    for site in sites:
        for row in range(4):
            kept = each[site][row][each.mask[site][row]]
            assert len(kept) == 16 or (pool == "box" and 0 < len(kept) < 16)
            assert_close(found[site][row], kept.amax(0) if pool == "max" else kept.mean(0), **TOLERANCE)
    assert not found.mask
    assert not found.positions


def test_object_tokens_are_the_same_patches_in_tower_projector_and_language_model(llava: Llava) -> None:
    examples = make_examples(2)
    inputs = prepare(llava, examples)
    tower, out, pre = (
        Site("vision_tower", 1, "resid_post"),
        Site("projector", None, "out"),
        Site("language_model", 0, "resid_pre"),
    )
    found = capture(llava, inputs, [tower, out, pre], tokens="object", examples=examples)
    assert_close(found[out], found[pre], rtol=0, atol=0)  # the language model's input at image tokens is the features
    start, real = inputs.layout[0].images[0].start, found.mask[pre][0]
    assert torch.equal(found.positions[pre][0][real] - start, found.positions[out][0][real])
    assert torch.equal(found.positions[tower][0][real], found.positions[out][0][real] + 1)  # behind the class token


def test_dtype_changes_the_values_dtype_and_nothing_else(llava: Llava) -> None:
    inputs, site = prepare(llava, make_examples(2)), Site("language_model", 1, "resid_post")
    half = capture(llava, inputs, [site], tokens="image", pool="mean", dtype=torch.bfloat16)[site]
    assert half.dtype == torch.bfloat16
    full = capture(llava, inputs, [site], tokens="image", pool="mean")[site]
    assert_close(half, full.to(torch.bfloat16), rtol=0, atol=0)


def test_values_may_be_trained_on_and_changed_in_place(llava: Llava) -> None:
    site = Site("language_model", 1, "resid_post")
    value = capture(llava, prepare(llava, make_examples(2)), [site], tokens="image", pool="mean")[site]
    weight = torch.ones(llava.d_model, requires_grad=True)
    (value @ weight).sum().backward()
    assert weight.grad is not None
    value += 1


def test_a_mask_of_ones_own_picks_its_positions(llava: Llava) -> None:
    examples = make_examples(2)
    inputs, site = prepare(llava, examples), Site("language_model", 1, "resid_post")
    mask = torch.zeros_like(inputs.input_ids).bool()
    mask[0, [1, 4]] = mask[1, 3] = True
    found, whole = capture(llava, inputs, [site], tokens=mask), capture(llava, inputs, [site], tokens="all")
    assert found.mask[site].tolist() == [[True, True], [True, False]]
    assert found.positions[site].tolist() == [[1, 4], [3, -1]]
    assert_close(found[site][0], whole[site][0, [1, 4]], **TOLERANCE)
    assert found[site][1, 1].abs().sum() == 0


@contextmanager
def _counted(modules: Sequence[nn.Module]) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what passes through ``modules``, in the order of their calls."""
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        shapes.append(tuple((args[0] if args else kwargs["pixel_values"]).shape))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def test_the_run_stops_behind_the_last_wanted_layer(llava: Llava) -> None:
    inputs = prepare(llava, make_examples(2))
    blocks = list(llava.blocks)
    for layer in range(3):
        with _counted(blocks) as calls:
            capture(llava, inputs, [Site("language_model", layer, "resid_post")], tokens="last")
        assert len(calls) == layer + 1
    with _counted([blocks[1].mlp, llava.model.lm_head]) as calls:  # type: ignore[list-item]
        capture(llava, inputs, [Site("language_model", 1, "attn_out")], tokens="last")
    assert calls == []
    with _counted([*llava.vision_blocks[1:], *blocks, llava.projector]) as calls:
        capture(llava, inputs, [Site("vision_tower", 0, "resid_post")], tokens="image")
    assert calls == []


def test_rows_are_cut_behind_the_last_wanted_position_and_keep_their_values(llava: Llava) -> None:
    inputs, site = prepare(llava, make_examples(3)), Site("language_model", 2, "resid_post")
    with _counted([llava.blocks[0]]) as calls:
        cut = capture(llava, inputs, [site], tokens=patch(0, 1))
    stop = inputs.layout[0].images[0].stop
    assert calls == [(3, stop, 48)]
    assert stop < inputs.n_positions
    whole = capture(llava, inputs, [site], tokens="all")
    column = inputs.layout[0].images[0].start + 1
    assert_close(cut[site][:, 0], whole[site][:, column], **TOLERANCE)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_questions_about_one_picture_share_one_row_and_one_picture(llava: Llava, padding_side: str) -> None:
    examples = make_examples(8, n_questions=4)
    inputs = prepare(llava, examples, padding_side=padding_side)  # type: ignore[arg-type]
    site = Site("language_model", 1, "resid_post")
    with _counted([llava.blocks[0], llava.vision_tower]) as calls:
        found = capture(llava, inputs, [site], tokens="object", pool="mean", examples=examples)
    stop = inputs.layout[0].images[0].stop - inputs.layout[0].real.start
    assert calls == [(2, 3, 28, 28), (2, stop, 48)]
    for row, example in enumerate(examples):
        alone = capture(llava, prepare(llava, [example]), [site], tokens="object", pool="mean", examples=[example])
        assert_close(found[site][row], alone[site][0], **TOLERANCE)


def test_a_row_that_begins_another_is_not_run(llava: Llava) -> None:
    examples, site = make_examples(3), Site("language_model", 1, "resid_post")
    once, twice = prepare(llava, examples), prepare(llava, examples * 2)
    wanted = torch.cat([token_mask(twice, "image", llava)[:3], token_mask(twice, "last", llava)[3:]])
    with _counted([llava.blocks[0]]) as calls:
        found = capture(llava, twice, [site], tokens=wanted, pool="mean")[site]
    assert [call[0] for call in calls] == [3]
    for rows, group in ((found[:3], "image"), (found[3:], "last")):
        assert_close(rows, capture(llava, once, [site], tokens=group, pool="mean")[site], **TOLERANCE)


def test_question_tokens_are_never_shared(llava: Llava) -> None:
    inputs, site = prepare(llava, make_examples(4, n_questions=4)), Site("language_model", 1, "resid_post")
    with _counted([llava.blocks[0]]) as calls:
        found = capture(llava, inputs, [site], tokens="last", pool="mean")
    assert calls[0][0] == 4
    assert not torch.allclose(found[site][0], found[site][1], atol=1e-2)


def test_a_data_set_runs_each_distinct_picture_once(llava: Llava) -> None:
    examples = make_examples(24, n_questions=3)
    scattered = [examples[i] for i in torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()]
    site = Site("language_model", 1, "resid_post")
    with _counted([llava.vision_tower]) as calls:
        found = list(capture_examples(llava, scattered, [site], tokens="image", batch_size=3))
    assert [shape[0] for shape in calls] == [3, 3, 2]  # eight pictures
    assert sorted(i for indices, _ in found for i in indices) == list(range(24))
    for indices, activations in found:
        for row, index in enumerate(indices):
            alone = capture(llava, prepare(llava, [scattered[index]]), [site], tokens="image", pool="mean")
            assert_close(activations[site][row], alone[site][0], **TOLERANCE)


def test_batches_can_be_planned_and_resumed() -> None:
    examples = make_examples(40, n_questions=20)
    assert plan_batches(examples, tokens="last", batch_size=16) == [
        tuple(range(16)), tuple(range(16, 32)), tuple(range(32, 40))
    ]  # fmt: skip
    shared = plan_batches(examples, tokens="image", batch_size=2)
    assert sorted(i for batch in shared for i in batch) == list(range(40))
    assert max(map(len, shared)) <= 2 * 16  # bounded, however many questions a picture has
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        plan_batches(examples, tokens="image", batch_size=0)
    with pytest.raises(ValueError, match="at least one example"):
        plan_batches([], tokens="image", batch_size=1)


def test_only_the_given_batches_are_run(llava: Llava) -> None:
    site = Site("projector", None, "out")
    found = list(capture_examples(llava, make_examples(6), [site], tokens="image", batches=[(4, 5)]))
    assert [indices for indices, _ in found] == [(4, 5)]


def _hooks(llava: Llava) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules())


def test_no_hook_stays_behind(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, before = prepare(llava, make_examples(2)), _hooks(llava)
    counts: list[int] = []

    def fail(x: Tensor) -> Tensor:
        counts.append(_hooks(llava))
        raise ZeroDivisionError

    monkeypatch.setattr(llava.blocks[2].mlp, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        capture(llava, inputs, all_sites(llava), tokens="all")
    assert counts[0] > before  # the hooks were there when it failed
    assert _hooks(llava) == before
    monkeypatch.undo()
    capture(llava, inputs, all_sites(llava)[:-5], tokens="all")
    assert _hooks(llava) == before


def test_a_stopped_run_leaves_the_model_as_it_was(llava: Llava) -> None:
    inputs = prepare(llava, make_examples(2))
    with torch.inference_mode():
        before = llava.model(**inputs.model_kwargs(), output_hidden_states=True)
        capture(llava, inputs, [Site("language_model", 0, "attn_out"), Site("vision_tower", 0, "z")], tokens="image")
        after = llava.model(**inputs.model_kwargs(), output_hidden_states=True)
    assert_close(after.logits, before.logits, rtol=0, atol=0)
    assert len(after.hidden_states) == len(before.hidden_states)


def test_a_site_that_does_not_fire_is_named(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava.blocks[1], "forward", lambda hidden_states, **kwargs: hidden_states)
    with pytest.raises(CaptureError, match=r"site 'blocks\.1\.hook_mlp_out' must fire .* got nothing"):
        capture(llava, prepare(llava, make_examples(1)), [Site("language_model", 1, "mlp_out")], tokens="last")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pool", ["none", "mean", "max"])
def test_values_that_are_not_finite_name_site_and_example(llava: Llava, value: float, pool: str) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples)
    assert inputs.pixel_values is not None
    pixels = inputs.pixel_values.clone()
    pixels[1, 0, 0, 0] = value
    sites = [Site("projector", None, "out"), Site("language_model", 1, "resid_post")]
    with pytest.raises(CaptureError, match=r"NaN or infinity at site 'vision_projector.hook_out' in example 'e1'"):
        capture(llava, replace(inputs, pixel_values=pixels), sites, tokens="image", pool=pool, examples=examples)  # type: ignore[arg-type]


def test_what_cannot_be_captured_is_refused(llava: Llava) -> None:
    examples = make_examples(2, n_pictures=(1, 0))
    inputs, site = prepare(llava, examples), Site("language_model", 1, "resid_post")
    with pytest.raises(ValueError, match="sites must contain at least one site"):
        capture(llava, inputs, [])
    with pytest.raises(ValueError, match=r"layer must be in \[0, 3\)"):
        capture(llava, inputs, [Site("language_model", 3, "resid_post")])
    with pytest.raises(ValueError, match=r"dtype must be floating-point, got torch\.int8"):
        capture(llava, inputs, [site], dtype=torch.int8)
    with pytest.raises(ValueError, match=r"tokens must contain image tokens for sites of the vision tower.*row 0"):
        capture(llava, inputs, [Site("vision_tower", 0, "z")], tokens="last")
    with pytest.raises(ValueError, match="tokens must be a boolean mask of shape"):
        capture(llava, inputs, [site], tokens=torch.ones(1, 1).bool())
    with pytest.raises(ValueError, match="must not contain padding"):
        capture(llava, inputs, [site], tokens=torch.ones_like(inputs.input_ids).bool())
    with pytest.raises(ValueError, match="at least one position of every example, got none in row 1"):
        capture(llava, inputs, [site], tokens=token_mask(inputs, "all", llava) & (inputs.input_ids == 600))


def test_a_box_outside_the_wanted_tokens_is_refused(llava: Llava) -> None:
    example: Example = replace(make_examples(1)[0], boxes={"object0": Box(2, 2, 20, 20)})
    inputs = prepare(llava, [example])
    with pytest.raises(ValueError, match="at least one position of every example"):
        capture(llava, inputs, [Site("language_model", 1, "z")], tokens="last", pool="box", examples=[example])
