"""The cells of one source layer as a file, so that a matrix that was interrupted goes on where it stopped.

``write_part(path, part)`` and ``read_part(path)``: the table is made from files alone, so that it is the same byte for
byte whether the run was interrupted or not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from records.manifest import commit
from tasks.checksums import is_whole

FOLDER = "parts"
_NULL = "null"  # the scores of shuffled labels


def part_path(folder: Path, source: str, tokens: str, site: str) -> Path:
    """The file of a source layer in a run directory."""
    return folder / FOLDER / f"{source}-{tokens}-{site}.parquet"


def write_part(path: Path, part: pd.DataFrame, null: npt.NDArray[np.float64]) -> None:
    """Write the cells of a source layer, atomically and with a checksum.

    Args:
        path: The file.
        part: One row for each target and layer that is read.
        null: For each row the scores of shuffled labels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    commit(path, part.assign(**{_NULL: list(null)}).to_parquet(index=False))


def read_part(path: Path, keys: list[dict[str, Any]]) -> tuple[pd.DataFrame, npt.NDArray[np.float64]] | None:
    """The cells of a source layer and their scores of shuffled labels; None if they are missing or damaged.

    Args:
        path: The file.
        keys: Columns and values that the rows must have, in order.
    """
    if not is_whole(path):
        return None
    try:
        found = pd.read_parquet(path)
        null: npt.NDArray[np.float64] = np.stack(found.pop(_NULL).to_list()).astype(np.float64)
    except (OSError, ValueError, KeyError):
        return None
    names = list(keys[0])
    same = set(names) <= set(found.columns) and found[names].to_dict("records") == keys
    return (found, null) if same else None
