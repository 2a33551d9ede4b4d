"""The figure of a geometry sweep: every curve is named, outside of the data."""

from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.text import Text

from figures.geometry.draw import draw_geometry
from figures.style import Width, figure_of, style

GALLERY = Path("figures/gallery")


def names_of(panel: Axes) -> list[Legend]:
    """The legends that name the curves of a panel; the legend of all panels is the panel's own one."""
    return [child for child in panel.get_children() if isinstance(child, Legend) and child is not panel.get_legend()]


def with_labels(table: pd.DataFrame, *targets: str) -> pd.DataFrame:
    """The table with overlaps of neighbours with labels on both sides."""
    rows = table[table["measure"] == "overlap"]
    more = [rows.assign(measure="label_overlap", side=side, target=target) for target in targets for side in "ab"]
    return pd.concat([table, *more])


@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("name", ["geometry_smol", "geometry_smol-stage1"])
def test_the_names_of_curves_overlap_neither_data_nor_title(name: str, width: str) -> None:
    table = with_labels(pd.read_csv(GALLERY / f"{name}.csv"), "kind", "a longer name of a label")
    panels = draw_geometry(table, width=cast(Width, width))
    figure = figure_of(panels)
    figure.canvas.draw()
    named = {panel.get_ylabel(): names_of(panel) for panel in panels}
    assert {label for label, found in named.items() if found} == {
        "intrinsic dimension", "information imbalance", "overlap with labels",
    }  # fmt: skip
    assert [text.get_text() for text in named["information imbalance"][0].get_texts()] == [
        "image, image → caption, caption", "caption, caption → image, image",
    ]  # fmt: skip
    titles = [
        child for panel in panels for child in panel.get_children()
        if isinstance(child, Text) and child.get_text() and child.get_text() == panel.get_title("left")
    ]  # fmt: skip
    assert len(titles) == len(panels)
    extents = [artist.get_window_extent() for artist in (*panels, *titles)]
    for found in named.values():
        for legend in found:
            own = legend.get_window_extent()
            assert not any(own.overlaps(other) for other in extents)
            assert figure.bbox.x0 <= own.x0 and own.x1 <= figure.bbox.x1


def test_names_are_left_out_with_the_legend_and_stay_beside_it_in_other_axes() -> None:
    table = pd.read_csv(GALLERY / "geometry_smol.csv")
    table = table[table["measure"].str.startswith("imbalance")]
    with style():
        _, (left, right) = plt.subplots(1, 2)
    draw_geometry(table, axes=left)
    assert len(names_of(left)) == 1
    shared = left.get_legend()
    assert shared is not None
    words = ["95 % interval", "shuffled pairs", "randomly initialised model"]
    assert [text.get_text() for text in shared.get_texts()] == words
    draw_geometry(table, axes=right, legend=False)
    assert right.get_legend() is None and not names_of(right)
