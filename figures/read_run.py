"""Read the tables, pictures and maps of a run directory, and find out which command wrote it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.checksums import check_whole, read_whole
from tasks.errors import UserError, one_line, user_errors
from tasks.files import is_file, is_folder, real_path
from tasks.pictures import open_picture
from tasks.readers.parse import parse_json

Picture = npt.NDArray[np.uint8]  # ``H W 3``
PROBE, PATCH, COMPARE, TUNE = "probe-sweep", "patch-sweep", "layerwise-finetune compare", "layerwise-finetune"
INFERENCE = "inference-cost"
GEOMETRY = "geometry-sweep"
TRANSFER = "transfer-sweep"
BENCHMARKS = "benchmark-eval"
LENS = "lens-sweep"
# commands whose table alone is shown, without figures
LISTED = ("capture-activations", "generate-instructions", "layerwise-finetune mix", "lens-sweep train")
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
    GEOMETRY: ("comparison", "kind", "model_a", "model_b", "condition_a", "tokens_a", "condition_b", "tokens_b",
               "layer_a", "layer_b", "side", "measure", "rank", "chosen", "target", "value", "lower", "upper",
               "control", "random_init", "n"),
    TRANSFER: ("model", "direction", "target", "source_layer", "read_layer", "metric", "score", "lower", "upper",
               "chance", "shuffled", "n", "p_max"),
    BENCHMARKS: ("model", "benchmark", "metric", "part", "rule", "score", "lower", "upper", "n"),
    LENS: ("model", "lens", "part", "site", "layer", "name", "place", "words", "metric", "split", "score", "lower",
           "upper", "n", "n_groups"),
    TUNE: ("step", "set", "family", "metric", "score", "lower", "upper", "n"),
}  # fmt: skip
KINDS = (*_COLUMNS, *LISTED)  # the commands whose runs are read
# without these, pandas reads empty text and layers as floats
_TYPES: dict[Any, Any] = {"layer": "Int64"} | dict.fromkeys(
    ("window", "tokens", "head", "layers", "train", "family", "run", "rank"), str
)
MAPS, EXAMPLES, PICTURES = "maps.parquet", "maps.json", "maps"


_AGAIN = "Start the same command again: it is made anew."
# What a table or list that a run did not write as it is makes the code of a figure raise.
_UNREADABLE = (OSError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class RunError(UserError):
    """The folder is not a finished run of this project."""


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Re-raise what the files of a damaged run cause as ``RunError``."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise RunError(one_line(error)) from error
    except _UNREADABLE as error:
        raise RunError(
            f"RUN must hold what its command wrote, got {type(error).__name__}: {one_line(error)} in {str(folder)!r}. "
            f"{_AGAIN}"
        ) from error


def read_json(path: Path, *, checked: bool = True) -> Any:
    """The value of a JSON file of a run; ``RunError`` if it cannot be read or, where ``checked``, has changed."""
    try:
        return parse_json(read_whole(path, advice=_AGAIN) if checked else path.read_bytes())
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{path.name} must be readable JSON, got {str(path)!r} ({one_line(error)}).") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run; empty if it has none. ``RunError`` if it is damaged."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    manifest = read_json(path, checked=False)  # a run compares it with the settings instead
    if not isinstance(manifest, dict):
        raise RunError(f"{path.name} must be readable JSON, got {str(path)!r} (no mapping).")
    return manifest


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
    """The command that wrote the folder, by its manifest or, if it has none, its tables; ``RunError`` if unknown.

    The runs of ``LISTED`` have a table and no figures.
    """
    if not is_folder(folder):
        raise RunError(f"RUN must be a folder, got {str(folder)!r}. Give what a command wrote with --out.")
    if (folder / "manifest.json").is_file():
        kind = read_manifest(folder).get("kind")
        command = str(kind).removeprefix("laccolith ")
        if command in KINDS:
            return command
        raise RunError(
            f"RUN must be a run of one of laccolith's commands, got one of {kind!r} in {str(folder)!r}. "
            "Give what a command wrote with --out."
        )
    if (folder / "compare.csv").is_file():
        return COMPARE
    for table in (folder / "results.parquet", folder / "results.csv"):
        if table.is_file():
            columns = set(read_saved(table).columns)
            for kind in (PATCH, PROBE, INFERENCE, GEOMETRY, TRANSFER, LENS):
                if columns >= set(_COLUMNS[kind]):
                    return kind
    raise RunError(
        f"RUN must contain a manifest.json or a table of a run, got neither in {str(folder)!r}. "
        "Give what a command wrote with --out."
    )


def read_run(folder: Path, kind: str) -> pd.DataFrame:
    """The main table of a finished run; ``RunError`` if it is missing or lacks rows or columns."""
    names = ["compare.csv"] if kind == COMPARE else ["results.parquet", "results.csv"]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None or read_manifest(folder).get("finished", True) is None:  # earlier manifests lack the entry
        raise RunError(
            f"RUN must be finished, got a {kind} run without {names[0]} in {str(folder)!r}. Start it again to resume."
        )
    return read_table(path, kind)


def read_table(path: Path, kind: str) -> pd.DataFrame:
    """A table that the command ``kind`` wrote; ``RunError`` if it lacks rows or columns that the figures need."""
    table = read_saved(path)
    missing = [column for column in _COLUMNS.get(kind, ()) if column not in table]
    if missing or table.empty:
        lacking = f"no {', '.join(missing)}" if missing else "no rows"
        raise RunError(f"{path.name} must be the table of a {kind} run, got {lacking} in {str(path)!r}. Run it again.")
    return table


def read_saved(path: Path) -> pd.DataFrame:
    """Read a table from Parquet or CSV; the types are the same. ``RunError`` if it cannot be read."""
    check_whole(path, advice=_AGAIN)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        header = pd.read_csv(path, nrows=0).columns
        kinds = {name: kind for name, kind in _TYPES.items() if name in header}
        return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])  # a group may be called "None"
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise RunError(f"{path.name} must be a readable table, got {str(path)!r} ({error}). Run it again.") from error


def _of_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _of_lists(value: object, length: int | None, kind: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, list) and length in (None, len(item)) and all(isinstance(one, kind) for one in item)
        for item in value.values()
    )


# Entry of an example in maps.json -> True if the value is one.
_ENTRY: dict[str, Callable[[Any], bool]] = {
    "labels": _of_texts,
    "classes": lambda value: _of_lists(value, None, str),
    "boxes": lambda value: _of_lists(value, 4, int | float),
    "focus": lambda value: value is None or isinstance(value, str),
}


def read_maps(folder: Path) -> SavedMaps | None:
    """The maps of a probe sweep; None if it wrote none.

    Raises ``RunError`` if the files cannot be read, or name pictures outside the run.
    """
    if not all((folder / name).is_file() for name in (MAPS, EXAMPLES)):
        return None
    examples = read_json(folder / EXAMPLES)
    saved = SavedMaps(read_saved(folder / MAPS), examples, folder / PICTURES)
    if not isinstance(examples, list) or not all(isinstance(entry, dict) and "example" in entry for entry in examples):
        raise RunError(f"{EXAMPLES} must be a list of examples, got another value in {str(folder)!r}. Run it again.")
    for entry in examples:
        is_number = type(entry.get("k")) is int
        if not is_number or not real_path(saved.picture(entry)).is_relative_to(real_path(folder)):
            raise RunError(f"k must be the number of a picture of the run, got {entry.get('k')!r}. Run it again.")
        wrong = next((name for name, is_right in _ENTRY.items() if name in entry and not is_right(entry[name])), None)
        if wrong is not None:
            raise RunError(f"{wrong} must be as probe-sweep writes it in {EXAMPLES}, got another value. Run it again.")
    return saved if examples and not saved.table.empty else None


def read_pair_values(folder: Path) -> pd.DataFrame | None:
    """The values of a patch sweep by cell, metric and pair; None if the run has no table of them."""
    path = folder / "values.parquet"
    return read_saved(path) if path.is_file() else None


def read_picture(path: Path) -> Picture | None:
    """An image file as ``H W 3``, 8 bits; None if there is no such file."""
    if not is_file(path):
        return None
    check_whole(path, advice=_AGAIN)
    with user_errors(OSError):
        return np.asarray(open_picture(path), dtype=np.uint8)


def read_plan(folder: Path) -> tuple[pd.DataFrame, int]:
    """The plan of a tuning run as a table of one row, and the number of blocks of its model."""
    plan, config = folder / "plan.json", folder / "config.json"
    if not plan.is_file() or not config.is_file():
        missing = plan.name if not plan.is_file() else config.name
        raise RunError(
            f"RUN must contain {missing} for a plan diagram, got none in {str(folder)!r}. "
            "Start an unfinished run again; of a run that saved adapters alone, draw the comparison."
        )
    saved, model = read_json(plan), read_json(config)
    layers, described = saved["layers"], saved["plan"]
    row = {
        "plan": described.get("name") or described["layers"],
        "layers": ",".join(map(str, layers)) if layers else "none",
        "train": ",".join(described["train"]),
        "method": described["method"],
    }
    return pd.DataFrame([row]), int(model.get("text_config", model)["num_hidden_layers"])


def example_table(name: str) -> pd.DataFrame:
    """A gallery table, measured on ``smol``, for use in examples.

    Example:
        >>> from figures import example_table
        >>> example_table("knockout_smol")["op"].unique().tolist()
        ['knockout']
    """
    return read_saved(GALLERY / f"{name}.csv")
