"""Which layer of a lens names the object most often, and whether any layer names it at all.

A layer counts only if the object's words are found in its box more often than those of every control, corrected for the
choice among all layers. Without a control nothing is shown.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float

from records.intervals import quantile, share_intervals, share_sizes, shifted_share
from records.resampling import NORMAL, select_best, sign_flip_tests

CONTROLS = ("other", "frequency", "random_init")
COLUMNS = ("p_max", "best_share", "best_score", "best_lower", "best_upper")
Array = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """What a lens finds at some layers, as sums over the patches in the box of each group."""

    hits: Float[Array, "layer group"]
    """Patches at which the object's words are found."""
    patches: Float[Array, "layer group"]
    """Patches."""
    controls: Mapping[str, Float[Array, "layer group"]]
    """Patches at which a control's words are found."""


def best_layer(curve: Curve, *, seed: int) -> pd.DataFrame:
    """One row for each layer: ``p_max, best_share, best_score, best_lower, best_upper``.

    ``p_max`` is that of the difference from the control it is least different from: object and control change places in
    random groups, in all layers together (`sign_flip_tests`). It is 1 for a layer below a control, and NaN without
    controls. ``best_share`` is the share of bootstrap draws in which the layer has the highest score; the last three
    are the best layer's score with its 95 % interval, corrected for the choice, and NaN for other layers.

    Args:
        curve: In the order of the forward pass.
        seed: Of signs and draws.

    Example:
        >>> hits = np.array([[0.0] * 20, [3.0] * 15 + [1.0] * 5])
        >>> found = best_layer(Curve(hits, np.full((2, 20), 4.0), {"other": 0 * hits}), seed=0)
        >>> (found["p_max"] < 0.05).tolist(), found["best_share"].tolist()
        ([False, True], [0.0, 1.0])
    """
    found = pd.DataFrame(np.nan, index=range(len(curve.hits)), columns=list(COLUMNS))
    asked = (curve.patches > 0).all(0)
    hits, patches = curve.hits[:, asked], curve.patches[:, asked]
    if hits.shape[1] < 2:
        return found
    against = []
    for control in curve.controls.values():
        apart = hits - control[:, asked]
        against.append(np.where(apart.sum(1) > 0, sign_flip_tests(apart, seed=seed).p_max, 1.0))
    if against:
        found["p_max"] = np.max(against, axis=0)
    share, size, degrees = share_sizes(hits, patches)
    ends, z = share_intervals(hits, patches), quantile(degrees)
    best = select_best(share, (ends.upper - ends.lower) / 2 / z, hits - share[:, None] * patches, seed=seed)
    at, wider = best.place, best.highest * float(z[best.place]) / NORMAL
    shifts = max(best.optimism, 0.0), wider  # draws can leave an optimism just below 0
    lowered = (float(shifted_share(share[at], size[at], shift)) for shift in shifts)
    found["best_share"] = best.shares
    found.loc[at, ["best_score", "best_lower", "best_upper"]] = (*lowered, float(ends.upper[at]))
    return found


def read_curve(rows: pd.DataFrame, metric: str, sites: Sequence[str]) -> Curve:
    """The curve of one lens and split from sums over patches.

    Args:
        rows: ``site, words, group, patches`` and the metric, of the patches in the box.
        metric: Column of the hits.
        sites: The layers, in order.
    """

    def table(words: str, column: str) -> pd.DataFrame:
        own = rows[rows["words"] == words]
        return own.pivot_table(index="site", columns="group", values=column, aggfunc="sum").reindex(list(sites))

    patches = table("object", "patches")

    def values(words: str, column: str) -> Array:
        found = table(words, column).reindex(columns=patches.columns)
        return found.to_numpy(dtype=float)

    controls = {words: values(words, metric) for words in CONTROLS if (rows["words"] == words).any()}
    controls = {words: found for words, found in controls.items() if not np.isnan(found).any()}
    return Curve(values("object", metric), patches.to_numpy(dtype=float), controls)
