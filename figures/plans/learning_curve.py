"""What evaluations on the way found, step by step, for one tuning run or several.

``draw_learning_curve(table)`` takes the ``evaluations.csv`` of a run; for several, one below the other with a column
``run`` that names them.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from figures.panels import add_legend, add_title, open_panels
from figures.plans.plan_marks import CONDITIONS
from figures.style import COLOURS, LINES, SERIES, SERIES_MARKERS, Panels, Width, style

EvaluationMetric = Literal["accuracy", "log_prob_per_token"]
_METRICS: Mapping[EvaluationMetric, str] = {
    "accuracy": "share of right answers",
    "log_prob_per_token": "log-probability\nof a token (nats)",
}
_FEW = 6  # evaluations that all get a tick of their own
_SETS = {**CONDITIONS, "captions": "captions", "eval": "evaluation data"}


def draw_learning_curve(
    table: pd.DataFrame,
    *,
    metrics: Sequence[EvaluationMetric] = ("accuracy", "log_prob_per_token"),
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Scores by optimizer step, one curve a run: accuracy of each question family, and log-probability of all answers.

    Bands are 95 % intervals, bootstrapped over pictures, n of which stand in the panel's title; the dashed line is what
    a guess gets, where the table says so. Answers without a family have the panel ``all`` alone.

    Args:
        table: Of a run's evaluations; with a column ``run``, of several.
        metrics: Which are drawn.
        title: Stands above all panels.
        axes: To draw into, one for each panel; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is one.

    Returns:
        The panels: by set, then metric, then family, ``all`` first.

    Raises:
        ValueError: If the table holds none of the metrics or more runs than can be told apart, or ``axes`` are not one
            for each panel.
    """
    wanted = _panels(table, metrics)
    if not wanted:
        raise ValueError(f"table must hold {' or '.join(metrics)}, got none. Train with --eval-data.")
    steps = sorted(set(table["step"].astype(int)))
    runs = list(dict.fromkeys(table["run"])) if "run" in table else [None]
    if len(runs) > len(SERIES):
        raise ValueError(f"table must hold at most {len(SERIES)} runs, got {len(runs)}. Select some of them.")
    with style():
        columns = min(3 if width == "two" else 1, len(wanted))
        lines = -(-len(wanted) // columns)
        opened = open_panels(
            axes, [" ".join(panel) for panel in wanted], width=width, columns=columns, row_heights=[1.55] * lines,
            extra=0.5,
        )  # fmt: skip
        for number, (panel, (name, metric, family)) in enumerate(zip(opened.axes, wanted, strict=True)):
            here = table[(table["set"] == name) & (table["metric"] == metric) & (table["family"] == family)]
            for index, run in enumerate(runs):
                own = (here if run is None else here[here["run"] == run]).sort_values("step")
                colour, marker = SERIES[index], SERIES_MARKERS[index]
                panel.plot(own["step"], own["score"], color=colour, marker=marker, label=run, zorder=3)
                low, high = own["lower"].astype(float), own["upper"].astype(float)
                panel.fill_between(own["step"], low, high, color=colour, alpha=0.22, linewidth=0, zorder=2)
            if metric == "accuracy":
                panel.set_ylim(-0.02, 1.04)
            for level in sorted(set(here["chance"].dropna())) if "chance" in here else ():
                dashes = LINES["chance"][0]
                panel.axhline(
                    level, color=COLOURS["chance"], linestyle=dashes, linewidth=1.0, label="a guess", zorder=1
                )
            n = " or ".join(map(str, sorted(set(here["n"].astype(int)))))
            panel.set_title(f"{_SETS.get(name, name)}: {family} (n = {n})", loc="left")
            panel.set_xlabel("optimizer step")
            if len(steps) <= _FEW:
                panel.set_xticks(steps)
            else:
                panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            first = number % opened.columns == 0 or wanted[number - 1][1] != metric
            if first or not opened.own:
                panel.set_ylabel(_METRICS[metric])
        if legend:
            add_legend(opened, width=width)
        add_title(opened, title, "evaluations while training (bands: 95 % intervals)")
    return opened.axes


def _panels(table: pd.DataFrame, metrics: Sequence[EvaluationMetric]) -> list[tuple[str, EvaluationMetric, str]]:
    """Set, metric and family of each panel: families where there are several, of accuracy alone."""
    found: list[tuple[str, EvaluationMetric, str]] = []
    for name in dict.fromkeys(table["set"]):
        for metric in metrics:
            here = table[(table["set"] == name) & (table["metric"] == metric)]
            families = [str(family) for family in dict.fromkeys(here["family"]) if family != "all"]
            if not here.empty:
                found.append((str(name), metric, "all"))
            if metric == "accuracy" and len(families) > 1:
                found += [(str(name), metric, family) for family in families]
    return found
