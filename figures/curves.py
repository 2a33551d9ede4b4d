"""Curves of a metric by layer, with the levels of two runs, for knockout, skipping and transplants.

``draw_curves(results)`` takes the table of a patch sweep (``docs/results.md``).
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from figures.effects import METRICS, as_text, default_title, layer_label, token_title
from figures.panels import add_legend, draw_band, draw_level, open_panels
from figures.style import SERIES, Panels, Width, series_look, series_numbers


def draw_curves(
    results: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """A metric of the changed run by the layer (from 0) that is changed, one panel for each metric.

    There is one curve for each token group, or for each knockout source → target, where the target cannot attend to the
    source. The axis label names the window of layers changed with each layer. Bands are 95 % intervals of the
    mean over n pairs. Solid line: mean of the clean run; dashed: of the corrupt run. For a transplant of layers these
    are the donor and the recipient without a transplant, both on the clean picture. The arguments are described in
    ``figures.panels``.

    Example:
        >>> from figures import draw_curves, example_table
        >>> panels = draw_curves(example_table("knockout_smol"))
        >>> [panel.get_ylabel() for panel in panels], panels[0].get_xlabel()
        (['logit difference (logits)', 'accuracy of the answer'], 'layer, from 0 (window 5)')
    """
    rows = as_text(results[results["layer"].notna()])
    if rows.empty:
        raise ValueError("results must contain at least one row with a layer, got none. Choose rows of blocks.")
    transplant = rows["op"].iloc[0] == "transplant"
    levels = ("donor", "recipient") if transplant else ("clean run", "corrupt run")
    metrics = [str(metric) for metric in dict.fromkeys(rows["metric"])]
    with open_panels(
        axes, metrics, width=width, columns=1 if width == "one" else 2, heights=2.1, extra=0.75, title=title,
        default_title=default_title(rows),
    ) as opened:  # fmt: skip
        for panel, metric in zip(opened.axes, metrics, strict=True):
            of_metric = rows[rows["metric"] == metric]
            for concept, label in zip(("clean", "corrupt"), levels, strict=True):
                draw_level(panel, float(of_metric[concept].iloc[0]), concept, label, zorder=1)
            keys = list(dict.fromkeys(zip(of_metric["name"], of_metric["tokens"], strict=True)))
            numbers = series_numbers([tokens or name for name, tokens in keys])
            for number, (name, tokens) in zip(numbers, keys, strict=True):
                own = of_metric[(of_metric["name"] == name) & (of_metric["tokens"] == tokens)].sort_values("layer")
                place, marker = series_look(number)
                colour = SERIES[place]
                layers = own["layer"].astype(int)
                label = token_title(tokens) or ("recipient with donor's layers" if transplant else name)
                panel.plot(layers, own["value"], color=colour, marker=marker, label=label, zorder=3)
                draw_band(panel, layers, own, colour)
            panel.fill_between([], [], [], color="#777777", alpha=0.3, linewidth=0, label="95 % interval")
            panel.set_xlabel(layer_label(of_metric))
            panel.set_ylabel(METRICS.get(metric, metric))
            panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if legend:
            few = max(len(panel.get_legend_handles_labels()[1]) for panel in opened.axes) <= 4
            add_legend(opened, width=width, columns=4 if few and width == "two" else None)
    return opened.axes
