"""Draw a run directory: ``draw_run(folder)`` writes every figure of the run, ``figures_of(folder)`` yields them.

``drawn_figures(folder)`` returns the files, and draws them first if a call that was killed left some out.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from figures.attention.draw import draw_attention
from figures.attention.saved import OF_PATCH, edge_effects, read_attention
from figures.curves import draw_curves
from figures.effect_grid import draw_head_map, draw_token_map
from figures.geometry.draw import draw_geometry, draw_layer_map
from figures.layer_axis import names_in_blocks
from figures.layer_pairs.transfer import draw_transfer
from figures.lenses import draw_lenses
from figures.patch_map import draw_patch_map, draw_probe_map, of_patches, pair_rows
from figures.plans.cost import draw_cost_retention, has_costs
from figures.plans.learning_curve import draw_learning_curve
from figures.plans.plan_diagram import draw_plan_diagram
from figures.plans.scores import draw_accuracy, draw_retention
from figures.plans.token_plans import draw_token_plans
from figures.read_run import (
    BENCHMARKS,
    GEOMETRY,
    INFERENCE,
    LENS,
    LISTED,
    PATCH,
    PROBE,
    TRANSFER,
    TUNE,
    FigurePaths,
    Picture,
    RunError,
    kind_of_run,
    read_maps,
    read_pair_values,
    read_picture,
    read_plan,
    read_run,
    read_saved,
    read_table,
    reading,
)
from figures.score_by_layer import draw_score_by_layer
from figures.style import Panels, Width, figure_of, file_name, save_figure
from tasks.readers.parse import parse_json

_PAIRS = 3  # whose maps are drawn beside the mean
_DRAWN = ".drawn.json"  # in the folder of the figures: names of the PNG files in their order, written last
_BY_LAYER = ("knockout", "skip", "transplant")  # operations with curves


class Drawing(NamedTuple):
    """A figure and the name of its files."""

    name: str
    axes: Panels


def draw_run(
    folder: Path, *, out: Path | None = None, width: Width = "two", example: int = 0
) -> tuple[FigurePaths, ...]:
    """Write all figures of a finished run; return their paths, the main figure first.

    Args:
        folder: A run directory of ``probe-sweep``, ``patch-sweep``, ``layerwise-finetune`` or its ``compare``, or of
            ``inference-cost``, ``geometry-sweep``, ``transfer-sweep`` or ``lens-sweep``.
        out: The folder of the figures; ``folder/figures`` if None.
        width: Width in columns of a page.
        example: The mapped example of a probe sweep, from 0.

    Raises:
        RunError: If the folder is none of these, or the run is not finished.

    Example:
        >>> import tempfile
        >>> from figures import draw_run, example_table
        >>> run = Path(tempfile.mkdtemp())
        >>> example_table("skip_smol").to_csv(run / "results.csv", index=False)
        >>> [paths.png.name for paths in draw_run(run)]
        ['token_map.png', 'curves.png']
    """
    if out is None and (folder / "figures").is_symlink():
        raise RunError(f"figures must be a folder of the run, got a link at {str(folder / 'figures')!r}. Name another.")
    paths: list[FigurePaths] = []
    known = folder / "figures" / _DRAWN
    if out is None:
        known.unlink(missing_ok=True)
    drawings = figures_of(folder, width=width, example=example)
    while True:
        with reading(folder):
            drawing = next(drawings, None)
        if drawing is None:
            break
        try:
            paths.append(save_figure(drawing.axes, (out or folder / "figures") / file_name(drawing.name)))
        finally:
            plt.close(figure_of(drawing.axes))
    if out is None and paths:
        temporary = known.with_name(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps([pair.png.name for pair in paths]))
        temporary.replace(known)
    return tuple(paths)


def drawn_figures(folder: Path, *, again: bool = False) -> tuple[Path, ...]:
    """The PNG files that ``draw_run(folder)`` writes, the main one first; the run is drawn if they are not complete.

    ``again`` draws it anyway: its tables were just made.

    Raises:
        RunError: As ``draw_run``.

    Example:
        >>> import tempfile
        >>> from figures import drawn_figures, example_table
        >>> run = Path(tempfile.mkdtemp())
        >>> example_table("skip_smol").to_csv(run / "results.csv", index=False)
        >>> [path.name for path in drawn_figures(run)] == [path.name for path in drawn_figures(run)]
        True
    """
    figures = folder / "figures"
    with contextlib.suppress(OSError, ValueError, TypeError):
        pngs = tuple(figures / Path(name).name for name in parse_json((figures / _DRAWN).read_bytes()))
        if not again and pngs and all(png.is_file() and png.with_suffix(".svg").is_file() for png in pngs):
            return pngs
    return tuple(pair.png for pair in draw_run(folder))


def figures_of(folder: Path, *, width: Width = "two", example: int = 0) -> Iterator[Drawing]:
    """The figures of a finished run, the main one first; the caller closes them. Arguments: see ``draw_run``."""
    kind = kind_of_run(folder)
    if kind == TUNE:
        yield from _draw_tuning(folder, width)
        return
    if kind in (BENCHMARKS, *LISTED):
        raise RunError(
            f"RUN must be a run that has figures, got one of {kind} in {str(folder)!r}. The command's show and report "
            "print its table."
        )
    table = read_run(folder, kind)
    if kind == PATCH:
        alone = int(table["n"].max()) == 1
        yield from draw_patch_run(table, read_picture(folder / "picture.png") if alone else None, width=width)
        if not alone:
            yield from _draw_pairs(folder, table, width)
        yield from _draw_attention(folder, table, width)
    elif kind == PROBE:
        first, *others = names_in_blocks(table)
        yield Drawing("score_by_layer", draw_score_by_layer(table, name=first, width=width))
        for name in others:
            yield Drawing(f"score_by_layer_{name}", draw_score_by_layer(table, name=name, width=width))
        yield from _draw_maps(folder, width, example)
    elif kind == TRANSFER:
        yield Drawing("transfer", draw_transfer(table, width=width))
    elif kind == INFERENCE:
        yield Drawing("cost_against_score", draw_token_plans(table, width=width))
    elif kind == LENS:
        yield Drawing("lenses", draw_lenses(table, width=width))
    elif kind == GEOMETRY:
        yield from _draw_geometry(folder, table, width)
    else:
        yield Drawing("accuracy_by_family", draw_accuracy(table, width=width))
        yield Drawing("retention", draw_retention(table, width=width))
        yield Drawing("plans", draw_plan_diagram(table, width=width))
        if has_costs(table):
            yield Drawing("cost_against_retention", draw_cost_retention(table, width=width))


def draw_patch_run(results: pd.DataFrame, picture: Picture | None = None, *, width: Width = "two") -> Iterator[Drawing]:
    """The figures that fit the table of a patch sweep, the main one first; ``ValueError`` if the table is empty.

    ``picture`` (``H W 3``) is drawn below the map of patches; None for a blank one, such as for the mean over pairs
    whose objects are in different places.
    """
    if results.empty:
        raise ValueError("results must contain at least one row, got none. Run patch-sweep first.")
    op = str(results["op"].iloc[0])
    if (results["head"].notna() & (results["head"].astype(str) != "")).any():
        yield Drawing("head_map", draw_head_map(results, width=width))
        return
    patches = of_patches(results)
    rest = results[~patches]
    if not rest.empty and op != "transplant":
        yield Drawing("token_map", draw_token_map(rest, width=width))
    if patches.any():
        yield Drawing("patch_map", draw_patch_map(results[patches], picture, width=width))
    if op in _BY_LAYER and rest["layer"].notna().any():
        yield Drawing("curves", draw_curves(rest, width=width))


def _draw_pairs(folder: Path, table: pd.DataFrame, width: Width) -> Iterator[Drawing]:
    """Maps of the first pairs, each on its own picture, if single patches were changed."""
    patches, values = table[of_patches(table)], read_pair_values(folder)
    if patches.empty or values is None:
        return
    for k, pair in enumerate(dict.fromkeys(values["id"].astype(str))):
        picture = read_picture(folder / "pictures" / f"{k}.png")
        if k == _PAIRS or picture is None:
            return
        drawn = draw_patch_map(
            pair_rows(patches, values, pair), picture, title=f"{table['model'].iloc[0]}: {table['op'].iloc[0]}, {pair}",
            width=width,
        )  # fmt: skip
        yield Drawing(f"patch_map_{k}", drawn)


def _draw_attention(folder: Path, table: pd.DataFrame, width: Width) -> Iterator[Drawing]:
    """For each pair with saved attention: that of two heads, and attention against the effect of the cuts."""
    saved = read_attention(folder)
    values = read_pair_values(folder) if saved else None
    if values is None:
        return
    values = values.assign(unchanged=str(table["unchanged"].iloc[0]))
    for one in saved[:_PAIRS]:
        picture = read_picture(folder / "pictures" / f"{one.k}.png")
        for number, flow in enumerate(one.flows):
            if OF_PATCH.match(flow.tokens) is not None:
                continue
            effects = edge_effects(values, one, flow.tokens)
            if effects["effect"].notna().any():
                suffix = f"_{number + 1}" if number else ""
                drawn = draw_attention(one, effects, picture, flow=number, width=width)
                yield Drawing(f"attention_{one.k}{suffix}", drawn)


def _draw_geometry(folder: Path, table: pd.DataFrame, width: Width) -> Iterator[Drawing]:
    """The curves and the map of every comparison."""
    maps = read_saved(folder / "map.csv") if (folder / "map.csv").is_file() else None
    for number, comparison in enumerate(dict.fromkeys(table["comparison"])):
        suffix = f"_{number + 1}" if number else ""
        yield Drawing(f"by_layer{suffix}", draw_geometry(table, comparison=comparison, width=width))
        if maps is not None:
            yield Drawing(f"layer_map{suffix}", draw_layer_map(maps, comparison=comparison, width=width))


def _draw_tuning(folder: Path, width: Width) -> Iterator[Drawing]:
    """The plan, if the run has written a model, and the learning curve, if it was evaluated; at least one of them."""
    evaluated = (folder / "evaluations.csv").is_file()
    if not evaluated or ((folder / "plan.json").is_file() and (folder / "config.json").is_file()):
        plan, n_layers = read_plan(folder)
        yield Drawing("plan", draw_plan_diagram(plan, n_layers=n_layers, width=width))
    if evaluated:
        table = read_table(folder / "evaluations.csv", TUNE)
        yield Drawing("learning_curve", draw_learning_curve(table, width=width))


def _draw_maps(folder: Path, width: Width, example: int) -> Iterator[Drawing]:
    """One map over the patches for each target, if the run wrote maps."""
    maps = read_maps(folder)
    if maps is None:
        return
    if not 0 <= example < len(maps.examples):
        raise RunError(f"example must be in [0, {len(maps.examples)}) for {str(folder)!r}, got {example}.")
    entry = maps.examples[example]
    of_example = maps.table[maps.table["example"].astype(str) == str(entry["example"])]
    picture = read_picture(maps.picture(entry))
    for target in dict.fromkeys(of_example["target"]):
        classes = entry.get("classes", {}).get(target, [])
        drawn = draw_probe_map(
            of_example, picture, target=str(target), example=str(entry["example"]),
            box=entry.get("boxes", {}).get(entry.get("focus")), chance=1 / len(classes) if classes else None,
            title=f"{target} = {entry['labels'][target]}: what a probe reads at each patch", width=width,
        )  # fmt: skip
        yield Drawing(f"probe_map_{target}", drawn)
