"""The functions for a model in memory give the sweep's numbers; context managers give those of its cells."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from interventions.in_memory.context_managers import ablated, knocked_out, skipped
from interventions.in_memory.measure import attribution, direct_attribution, patch, path_patch
from interventions.metrics import find_readout
from interventions.operations.dataset_statistics import collect_statistics
from interventions.operations.direct_attribution import direct_logit_attribution
from interventions.pairs import Pair
from interventions.plan.options import AblateOptions, PatchOptions, SkipOptions
from interventions.plan.plan import InterventionPlan
from interventions.run_batch import run_batch
from models.inputs import Inputs, prepare
from models.llava import Llava
from tasks.errors import UserError
from tests.conftest import make_examples

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums in another order


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pairs with equal prompts, answers of one length, and a foil."""
    examples = make_examples(3)
    found = []
    for i, example in enumerate(examples):
        clean = replace(example, answer="cat", question="Is it a cat?")
        found.append(Pair(clean, replace(clean, pictures=examples[(i + 1) % 3].pictures), "dog"))
    return found


def batches(llava: Llava, pairs: list[Pair]) -> tuple[Inputs, Inputs]:
    clean = prepare(llava, [pair.clean for pair in pairs], answers=True)
    return clean, prepare(llava, [pair.corrupt for pair in pairs], answers=True)


def swept(llava: Llava, plan: InterventionPlan, pairs: list[Pair]) -> Any:
    statistics = collect_statistics(plan, llava, [pair.clean for pair in pairs])
    return run_batch(llava, statistics, plan.cells(llava), pairs)


@pytest.mark.parametrize("op", ["patch", "attribute"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_equals_the_sweep(llava: Llava, pairs: list[Pair], op: Any, direction: Any) -> None:
    plan = InterventionPlan(op, sites=("z",), tokens=("image", "last"), heads="0+2", options=PatchOptions(direction))
    expected = swept(llava, plan, pairs)
    clean, corrupt = batches(llava, pairs)
    function = patch if op == "patch" else attribution
    found = function(
        llava, clean, corrupt, site="z", tokens=["image", "last"], heads="0+2", direction=direction, foils="dog"
    )
    assert_close(found.values, expected.values[:, 0], **TOLERANCE)
    assert_close(found.clean, expected.clean[0], **TOLERANCE)
    assert_close(found.corrupt, expected.corrupt[0], **TOLERANCE)
    assert found.table["n"].eq(3).all()
    assert (found.table["lower"] <= found.table["value"]).all()


def test_patched_logits_are_those_that_the_values_are_made_of(llava: Llava, pairs: list[Pair]) -> None:
    clean, corrupt = (batch.laid_out("right", answers=False) for batch in batches(llava, pairs))
    found = patch(llava, clean, corrupt, site="blocks.1.hook_resid_post", answers="cat", foils="dog", engine="full")
    assert found.logits is not None
    readout = find_readout(llava, batches(llava, pairs)[0], ["dog"] * 3)
    if int(readout.fork.max()) == 0:
        at = torch.stack(
            [found.logits[0, i, readout.expected[i, 0]] - found.logits[0, i, readout.foil[i]] for i in range(3)]
        )
        assert_close(found.values[0], at)


CELLS = {
    "knockout": (
        InterventionPlan("knockout", tokens=("image->last",), layers="0-1", window="together"),
        lambda llava, clean: knocked_out(llava, layers="0-1"),
    ),
    "skip": (
        InterventionPlan("skip", tokens=("image",), layers="1-2", window="together", options=SkipOptions(hidden=True)),
        lambda llava, clean: skipped(llava, layers="1-2", visible=False),
    ),
    "ablate": (
        InterventionPlan("ablate", sites=("mlp_out",), tokens=("image",), layers="1", options=AblateOptions("mean")),
        lambda llava, clean: ablated(llava, "mlp_out", layers=1, reference=clean),
    ),
}


@pytest.mark.parametrize("op", CELLS)
def test_logits_in_a_context_manager_are_those_of_the_sweeps_cell(llava: Llava, pairs: list[Pair], op: str) -> None:
    plan, open_it = CELLS[op]
    expected = swept(llava, replace(plan, metrics=("logit_difference",)), pairs).values[0, 0]
    clean, _ = batches(llava, pairs)
    readout = find_readout(llava, clean, ["dog"] * 3)
    if int(readout.fork.max()) > 0:
        pytest.skip("answers differ later than at their first token")
    with open_it(llava, clean):
        logits = llava.logits(clean)
    rows = torch.arange(3)
    assert_close(logits[rows, readout.expected[:, 0]] - logits[rows, readout.foil], expected, **TOLERANCE)


def test_path_patching_and_direct_attribution_equal_their_operations(llava: Llava, pairs: list[Pair]) -> None:
    clean, corrupt = batches(llava, pairs)
    found = path_patch(llava, clean, corrupt, senders=[(0, 1), (1, 2)], receivers=[(2, 0)], foils="dog")
    assert found.values.shape == (2, 3)
    assert not torch.allclose(found.values, found.corrupt.expand(2, 3), atol=1e-6)
    shares = direct_attribution(llava, clean, answers="cat", foils="dog")
    prompts = clean.laid_out("right", answers=False)
    columns = torch.tensor([layout.prompt_stop - 1 for layout in prompts.layout])
    logits = llava.logits(prompts)
    top = logits.topk(2).indices
    by_default = direct_attribution(llava, clean)
    expected = direct_logit_attribution(llava, prompts, columns, top[:, 0], top[:, 1])
    assert_close(by_default.shares.heads, expected.heads)
    assert_close(expected.logit_difference, logits.gather(1, top)[:, 0] - logits.gather(1, top)[:, 1], **TOLERANCE)
    assert len(shares.table) == 1 + 2 * llava.n_layers + llava.n_layers * llava.n_heads
    assert shares.shares.heads.shape == (llava.n_layers, llava.n_heads, 3)


def test_results_print_briefly_and_draw_themselves(llava: Llava, pairs: list[Pair]) -> None:
    import matplotlib.pyplot as plt

    clean, corrupt = batches(llava, pairs)
    found = patch(llava, clean, corrupt, site="z", heads="all", foils="dog")
    assert len(found.table) == llava.n_layers * llava.n_heads
    assert len(repr(found).splitlines()) == 13
    assert found._repr_html_().count("<tr") <= 12
    assert found.plot() is not None
    assert direct_attribution(llava, clean).plot().get_xlabel() == "layer, from 0"
    plt.close("all")
    assert isinstance(found.table, pd.DataFrame)


def test_comparisons_that_mean_nothing_are_errors(llava: Llava, pairs: list[Pair]) -> None:
    clean, corrupt = batches(llava, pairs)
    with pytest.raises(UserError, match="foils must be given"):
        patch(llava, clean, corrupt)
    with pytest.raises(UserError, match="corrupt must have 3 examples"):
        patch(llava, clean, corrupt.select([0]), foils="dog")
    with pytest.raises(UserError, match="direction must be one of denoise, noise"):
        patch(llava, clean, corrupt, foils="dog", direction="back")
    with pytest.raises(UserError, match="foils must differ"):
        direct_attribution(llava, clean, answers="cat", foils="cat")
