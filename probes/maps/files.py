"""The files of a run's patch maps, and reading them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from probes.config import RUN
from records.manifest import read_manifest
from tasks.checksums import check_whole, is_whole
from tasks.errors import UserError, user_errors
from tasks.readers.parse import parse_json

TABLE, ABOUT, PICTURES = "maps.parquet", "maps.json", "maps"
COLUMNS = ("target", "site", "part", "name", "layer", "depth", "example", "row", "col", "p_true", "predicted")


@dataclass(frozen=True)
class MapExample:
    """An example that has maps."""

    id: str
    """The ``example`` of the table's rows."""
    picture: Path
    """The picture that the model gets, a square PNG."""
    question: str
    """The user's words."""
    answer: str
    """The expected answer."""
    labels: Mapping[str, str]
    """The example's label by target."""
    boxes: Mapping[str, tuple[float, float, float, float]]
    """Named (left, top, right, bottom) as fractions of the square picture."""
    focus: str | None
    """The box that object-level labels describe."""
    classes: Mapping[str, tuple[str, ...]]
    """All labels by target."""


@dataclass(frozen=True)
class Maps:
    """The maps of a run."""

    table: pd.DataFrame
    """One row for each target, site, example and patch; ``docs/results.md`` describes the columns."""
    examples: tuple[MapExample, ...]
    """The examples in the order of the table."""


def has_maps(folder: Path) -> bool:
    """True if the table, the list and the pictures of a run's maps are there, as they were written."""
    files = (folder / TABLE, folder / ABOUT, *(folder / PICTURES).glob("*.png"))
    return all(is_whole(path) for path in files)


def read_maps(folder: Path) -> Maps | None:
    """The maps of a probe sweep; None if it has none.

    Raises:
        UserError: If the folder contains no run of ``probe-sweep``, or its maps are damaged.

    Example:
        >>> read_maps(Path("no_run"))
        Traceback (most recent call last):
        tasks.errors.UserError: run must be a folder that probe-sweep wrote, got 'no_run'. Check the path.
    """
    if read_manifest(folder, RUN) is None:
        raise UserError(f"run must be a folder that {RUN.command} wrote, got {str(folder)!r}. Check the path.")
    if not (folder / TABLE).is_file():
        return None
    for name in (TABLE, ABOUT):
        check_whole(folder / name, advice="Start the same probe-sweep again: the maps are made anew.")
    with user_errors(OSError, ValueError, KeyError, TypeError, AttributeError):
        table = pd.read_parquet(folder / TABLE)
        examples = [
            MapExample(
                id=entry["example"],
                picture=folder / PICTURES / f"{entry['k']}.png",
                question=entry["question"],
                answer=entry["answer"],
                labels=entry["labels"],
                boxes={name: tuple(box) for name, box in entry["boxes"].items()},
                focus=entry["focus"],
                classes={name: tuple(classes) for name, classes in entry["classes"].items()},
            )
            for entry in parse_json((folder / ABOUT).read_bytes())
        ]
    return Maps(table, tuple(examples))
