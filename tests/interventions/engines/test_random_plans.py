"""Plans: ``incremental`` equals ``full`` for every operation, site, group, window, padding and batch size.

``test_random_edits`` draws edits, any mask at any site; here whole plans are drawn, so that what turns names into edits
is in it too: groups, windows, heads, corruption, means, directions, resampling.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.edits import Cell
from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from interventions.operations.ablation import resampled_examples
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs, corrupt_cell
from interventions.operations.dataset_statistics import DatasetStatistics, collect_statistics
from interventions.plan.options import OPERATIONS, Corruption, Op
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.sites import all_sites
from tests.conftest import make_examples, noise_picture, tiny_config

RELATIVE = 1e-5  # float32 in another order of summation
LANGUAGE = (
    "image", "object", "question", "last", "text", "all", "answer", "patch(1,2)", "pos(0)", "pos(-2)",
    "box(0,0,25,15)", "image-object", "last+answer",
)  # fmt: skip
PICTURED = ("image", "object", "all", "patch(1,2)", "box(0,0,25,15)", "image-object")
FLOWS = (
    "image->question", "image->last", "question->last", "object->text", "patch(1,2)->question", "image->image",
    "all->last", "last->answer", "pos(0)->all", "image-object->pos(-2)", "text->answer",
)  # fmt: skip
WINDOWS: tuple[Any, ...] = (1, 3, 5, "up-to", "onward", "together")
OPTIONS_OF: dict[str, list[dict[str, Any]]] = {
    "patch": [{"direction": "denoise"}, {"direction": "noise"}],
    "ablate": [{"kind": "zero"}, {"kind": "mean"}, {"kind": "resample", "seed": 3}],
    "knockout": [{}],
    "skip": [{"hidden": False}, {"hidden": True}],
    "steer": [{"alpha": -0.7, "unit": "norm"}, {"alpha": 3.0, "unit": "absolute"}],
}


class Deck:
    """Hands out everything in a random order before it starts again, so that nothing is left out."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.left, self.seen = rng, dict[str, list[Any]](), Counter[tuple[str, str]]()

    def draw(self, name: str, cards: Any) -> Any:
        if not self.left.get(name):
            self.left[name] = self.rng.sample(list(cards), len(cards))
        card = self.left[name].pop()
        self.seen[name, str(card)] += 1
        return card


def random_plan(deck: Deck, llava: Llava, op: Op) -> InterventionPlan:
    """A plan that the model can run."""
    rng = deck.rng
    sites: tuple[str, ...] = ()
    group = deck.draw("flow", FLOWS) if op == "knockout" else deck.draw("group", LANGUAGE)
    heads = deck.draw("heads", (None, "all", "0+1")) if op == "knockout" else None
    if op in ("patch", "ablate", "steer"):
        sites, group, heads = _site(deck, llava, op, group)
    kind: Any = deck.draw("corruption", ("pair", "blank", "noise")) if op == "patch" else "pair"
    if kind == "noise" and sites[0].startswith(("vision", "projector")) and sites[0] != "projector:out":
        kind = "blank"  # noise is put in behind these
    layers = None if rng.random() < 0.5 else ",".join(str(n) for n in sorted(rng.sample(range(2), rng.randint(1, 2))))
    outside = bool(sites) and (sites[0] == "final_norm" or sites[0].startswith("projector"))
    return InterventionPlan(
        op,
        sites=sites,
        layers=None if outside else layers,
        window=deck.draw("window", WINDOWS),
        tokens=(group,),
        heads=heads,
        options=OPERATIONS[op].options(**deck.draw(op, OPTIONS_OF[op])),
        corruption=Corruption(kind, 2.0, (rng.randrange(9),)),
    )


def _site(deck: Deck, llava: Llava, op: str, group: str) -> tuple[tuple[str, ...], str, str | None]:
    """One kind of site, a group that has a meaning there, and heads where it has some."""
    kinds = {(s.part, s.name) for s in all_sites(llava) if s.name != "pattern"}
    if op == "steer":
        kinds = {
            (part, name) for part, name in kinds if name not in ("q", "k", "v", "z", "in") and part != "vision_tower"
        }
    part, name = deck.draw(f"site of {op}", sorted(kinds))
    heads = deck.draw("heads of a site", (None, "all", "0+1")) if name in ("q", "k", "v", "z") else None
    if part == "language_model":
        return (name,), group, heads
    prefix = "vision" if part == "vision_tower" else "projector"
    return (f"{prefix}:{name}",), deck.draw("pictured group", PICTURED), heads


def run_plan(llava: Llava, plan: InterventionPlan, n: int, side: str, directions: dict[str, Tensor]) -> dict[str, Any]:
    """Every engine's logits of some cells, and the unchanged run's."""
    data = make_examples(4)
    batch = data[:n]
    partners = [replace(e, pictures=(noise_picture(400 + i),)) for i, e in enumerate(batch)]
    swapped = resampled_examples(data, seed=3)[:n]
    clean, pair, resampled = (
        prepare(llava, rows, padding_side=side, answers=True)  # type: ignore[arg-type]
        for rows in (batch, partners, swapped)
    )
    context = collect_statistics(plan, llava, data, directions=directions)
    runs = choose_runs(plan, clean, pair=pair, resampled=resampled)
    specs = plan.cells(llava)
    chosen = random.Random(str(plan)).sample(specs, min(3, len(specs)))
    cells = [corrupt_cell(llava, runs.inputs, context)] if plan.corruption.kind == "noise" else []
    cells += build_edits(chosen, llava, runs.inputs, batch, context)
    readout = torch.tensor([[lay.prompt_stop - 1, lay.real.stop - 2, -1] for lay in clean.layout])
    base = prepare_base(llava, runs.inputs, runs.other, readout=readout)
    found = {engine: run_cells(llava, base, cells, lambda x: x, engine=engine) for engine in ("full", "incremental")}
    return {**found, "base": base.logits, "cells": cells}


