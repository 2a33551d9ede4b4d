"""The time of a probe sweep by stage, estimated before it starts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.llava import Llava
from models.sites import Site
from probes.evaluation.cross_validation import RIDGE_STRENGTHS, STRENGTHS
from probes.evaluation.folds import FoldPlan, TargetPlan

# Measured on smol, 2026-11-30, two processes side by side; products are computed from the measured speed of one.
CAPTURE = 1.1  # time of a forward pass over that of its products
ITERATIONS = 60  # of the solver, for each problem and strength
ELEMENT = 6e-9  # seconds of an element of the logits in an iteration, besides the products
TARGET = 0.13  # seconds of a target at a site, however small: the steps of the solver in Python
SCORE = 6e-5  # seconds of an example in the scores of a target: intervals and 1,000 permutations
FIGURES = 9.0  # seconds
DOUBLE = 2.0  # time of a product in float64 over that in float32, on CPUs and accelerators of data centres
_SINGLE = 0.2  # time of a probe that is fitted in closed form, over that of a logistic one


class FitCost(NamedTuple):
    """The size of the fits at one site and token group."""

    basis: float
    """Floating-point operations of the rotation onto the principal axes."""
    numbers: float
    """Those of ridge regression of numbers and of their shuffles, in float64."""
    elements: float
    """Elements of the logits of all problems and strengths."""
    rank: int
    scored: float
    """Examples times targets."""
    targets: int


def forward_flops(llava: Llava, sites: Sequence[Site], *, positions: int, n_pictures: int) -> float:
    """Floating-point operations of a forward pass that ends after the last of ``sites``.

    Args:
        llava: The model; its weights may have no values.
        sites: What is captured.
        positions: Tokens of the prompt up to the last one that is captured.
        n_pictures: Pictures in the prompt.
    """

    def blocks_to_last(part: str, n_blocks: int) -> int:
        reached = [n_blocks if site.layer is None else site.layer + 1 for site in sites if site.part == part]
        return max(reached, default=0)

    in_blocks = sum(p.numel() for p in llava.blocks.parameters())
    in_tower = sum(p.numel() for p in llava.vision_blocks.parameters())
    share = blocks_to_last("language_model", llava.n_layers) / llava.n_layers
    whole_tower = any(site.part != "vision_tower" for site in sites)
    of_tower = 1.0 if whole_tower else blocks_to_last("vision_tower", llava.n_vision_layers) / llava.n_vision_layers
    patches = n_pictures * llava.grid[0] * llava.grid[1]
    return 2.0 * (positions * share * in_blocks + patches * of_tower * in_tower)


def fit_cost(plan: FoldPlan, d: int, *, probe: str = "logistic", maps: bool = False, sets: int = 1) -> FitCost:
    """The fits of all targets of a plan on activations of width ``d``.

    Args:
        plan: Its folds, controls and permutations.
        d: Width.
        probe: Kind of probe.
        maps: The fits are those of the patch maps.
        sets: Sets of activations that each probe is read on.
    """
    n, rank = len(plan.groups), min(int(plan.fitted.sum()), d)
    inner = outer = 0
    numbers = 0.0
    for target in plan.targets.values():
        if target.kind == "continuous" and (maps or probe != "mlp"):
            numbers += 0.0 if maps else _number_flops(plan, target, rank, sets)
            continue
        rows = len(target.classes) if len(target.classes) > 2 else 1  # two classes share one row
        inner += rows * (plan.folds if maps else len(target.inner)) * len(STRENGTHS)
        outer += rows * (1 if maps else plan.folds * (1 + len(target.controls)))
    basis = 4.0 * n * d * rank + 20.0 * rank**3
    scored = 0.0 if maps else float(n) * len(plan.targets)
    return FitCost(basis, numbers, float(n) * (inner + outer), rank, scored, len(plan.targets))


def _number_flops(plan: FoldPlan, target: TargetPlan, rank: int, sets: int) -> float:
    """Operations of ridge regression on the labels of a number, and of its permutation test."""
    draws, fitted = len(plan.permutations), int(plan.fitted.sum())
    fold, factors = fitted // plan.folds, len(RIDGE_STRENGTHS)
    inner = [(int(s.train.sum()), sum(int(judge.sum()) for _, judge in s.judges)) for s in target.inner]
    outer = [(fitted - fold, fold * sets, 1)] * plan.folds
    total = 0.0
    for train, judged, solved in [*((*sizes, factors) for sizes in inner), *outer]:
        axes = min(train, rank)
        gram, factor = 2.0 * train * rank * axes, axes**3 / 3
        total += gram + solved * factor
        if draws:
            read = min(judged * axes * (rank * (axes < rank) + solved * draws), solved * draws * rank * (axes + judged))
            of_labels = draws * train * axes * (axes == rank)
            total += gram + factors * factor + 2.0 * (of_labels + solved * draws * axes**2 + read)
    return total


def fit_seconds(cost: FitCost, *, second: float, probe: str) -> float:
    """Seconds of the fits at one site; ``second`` is the time of one floating-point operation of a product."""
    share = 1.0 if probe == "logistic" else _SINGLE
    solved = ITERATIONS * cost.elements * (4 * cost.rank * second + ELEMENT)
    products = cost.basis + DOUBLE * cost.numbers
    return products * second + share * solved + SCORE * cost.scored + TARGET * cost.targets


def sweep_stages(
    plans: Mapping[str, FoldPlan],
    widths: list[int],
    *,
    capture: float,
    control: float,
    maps: float,
    second: float,
    probe: str,
    processes: int,
    has_control: bool,
    load: float,
) -> dict[str, float]:
    """Seconds by stage, named as in the manifest's ``timings``.

    Args:
        plans: Folds by token group.
        widths: Width of each site.
        capture: Operations of the captures of the model.
        control: Those of the randomly initialised model.
        maps: Those of the captures for maps; 0 without maps.
        second: Seconds of one operation.
        probe: Kind of probe.
        processes: Processes that share the sites.
        has_control: Whether the randomly initialised model is probed too.
        load: Seconds to load the model.
    """
    fits = mapping = 0.0
    for plan in plans.values():
        for d in widths:
            fits += fit_seconds(fit_cost(plan, d, probe=probe), second=second, probe=probe)
            if has_control:
                fits += fit_seconds(fit_cost(plan.fitted_only(), d, probe=probe), second=second, probe=probe)
            if maps:
                mapping += fit_seconds(fit_cost(plan, d, maps=True), second=second, probe=probe)
    shared = max(1, processes)
    return {
        "load": load,
        "capturing": CAPTURE * capture * second,
        "mapping patches": (mapping / shared + CAPTURE * maps * second) if maps else 0.0,
        "capturing the random model": CAPTURE * control * second,
        "fitting probes": fits / shared,
        "figures": FIGURES,
    }
