"""Maps over the patch grid, painted on the picture, one panel for each layer.

``draw_patch_map`` paints what changing a patch does (the table of a patch sweep with ``--tokens patches``);
``draw_probe_map`` paints what a probe reads at each patch of one example (``maps.parquet`` of a probe sweep).
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from figures.effects import add_bar, colours, mark_significant, of_metric, site_title, symmetric, usual_title
from figures.panels import Opened, add_title, open_panels
from figures.parts import main_name
from figures.style import SEQUENTIAL, Panels, Width, figure_of, style

PATCH = re.compile(r"patch\((\d+),(\d+)(?:,0)?\)")
_COLUMNS = {"two": 6, "one": 3}
_ROW_HEIGHT = 1.2  # inches
_COVER = 0.62  # how much of the picture a probe map hides
_MOST = 6  # panels of a probe map where no layers are named

Picture = npt.NDArray[np.uint8]


def of_patches(results: pd.DataFrame) -> "pd.Series[bool]":
    """The rows whose token group is one patch."""
    return results["tokens"].map(lambda text: PATCH.fullmatch(str(text)) is not None)


def draw_patch_map(
    results: pd.DataFrame,
    picture: Picture | None = None,
    *,
    metric: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Effect of each patch of the grid, painted on a picture, one panel for each layer (from 0) and activation.

    Colours as in ``draw_token_map``; they cover the picture the more, the stronger the effect. A dot: p, adjusted over
    the run, is below 0.05; a minus sign instead: so it is, and the effect is negative. The picture is that of the first
    pair; effects are those of all n pairs.

    Args:
        results: Rows whose token group is a patch; others are left out.
        picture: ``H W 3``; None for a blank one.
        metric: Which; the first of the table where it is None.
        title: Stands above all panels.
        axes: To draw into, one for each layer and activation; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is a bar that explains the colours.

    Returns:
        The panels, in the order of the table.

    Raises:
        ValueError: If the table has no row of a patch, or ``axes`` are not one for each panel.
    """
    rows = of_metric(results, metric)
    rows = rows[of_patches(rows)]
    if rows.empty:
        raise ValueError("results must hold at least one row of a patch, got none. Use --tokens patches.")
    places = [PATCH.fullmatch(text) for text in rows["tokens"]]
    rows = rows.assign(
        row=[int(place[1]) for place in places if place], column=[int(place[2]) for place in places if place]
    )
    shape = int(rows["row"].max()) + 1, int(rows["column"].max()) + 1
    norm = symmetric(rows["effect"])
    keys = list(dict.fromkeys(zip(rows["part"], rows["name"], rows["layer"].astype("Int64"), strict=True)))
    titles = [site_title(*key) for key in keys]
    with style():
        opened = _open_pictures(axes, titles, width)
        for panel, (part, name, layer), text in zip(opened.axes, keys, titles, strict=True):
            same = rows["layer"].isna() if pd.isna(layer) else rows["layer"] == layer
            own = rows[(rows["part"] == part) & (rows["name"] == name) & same]
            extent = _show_picture(panel, shape, picture)
            effects = np.full(shape, np.nan)
            effects[own["row"], own["column"]] = own["effect"].astype(float)
            cover = np.clip(0.15 + 0.75 * np.abs(np.nan_to_num(effects)) / float(norm.vmax or 1.0), 0, 0.9)
            panel.imshow(effects, cmap=colours(), norm=norm, alpha=cover if picture is not None else 1.0, extent=extent)
            mark_significant(panel, list(own["column"]), list(own["row"]), own, norm, size=2.0)
            panel.set_title(text, fontsize=7.5)
        if legend:
            add_bar(opened.axes, rows, norm)
        add_title(opened, title, usual_title(rows))
    return opened.axes


