"""The tables of a run, from values by cell, metric and example: ``summarise_cells`` and ``list_values``."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from figures.findings.largest_effects import grouped_tokens
from interventions.batch_values import BatchValues
from interventions.metrics import recovered_fraction
from interventions.operations.attribution import attribution_gap
from interventions.plan.cells import KEYS, CellSpec
from interventions.plan.options import Metric
from records.intervals import Intervals, mean_intervals, quantile, ratio_intervals, share_intervals
from records.named import NamedInterval, named_interval, named_share
from records.resampling import (
    NAMED_BELOW,
    NORMAL,
    Best,
    SignFlips,
    adjust_p,
    select_best,
    share_needed,
    sign_flip_tests,
)

COLUMNS = (
    "model", *KEYS, "part", "name", "metric", "value", "lower", "upper", "interval", "clean", "corrupt", "unchanged",
    "recovered", "recovered_lower", "recovered_upper", "n", "n_undefined", "p", "p_adjusted", "p_max", "best_share",
    "best_recovered", "best_lower", "best_upper",
)  # fmt: skip
INTERVAL = "95% t over pairs, corrected for skewness; recovered: Fieller over pairs"
SHARE_INTERVAL = "95% Wilson over pairs"
_LUCK = 1.01  # times as long as usual: a lower arm that allows for luck
_RANGE: dict[Metric, tuple[float, float]] = {"probability": (0.0, 1.0), "kl": (0.0, np.inf), "cider": (0.0, 10.0)}
Values = Float[Tensor, "cell metric example"]
Array = npt.NDArray[np.float64]
Cells = Float[Array, "cell example"]
Levels = Float[Tensor, "metric example"]


def summarise_cells(
    specs: Sequence[CellSpec],
    metrics: Sequence[Metric],
    values: Values,
    clean: Levels,
    corrupt: Levels,
    *,
    model: str,
    unchanged: str,
    undefined_below: float,
    seed: int,
) -> pd.DataFrame:
    """One row for each cell and metric; ``docs/results.md`` describes the columns.

    The recovered fraction of a cell is the ratio of sums over examples, sum(value - corrupt) / sum(clean - corrupt). A
    mean of fractions would be dominated by the few examples whose clean and corrupt run hardly differ. ``unchanged``
    names the run that cells change, with which p compares; ``seed`` is that of resampling and permutation.
    """
    parts = []
    keys = pd.DataFrame([{**spec.row(), "part": spec.part, "name": spec.name} for spec in specs])
    for number, metric in enumerate(metrics):
        value = values[:, number].double().numpy()
        of_clean, of_corrupt = clean[number].double().numpy(), corrupt[number].double().numpy()
        between = of_clean - of_corrupt
        defined = np.abs(between) >= undefined_below
        above = np.where(defined, value - of_corrupt, 0.0)
        below = np.broadcast_to(np.where(defined, between, 0.0), value.shape)
        # The sums can cancel if some examples have clean above corrupt and others below.
        whole = abs(below[0].sum()) >= undefined_below * max(1, int(defined.sum()))
        recovered = above.sum(1) / below[0].sum() if whole else np.full(len(specs), np.nan)
        is_share = metric == "accuracy"
        interval = share_intervals(value, np.ones_like(value)) if is_share else mean_intervals(value)
        interval = interval.within(*_RANGE.get(metric, (-np.inf, np.inf)))
        one_way = bool((below >= 0).all() or (below <= 0).all())
        fraction = _fractions(above, below if whole else np.zeros_like(above), is_share=is_share)
        moved = value - (of_clean if unchanged == "clean" else of_corrupt)
        # Rounding errors count as no effect, since their sign can be the same in every example.
        moved = np.where(np.abs(moved) < undefined_below, 0.0, moved)
        residuals = above - np.nan_to_num(recovered)[:, None] * below
        tested = _tested_columns(
            keys,
            recovered,
            fraction,
            residuals,
            (moved, below),
            is_lost=unchanged == "clean",
            is_share=is_share and one_way,
            seed=seed,
        )
        parts.append(
            keys.assign(
                model=model, metric=metric, value=value.mean(1), lower=interval.lower, upper=interval.upper,
                interval=SHARE_INTERVAL if is_share else INTERVAL, clean=of_clean.mean(), corrupt=of_corrupt.mean(),
                unchanged=unchanged, recovered=recovered, recovered_lower=fraction.lower,
                recovered_upper=fraction.upper, n=value.shape[1], n_undefined=int((~defined).sum()),
                cell=range(len(specs)), **tested,
            )
        )  # fmt: skip
    table = pd.concat(parts).sort_values("cell", kind="stable")
    table = table[list(COLUMNS)].astype({"layer": "Int64", "head": "str"}).reset_index(drop=True)
    # The column of heads stays text if there are none.
    return table.assign(head=table["head"].where(table["head"].notna() & (table["head"] != "None")))


def _fractions(above: Cells, below: Cells, *, is_share: bool) -> Intervals:
    """Intervals of the recovered fraction. If it is a share of pairs, each pair is recovered or not."""
    if not is_share:
        return ratio_intervals(above, below)
    if (below >= 0).all() or (below <= 0).all():
        return share_intervals(np.abs(above), np.abs(below))
    # Clean is right in some pairs, corrupt in others. Two recovered pairs and two that are not are added, as Agresti
    # and Coull do for a share, so that pairs that agree are not taken to agree with certainty.
    sign = np.sign(below.sum(1, keepdims=True))
    added = np.tile([1.0, 1.0, 0.0, 0.0], (len(above), 1)) * sign, np.tile(sign, (1, 4))
    found = ratio_intervals(np.concatenate([above, added[0]], 1), np.concatenate([below, added[1]], 1))
    seen = above.sum(1) / below.sum(1)
    return Intervals(np.minimum(found.lower, seen), np.maximum(found.upper, seen))


def _tested_columns(
    keys: pd.DataFrame,
    recovered: Array,
    interval: Intervals,
    residuals: Cells,
    changes: tuple[Cells, Cells],
    *,
    is_lost: bool,
    is_share: bool,
    seed: int,
) -> dict[str, Array]:
    """p-values, and columns about the cell with the largest effect of each activation and token group.

    Single patches are one group. ``best_share`` is the share of bootstrap draws in which a cell is the best;
    ``best_recovered`` with its interval is the best cell's recovered fraction, corrected for the choice of the cell
    and, if its ``p_max`` is below 0.05, for being named only then. It is NaN for other cells.

    Args:
        keys: What the cells are.
        recovered: Recovered fractions.
        interval: Their intervals.
        residuals: What each pair adds to a fraction.
        changes: By pair, what the metric changes, and the difference between the clean and the corrupt run.
        is_lost: Whether the effect is the lost fraction.
        is_share: Whether the fraction is a share of pairs, from 0 to 1.
        seed: Of draws and signs.
    """
    names = ("best_share", "best_recovered", "best_lower", "best_upper")
    found = {name: np.full(len(keys), np.nan) for name in names}
    effect, ends = (1 - recovered, (1 - interval.upper, 1 - interval.lower)) if is_lost else (recovered, interval)
    z = float(quantile(residuals.shape[1] - 1 or 1))
    error = (ends[1] - ends[0]) / 2 / z
    error = np.where(np.abs(residuals).max(1, initial=0.0) < 1e-12, 0.0, error)  # every pair has the same fraction
    known = np.isfinite(effect) & np.isfinite(error)
    sign = np.sign(effect) + (effect == 0)
    groups = pd.Series(np.arange(len(keys))).groupby([keys["part"], keys["name"], grouped_tokens(keys)], dropna=False)
    chosen: dict[int, Best] = {}
    for _, group in groups:
        cells = group.to_numpy()[known[group.to_numpy()]]
        if len(cells):
            away = residuals[cells] * sign[cells, None] * (-1.0 if is_lost else 1.0)
            best = select_best(np.abs(effect[cells]), error[cells], away, seed=seed)
            found["best_share"][cells] = best.shares
            chosen[int(cells[best.place])] = best
    tests = sign_flip_tests(changes[0], seed=seed, kept=chosen)
    for cell, best in chosen.items():
        up, size = sign[cell], abs(effect[cell])
        near, far = sorted(up * end[cell] for end in ends)
        middle, near = size - best.optimism * error[cell], size - (size - near) * best.highest / NORMAL
        if tests.p_max[cell] < NAMED_BELOW and size > 0:
            moved, below = (change[cell] for change in changes)
            if is_share:
                low, half, high = _named_share(tests, cell, size, moved, below)
                middle, near, far = min(middle, half), min(near, low), min(far, high)
            elif error[cell] > 0:
                low, half, high = (end * error[cell] for end in _named(tests, cell, size / error[cell], moved, below))
                usual = z * error[cell]
                arm = (far - size) / usual  # Fieller's is not as long on both sides
                far = size + arm * (high - size) if high > size else high
                middle, near = min(middle, half), min(near, low) if size - low > _LUCK * usual else near
        middle = max(middle, near)
        values = np.array([up * middle, *sorted((up * near, up * max(far, middle)))])
        if is_share:
            values = values.clip(0, 1)
        for name, value in zip(names[1:], (1 - values)[[0, 2, 1]] if is_lost else values, strict=True):
            found[name][cell] = value
    return {"p": tests.p, "p_adjusted": adjust_p(tests.p), "p_max": tests.p_max, **found}


def _named(
    tests: SignFlips, cell: int, seen: float, moved: Float[Array, " example"], below: Float[Array, " example"]
) -> NamedInterval:
    """The interval of the effect of a cell that is named, in its standard errors; ``seen`` is the effect in these."""
    effect = moved.sum() / below.sum() * below
    share = share_needed(tests, cell, lambda share: moved - (1 - share) * effect)
    return named_interval(float(seen), share * float(seen), len(moved) - 1)


def _named_share(
    tests: SignFlips, cell: int, size: float, moved: Float[Array, " example"], below: Float[Array, " example"]
) -> NamedInterval:
    """The interval of the share of pairs of a cell that is named, fewer of which would be named too.

    Pairs whose clean and corrupt run agree but that change are part of the test, not of the share; they are kept.
    """
    n = int((below != 0).sum())
    count = round(float(size) * n)
    changed = np.flatnonzero((below != 0) & (moved != 0))

    def fewer(share: float) -> Float[Array, " example"]:
        left = moved.copy()
        left[changed[round(share * len(changed)) :]] = 0
        return left

    return named_share(count, max(1, round(share_needed(tests, cell, fewer) * count)), n)


def list_values(
    specs: Sequence[CellSpec],
    metrics: Sequence[Metric],
    values: Values,
    clean: Levels,
    corrupt: Levels,
    *,
    ids: Sequence[str],
    undefined_below: float,
) -> pd.DataFrame:
    """One row for each cell, metric and example: value, clean, corrupt and recovered fraction, NaN if undefined.

    Arguments as for ``summarise_cells``; ``ids`` are those of the pairs.
    """
    n_cells, n_metrics, n = values.shape
    recovered = recovered_fraction(values, clean, corrupt, undefined_below=undefined_below)
    # Categories, because there can be millions of rows.
    cells = pd.DataFrame({key: _category([spec.row()[key] for spec in specs]) for key in KEYS})
    cells["layer"] = pd.array([spec.layer for spec in specs], dtype="Int64")
    return (
        cells.iloc[np.arange(n_cells).repeat(n_metrics * n)]
        .reset_index(drop=True)
        .assign(
            metric=_category(metrics)[np.tile(np.arange(n_metrics).repeat(n), n_cells)],
            id=_category(ids)[np.tile(np.arange(n), n_cells * n_metrics)],
            value=values.flatten().numpy(),
            clean=clean.expand_as(values).flatten().numpy(),
            corrupt=corrupt.expand_as(values).flatten().numpy(),
            recovered=recovered.flatten().numpy(),
        )
    )


def _category(names: Sequence[object]) -> pd.Categorical:
    """The names as categories in the order of their first occurrence."""
    known = list(dict.fromkeys(name for name in names if name is not None))
    codes = [-1 if name is None else known.index(name) for name in names]
    return pd.Categorical.from_codes(codes, categories=pd.Index(known, dtype="str"))


def list_errors(metrics: Sequence[Metric], batch: BatchValues, unchanged: str) -> pd.DataFrame:
    """One row for each metric: the error of attribution over the cells and examples of a batch with ``exact``."""
    assert batch.exact is not None
    base = batch.clean if unchanged == "clean" else batch.corrupt
    rows = []
    for number, metric in enumerate(metrics):
        found = attribution_gap(batch.values[:, number], batch.exact[:, number], base[number])
        rows.append({"metric": metric, **found._asdict()})
    return pd.DataFrame(rows)


def first_bad(values: Tensor, metrics: Sequence[Metric], ids: Sequence[str]) -> str | None:
    """Metric and example of the first value that is not finite, for a message; None if all are finite."""
    bad = (~torch.isfinite(values)).nonzero()
    if not len(bad):
        return None
    metric, example = (int(index) for index in bad[0][-2:])
    return f"{metrics[metric]} of {ids[example]!r}"
