"""Attribution patching: exact where the model is linear, close for small changes, and far off for large ones."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.engine import prepare_base, run_cells
from interventions.operations.attribution import Attribution, attribute, attribution_gap
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import Runs, choose_runs, corrupt_cell
from interventions.operations.dataset_statistics import DatasetStatistics, collect_statistics
from interventions.plan.options import Corruption, PatchOptions
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs, prepare
from models.llava import Llava
from tasks.example import Example
from tests.conftest import make_examples, noise_picture


def other_pictures(examples: Sequence[Example]) -> list[Example]:
    return [
        replace(e, pictures=tuple(noise_picture(700 + 10 * i + p) for p in range(len(e.pictures))))
        for i, e in enumerate(examples)
    ]


def score(logits: Tensor) -> Tensor:
    """Two metrics: a logit difference, linear in the logits, and a log-probability, which is not."""
    return torch.stack([logits[:, 0, 5] - logits[:, 0, 9], logits[:, 0].log_softmax(-1)[:, 5]])


def readout_of(inputs: Inputs) -> Tensor:
    return torch.tensor([[layout.prompt_stop - 1, -1] for layout in inputs.layout])


def exact(
    llava: Llava, plan: InterventionPlan, runs: Runs, examples: Sequence[Example], context: DatasetStatistics
) -> Tensor:
    """By activation patching, ``metric cell example``."""
    cells = build_edits(plan.cells(llava), llava, runs.inputs, examples, context)
    base = prepare_base(llava, runs.inputs, runs.other, readout=readout_of(runs.inputs))
    return torch.stack(run_cells(llava, base, cells, score), dim=1)


def estimate(
    llava: Llava, plan: InterventionPlan, runs: Runs, examples: Sequence[Example], context: DatasetStatistics
) -> Attribution:
    readout = readout_of(runs.inputs)
    return attribute(llava, runs.inputs, runs.other, plan.cells(llava), examples, context, score, readout=readout)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return make_examples(3, n_pictures=(1, 2))


@pytest.fixture(scope="module")
def pair(llava: Llava, examples: list[Example]) -> tuple[Inputs, Inputs]:
    return prepare(llava, examples), prepare(llava, other_pictures(examples))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_estimate_is_exact_where_the_rest_of_the_model_is_linear(
    llava: Llava, pair: tuple[Inputs, Inputs], examples: list[Example], direction: str
) -> None:
    options = PatchOptions(direction)  # type: ignore[arg-type]
    plan = InterventionPlan("attribute", sites=("final_norm",), tokens=("last", "image"), options=options)
    runs = choose_runs(plan, pair[0], pair=pair[1])
    found = estimate(llava, plan, runs, examples, DatasetStatistics(plan))
    truth = exact(llava, plan, runs, examples, DatasetStatistics(plan))
    assert float((truth[0, 0] - found.base[0]).abs().min()) > 1e-4  # patching has an effect
    assert_close(found.estimated[0], truth[0], rtol=0, atol=1e-5)  # the logit difference; logits are of order 0.1
    assert not torch.allclose(found.estimated[1, 0], truth[1, 0], rtol=0, atol=1e-6)  # the log-probability is curved
    assert_close(found.estimated[:, 1], found.base)  # image tokens say nothing behind the last block


def test_the_error_vanishes_with_the_change_and_shows_for_a_large_one(llava: Llava) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples)
    plan = InterventionPlan("attribute", sites=("resid_mid", "z", "k"), tokens=("image", "last"))
    errors = []
    for scale in (0.03, 3.0):
        noisy = replace(plan, corruption=Corruption("noise", scale=scale))
        context = collect_statistics(noisy, llava, examples)
        runs = choose_runs(noisy, inputs)
        truth = exact(llava, noisy, runs, examples, context)
        found = estimate(llava, noisy, runs, examples, context)
        base = prepare_base(llava, inputs, readout=readout_of(inputs))
        (corrupt,) = run_cells(llava, base, [corrupt_cell(llava, inputs, context)], score)
        assert_close(found.base, corrupt, rtol=0, atol=1e-5)
        errors.append(attribution_gap(found.estimated, truth, found.base[:, None]))
    small, large = errors
    assert small.relative_error < 0.1 < large.relative_error
    assert small.correlation > 0.99
    assert small.n == 2 * len(plan.cells(llava)) * 3


@pytest.mark.parametrize(
    ("site", "parts", "whole"),
    [("z@1", "heads", None), ("resid_pre@1", "patches", "image"), ("vision:mlp_out@0", "patches", "image")],
)
def test_parts_add_up_to_the_whole(llava: Llava, site: str, parts: str, whole: str | None) -> None:
    examples = make_examples(2)
    inputs, other = prepare(llava, examples), prepare(llava, other_pictures(examples))
    split = InterventionPlan("attribute", sites=(site,), tokens=("text",), heads="all")
    if whole is not None:
        split = InterventionPlan("attribute", sites=(site,), tokens=("patches",))
    joint = replace(split, heads=None, tokens=(whole or "text",))
    runs = choose_runs(split, inputs, pair=other)
    pieces = estimate(llava, split, runs, examples, DatasetStatistics(split))
    (total,) = estimate(llava, joint, runs, examples, DatasetStatistics(joint)).estimated[0] - pieces.base[0]
    assert float(total.abs().min()) > 1e-5
    assert_close((pieces.estimated[0] - pieces.base[0]).sum(0), total, rtol=1e-3, atol=1e-6)


def test_each_example_gets_its_own_share_of_a_shared_picture(llava: Llava) -> None:
    examples = make_examples(4, n_questions=2)
    inputs, other = prepare(llava, examples), prepare(llava, _shared(other_pictures(examples)))
    plan = InterventionPlan("attribute", sites=("vision:resid_post@0", "projector:out"), tokens=("image",))
    together = estimate(llava, plan, choose_runs(plan, inputs, pair=other), examples, DatasetStatistics(plan))
    for row in range(4):
        runs = choose_runs(plan, inputs.select([row]), pair=other.select([row]))
        alone = estimate(llava, plan, runs, examples[row : row + 1], DatasetStatistics(plan))
        assert_close(alone.estimated[..., 0], together.estimated[..., row], rtol=1e-4, atol=1e-6)


def _shared(examples: list[Example]) -> list[Example]:
    return [replace(example, pictures=examples[i - i % 2].pictures) for i, example in enumerate(examples)]


def test_noising_by_noise_estimates_the_noisy_run(llava: Llava) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples)
    corruption = Corruption("noise", scale=0.03)
    plan = InterventionPlan(
        "attribute", sites=("projector:out",), tokens=("image",), options=PatchOptions("noise"), corruption=corruption
    )
    context = collect_statistics(plan, llava, examples)
    runs = choose_runs(plan, inputs)
    found = estimate(llava, plan, runs, examples, context)
    base = prepare_base(llava, inputs, readout=readout_of(inputs))
    (corrupt,) = run_cells(llava, base, [corrupt_cell(llava, inputs, context)], score)
    error = attribution_gap(found.estimated[:, 0], corrupt, found.base)
    assert error.relative_error < 0.1


def test_frozen_weights_and_texts_alone_have_gradients_too(llava: Llava) -> None:
    examples = [replace(example, pictures=()) for example in make_examples(2)]
    inputs = prepare(llava, examples)
    other = replace(inputs, input_ids=inputs.input_ids.where(inputs.position_ids != 3, 7))
    plan = InterventionPlan("attribute", sites=("resid_pre",), layers="0", tokens=("text",))
    runs = choose_runs(plan, inputs, pair=other)
    expected = estimate(llava, plan, runs, examples, DatasetStatistics(plan))
    trainable = [p for p in llava.model.parameters() if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        found = estimate(llava, plan, runs, examples, DatasetStatistics(plan))
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    assert float((expected.estimated[0] - expected.base[0]).abs().min()) > 1e-6
    assert_close(found.estimated, expected.estimated)
    assert all(parameter.grad is None for parameter in llava.model.parameters())


def test_what_has_no_gradient_form_is_refused(
    llava: Llava, pair: tuple[Inputs, Inputs], examples: list[Example]
) -> None:
    knockout = InterventionPlan("knockout", tokens=("image->last",))
    wide = InterventionPlan("patch", sites=("z",), tokens=("last",), window=3)
    plan = InterventionPlan("attribute", sites=("z",), tokens=("last",))
    cases: list[tuple[InterventionPlan, Runs, str]] = [
        (knockout, Runs(pair[0], None, None), "op must be patch or attribute, got 'knockout'"),
        (wide, Runs(*pair, None), "window must be one layer for attribution, got '0-1'"),
        (plan, Runs(pair[0], prepare(llava, make_examples(3)), None), "other must have the positions of inputs"),
    ]
    for refused, runs, message in cases:
        with pytest.raises(ValueError, match=message):
            estimate(llava, refused, runs, examples, DatasetStatistics(refused))


def test_the_error_is_the_mean_difference_of_the_changes() -> None:
    base = torch.tensor([1.0, 1.0])
    estimated, truth = torch.tensor([[2.0, 3.0], [1.0, 1.0]]), torch.tensor([[2.0, 5.0], [1.0, 1.0]])
    error = attribution_gap(estimated, truth, base)
    assert error.mean_error == pytest.approx(0.5)
    assert error.relative_error == pytest.approx(2 / 5)
    assert error.n == 4
    assert 0.9 < error.correlation < 1
    nothing = attribution_gap(base, base, base)
    assert nothing.mean_error == 0 and nothing.correlation != nothing.correlation
    with pytest.raises(ValueError, match="estimated and exact must have the same shape and not be empty"):
        inspect.unwrap(attribution_gap)(estimated, truth[:1], base)


def test_no_hook_is_left_behind_by_a_metric_that_fails(llava: Llava, pair: tuple[Inputs, Inputs]) -> None:
    plan = InterventionPlan("attribute", sites=("z",), tokens=("last",))

    def broken(logits: Tensor) -> Tensor:
        raise RuntimeError("no metric")

    count: Callable[[], int] = lambda: sum(  # noqa: E731
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules()
    )
    before = count()
    with pytest.raises(RuntimeError, match="no metric"):
        attribute(
            llava,
            *pair,
            plan.cells(llava),
            make_examples(3),
            DatasetStatistics(plan),
            broken,
            readout=readout_of(pair[0]),
        )
    assert count() == before
