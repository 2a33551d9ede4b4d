"""The panels of a figure: the caller's Axes, or the Axes of a new figure with a legend and a title.

The drawing functions of this package share these arguments:

- ``title``: above all panels; None for the default, ``""`` for none.
- ``axes``: Axes to draw into, one for each panel (``ax`` in figures of one panel); None for a new figure.
- ``width``: width of a new figure, ``"one"`` or ``"two"`` columns of a page (3.5 or 7.2 inches).
- ``legend``: whether to draw a legend or colour bar: below a new figure, inside the last of the caller's Axes.

They return the Axes that they drew into. They raise a ``ValueError`` if the number of ``axes`` is not that of the
panels, or if the table has no row to draw.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from figures.style import COLOURS, LINES, WIDTHS, Panels, Width, figure_of, style

_PER_LABEL = 4.0  # points between two tick labels
_TITLE_LETTERS = 12.5  # letters of a title per inch
_PER_LETTER = 4.3  # width of a letter of a tick label, in points
_STRIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 50, 100)


class Opened(NamedTuple):
    """Panels to draw into, the number side by side, and whether the figure is new."""

    axes: list[Axes]
    own: bool
    columns: int


@contextmanager
def open_panels(
    axes: Panels | None,
    wanted: Sequence[str],
    *,
    width: Width,
    columns: int,
    heights: float | Sequence[float],
    extra: float,
    title: str | None,
    default_title: str = "",
    sharey: bool = False,
    legend: bool = False,
    legend_columns: int | None = None,
) -> Iterator[Opened]:
    """Context manager: yield the panels in this package's style; at the end add the legend and the title.

    ``wanted`` names the panels for the error message. ``columns``, ``heights``, ``extra`` and ``sharey`` are for a new
    figure: ``heights`` is the height of each row, or of all rows, and ``extra`` the space above and below, in inches.
    """
    with style():
        if axes is None:
            columns = min(columns, len(wanted))
            rows = [heights] * -(-len(wanted) // columns) if isinstance(heights, int | float) else list(heights)
            _figure, grid = plt.subplots(
                len(rows), columns, figsize=(WIDTHS[width], sum(rows) + extra), squeeze=False, sharey=sharey,
                layout="constrained", height_ratios=rows,
            )  # fmt: skip
            made = list(grid.flat)
            for panel in made[len(wanted) :]:
                panel.set_axis_off()
            opened = Opened(made[: len(wanted)], own=True, columns=columns)
        else:
            given = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).flat)
            if len(given) != len(wanted):
                raise ValueError(
                    f"axes must contain {len(wanted)} Axes, one for each of {', '.join(wanted)}, got {len(given)}. "
                    "Select rows of the table, or make more panels."
                )
            opened = Opened(given, own=False, columns=len(given))
        yield opened
        if legend:
            add_legend(opened, width=width, columns=legend_columns)
        if opened.own and (text := default_title if title is None else title):
            figure = figure_of(opened.axes)
            figure.suptitle("\n".join(textwrap.wrap(text, int(figure.get_figwidth() * _TITLE_LETTERS))))
        elif title:
            opened.axes[0].set_title(title)


def draw_level(panel: Axes, value: float, concept: str, label: str | None = None, *, zorder: int = 2) -> None:
    """Draw a horizontal line in the colour and dashes of a style key, such as ``chance``."""
    colour, dashes = COLOURS[concept], LINES[concept][0]
    panel.axhline(value, color=colour, linestyle=dashes, linewidth=1.0, label=label, zorder=zorder)


def draw_band(
    panel: Axes, x: "pd.Series[Any] | npt.NDArray[Any]", rows: pd.DataFrame, colour: str, *, zorder: int = 2
) -> None:
    """Fill the interval from ``lower`` to ``upper``."""
    low, high = rows["lower"].astype(float), rows["upper"].astype(float)
    panel.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0, zorder=zorder)


def add_legend(opened: Opened, *, width: Width, columns: int | None = None) -> None:
    """Add a legend with one entry for each label: below a new figure, inside the last of the caller's Axes."""
    entries: dict[str, Artist] = {}
    for panel in opened.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    if not opened.own:
        opened.axes[-1].legend(list(entries.values()), list(entries), fontsize=6.5)
        return
    most = columns or (3 if width == "two" else 2)
    figure_of(opened.axes).legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=min(most, len(entries)),
        columnspacing=1.4, handlelength=2.4,
    )  # fmt: skip


def stride(panel: Axes, labels: Sequence[str], span: float) -> int:
    """The smallest step between tick labels that fit below a panel ``span`` steps wide, with one label for each step.

    The width of the panel is a low estimate, since the layout is computed later.
    """
    figure = figure_of(panel)
    points = panel.get_position().width * figure.get_figwidth() * 72 * 0.9
    longest = max((len(label) for label in labels), default=1)
    least = (_PER_LETTER * longest + _PER_LABEL) * span / max(points, 1.0)
    return next((step for step in _STRIDES if step >= least), len(labels) or 1)
