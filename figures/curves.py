"""A metric by layer between the levels of two runs: what knockout, skip and transplant curves share."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from figures.effects import METRICS, in_words, layer_label, spoken, usual_title
from figures.panels import add_legend, add_title, open_panels
from figures.style import COLOURS, LINES, SERIES, SERIES_MARKERS, Panels, Width, style


def draw_curves(
    results: pd.DataFrame,
    *,
    levels: tuple[str, str] = ("clean run", "corrupt run"),
    curve: str = "",
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """A metric by layer, one panel for each metric and one curve for each token group.

    Args:
        results: The table of a patch sweep.
        levels: What the runs behind the columns ``clean`` and ``corrupt`` are called.
        curve: What a curve without a token group is called; the activation's name where it is empty.
        title: Stands above all panels.
        axes: To draw into, one for each metric; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is one.

    Returns:
        The panels, in the order of the metrics.

    Raises:
        ValueError: If no row has a layer, or ``axes`` are not one for each metric.
    """
    rows = in_words(results[results["layer"].notna()])
    if rows.empty:
        raise ValueError("results must hold at least one row with a layer, got none. Curves go by layer.")
    metrics = [str(metric) for metric in dict.fromkeys(rows["metric"])]
    with style():
        columns = 1 if width == "one" else min(2, len(metrics))
        lines = -(-len(metrics) // columns)
        opened = open_panels(axes, metrics, width=width, columns=columns, row_heights=[2.1] * lines, extra=0.75)
        for panel, metric in zip(opened.axes, metrics, strict=True):
            of_metric = rows[rows["metric"] == metric]
            for concept, label in zip(("clean", "corrupt"), levels, strict=True):
                value = float(of_metric[concept].iloc[0])
                panel.axhline(
                    value, color=COLOURS[concept], linestyle=LINES[concept][0], linewidth=1.0, label=label, zorder=1
                )
            keys = list(dict.fromkeys(zip(of_metric["name"], of_metric["tokens"], strict=True)))
            for number, (name, tokens) in enumerate(keys):
                own = of_metric[(of_metric["name"] == name) & (of_metric["tokens"] == tokens)].sort_values("layer")
                colour, marker = SERIES[number % len(SERIES)], SERIES_MARKERS[number % len(SERIES_MARKERS)]
                layers, label = own["layer"].astype(int), spoken(tokens) or curve or name
                panel.plot(layers, own["value"], color=colour, marker=marker, label=label, zorder=3)
                panel.fill_between(
                    layers, own["lower"].astype(float), own["upper"].astype(float), color=colour, alpha=0.22,
                    linewidth=0, zorder=2,
                )  # fmt: skip
            panel.fill_between([], [], [], color="#777777", alpha=0.3, linewidth=0, label="95 % interval")
            panel.set_xlabel(layer_label(of_metric))
            panel.set_ylabel(METRICS.get(metric, metric))
            panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if legend:
            few = max(len(panel.get_legend_handles_labels()[1]) for panel in opened.axes) <= 4
            add_legend(opened, width=width, columns=4 if few and width == "two" else None)
        add_title(opened, title, usual_title(rows))
    return opened.axes
