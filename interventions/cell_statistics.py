"""The tables of a run, from values by cell, metric and example: ``summarise_cells`` and ``list_values``."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interventions.batch_values import BatchValues
from interventions.metrics import recovered_fraction
from interventions.operations.attribution import attribution_gap
from interventions.plan.cells import KEYS, CellSpec
from interventions.plan.options import Metric
from records.resampling import adjust_p, bootstrap_means, bootstrap_ratios, sign_flip_p

COLUMNS = (
    "model", *KEYS, "part", "name", "metric", "value", "lower", "upper", "clean", "corrupt", "unchanged", "recovered",
    "recovered_lower", "recovered_upper", "n", "n_undefined", "p", "p_adjusted",
)  # fmt: skip
Values = Float[Tensor, "cell metric example"]
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
    """One row for each cell and metric, as ``docs/results.md`` describes it.

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
        interval = bootstrap_means(value, seed=seed)
        fraction = bootstrap_ratios(above, below if whole else np.zeros_like(above), seed=seed)
        moved = value - (of_clean if unchanged == "clean" else of_corrupt)
        # Rounding errors count as no effect, since their sign can be the same in every example.
        p = sign_flip_p(np.where(np.abs(moved) < undefined_below, 0.0, moved), seed=seed)
        parts.append(
            keys.assign(
                model=model, metric=metric, value=value.mean(1), lower=interval.lower, upper=interval.upper,
                clean=of_clean.mean(), corrupt=of_corrupt.mean(), unchanged=unchanged, recovered=recovered,
                recovered_lower=fraction.lower, recovered_upper=fraction.upper, n=value.shape[1],
                n_undefined=int((~defined).sum()), p=p, p_adjusted=adjust_p(p), cell=range(len(specs)),
            )
        )  # fmt: skip
    table = pd.concat(parts).sort_values("cell", kind="stable")
    table = table[list(COLUMNS)].astype({"layer": "Int64", "head": "str"}).reset_index(drop=True)
    # The column of heads stays text if there are none.
    return table.assign(head=table["head"].where(table["head"].notna() & (table["head"] != "None")))


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
