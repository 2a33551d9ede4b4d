"""Maps over the patch grid, drawn on the picture, one panel for each layer: effects, or predictions of a probe."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from figures.effect_colours import add_bar, colour_bar, effect_colours, mark_significant, symmetric_range
from figures.effects import default_title, of_metric, site_title
from figures.layer_axis import main_name
from figures.panels import open_panels
from figures.read_run import Picture
from figures.style import SEQUENTIAL, Panels, Width

PATCH = re.compile(r"patch\((\d+),(\d+)(?:,0)?\)")
_COLUMNS = {"two": 6, "one": 3}
_ROW_HEIGHT = 1.2  # inches
_COVER = 0.62  # opacity of a probe map over the picture
_MOST = 6  # panels of a probe map without ``layers``


def of_patches(results: pd.DataFrame) -> "pd.Series[bool]":
    """True for the rows whose token group is one patch."""
    return results["tokens"].map(lambda text: PATCH.fullmatch(str(text)) is not None)


def with_patches(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of single patches, with ``row`` and ``col`` of the patch grid; ``name`` also names the head, if any."""
    places = [PATCH.fullmatch(str(text)) for text in results["tokens"]]
    rows = results[[place is not None for place in places]]
    names = [f"head {head} of {name}" if head else name for name, head in zip(rows["name"], _heads(rows), strict=True)]
    return rows.assign(row=[int(p[1]) for p in places if p], col=[int(p[2]) for p in places if p], name=names)


def _heads(rows: pd.DataFrame) -> list[str]:
    """The head of each row; empty for rows of all heads together."""
    return ["" if pd.isna(head) else str(head) for head in rows["head"]] if "head" in rows else [""] * len(rows)


