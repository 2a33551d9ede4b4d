"""The cells of one source layer as a file, so that a matrix that was interrupted goes on where it stopped.

``write_part(path, part)`` and ``read_part(path)``: the table is made from files alone, so that it is the same byte for
byte whether the run was interrupted or not.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.evaluation.scores import Spread
from records.manifest import commit
from tasks.checksums import is_whole

FOLDER = "parts"
_NULL = "shuffled_scores"  # "null" in earlier versions, in which numbers were not fitted again to shuffled labels
_SPREAD = "spread_"  # how a score varies over groups: the fields of `Spread`


class Part(NamedTuple):
    """The cells of a source layer."""

    rows: pd.DataFrame
    """One row for each target and layer that is read."""
    null: npt.NDArray[np.float64]
    """For each row the scores of shuffled labels."""
    spreads: list[Spread]
    """For each row how its score varies over groups."""


def part_path(folder: Path, source: str, tokens: str, site: str) -> Path:
    """The file of a source layer in a run directory."""
    return folder / FOLDER / f"{source}-{tokens}-{site}.parquet"


def write_part(path: Path, part: Part) -> None:
    """Write the cells of a source layer, atomically and with a checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spreads = {f"{_SPREAD}{name}": [getattr(one, name) for one in part.spreads] for name in Spread._fields}
    commit(path, part.rows.assign(**{_NULL: list(part.null)}, **spreads).to_parquet(index=False))


def read_part(path: Path, keys: list[dict[str, Any]]) -> Part | None:
    """The cells of a source layer; None if they are missing, damaged or of an earlier version.

    Args:
        path: The file.
        keys: Columns and values that the rows must have, in order.
    """
    if not is_whole(path):
        return None
    try:
        found = pd.read_parquet(path)
        null: npt.NDArray[np.float64] = np.stack(found.pop(_NULL).to_list()).astype(np.float64)
        columns = [found.pop(f"{_SPREAD}{name}").to_list() for name in Spread._fields]
    except (OSError, ValueError, KeyError):
        return None
    names = list(keys[0])
    same = set(names) <= set(found.columns) and found[names].to_dict("records") == keys
    spreads = [Spread(*fields) for fields in zip(*columns, strict=True)]
    return Part(found, null, spreads) if same else None
