"""Every figure that a run directory allows: what ``python -m figures RUN`` draws.

``draw_run(folder)`` recognises the command that wrote the folder by its manifest, or by its tables where there is none,
and yields figures by name. ``draw_patch_run(results)`` does so for the table of a patch sweep alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from figures.head_map import draw_head_map
from figures.knockout import draw_knockout
from figures.parts import names_in_blocks
from figures.patch_map import Picture, draw_patch_map, draw_probe_map, of_patches
from figures.plans.accuracy_by_family import draw_accuracy
from figures.plans.cost_retention import draw_cost_retention
from figures.plans.learning_curve import draw_learning_curve
from figures.plans.plan_diagram import draw_plan_diagram
from figures.plans.retention import draw_retention
from figures.score_by_layer import draw_score_by_layer
from figures.skip import draw_skip
from figures.style import Panels, Width
from figures.token_map import draw_token_map
from figures.transplant import draw_transplant

PROBE, PATCH, COMPARE, TUNE = "probe-sweep", "patch-sweep", "layerwise-finetune compare", "layerwise-finetune"
_COLUMNS = {  # without these, a table is not what the command wrote
    PROBE: ("model", "part", "layer", "name", "depth", "tokens", "target", "metric", "split", "score", "lower", "upper",
            "control", "chance", "random_init", "n"),
    PATCH: ("model", "op", "part", "name", "layer", "window", "tokens", "head", "metric", "value", "lower", "upper",
            "clean", "corrupt", "unchanged", "recovered", "n", "p_adjusted"),
    COMPARE: ("plan", "layers", "train", "method", "flops_ratio", "step_time_ratio", "condition", "family", "metric",
              "score", "score_lower", "score_upper", "retention", "lower", "upper", "n"),
    TUNE: ("step", "set", "family", "metric", "score", "lower", "upper", "n"),
}  # fmt: skip
_CURVES = {"knockout": draw_knockout, "skip": draw_skip, "transplant": draw_transplant}
# read from CSV, empty text and numbers of layers would become floats
_TYPES: dict[Any, Any] = {
    "layer": "Int64",
    "window": str,
    "tokens": str,
    "head": str,
    "layers": str,
    "train": str,
    "family": str,
    "run": str,
}


class RunError(ValueError):
    """The folder is not a run of this project, or not a finished one."""


class Drawing(NamedTuple):
    """A figure and what its files are called."""

    name: str
    axes: Panels


def draw_run(folder: Path, *, width: Width = "two", example: int = 0) -> Iterator[Drawing]:
    """The figures that a run directory allows, the main one first; the caller closes them.

    Args:
        folder: What ``probe-sweep``, ``patch-sweep``, ``layerwise-finetune`` or its ``compare`` wrote.
        width: In columns of a page.
        example: Which of the mapped examples of a probe sweep, from 0.

    Raises:
        RunError: If the folder is none of these, or the run is not finished.
    """
    kind = kind_of_run(folder)
    if kind == TUNE:
        yield from _draw_tuning(folder, width)
        return
    table = read_table(_table_of(folder, kind), kind)
    if kind == PATCH:
        picture = folder / "picture.png"
        shown = read_picture(picture) if picture.is_file() else None
        yield from (Drawing(*item) for item in draw_patch_run(table, shown, width=width).items())
    elif kind == PROBE:
        first, *others = names_in_blocks(table)
        yield Drawing("score_by_layer", draw_score_by_layer(table, name=first, width=width))
        for name in others:
            yield Drawing(f"score_by_layer_{name}", draw_score_by_layer(table, name=name, width=width))
        yield from _draw_maps(folder, width, example)
    else:
        yield Drawing("accuracy_by_family", draw_accuracy(table, width=width))
        yield Drawing("retention", draw_retention(table, width=width))
        yield Drawing("plans", draw_plan_diagram(table, width=width))
        if table["flops_ratio"].notna().any():
            yield Drawing("cost_against_retention", draw_cost_retention(table, width=width))


def draw_patch_run(
    results: pd.DataFrame, picture: Picture | None = None, *, width: Width = "two"
) -> dict[str, list[Axes]]:
    """The figures that fit the table of a patch sweep, by name, the main one first.

    Args:
        results: The table.
        picture: ``H W 3``, what patches are painted on; None for a blank one.
        width: In columns of a page.

    Raises:
        ValueError: If the table is empty.
    """
    if results.empty:
        raise ValueError("results must hold at least one row, got none. Run patch-sweep first.")
    found: dict[str, list[Axes]] = {}
    op = str(results["op"].iloc[0])
    if (results["head"].notna() & (results["head"].astype(str) != "")).any():
        return {"head_map": draw_head_map(results, width=width)}
    patches = of_patches(results)
    rest = results[~patches]
    if not rest.empty and op != "transplant":
        found["token_map"] = draw_token_map(rest, width=width)
    if patches.any():
        found["patch_map"] = draw_patch_map(results[patches], picture, width=width)
    if op in _CURVES and rest["layer"].notna().any():
        found["curves"] = _CURVES[op](rest, width=width)
    return found


def kind_of_run(folder: Path) -> str:
    """The command that wrote the folder.

    Raises:
        RunError: If none of ours did.
    """
    if not folder.is_dir():
        raise RunError(f"RUN must be a folder, got {str(folder)!r}. Give what a command wrote with --out.")
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            kind = json.loads(manifest.read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"manifest.json must be readable JSON, got {str(manifest)!r} ({error}).") from error
        command = str(kind).removeprefix("laccolith ")
        if command in (PROBE, PATCH, COMPARE, TUNE):
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
            for kind in (PATCH, PROBE):
                if columns >= set(_COLUMNS[kind]):
                    return kind
    raise RunError(
        f"RUN must hold a manifest.json or a table of a run, got neither in {str(folder)!r}. "
        f"Give what {PROBE}, {PATCH} or {TUNE} wrote with --out."
    )


def read_table(path: Path, kind: str) -> pd.DataFrame:
    """The table of a run, the same from Parquet and from CSV.

    Raises:
        RunError: If it lacks a column that the command writes, or all rows.
    """
    table = read_saved(path)
    missing = [column for column in _COLUMNS[kind] if column not in table]
    if missing or table.empty:
        lacking = f"no {', '.join(missing)}" if missing else "no rows"
        raise RunError(f"{path.name} must be the table of a {kind} run, got {lacking} in {str(path)!r}. Run it again.")
    return table


def read_picture(path: Path) -> Picture:
    """An image file as ``H W 3``, 8 bits."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def read_saved(path: Path) -> pd.DataFrame:
    """A table in Parquet or CSV, with the same types from either.

    Raises:
        RunError: If it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        header = pd.read_csv(path, nrows=0).columns
        kinds = {name: kind for name, kind in _TYPES.items() if name in header}
        return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])  # a group may be called "None"
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise RunError(f"{path.name} must be a readable table, got {str(path)!r} ({error}). Run it again.") from error


def _table_of(folder: Path, kind: str) -> Path:
    names = ["compare.csv"] if kind == COMPARE else ["results.parquet", "results.csv"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise RunError(
        f"RUN must be finished, got a {kind} run without {names[0]} in {str(folder)!r}. Start it again to resume."
    )


def _draw_tuning(folder: Path, width: Width) -> Iterator[Drawing]:
    """The plan, where the run has written a model, and the curves, where it was evaluated; at least one of the two."""
    evaluated = (folder / "evaluations.csv").is_file()
    if not evaluated or ((folder / "plan.json").is_file() and (folder / "config.json").is_file()):
        plan, n_layers = _read_plan(folder)
        yield Drawing("plan", draw_plan_diagram(plan, n_layers=n_layers, width=width))
    if evaluated:
        table = read_table(folder / "evaluations.csv", TUNE)
        yield Drawing("learning_curve", draw_learning_curve(table, width=width))


def _draw_maps(folder: Path, width: Width, example: int) -> Iterator[Drawing]:
    """One map over the patches for each target, where the run wrote any."""
    table, about = folder / "maps.parquet", folder / "maps.json"
    if not (table.is_file() and about.is_file()):
        return
    entries = json.loads(about.read_text(encoding="utf-8"))
    if not entries:
        return
    if not 0 <= example < len(entries):
        raise RunError(f"example must be in [0, {len(entries)}) for {str(folder)!r}, got {example}. Take another one.")
    entry = entries[example]
    maps = read_saved(table)
    of_example = maps[maps["example"].astype(str) == str(entry["example"])]
    picture = folder / "maps" / f"{entry['k']}.png"
    shown = read_picture(picture) if picture.is_file() else None
    for target in dict.fromkeys(of_example["target"]):
        classes = entry.get("classes", {}).get(target, [])
        drawn = draw_probe_map(
            of_example, shown, target=str(target), example=str(entry["example"]),
            box=entry.get("boxes", {}).get(entry.get("focus")), chance=1 / len(classes) if classes else None,
            title=f"{target} = {entry['labels'][target]}: what a probe reads at each patch", width=width,
        )  # fmt: skip
        yield Drawing(f"probe_map_{target}", drawn)


def _read_plan(folder: Path) -> tuple[pd.DataFrame, int]:
    """The plan of a tuning run as a table of one row, and the number of blocks of its model."""
    plan, config = folder / "plan.json", folder / "config.json"
    if not plan.is_file() or not config.is_file():
        missing = plan.name if not plan.is_file() else config.name
        raise RunError(
            f"RUN must hold {missing} for a plan diagram, got none in {str(folder)!r}. "
            "Start an unfinished run again; of a run that saved adapters alone, draw the comparison."
        )
    saved, model = json.loads(plan.read_text(encoding="utf-8")), json.loads(config.read_text(encoding="utf-8"))
    layers, described = saved["layers"], saved["plan"]
    row = {
        "plan": described.get("name") or described["layers"],
        "layers": ",".join(map(str, layers)) if layers else "none",
        "train": ",".join(described["train"]),
        "method": described["method"],
    }
    return pd.DataFrame([row]), int(model.get("text_config", model)["num_hidden_layers"])