def pair_rows(results: pd.DataFrame, values: pd.DataFrame, pair: str) -> pd.DataFrame:
    """The table of a patch sweep for one of its pairs: its values and recovered fractions, without intervals and p.

    ``values`` is ``values.parquet``, with a row for each cell, metric and pair.
    """
    own = values[values["id"].astype(str) == pair].astype({"site": str, "tokens": str, "metric": str})
    cell = ["site", "tokens", "metric", "head"]
    found = own.assign(head=_heads(own)).set_index(cell)[["value", "clean", "corrupt", "recovered"]]
    keys = pd.MultiIndex.from_frame(results.assign(head=_heads(results))[cell].astype(str))
    empty = ("lower", "upper", "recovered_lower", "recovered_upper", "p_adjusted")
    columns = {str(name): found[name].reindex(keys).to_numpy(dtype=float) for name in found}
    columns |= {name: np.full(len(results), np.nan) for name in empty if name in results}
    return results.assign(**columns, n=1)


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
    """Effect of each patch of the grid, drawn on a picture, one panel for each layer (from 0) and activation.

    Colours and marks are those of ``draw_token_map``; the larger the effect, the more opaque the colour. Effects are
    means over n pairs. A picture belongs to one pair: draw it for a single pair (``pair_rows``), not for a mean.

    - ``results``: The table of a patch sweep; rows of other token groups are left out.
    - ``picture``: ``H W 3``; None for a blank one.
    - ``metric``: The metric; by default the table's first.

    The other arguments are described in ``figures.panels``.

    Example:
        >>> from figures import draw_patch_map, example_table
        >>> [panel.get_title() for panel in draw_patch_map(example_table("patch_grid_smol"))][:2]
        ['resid_pre 0', 'resid_pre 5']
    """
    rows = with_patches(of_metric(results, metric))
    if rows.empty:
        raise ValueError("results must contain at least one row of a patch, got none. Use --tokens patches.")
    shape = int(rows["row"].max()) + 1, int(rows["col"].max()) + 1
    norm = symmetric_range(rows["effect"])
    keys = list(dict.fromkeys(zip(rows["part"], rows["name"], rows["layer"].astype("Int64"), strict=True)))
    titles = [site_title(*key) for key in keys]
    with open_panels(
        axes, titles, width=width, columns=_COLUMNS[width], heights=_ROW_HEIGHT, extra=0.35, title=title,
        default_title=default_title(rows),
    ) as opened:  # fmt: skip
        for panel, (part, name, layer), text in zip(opened.axes, keys, titles, strict=True):
            same = rows["layer"].isna() if pd.isna(layer) else rows["layer"] == layer
            own = rows[(rows["part"] == part) & (rows["name"] == name) & same]
            extent = show_picture(panel, shape, picture)
            effects = np.full(shape, np.nan)
            effects[own["row"], own["col"]] = own["effect"].astype(float)
            cover = np.clip(0.15 + 0.75 * np.abs(np.nan_to_num(effects)) / float(norm.vmax or 1.0), 0, 0.9)
            opacity = 1.0 if picture is None else cover
            panel.imshow(effects, cmap=effect_colours(), norm=norm, alpha=opacity, extent=extent)
            mark_significant(panel, list(own["col"]), list(own["row"]), own, norm, size=2.0)
            panel.set_title(text, fontsize=7.5)
        if legend:
            add_bar(opened.axes, rows, norm)
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
    """Probability that a probe assigns to an example's true label at each patch, drawn on its picture.

    One panel for each layer. The probe was fitted on pooled tokens of other examples. Colours range from 0 to 1 in all
    such figures; the line across the bar is chance. The white frame is the object that the label belongs to.

    - ``maps``: ``maps.parquet`` of a probe sweep.
    - ``picture``: ``H W 3``, square, as the model's input; None for a blank one.
    - ``target``: The label; by default the table's first.
    - ``example``: The id of the example; by default the table's first.
    - ``layers``: Layers of the language model, from 0; by default up to six sites from vision tower to last block.
    - ``box``: Box of the object: left, top, right, bottom as fractions of the picture.
    - ``chance``: Probability of a constant answer, 1 / classes.

    The other arguments are described in ``figures.panels``.

    Raises:
        ValueError: If the table lacks the target, example or layer, or ``axes`` are not one for each panel.

    Example:
        >>> from figures import draw_probe_map, example_table
        >>> [panel.get_title() for panel in draw_probe_map(example_table("probe_map_smol"), layers=[14])]
        ['resid_post 14']
    """
    rows, chosen = maps, {}
    for column, wanted in (("target", target), ("example", example)):
        known = [str(value) for value in dict.fromkeys(rows[column])]
        chosen[column] = wanted if wanted is not None else known[0] if known else ""
        if chosen[column] not in known:
            raise ValueError(f"{column} must be one of {', '.join(known)}, got {wanted!r}.")
        rows = rows[rows[column].astype(str) == chosen[column]]
    rows = _of_layers(rows, layers)
    shape = int(rows["row"].max()) + 1, int(rows["col"].max()) + 1
    sites = list(dict.fromkeys(zip(rows["site"], rows["part"], rows["name"], rows["layer"], strict=True)))
    titles = [site_title(str(part), str(name), layer) for _, part, name, layer in sites]
    norm = Normalize(0.0, 1.0)
    with open_panels(
        axes, titles, width=width, columns=_COLUMNS[width], heights=_ROW_HEIGHT, extra=0.35, title=title,
        default_title=f"{chosen['target']} at each patch, example {chosen['example']}",
    ) as opened:  # fmt: skip
        for panel, (site, *_), text in zip(opened.axes, sites, titles, strict=True):
            own = rows[rows["site"] == site]
            extent = show_picture(panel, shape, picture)
            read = np.full(shape, np.nan)
            read[own["row"], own["col"]] = own["p_true"].astype(float)
            panel.imshow(read, cmap=SEQUENTIAL, norm=norm, alpha=1.0 if picture is None else _COVER, extent=extent)
            if box is not None:
                _frame(panel, shape, box)
            panel.set_title(text, fontsize=7.5)
        if legend:
            alpha = 1.0 if picture is None else _COVER
            label = f"probability of the\nexample's own {chosen['target']}"
            bar = colour_bar(opened.axes, ScalarMappable(norm, SEQUENTIAL), label, alpha=alpha)
            if chance is not None:
                bar.ax.axhline(chance, color="#FFFFFF", linewidth=1.6)
                bar.ax.axhline(chance, color="#000000", linewidth=0.8, linestyle=(0, (2, 1)), label="chance")
                bar.ax.annotate("chance", (0, chance), xytext=(-2, 0), textcoords="offset points", ha="right",
                                va="center", fontsize=6, annotation_clip=False)  # fmt: skip
    return opened.axes


def _of_layers(rows: pd.DataFrame, layers: Sequence[int] | None) -> pd.DataFrame:
    """The rows of these layers of the language model, or of up to six sites spread over the forward pass."""
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


def show_picture(panel: Axes, shape: tuple[int, int], picture: Picture | None) -> tuple[float, float, float, float]:
    """Draw the picture in grey below the grid; return the extent in which a patch is one unit."""
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
