"""Interventions while generating equal a loop that recomputes the whole sequence with torch hooks at every step.

Every manager, and every pair of them, runs with both attention implementations, both paddings, and batches of
one and three. The loop runs each example on its own, without padding and cache, so one result serves all of these.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.in_memory import ablated, knocked_out, patched, skipped, steered
from models.inputs import Inputs, PaddingSide, prepare
from models.llava import Llava
from models.loading.load import Attention, load
from tasks.errors import UserError
from tests.conftest import make_examples, tiny_config

STEPS = 3
DIRECTION = torch.randn(48, generator=torch.Generator().manual_seed(5))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order


class Row(NamedTuple):
    """One example on its own: positions, the other picture's stream after block 0, and the batch's mean there."""

    image: list[int]
    last: int
    other: Tensor
    mean: Tensor


Change = Callable[[Row, Tensor, Tensor], Tensor]  # of what enters and what leaves a block


def zeroed(row: Row, entered: Tensor, left: Tensor) -> Tensor:
    left[:, row.image] = 0
    return left


def averaged(row: Row, entered: Tensor, left: Tensor) -> Tensor:
    left[:, row.image] = row.mean
    return left


def replaced(row: Row, entered: Tensor, left: Tensor) -> Tensor:
    left[:, row.image] = row.other[row.image]
    return left


def kept(row: Row, entered: Tensor, left: Tensor) -> Tensor:
    left[:, row.image] = entered[:, row.image]
    return left


def pushed(row: Row, entered: Tensor, left: Tensor) -> Tensor:
    return left + 6 * DIRECTION / DIRECTION.norm()


class Case(NamedTuple):
    """A context manager, and the same by hand: a change of what leaves some blocks, or a mask."""

    open: Callable[[Llava, Inputs, Inputs], AbstractContextManager[None]]
    layers: range
    change: Change | None


CASES = {
    "skipped": Case(lambda llava, inputs, other: skipped(llava, layers="1-2", tokens="image"), range(1, 3), kept),
    "knocked_out": Case(lambda llava, inputs, other: knocked_out(llava, source="image", target="last"), range(3), None),
    "zero": Case(
        lambda llava, inputs, other: ablated(llava, "blocks.1.hook_resid_post", kind="zero"), range(1, 2), zeroed
    ),
    "mean": Case(
        lambda llava, inputs, other: ablated(llava, "resid_post", layers=0, reference=inputs), range(1), averaged
    ),
    "patched": Case(
        lambda llava, inputs, other: patched(llava, other, "resid_post", layers=0), range(1), replaced
    ),
    "steered": Case(
        lambda llava, inputs, other: steered(llava, direction=DIRECTION, alpha=6, unit="absolute", layers="1-2"),
        range(1, 3),
        pushed,
    ),
}  # fmt: skip


# The order of nesting matters only for these, which write at the same positions of a site.
PAIRS = [*combinations(CASES, 2), ("steered", "zero"), ("patched", "mean")]


@contextmanager
def hooked(llava: Llava, row: Row, cases: Sequence[Case]) -> Iterator[None]:
    """The cases by torch hooks alone, for one whole sequence without padding."""

    def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        n = args[0].shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril()
        allowed[row.last :, row.image] = False
        additive = torch.zeros(1, 1, n, n).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": additive}

    handles = []
    for case in cases:
        for layer in case.layers:
            block, change = llava.blocks[layer], case.change
            if change is None:
                handles.append(block.register_forward_pre_hook(mask, with_kwargs=True))
            else:

                def leave(module: Any, args: Any, output: Tensor, change: Change = change) -> Tensor:
                    return change(row, args[0], output.clone())

                handles.append(block.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
@torch.inference_mode()
def by_hand(llava: Llava, names: tuple[str, ...], n: int) -> tuple[Tensor, Tensor]:
    """Tokens, and the first step's logits, of every example on its own; the whole sequence runs at every step.

    What leaves a block is first held by ``skipped``, then changed by the outer manager, then by the inner one.
    """
    inputs, other = batch(llava, n, "right")
    cases = [CASES[name] for name in sorted(names, key=lambda name: name != "skipped")]
    streams: list[Tensor] = []

    def note(module: Any, args: Any, output: Tensor) -> None:
        streams.append(output)

    tokens, first, rows, alone = [], [], [], []
    for index in range(len(inputs)):
        mine, theirs = inputs.select([index]).laid_out("right"), other.select([index]).laid_out("right")
        handle = llava.blocks[0].register_forward_hook(note)
        llava.model(**mine.model_kwargs())
        llava.model(**theirs.model_kwargs())
        handle.remove()
        (span,) = mine.layout[0].images
        rows.append((list(range(*span)), mine.layout[0].prompt_stop - 1, streams[-1][0], streams[-2][0]))
        alone.append(mine)
    mean = torch.stack([stream[image].mean(0) for image, _, _, stream in rows]).mean(0)
    for mine, (image, last, theirs_stream, _) in zip(alone, rows, strict=True):
        ids, found = mine.input_ids, []
        with hooked(llava, Row(image, last, theirs_stream, mean), cases):
            for _ in range(STEPS):
                logits = llava.model(input_ids=ids, pixel_values=mine.pixel_values, use_cache=False).logits[:, -1]
                found.append(logits[0])
                ended = ids.shape[1] > mine.n_positions and int(ids[0, -1]) == llava.tokenizer.eos_token_id
                token = ids[:, -1:] if ended else logits.argmax(-1, keepdim=True)
                ids = torch.cat([ids, token], 1)
        tokens.append(ids[0, mine.n_positions :])
        first.append(found[0])
    return torch.stack(tokens), torch.stack(first)


@cache
@torch.inference_mode(False)
def batch(llava: Llava, n: int, side: PaddingSide) -> tuple[Inputs, Inputs]:
    examples = make_examples(4)
    shown = [examples[(i + 1) % 4].pictures for i in range(n)]
    others = [
        type(e)(e.id, pictures, e.question, e.answer, e.group) for e, pictures in zip(examples, shown, strict=False)
    ]
    return prepare(llava, examples[:n], padding_side=side), prepare(llava, others, padding_side=side)


@pytest.fixture(scope="module")
def models(llava: Llava) -> dict[Attention, Llava]:
    """The same weights with both attention implementations."""
    return {"sdpa": llava, "eager": load(tiny_config(), seed=0, attn="eager", validate=False)}


def check(models: dict[Attention, Llava], names: tuple[str, ...], n: int) -> None:
    tokens, logits = by_hand(models["sdpa"], names, n)
    sides: tuple[PaddingSide, ...] = ("left", "right")
    for llava, side in product(models.values(), sides):
        inputs, other = batch(llava, n, side)
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(CASES[name].open(llava, inputs, other))
            assert_close(llava.logits(inputs), logits, **TOLERANCE)
            found = llava.generate_tokens(inputs, STEPS)
            if len(names) == 1:
                assert torch.equal(llava.generate_tokens(inputs, STEPS, use_cache=False), found)
        assert torch.equal(found, tokens[:, : found.shape[1]])


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_generation_equals_recomputing_everything_at_every_step(
    models: dict[Attention, Llava], name: str, n: int
) -> None:
    check(models, (name,), n)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_nested_pairs_act_together(models: dict[Attention, Llava], names: tuple[str, str], n: int) -> None:
    check(models, names, n)


def test_each_intervention_changes_what_is_written(llava: Llava) -> None:
    inputs, other = batch(llava, 3, "right")
    plain, logits = llava.generate_tokens(inputs, STEPS), llava.logits(inputs)
    for name, case in CASES.items():
        with case.open(llava, inputs, other):
            assert not torch.allclose(llava.logits(inputs), logits, atol=1e-3), name
            if name in ("knocked_out", "steered"):
                assert not torch.equal(llava.generate_tokens(inputs, STEPS), plain), name


@pytest.mark.parametrize("name", CASES)
def test_everything_is_restored_also_after_an_error(llava: Llava, name: str) -> None:
    inputs, other = batch(llava, 2, "left")
    before = llava.logits(inputs)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules()]
    handle = llava.blocks[2].register_forward_hook(lambda module, args, output: 1 / 0)
    with pytest.raises(ZeroDivisionError), CASES[name].open(llava, inputs, other):
        llava.generate(inputs)
    handle.remove()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules()] == hooks
    assert llava.interventions == []
    assert torch.equal(llava.logits(inputs), before)


def test_capture_sees_the_changed_run(llava: Llava) -> None:
    inputs, other = batch(llava, 3, "left")
    with patched(llava, other, "resid_post", layers=1, tokens="image"):
        found = llava.capture(inputs, ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"], tokens="image")
    theirs = llava.capture(other, "resid_post", layers="1-2", tokens="image")
    mine = llava.capture(inputs, "resid_post", layers="1-2", tokens="image")
    assert_close(found["blocks.1.hook_resid_post"], theirs["blocks.1.hook_resid_post"], **TOLERANCE)
    name = "blocks.2.hook_resid_post"
    assert not torch.allclose(found[name], mine[name], atol=1e-3)
    with ablated(llava, "projector:out", kind="zero"):
        zeroed_out = llava.capture(inputs, ["projector:out", "blocks.0.hook_resid_pre"], tokens="image")
    assert all(float(values.abs().max()) == 0 for values in zeroed_out.by_site.values())


def test_pictures_of_one_example_are_exchanged_for_those_of_another(llava: Llava) -> None:
    inputs, _ = batch(llava, 3, "right")
    with ablated(llava, "resid_pre", layers=0, kind="resample", seed=1):
        found = llava.capture(inputs, "resid_pre", layers=0, tokens="image")["resid_pre"]
    plain = llava.capture(inputs, "resid_pre", layers=0, tokens="image")["resid_pre"]
    matches = [[torch.allclose(row, other, atol=1e-5) for other in plain] for row in found]
    assert [sum(row) for row in matches] == [1, 1, 1]
    assert not any(matches[i][i] for i in range(3))


def test_a_forward_that_does_not_say_where_its_tokens_are_is_an_error(llava: Llava) -> None:
    inputs, _ = batch(llava, 1, "right")
    with knocked_out(llava), pytest.raises(UserError, match="llava.generate, llava.logits or llava.capture"):
        llava.model(**inputs.model_kwargs())
    llava.model(**inputs.model_kwargs())


def test_what_cannot_be_done_is_an_error_before_any_run(llava: Llava) -> None:
    inputs, other = batch(llava, 2, "right")
    wrong: list[tuple[Callable[[], AbstractContextManager[None]], str]] = [
        (lambda: knocked_out(llava, layers="2-9"), r"layer must be in \[0, 3\)"),
        (lambda: ablated(llava, "resid_pots"), "resid_pots"),
        (lambda: steered(llava, direction=DIRECTION[:4], layers=1, unit="absolute"), "48 numbers"),
        (lambda: patched(llava, other.select([0]), layers=1), "source must have 2 examples"),
        (lambda: ablated(llava, "attn_out", layers=1, heads=2), "heads"),
        (lambda: ablated(llava, "z", layers=1, heads="all"), "must be one cell"),
    ]
    for make, message in wrong:
        with pytest.raises(UserError, match=message), make():
            llava.logits(inputs)
    assert llava.interventions == []
