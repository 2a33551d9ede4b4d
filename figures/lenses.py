"""How often lenses name the object, by layer: ``draw_lenses(table)`` for the table of ``lens-sweep``."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.layer_axis import ENTRY, steps_of
from figures.panels import draw_band, open_panels, stride
from figures.style import COLOURS, Panels, Width

# (words, place) -> colour, line style, marker, label
CURVES: dict[tuple[str, str], tuple[str, object, str, str]] = {
    ("object", "inside"): (COLOURS["score"], "-", "o", "object's words, inside its box"),
    ("object", "outside"): (COLOURS["transfer"], "-", "s", "object's words, outside"),
    ("other", "inside"): (COLOURS["control"], (0, (4, 1.2, 1, 1.2)), "", "another example's words, inside"),
    ("frequency", "inside"): (COLOURS["pixels"], (0, (1, 1.2)), "", "words of like frequency, inside"),
    ("random_init", "inside"): (COLOURS["random_init"], "-", "", "randomly initialised model, inside"),
}


def draw_lenses(
    table: pd.DataFrame,
    *,
    metric: str = "hit@5",
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Hit rate by layer, one panel for each lens and split, with 95 % intervals over groups of examples.

    A patch is a hit if one of the lens's best words there is a word of the object in focus. Curves of the patches
    inside the object's box and outside of it; inside it also for another example's words, for words of like frequency,
    and for a randomly initialised model. ``metric`` is ``hit@1``, ``hit@5``, ``hit@10`` or ``mrr``. The other arguments
    are described in ``figures.panels``.

    Raises:
        ValueError: If the table contains no row of the metric.

    Example:
        >>> import pandas as pd
        >>> from figures import draw_lenses
        >>> rows = [("resid_pre", 0, 0.1), ("resid_post", 0, 0.2), ("resid_post", 1, 0.5)]
        >>> made = pd.DataFrame(rows, columns=["name", "layer", "score"]).assign(
        ...     model="smol", lens="logit", part="language_model", metric="hit@5", words="object", place="inside",
        ...     split="test", lower=0.0, upper=0.6, n=90, n_groups=10)
        >>> draw_lenses(made)[0].get_ylabel()
        'hit@5'
    """
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise ValueError(f"results must contain the metric {metric!r}, got none. Run lens-sweep first.")
    wanted = [(str(lens), str(split)) for lens in dict.fromkeys(rows["lens"]) for split in dict.fromkeys(rows["split"])]
    names = [f"{lens} lens, {split}" for lens, split in wanted]
    columns = min(2 if width == "two" else 1, max(1, rows["split"].nunique()))
    with open_panels(
        axes, names, width=width, columns=columns, heights=2.1, extra=0.9, sharey=True, title=title,
        default_title=f"{rows['model'].iloc[0]}: words that lenses read at image tokens", legend=legend,
        legend_columns=2 if width == "two" else 1,
    ) as opened:  # fmt: skip
        for number, (panel, (lens, split)) in enumerate(zip(opened.axes, wanted, strict=True)):
            own = rows[(rows["lens"] == lens) & (rows["split"] == split)]
            _draw_panel(panel, own)
            n = int(own.loc[own["place"] == "inside", "n_groups"].max())
            panel.set_title(f"{names[number]} (n = {n})", loc="left")
            if number % opened.columns == 0 or not opened.own:
                panel.set_ylabel(metric)
            if not opened.own or number + opened.columns >= len(wanted):
                panel.set_xlabel("layer, from 0")
    return opened.axes


def _draw_panel(panel: Axes, rows: pd.DataFrame) -> None:
    for (words, place), (colour, dashes, marker, label) in CURVES.items():
        own = rows[(rows["words"] == words) & (rows["place"] == place)]
        if own.empty:
            continue
        steps = steps_of(own).sort_values()
        own = own.loc[steps.index]
        panel.plot(
            steps, own["score"].astype(float), color=colour, linestyle=dashes, marker=marker, markersize=2.8,
            label=label, zorder=3 if words == "object" else 2,
        )  # fmt: skip
        if words == "object":
            draw_band(panel, steps.to_numpy(), own, colour, zorder=1)
    places = sorted({float(step) for step in steps_of(rows)})
    apart = stride(panel, ["in" if step == ENTRY else f"{step:.0f}" for step in places], places[-1] - places[0] + 1)
    ticks: list[tuple[float, str]] = []
    for step in places:
        if not ticks or step - ticks[-1][0] >= apart:
            ticks.append((step, "in" if step == ENTRY else f"{step:.0f}"))
    panel.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    highest = float(np.nanmax(rows.loc[rows["words"] == "object", ["score", "upper"]].to_numpy(dtype=float)))
    if highest > panel.get_ylim()[1] or panel.get_ylim()[0] != 0.0:
        panel.set_ylim(0.0, max(0.05, 1.08 * highest, panel.get_ylim()[1]))
