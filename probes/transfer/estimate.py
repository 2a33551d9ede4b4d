"""The time of a transfer sweep, estimated before it starts: fits as in a probe sweep, and scores of every cell."""

from collections.abc import Mapping
from dataclasses import replace

from probes.estimate import SCORE, fit_cost, fit_seconds
from probes.evaluation.folds import FoldPlan
from probes.evaluation.parallel import processes_for

FIGURES = 1.5  # seconds, measured on one CPU thread, 2026-11-30


def transfer_stages(
    plans: Mapping[str, FoldPlan], d: int, n_sites: int, *, second: float, probe: str, device: str, has_random: bool
) -> dict[str, float]:
    """Seconds by stage, named as in the manifest's ``timings``.

    Args:
        plans: Folds by token group.
        d: Width of the activations.
        n_sites: Number of layers; probes of each are read at all of them.
        second: Seconds of one floating-point operation of a product.
        probe: Kind of probe.
        device: Where probes are fitted.
        has_random: Whether a randomly initialised model is probed too.
    """
    fitting = 0.0
    for plan in plans.values():
        bare = plan.fitted_only()
        shared = max(1, processes_for(bare, d * (1 + n_sites), n_sites, device))
        for permutations in (plan.permutations, *([plan.permutations[:0]] if has_random else [])):
            cost = fit_cost(replace(bare, permutations=permutations), d, probe=probe, sets=1 + n_sites)
            fits = fit_seconds(cost._replace(scored=0.0), second=second, probe=probe)
            cells = (1 + n_sites) * (SCORE * cost.scored + 2.0 * len(bare.groups) * d * cost.rank * second)
            fitting += 2 * n_sites * (fits + cells) / shared
    return {"fitting probes": fitting, "figures": FIGURES}