def draw_probe_map(
    maps: pd.DataFrame,
    picture: Picture | None = None,
    *,
    target: str | None = None,
    example: str | None = None,
    layers: Sequence[int] | None = None,
    box: Sequence[float] | None = None,
    chance: float | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Probability that a probe gives to an example's own label at each single patch, painted on its picture.

    One panel for each layer. The probe was fitted on pooled tokens of other examples. Colours go from 0 to 1 in every
    such figure; the line across the bar is chance. The white frame is the object that the label belongs to.

    Args:
        maps: ``maps.parquet`` of a probe sweep.
        picture: ``H W 3``, square, as the model sees it; None for a blank one.
        target: Which label; the first of the table where it is None.
        example: Which example, by id; the first of the table where it is None.
        layers: Of the language model, from 0. None for up to six sites, spread from the tower to the last block.
        box: Of the object: left, top, right, bottom as fractions of the picture.
        chance: Probability of a constant answer, 1 / classes.
        title: Stands above all panels.
        axes: To draw into, one for each panel; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is a bar that explains the colours.

    Returns:
        The panels, in the order of the forward pass.

    Raises:
        ValueError: If the table has no such target, example or layer, or ``axes`` are not one for each panel.
    """
    rows, chosen = maps, {}
    for column, wanted in (("target", target), ("example", example)):
        known = [str(value) for value in dict.fromkeys(rows[column])]
        chosen[column] = wanted if wanted is not None else known[0] if known else ""
        if chosen[column] not in known:
            raise ValueError(f"{column} must be one of {', '.join(known)}, got {wanted!r}. Name one that was mapped.")
        rows = rows[rows[column].astype(str) == chosen[column]]
    rows = _of_layers(rows, layers)
    shape = int(rows["row"].max()) + 1, int(rows["col"].max()) + 1
    sites = list(dict.fromkeys(zip(rows["site"], rows["part"], rows["name"], rows["layer"], strict=True)))
    titles = [site_title(str(part), str(name), layer) for _, part, name, layer in sites]
    norm = Normalize(0.0, 1.0)
    with style():
        opened = _open_pictures(axes, titles, width)
        for panel, (site, *_), text in zip(opened.axes, sites, titles, strict=True):
            own = rows[rows["site"] == site]
            extent = _show_picture(panel, shape, picture)
            read = np.full(shape, np.nan)
            read[own["row"], own["col"]] = own["p_true"].astype(float)
            panel.imshow(read, cmap=SEQUENTIAL, norm=norm, alpha=1.0 if picture is None else _COVER, extent=extent)
            if box is not None:
                _frame(panel, shape, box)
            panel.set_title(text, fontsize=7.5)
        if legend:
            bar = figure_of(opened.axes).colorbar(
                ScalarMappable(norm, SEQUENTIAL), ax=opened.axes, alpha=1.0 if picture is None else _COVER,
                shrink=0.95, pad=0.02, aspect=16,
            )  # fmt: skip
            bar.set_label(f"probability of the\nexample's own {chosen['target']}", fontsize=7)
            bar.ax.tick_params(labelsize=6.5, length=2)
            if chance is not None:
                bar.ax.axhline(chance, color="#FFFFFF", linewidth=1.6)
                bar.ax.axhline(chance, color="#000000", linewidth=0.8, linestyle=(0, (2, 1)), label="chance")
                bar.ax.annotate("chance", (0, chance), xytext=(-2, 0), textcoords="offset points", ha="right",
                                va="center", fontsize=6, annotation_clip=False)  # fmt: skip
        add_title(opened, title, f"{chosen['target']} at each patch, example {chosen['example']}")
    return opened.axes


def _of_layers(rows: pd.DataFrame, layers: Sequence[int] | None) -> pd.DataFrame:
    """The rows of the wanted layers of the language model, or of sites spread over the way of the data."""
    name = main_name(rows)
    if layers is not None:
        blocks = rows[(rows["part"] == "language_model") & rows["layer"].notna() & (rows["name"] == name)]
        known = [int(layer) for layer in dict.fromkeys(blocks["layer"])]
        missing = [layer for layer in layers if layer not in known]
        if missing or not layers:
            raise ValueError(
                f"layers must be among {', '.join(map(str, known)) or 'none'}, got {list(layers)}. "
                "Probe the others with --layers."
            )
        return blocks[blocks["layer"].isin(list(layers))]
    sites = list(dict.fromkeys(rows[(rows["name"] == name) | (rows["part"] == "projector")]["site"]))
    spread = np.unique(np.linspace(0, len(sites) - 1, min(_MOST, len(sites))).round().astype(int))
    return rows[rows["site"].isin([sites[i] for i in spread])]


def _open_pictures(axes: Panels | None, titles: Sequence[str], width: Width) -> Opened:
    lines = -(-len(titles) // _COLUMNS[width])
    return open_panels(
        axes, titles, width=width, columns=_COLUMNS[width], row_heights=[_ROW_HEIGHT] * lines, extra=0.35
    )


def _show_picture(panel: Axes, shape: tuple[int, int], picture: Picture | None) -> tuple[float, float, float, float]:
    """The picture in grey behind the grid; the extent that makes a patch one unit."""
    height, width = shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if picture is not None:
        grey = picture.astype(float) @ np.array([0.299, 0.587, 0.114]) / 255  # luma of Rec. 601
        panel.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    return extent


def _frame(panel: Axes, shape: tuple[int, int], box: Sequence[float]) -> None:
    height, width = shape
    left, top, right, bottom = box
    corner = left * width - 0.5, top * height - 0.5
    size = (right - left) * width, (bottom - top) * height
    for colour, line in (("#000000", 2.0), ("#FFFFFF", 1.0)):
        panel.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=line))
