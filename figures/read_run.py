"""Read the tables, pictures and maps of a run directory, and find out which command wrote it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Picture = npt.NDArray[np.uint8]  # ``H W 3``
PROBE, PATCH, COMPARE, TUNE = "probe-sweep", "patch-sweep", "layerwise-finetune compare", "layerwise-finetune"
INFERENCE = "inference-cost"
LENS = "lens-sweep"
GALLERY = Path(__file__).parent / "gallery"
# command -> columns that its figures need
_COLUMNS = {
    PROBE: ("model", "part", "layer", "name", "depth", "tokens", "target", "metric", "split", "score", "lower", "upper",
            "control", "chance", "random_init", "n"),
    PATCH: ("model", "op", "part", "name", "layer", "window", "tokens", "head", "metric", "value", "lower", "upper",
            "clean", "corrupt", "unchanged", "recovered", "n", "p_adjusted"),
    COMPARE: ("plan", "layers", "train", "method", "flops_ratio", "step_time_ratio", "condition", "family", "metric",
              "score", "score_lower", "score_upper", "retention", "lower", "upper", "n"),
    INFERENCE: ("model", "plan", "split", "prefill_ratio", "accuracy", "kept", "kept_lower", "kept_upper", "n",
                "interval"),
    LENS: ("model", "lens", "part", "site", "layer", "name", "place", "words", "metric", "split", "score", "lower",
           "upper", "n", "n_groups"),
    TUNE: ("step", "set", "family", "metric", "score", "lower", "upper", "n"),
}  # fmt: skip
# without these, pandas reads empty text and layers as floats
_TYPES: dict[Any, Any] = {"layer": "Int64"} | dict.fromkeys(
    ("window", "tokens", "head", "layers", "train", "family", "run"), str
)
MAPS, EXAMPLES, PICTURES = "maps.parquet", "maps.json", "maps"


class RunError(ValueError):
    """The folder is not a finished run of this project."""


class FigurePaths(NamedTuple):
    """The files of a saved figure."""

    png: Path
    svg: Path


class SavedMaps(NamedTuple):
    """The maps of a probe sweep over the patches of pictures; ``table`` is ``maps.parquet``."""

    table: pd.DataFrame
    examples: list[dict[str, Any]]
    """``maps.json``: number ``k``, id, question, labels, boxes and classes of each example."""
    pictures: Path
    """The folder of the pictures ``<k>.png``."""

    def picture(self, example: Mapping[str, Any]) -> Path:
        """The picture of one of ``examples``."""
        return self.pictures / f"{example['k']}.png"


def kind_of_run(folder: Path) -> str:
    """The command that wrote the folder, by its manifest or, if it has none, its tables; ``RunError`` if unknown."""
    if not folder.is_dir():
        raise RunError(f"RUN must be a folder, got {str(folder)!r}. Give what a command wrote with --out.")
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            kind = json.loads(manifest.read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"manifest.json must be readable JSON, got {str(manifest)!r} ({error}).") from error
        command = str(kind).removeprefix("laccolith ")
        if command in _COLUMNS:
            return command
        raise RunError(
            f"RUN must be a run of {PROBE}, {PATCH} or {TUNE}, got one of {kind!r} in {str(folder)!r}. "
            "Such runs have no figures."
        )
    if (folder / "compare.csv").is_file():
        return COMPARE
    for table in (folder / "results.parquet", folder / "results.csv"):
        if table.is_file():
            columns = set(read_saved(table).columns)
            for kind in (PATCH, PROBE, INFERENCE, LENS):
                if columns >= set(_COLUMNS[kind]):
                    return kind
    raise RunError(
        f"RUN must contain a manifest.json or a table of a run, got neither in {str(folder)!r}. "
        f"Give what {PROBE}, {PATCH} or {TUNE} wrote with --out."
    )


def read_run(folder: Path, kind: str) -> pd.DataFrame:
    """The main table of a finished run; ``RunError`` if it is missing or lacks rows or columns."""
    names = ["compare.csv"] if kind == COMPARE else ["results.parquet", "results.csv"]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise RunError(
            f"RUN must be finished, got a {kind} run without {names[0]} in {str(folder)!r}. Start it again to resume."
        )
    return read_table(path, kind)


def read_table(path: Path, kind: str) -> pd.DataFrame:
    """A table that the command ``kind`` wrote; ``RunError`` if it lacks rows or columns that the figures need."""
    table = read_saved(path)
    missing = [column for column in _COLUMNS[kind] if column not in table]
    if missing or table.empty:
        lacking = f"no {', '.join(missing)}" if missing else "no rows"
        raise RunError(f"{path.name} must be the table of a {kind} run, got {lacking} in {str(path)!r}. Run it again.")
    return table


def read_saved(path: Path) -> pd.DataFrame:
    """Read a table from Parquet or CSV; the types are the same. ``RunError`` if it cannot be read."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        header = pd.read_csv(path, nrows=0).columns
        kinds = {name: kind for name, kind in _TYPES.items() if name in header}
        return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])  # a group may be called "None"
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise RunError(f"{path.name} must be a readable table, got {str(path)!r} ({error}). Run it again.") from error


def read_maps(folder: Path) -> SavedMaps | None:
    """The maps of a probe sweep; None if it wrote none.

    Raises ``RunError`` if the files cannot be read, or name pictures outside the run.
    """
    if not all((folder / name).is_file() for name in (MAPS, EXAMPLES)):
        return None
    try:
        examples = json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{EXAMPLES} must be readable JSON, got {str(folder / EXAMPLES)!r} ({error}).") from error
    saved = SavedMaps(read_saved(folder / MAPS), examples, folder / PICTURES)
    if not isinstance(examples, list) or not all(isinstance(entry, dict) and "example" in entry for entry in examples):
        raise RunError(f"{EXAMPLES} must be a list of examples, got another value in {str(folder)!r}. Run it again.")
    for entry in examples:
        inside = saved.picture(entry).resolve().is_relative_to(folder.resolve()) if "k" in entry else False
        if type(entry.get("k")) is not int or not inside:
            raise RunError(f"k must be the number of a picture of the run, got {entry.get('k')!r}. Run it again.")
    return saved if examples and not saved.table.empty else None


def read_picture(path: Path) -> Picture | None:
    """An image file as ``H W 3``, 8 bits; None if there is no such file."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def example_table(name: str) -> pd.DataFrame:
    """A gallery table, measured on ``smol``, for use in examples.

    Example:
        >>> from figures import example_table
        >>> example_table("knockout_smol")["op"].unique().tolist()
        ['knockout']
    """
    return read_saved(GALLERY / f"{name}.csv")
