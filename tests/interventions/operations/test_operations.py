"""Operations by name: what their edits do to a run, against the same thing done by hand; on both engines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.edits import Cut, Hold, Write
from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from interventions.operations.ablation import resampled_examples
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import Runs, choose_runs
from interventions.operations.dataset_statistics import DatasetStatistics, collect_statistics
from interventions.operations.directions import direction_at, load_directions
from interventions.plan.options import (
    AblateOptions,
    Corruption,
    PatchOptions,
    SkipOptions,
    SteerOptions,
    TransplantOptions,
)
from interventions.plan.plan import InterventionPlan
from models.capture import capture
from models.hooks import edited
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.sites import Site
from tasks.example import Example
from tests.conftest import make_examples, noise_picture

ENGINES: tuple[EngineName, ...] = ("full", "incremental")


def other_pictures(examples: Sequence[Example]) -> list[Example]:
    return [replace(e, pictures=(noise_picture(500 + i),)) for i, e in enumerate(examples)]


def last_columns(inputs: Inputs) -> Tensor:
    return torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])


def plain(llava: Llava, inputs: Inputs) -> Tensor:
    """Logits of the unchanged run at the prompt's end."""
    with torch.no_grad():
        logits = llava.model(**inputs.model_kwargs()).logits
    return logits[torch.arange(len(inputs))[:, None], last_columns(inputs)].float()


def run(
    llava: Llava,
    plan: InterventionPlan,
    runs: Runs,
    examples: Sequence[Example],
    context: DatasetStatistics | None = None,
    **kwargs: Any,
) -> list[Tensor]:
    """Logits of every cell of a plan."""
    cells = build_edits(plan.cells(llava), llava, runs.inputs, examples, context or DatasetStatistics(plan))
    readout = kwargs.get("readout", last_columns(runs.inputs))
    base = prepare_base(llava, runs.inputs, runs.other, readout=readout, engine=plan.engine)
    return run_cells(llava, base, cells, lambda logits: logits, engine=plan.engine)


def close(got: Tensor, expected: Tensor) -> None:
    # float32 in another order of summation
    assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def differs(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).abs().max()) > 1e-3 * float(expected.abs().max())


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return make_examples(3)


@pytest.fixture(scope="module")
def clean(llava: Llava, examples: list[Example]) -> Inputs:
    return prepare(llava, examples)


@pytest.fixture(scope="module")
def corrupt(llava: Llava, examples: list[Example]) -> Inputs:
    return prepare(llava, other_pictures(examples))


@pytest.mark.parametrize("engine", ENGINES)
def test_denoising_the_image_gives_the_clean_run_and_noising_it_the_corrupt_one(
    llava: Llava, clean: Inputs, corrupt: Inputs, examples: list[Example], engine: EngineName
) -> None:
    assert differs(plain(llava, clean), plain(llava, corrupt))
    plan = InterventionPlan("patch", sites=("resid_pre",), layers="0", tokens=("image",), engine=engine)
    (denoised,) = run(llava, plan, choose_runs(plan, clean, pair=corrupt), examples)
    close(denoised, plain(llava, clean))
    plan = replace(plan, options=PatchOptions("noise"))
    (noised,) = run(llava, plan, choose_runs(plan, clean, pair=corrupt), examples)
    close(noised, plain(llava, corrupt))


