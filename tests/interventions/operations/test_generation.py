"""Accuracy under an intervention is that of text written by ``generate`` with the intervention kept in force."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from interventions.metrics import find_readout, greedy_accuracy
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.options import SteerOptions
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs, prepare
from models.llava import Llava
from tasks.example import Example
from tests.conftest import make_examples

STEPS = 4
DIRECTION = torch.randn(48, generator=torch.Generator().manual_seed(5))
Hook = Callable[[Any, Any, dict[str, Any]], Any]


@contextmanager
def hooked(
    llava: Llava, layer: int, change: Callable[[Any, Tensor, dict[str, Any]], Any], *, behind: bool
) -> Iterator[None]:
    """A hook of our own on a block, by torch alone."""
    block = llava.blocks[layer]
    if behind:
        handle = block.register_forward_hook(lambda m, a, k, out: change(out, a[0], k), with_kwargs=True)
    else:
        handle = block.register_forward_pre_hook(lambda m, a, k: change(None, a[0], k), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def hide_image(image: list[int], last: int, nothing: Any, stream: Tensor, kwargs: dict[str, Any]) -> Any:
    """The prompt's last position and every generated one look past the picture."""
    queries = stream.shape[1]
    keys = last + 1 if queries > 1 else int(kwargs["position_ids"][0, 0]) + 1
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    allowed[-1, image] = False
    mask = torch.zeros(1, 1, queries, keys).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return (stream,), {**kwargs, "attention_mask": mask}


def freeze_image(image: list[int], last: int, output: Any, stream: Tensor, kwargs: dict[str, Any]) -> Any:
    """Image tokens leave the block as they entered it; generated tokens are never image tokens."""
    if stream.shape[1] == 1:
        return output
    left = (output[0] if isinstance(output, tuple) else output).clone()
    left[:, image] = stream[:, image]
    return (left, *output[1:]) if isinstance(output, tuple) else left


def push(image: list[int], last: int, output: Any, stream: Tensor, kwargs: dict[str, Any]) -> Any:
    """The last position and every generated one are steered."""
    left = (output[0] if isinstance(output, tuple) else output).clone()
    left[:, -1] += 6 * DIRECTION / DIRECTION.norm()
    return (left, *output[1:]) if isinstance(output, tuple) else left


CASES: dict[str, tuple[InterventionPlan, Any, bool]] = {
    "knockout": (
        InterventionPlan("knockout", tokens=("image->last",), layers="0-2", window="together"), hide_image, False,
    ),
    "skip": (InterventionPlan("skip", tokens=("image",), layers="0", window="onward"), freeze_image, True),
    "steer": (
        InterventionPlan(
            "steer", sites=("resid_post",), tokens=("last+answer",), window="together",
            options=SteerOptions("direction", 6.0, "absolute"),
        ),
        push,
        True,
    ),
}  # fmt: skip


def written(llava: Llava, example: Example) -> Tensor:
    """What ``generate`` writes, cache and all."""
    inputs, model = prepare(llava, [example]), cast("Any", llava.model)
    with torch.no_grad():
        return model.generate(  # type: ignore[no-any-return]
            **{k: v for k, v in inputs.model_kwargs().items() if k != "position_ids"},
            max_new_tokens=STEPS, do_sample=False, eos_token_id=-1, pad_token_id=0,
        )[0, -STEPS:]  # fmt: skip


def answered(inputs: Inputs, tokens: Tensor) -> Inputs:
    """The prompt with these tokens as its answer."""
    ids = torch.cat([inputs.input_ids, tokens[None]], 1)
    (layout,) = inputs.layout
    longer = layout._replace(real=layout.real._replace(stop=layout.real.stop + len(tokens)))
    return replace(
        inputs, input_ids=ids, attention_mask=torch.ones_like(ids), layout=(longer,),
        position_ids=torch.arange(ids.shape[1])[None],
    )  # fmt: skip


def accuracy(llava: Llava, plan: InterventionPlan, example: Example, answer: Tensor, engine: EngineName) -> float:
    inputs = answered(prepare(llava, [example]), answer)
    context = DatasetStatistics(plan, directions={"direction": DIRECTION})
    cells = build_edits(plan.cells(llava), llava, inputs, [example], context)
    readout = find_readout(llava, inputs)
    base = prepare_base(llava, choose_runs(plan, inputs).inputs, readout=readout.columns, engine=engine)
    (found,) = run_cells(llava, base, cells, lambda logits: greedy_accuracy(logits, readout), engine=engine)
    return float(found)


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("op", CASES)
def test_accuracy_is_that_of_generation_with_the_intervention_in_force(
    llava: Llava, op: str, engine: EngineName
) -> None:
    plan, change, behind = CASES[op]
    differing = 0
    for example in make_examples(4):
        inputs = prepare(llava, [example])
        image = (inputs.input_ids[0] == llava.image_token_id).nonzero().flatten().tolist()
        plain = written(llava, example)
        with ExitStack() as stack:
            for layer in range(llava.n_layers):
                hook = partial(change, image, inputs.n_positions - 1)
                stack.enter_context(hooked(llava, layer, hook, behind=behind))
            changed = written(llava, example)
        assert accuracy(llava, plan, example, changed, engine) == 1.0
        for step in range(STEPS):
            wrong = changed.clone()
            wrong[step] = (wrong[step] + 1) % 600
            assert accuracy(llava, plan, example, wrong, engine) == 0.0
        if not torch.equal(plain, changed):
            differing += 1
            assert accuracy(llava, plan, example, plain, engine) == 0.0
    assert differing > 0  # the intervention changes what is written
