"""The panels of a figure: the caller's own Axes, or new ones at the width of one or two columns.

Every drawing function takes ``ax=`` (kinds of one panel) or ``axes=`` (kinds of several) and returns what it drew into.
With Axes of the caller's the legend goes inside the last panel, else below all.
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from figures.style import WIDTHS, Panels, Width, figure_of

_PER_LABEL = 4.0  # points beside a tick's label
_TITLE_LETTERS = 12.5  # of a title in an inch
_PER_LETTER = 4.3  # points of a letter of a tick's label
_STRIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 50, 100)


class Opened(NamedTuple):
    """Panels to draw into; ``own`` if the figure was made for them."""

    axes: list[Axes]
    own: bool
    columns: int


def open_panels(
    axes: Panels | None,
    wanted: Sequence[str],
    *,
    width: Width,
    columns: int,
    row_heights: Sequence[float],
    extra: float = 0.0,
    sharey: bool = False,
) -> Opened:
    """The caller's Axes, checked, or those of a new figure.

    Args:
        axes: As many as there are panels; None for a new figure.
        wanted: What the panels show, for the error.
        width: Of a new figure.
        columns: Panels side by side in a new figure.
        row_heights: Inches of each row of a new figure.
        extra: Inches below and above the rows.
        sharey: Whether panels of a new figure have one y axis.

    Raises:
        ValueError: If there are more or fewer Axes than panels.
    """
    if axes is not None:
        given = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).flat)
        if len(given) != len(wanted):
            raise ValueError(
                f"axes must hold {len(wanted)} Axes, one for each of {', '.join(wanted)}, got {len(given)}. "
                "Select rows of the table, or make more panels."
            )
        return Opened(given, own=False, columns=len(given))
    columns = min(columns, len(wanted))
    _figure, grid = plt.subplots(
        len(row_heights), columns, figsize=(WIDTHS[width], sum(row_heights) + extra), squeeze=False, sharey=sharey,
        layout="constrained", height_ratios=list(row_heights),
    )  # fmt: skip
    made = list(grid.flat)
    for panel in made[len(wanted) :]:
        panel.set_axis_off()
    return Opened(made[: len(wanted)], own=True, columns=columns)


def add_legend(opened: Opened, *, width: Width, columns: int | None = None) -> None:
    """One entry for each label in any of the panels: below a figure of our own, inside the caller's last panel."""
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


def add_title(opened: Opened, title: str | None, usual: str) -> None:
    """``title`` above all panels; ``usual`` where it is None and the figure is our own."""
    if opened.own and title != "":
        figure = figure_of(opened.axes)
        letters = int(figure.get_figwidth() * _TITLE_LETTERS)
        figure.suptitle("\n".join(textwrap.wrap(title or usual, letters)))
    elif title:
        opened.axes[0].set_title(title)


def stride(panel: Axes, labels: Sequence[str], span: float) -> int:
    """Every how many of ``labels``, one a step, can be written below a panel ``span`` steps wide.

    Before the layout is known the width of the panel is an estimate, on the safe side.
    """
    figure = figure_of(panel)
    points = panel.get_position().width * figure.get_figwidth() * 72 * 0.9
    longest = max((len(label) for label in labels), default=1)
    least = (_PER_LETTER * longest + _PER_LABEL) * span / max(points, 1.0)
    return next((step for step in _STRIDES if step >= least), len(labels) or 1)