@pytest.mark.parametrize("engine", ENGINES)
def test_patching_a_window_is_patching_its_layers_by_hand(
    llava: Llava, clean: Inputs, corrupt: Inputs, examples: list[Example], engine: EngineName
) -> None:
    plan = InterventionPlan("patch", sites=("attn_out",), window=3, layers="2", tokens=("text",), engine=engine)
    (got,) = run(llava, plan, choose_runs(plan, clean, pair=corrupt), examples)
    sites = [Site("language_model", layer, "attn_out") for layer in (1, 2)]
    text = (clean.input_ids != llava.image_token_id) & (clean.attention_mask == 1)
    values: dict[Site, Tensor] = {}
    with torch.no_grad(), edited(llava, {site: lambda v, s=site: values.setdefault(s, v) for site in sites}):  # type: ignore[misc]
        llava.model(**clean.model_kwargs())
    with edited(llava, {s: lambda v, s=s: torch.where(text[..., None], values[s], v) for s in sites}):  # type: ignore[misc]
        expected = plain(llava, corrupt)
    assert differs(expected, plain(llava, corrupt))
    close(got, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_heads_together_are_the_whole_site_and_one_head_is_not(
    llava: Llava, clean: Inputs, corrupt: Inputs, examples: list[Example], engine: EngineName
) -> None:
    plan = InterventionPlan("patch", sites=("v",), layers="1", tokens=("image",), heads="0,0+1", engine=engine)
    runs = choose_runs(plan, clean, pair=corrupt)
    one, both = run(llava, plan, runs, examples)
    (whole,) = run(llava, replace(plan, heads=None), runs, examples)
    close(both, whole)
    assert differs(one, whole)


@pytest.mark.parametrize("site", ["vision:resid_post@0", "projector:act", "projector:out"])
@pytest.mark.parametrize("engine", ENGINES)
def test_patching_every_token_of_the_picture_before_the_language_model_recovers_the_clean_run(
    llava: Llava, clean: Inputs, corrupt: Inputs, examples: list[Example], engine: EngineName, site: str
) -> None:
    plan = InterventionPlan("patch", sites=(site,), tokens=("all",), engine=engine)
    (got,) = run(llava, plan, choose_runs(plan, clean, pair=corrupt), examples)
    close(got, plain(llava, clean))


def test_runs_that_a_plan_lacks_are_asked_for(clean: Inputs) -> None:
    with pytest.raises(ValueError, match="pair must be given for op 'patch', got None"):
        choose_runs(InterventionPlan("patch", sites=("z",), tokens=("last",)), clean)
    resample = InterventionPlan("ablate", sites=("z",), tokens=("last",), options=AblateOptions("resample"))
    with pytest.raises(ValueError, match="resampled must be given for resample ablation, got None"):
        choose_runs(resample, clean)
    knockout = InterventionPlan("knockout", tokens=("image->last",))
    assert choose_runs(knockout, clean) == Runs(clean, None, None)
    assert choose_runs(replace(knockout, corruption=Corruption("noise")), clean).corrupt is clean


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_ablation_puts_zeros(llava: Llava, clean: Inputs, examples: list[Example], engine: EngineName) -> None:
    plan = InterventionPlan(
        "ablate",
        sites=("z",),
        layers="1",
        tokens=("question",),
        heads="4",
        options=AblateOptions("zero"),
        engine=engine,
    )
    (got,) = run(llava, plan, choose_runs(plan, clean), examples)
    question = torch.zeros_like(clean.input_ids, dtype=torch.bool)
    for row, layout in enumerate(clean.layout):
        assert layout.question is not None
        question[row, layout.question.start : layout.question.stop] = True

    def silence(value: Tensor) -> Tensor:
        value = value.clone()
        value[..., 4, :] = value[..., 4, :].masked_fill(question[..., None], 0)
        return value

    with edited(llava, {Site("language_model", 1, "z"): silence}):
        expected = plain(llava, clean)
    assert differs(expected, plain(llava, clean))
    close(got, expected)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_mean_of_an_ablation_is_over_positions_then_examples(
    llava: Llava, clean: Inputs, examples: list[Example], batch_size: int
) -> None:
    plan = InterventionPlan("ablate", sites=("resid_pre", "k"), layers="1", tokens=("image", "question"))
    context = collect_statistics(plan, llava, examples, batch_size=batch_size)
    with torch.no_grad():
        hidden = llava.model(**clean.model_kwargs(), output_hidden_states=True).hidden_states[1]
    spans = [layout.question for layout in clean.layout]
    rows = [hidden[row, span.start : span.stop].mean(0) for row, span in enumerate(spans) if span is not None]
    assert_close(context.means[Site("language_model", 1, "resid_pre"), "question"], torch.stack(rows).mean(0))
    assert context.means[Site("language_model", 1, "k"), "image"].shape == (2, 8)
    specs = plan.cells(llava)
    ((write,),) = (cell.edits for cell in build_edits([specs[1]], llava, clean, examples, context))
    assert isinstance(write, Write) and write.value is context.means[specs[1].sites[0], "question"]


@pytest.mark.parametrize("engine", ENGINES)
def test_mean_ablation_of_all_that_enters_leaves_nothing_of_the_picture(
    llava: Llava, clean: Inputs, corrupt: Inputs, examples: list[Example], engine: EngineName
) -> None:
    plan = InterventionPlan(
        "ablate", sites=("resid_pre", "projector:out"), layers="0", tokens=("image",), engine=engine
    )
    context = collect_statistics(plan, llava, examples)
    before, entering = run(llava, plan, choose_runs(plan, clean), examples, context)
    close(before, entering)  # the same embeddings, named on two sides of one place
    again = run(llava, plan, choose_runs(plan, corrupt), examples, context)
    close(again[0], before)


def test_means_of_the_tower_count_the_class_token_for_all_alone(llava: Llava, examples: list[Example]) -> None:
    plan = InterventionPlan("ablate", sites=("vision:resid_post@1",), tokens=("all", "image"))
    context = collect_statistics(plan, llava, examples)
    site = Site("vision_tower", 1, "resid_post")
    whole = capture(llava, prepare(llava, examples), [site], tokens="all")[site]
    assert_close(context.means[site, "all"], whole.mean((0, 1)))
    assert_close(context.means[site, "image"], whole[:, 1:].mean((0, 1)))


@pytest.mark.parametrize("engine", ENGINES)
def test_resampling_the_image_is_showing_another_examples_picture(
    llava: Llava, clean: Inputs, examples: list[Example], engine: EngineName
) -> None:
    swapped = resampled_examples(examples, seed=3)
    assert all(a.pictures != b.pictures and a.question == b.question for a, b in zip(examples, swapped, strict=True))
    plan = InterventionPlan(
        "ablate",
        sites=("resid_pre",),
        layers="0",
        tokens=("image",),
        options=AblateOptions("resample"),
        engine=engine,
    )
    resampled = prepare(llava, swapped)
    (got,) = run(llava, plan, choose_runs(plan, clean, resampled=resampled), examples)
    assert differs(plain(llava, resampled), plain(llava, clean))
    close(got, plain(llava, resampled))


def test_resampling_gives_nobody_their_own_picture_and_follows_its_seed() -> None:
    many = make_examples(12, n_questions=3)
    swaps = [[e.pictures[0].key for e in resampled_examples(many, seed=seed)] for seed in (0, 0, 1)]
    assert swaps[0] == swaps[1] != swaps[2]
    assert all(key != example.pictures[0].key for key, example in zip(swaps[0], many, strict=True))
    with pytest.raises(ValueError, match="examples must contain another with 1 other pictures for 'e[0-2]', got none"):
        resampled_examples(make_examples(3, n_questions=3), seed=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_position_and_the_answer_behind_it_stay_cut_off(
    llava: Llava, examples: list[Example], engine: EngineName
) -> None:
    shown = [prepare(llava, batch, answers=True) for batch in (examples, other_pictures(examples))]
    stops = [layout.prompt_stop for layout in shown[0].layout]
    readout = torch.tensor([[stop - 1, stop] for stop in stops])
    plan = InterventionPlan("knockout", tokens=("all->last", "image->last"), layers="0", window="onward", engine=engine)
    cut, partly = zip(*(run(llava, plan, choose_runs(plan, i), examples, readout=readout) for i in shown), strict=True)
    uncut = [prepare_base(llava, inputs, readout=readout, engine=engine).logits for inputs in shown]
    assert differs(uncut[0][:, 0], uncut[1][:, 0]) and differs(uncut[0][:, 1], uncut[1][:, 1])
    assert differs(partly[0], partly[1])  # the picture still comes in by way of the question
    close(cut[0], cut[1])


def test_a_knockout_names_the_way_of_the_information(llava: Llava, examples: list[Example]) -> None:
    inputs = prepare(llava, examples, answers=True)
    plan = InterventionPlan(
        "knockout", tokens=("image->question", "last->answer", "question->last"), window=3, layers="0"
    )
    specs = plan.cells(llava)
    context = DatasetStatistics(plan)
    cells = build_edits(specs, llava, inputs, examples, context)
    cuts = [edit for edit in cells[0].edits if isinstance(edit, Cut)]
    assert [cut.layer for cut in cuts] == [0, 1]
    for row, layout in enumerate(inputs.layout):
        assert layout.question is not None
        assert cuts[0].keys[row].nonzero().flatten().tolist() == list(range(*layout.images[0]))
        assert cuts[0].queries[row].nonzero().flatten().tolist() == list(range(*layout.question))
        (source,), (target,) = ([e for e in cells[i].edits if isinstance(e, Cut)][:1] for i in (1, 2))
        assert source.keys[row].nonzero().flatten().tolist() == [layout.prompt_stop - 1]
        answers = list(range(layout.prompt_stop - 1, layout.real.stop))
        assert target.queries[row].nonzero().flatten().tolist() == answers
    with pytest.raises(ValueError, match="knockout must cut an edge in every example, got none for 'last->image'"):
        build_edits([replace(specs[0], tokens="last->image")], llava, inputs, examples, context)


@pytest.mark.parametrize("engine", ENGINES)
def test_image_tokens_that_skip_every_layer_unseen_leave_no_trace(
    llava: Llava, clean: Inputs, corrupt: Inputs, examples: list[Example], engine: EngineName
) -> None:
    plan = InterventionPlan("skip", tokens=("image",), layers="2", window="up-to", engine=engine)
    hidden = replace(plan, options=SkipOptions(hidden=True))
    seen, unseen = (
        [run(llava, p, choose_runs(p, inputs), examples)[0] for inputs in (clean, corrupt)] for p in (plan, hidden)
    )
    assert differs(*seen)
    close(*unseen)


@pytest.mark.parametrize("engine", ENGINES)
def test_skipping_is_freezing_the_stream_by_hand(
    llava: Llava, clean: Inputs, examples: list[Example], engine: EngineName
) -> None:
    plan = InterventionPlan("skip", tokens=("image",), layers="1", window="onward", engine=engine)
    (got,) = run(llava, plan, choose_runs(plan, clean), examples)
    image = (clean.input_ids == llava.image_token_id)[..., None]
    with torch.no_grad():
        frozen = llava.model(**clean.model_kwargs(), output_hidden_states=True).hidden_states[1]
    sites = [Site("language_model", layer, "resid_post") for layer in (1, 2)]
    with edited(llava, {site: lambda value: torch.where(image, frozen, value) for site in sites}):
        expected = plain(llava, clean)
    assert differs(expected, plain(llava, clean))
    close(got, expected)
    (cell,) = build_edits([plan.cells(llava)[0]], llava, clean, examples, DatasetStatistics(plan))
    assert [edit.layer for edit in cell.edits if isinstance(edit, Hold)] == [1, 2]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("by_layer", [False, True])
def test_steering_adds_the_unit_direction_in_mean_norms(
    llava: Llava, clean: Inputs, examples: list[Example], engine: EngineName, by_layer: bool
) -> None:
    given = torch.randn(3, llava.d_model, generator=torch.Generator().manual_seed(0))
    directions = {"up": given if by_layer else given[1]}
    options = SteerOptions("up", -1.5)
    plan = InterventionPlan(
        "steer", sites=("resid_post",), layers="1", tokens=("question",), options=options, engine=engine
    )
    context = collect_statistics(plan, llava, examples, directions=directions, batch_size=2)
    (got,) = run(llava, plan, choose_runs(plan, clean), examples, context)
    with torch.no_grad():
        hidden = llava.model(**clean.model_kwargs(), output_hidden_states=True).hidden_states[2]
    spans = [layout.question for layout in clean.layout]
    norms = [hidden[row, s.start : s.stop].norm(dim=-1).mean() for row, s in enumerate(spans) if s is not None]
    length = float(torch.stack(norms).mean())
    assert context.norms[Site("language_model", 1, "resid_post"), "question"] == pytest.approx(length, rel=1e-5)
    mask = torch.zeros(clean.input_ids.shape, dtype=torch.bool)
    for row, span in enumerate(spans):
        assert span is not None
        mask[row, span.start : span.stop] = True
    step = -1.5 * length * given[1] / given[1].norm()
    with edited(llava, {Site("language_model", 1, "resid_post"): lambda v: v + mask[..., None] * step}):
        expected = plain(llava, clean)
    assert differs(expected, plain(llava, clean))
    close(got, expected)
    absolute = replace(plan, options=SteerOptions("up", -1.5 * length, "absolute"))
    (same,) = run(
        llava, absolute, choose_runs(plan, clean), examples, DatasetStatistics(absolute, directions=directions)
    )
    close(same, expected)


def test_directions_come_from_a_file_and_must_have_a_length(llava: Llava, tmp_path: Path) -> None:
    save_file({"cat": torch.ones(4), "flat": torch.zeros(4)}, tmp_path / "d.safetensors")
    directions = load_directions(tmp_path / "d.safetensors")
    site = Site("language_model", 1, "resid_post")
    assert_close(direction_at(directions, "cat", site), torch.full((4,), 0.5))
    with pytest.raises(ValueError, match="direction 'flat' must have a finite length above 0, got 0.0"):
        direction_at(directions, "flat", site)
    with pytest.raises(ValueError, match="direction must be one of cat, flat, got 'dog'"):
        direction_at(directions, "dog", site)
    with pytest.raises(ValueError, match="direction 'short' must be d_model, or layer d_model with a row"):
        direction_at({"short": torch.ones(1, 4)}, "short", site)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="directions must be a safetensors file, got .*bad.safetensors"):
        load_directions(tmp_path / "bad.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="directions must contain at least one, got none"):
        load_directions(tmp_path / "empty.safetensors")
    plan = InterventionPlan("steer", sites=("resid_post",), tokens=("last",), options=SteerOptions("dog"))
    with pytest.raises(ValueError, match="direction must be one of none, got 'dog'"):
        collect_statistics(plan, llava, make_examples(1))


def test_missing_statistics_are_named(llava: Llava, clean: Inputs, examples: list[Example]) -> None:
    ablate = InterventionPlan("ablate", sites=("mlp_out",), layers="1", tokens=("last",))
    steer = InterventionPlan("steer", sites=("mlp_out",), layers="1", tokens=("last",))
    transplant = InterventionPlan("transplant", options=TransplantOptions("smol"))
    noisy = InterventionPlan("patch", sites=("z",), tokens=("last",), corruption=Corruption("noise"))
    for plan, message in (
        (ablate, "means must contain 'blocks.1.hook_mlp_out' for group 'last', got none"),
        (steer, "norms must contain 'blocks.1.hook_mlp_out' for group 'last', got none"),
        (transplant, "op must be one of patch, .*got 'transplant'"),
        (noisy, "deviation must be given for noise, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            build_edits(plan.cells(llava), llava, clean, examples, DatasetStatistics(plan))


def test_a_context_finds_out_no_more_than_its_plan_needs(llava: Llava, examples: list[Example]) -> None:
    context = collect_statistics(InterventionPlan("knockout", tokens=("image->last",)), llava, examples)
    assert (context.means, context.norms, context.deviation) == ({}, {}, None)