@pytest.mark.parametrize("grouped", [True, False])
def test_incremental_equals_full_for_every_operation_site_group_window_padding_and_batch_size(
    llava: Llava, llava_plain: Llava, grouped: bool
) -> None:
    model = llava if grouped else llava_plain
    deck = Deck(random.Random(int(grouped)))
    directions = {"direction": torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))}
    changed = total = 0
    rounds = {"patch": 26, "ablate": 26, "knockout": 12, "skip": 13, "steer": 10}
    for op, times in rounds.items():
        for _ in range(times):
            plan = random_plan(deck, model, op)  # type: ignore[arg-type]
            n, side = deck.draw("batch size", (1, 2, 3)), deck.draw("padding side", ("left", "right"))
            found = run_plan(model, plan, n, side, directions)
            for number, (got, wanted) in enumerate(zip(found["incremental"], found["full"], strict=True)):
                scale = float(wanted.abs().max())
                message = f"cell {number} of {plan}, {n} examples padded {side}"
                assert_close(got, wanted, rtol=0, atol=RELATIVE * scale, msg=_named(message))
                changed += float((wanted - found["base"]).abs().max()) > 100 * RELATIVE * scale
                total += 1
    assert changed > 0.5 * total, f"{changed} of {total} cells change anything"
    seen = {name: {card for kind, card in deck.seen if kind == name} for name, _ in deck.seen}
    assert seen["flow"] == set(FLOWS) and seen["pictured group"] == set(PICTURED)
    assert seen["group"] == set(LANGUAGE) and seen["window"] == {str(window) for window in WINDOWS}
    sites = {(s.part, s.name) for s in all_sites(model) if s.name != "pattern"}
    assert len(seen["site of patch"]) == len(seen["site of ablate"]) == len(sites)


@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_knockouts_agree_under_eager_and_sdpa_and_change_the_output(llava: Llava, engine: EngineName) -> None:
    """A boolean mask is added by eager attention as 0 and 1: no error, and next to no effect."""
    eager = load(tiny_config(grouped=True), seed=0, attn="eager", validate=False)
    examples = make_examples(3)
    plan = InterventionPlan("knockout", tokens=("image->last", "image->question"), window=3, heads="0+3", engine=engine)
    found = []
    for model in (llava, eager):
        inputs = prepare(model, examples, padding_side="left", answers=True)
        cells = build_edits(plan.cells(model), model, inputs, examples, DatasetStatistics(plan))
        readout = torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])
        base = prepare_base(model, inputs, readout=readout, engine=engine)
        found.append([base.logits, *run_cells(model, base, cells, lambda x: x, engine=engine)])
    scale = float(found[0][0].abs().max())
    for by_sdpa, by_eager in zip(*found, strict=True):
        assert_close(by_eager, by_sdpa, rtol=0, atol=RELATIVE * scale)
    for cell in found[1][1:]:
        assert float((cell - found[1][0]).abs().amax((1, 2)).min()) > 100 * RELATIVE * scale


@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_sites_may_be_named_in_any_order(llava: Llava, engine: EngineName) -> None:
    """Values are taken from the other run as it passes them, whatever order they were asked for in."""
    examples = make_examples(2)
    clean = prepare(llava, examples)
    pair = prepare(llava, [replace(e, pictures=(noise_picture(77 + i),)) for i, e in enumerate(examples)])
    names = ("vision:z", "resid_pre", "q", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_norm")
    by_order = []
    for sites in (names, names[::-1]):
        plan = InterventionPlan("patch", sites=sites, tokens=("image",), layers=None, engine=engine)
        specs = plan.cells(llava)
        runs = choose_runs(plan, clean, pair=pair)
        cells = build_edits(specs, llava, runs.inputs, examples, DatasetStatistics(plan))
        together = Cell(tuple(edit for cell in cells[:: 1 if sites == names else -1] for edit in cell.edits))
        base = prepare_base(llava, runs.inputs, runs.other, readout=_last(clean), engine=engine)
        found = run_cells(llava, base, [*cells, together], lambda x: x, engine=engine)
        by_order.append(dict(zip([*specs, "together"], found, strict=True)))
    assert by_order[0].keys() == by_order[1].keys()
    for key, value in by_order[0].items():
        assert_close(by_order[1][key], value, rtol=0, atol=1e-6, msg=_named(key))


def _named(what: object) -> Callable[[str], str]:
    """The message of a comparison that says what was compared."""
    return lambda message: f"{what}: {message}"


def _last(inputs: Inputs) -> Tensor:
    return torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])
