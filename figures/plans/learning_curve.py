"""Scores of evaluations during training, for one tuning run or several.

``draw_learning_curve(table)`` takes the ``evaluations.csv`` of a run; for several, their rows with a column ``run``.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from figures.panels import draw_band, draw_level, open_panels
from figures.plans.plan_marks import CONDITIONS
from figures.style import SERIES, SERIES_MARKERS, Panels, Width

EvaluationMetric = Literal["accuracy", "log_prob_per_token"]
METRICS: Mapping[EvaluationMetric, str] = {
    "accuracy": "share of right answers",
    "log_prob_per_token": "log-probability\nof a token (nats)",
}
_FEW = 6  # largest number of evaluations that each get a tick
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
    """Scores by optimizer step, one curve for each run: accuracy of each question family, and log-probability.

    Bands are 95 % intervals over pictures; titles give n. The dashed line is the score of a random guess, if
    the table has it. If the table has no families, the only panel of a metric is ``all``.

    - ``table``: Evaluations of one run, or of several with a column ``run``.
    - ``metrics``: The metrics to draw.

    The other arguments are described in ``figures.panels``.

    Raises:
        ValueError: If the table has none of the metrics, or more runs than there are colours, or ``axes`` are not
            one for each panel.

    Example:
        >>> from figures import draw_learning_curve, example_table
        >>> draw_learning_curve(example_table("learning_curve_connectors"))[0].get_title("left")
        'captions: all (n = 64)'
    """
    wanted = panels_of(table, metrics)
    if not wanted:
        raise ValueError(f"table must contain {' or '.join(metrics)}, got none. Train with --eval-data.")
    steps = sorted(set(table["step"].astype(int)))
    runs = list(dict.fromkeys(table["run"])) if "run" in table else [None]
    if len(runs) > len(SERIES):
        raise ValueError(f"table must contain at most {len(SERIES)} runs, got {len(runs)}. Select some of them.")
    with open_panels(
        axes, [" ".join(panel) for panel in wanted], width=width, columns=3 if width == "two" else 1, heights=1.55,
        extra=0.5, title=title, default_title="evaluations while training (bands: 95 % intervals)", legend=legend,
    ) as opened:  # fmt: skip
        for number, (panel, (name, metric, family)) in enumerate(zip(opened.axes, wanted, strict=True)):
            here = table[(table["set"] == name) & (table["metric"] == metric) & (table["family"] == family)]
            for index, run in enumerate(runs):
                own = (here if run is None else here[here["run"] == run]).sort_values("step")
                colour, marker = SERIES[index], SERIES_MARKERS[index]
                panel.plot(own["step"], own["score"], color=colour, marker=marker, label=run, zorder=3)
                draw_band(panel, own["step"], own, colour)
            if metric == "accuracy":
                panel.set_ylim(-0.02, 1.04)
            for level in sorted(set(here["chance"].dropna())) if "chance" in here else ():
                draw_level(panel, level, "chance", "a guess", zorder=1)
            n = " or ".join(map(str, sorted(set(here["n"].astype(int)))))
            panel.set_title(f"{set_title(name)}: {family} (n = {n})", loc="left")
            panel.set_xlabel("optimizer step")
            if len(steps) <= _FEW:
                panel.set_xticks(steps)
            else:
                panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            first = number % opened.columns == 0 or wanted[number - 1][1] != metric
            if first or not opened.own:
                panel.set_ylabel(METRICS[metric])
    return opened.axes


def set_title(name: str) -> str:
    """The title of an evaluation set."""
    return _SETS.get(name, name)


def panels_of(table: pd.DataFrame, metrics: Sequence[EvaluationMetric]) -> list[tuple[str, EvaluationMetric, str]]:
    """Set, metric and family of each panel; single families only for accuracy, and only if there are several."""
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
