"""What token plans keep against what they cost: ``draw_token_plans(table)`` for the table of ``inference-cost``."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import draw_level, open_panels
from figures.style import COLOURS, SERIES, Panels, Width

# The kind of a plan, by the beginning of its text or its rule -> colour.
_KINDS = {
    "attention": SERIES[0], "uniform": SERIES[3], "leave": SERIES[1], "enter": SERIES[2], "freeze": SERIES[5],
    "hide": SERIES[4],
}  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_token_plans(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Accuracy relative to the full model against the closed-form cost of prefill, one panel for each split.

    Bars are 95 % paired intervals over pictures. The line joins the plans that no cheaper or equally cheap plan
    exceeds; open marks are plans that drop image tokens at random. ``table`` has the columns ``plan, split,
    prefill_ratio, kept, kept_lower, kept_upper, n``. The other arguments are described in ``figures.panels``.

    Example:
        >>> import pandas as pd
        >>> from figures import draw_token_plans
        >>> rows = [("all", 1.0, 1.0), ("leave@8", 0.6, 0.9)]
        >>> made = pd.DataFrame(rows, columns=["plan", "prefill_ratio", "kept"]).assign(
        ...     model="smol", split="test", kept_lower=0.8, kept_upper=1.0, accuracy=0.5, n=70)
        >>> draw_token_plans(made)[0].get_ylabel()
        'accuracy, relative to the full model'
    """
    splits = list(dict.fromkeys(table["split"]))
    splits = [split for split in splits if split != "all"] or splits
    plans = [str(plan) for plan in dict.fromkeys(table["plan"])]
    marks = marks_of(plans)
    per_line = 3 if width == "two" else 2
    sizes = {split: int(table.loc[table["split"] == split, "n"].max()) for split in splits}
    default = f"{table['model'].iloc[0]}: what token plans keep, n = " + ", ".join(
        f"{n} ({s})" for s, n in sizes.items()
    )
    with open_panels(
        axes, splits, width=width, columns=2 if width == "two" else 1, heights=2.6, sharey=True,
        extra=0.3 + 0.16 * -(-len(plans) // per_line), title=title, default_title=default, legend=legend,
        legend_columns=per_line,
    ) as opened:  # fmt: skip
        for number, (panel, split) in enumerate(zip(opened.axes, splits, strict=True)):
            rows = table[(table["split"] == split) & table["kept"].notna()]
            draw_level(panel, 1.0, "chance", zorder=0)
            best = _frontier(rows)
            panel.plot(
                best["prefill_ratio"], best["kept"], color=COLOURS["muted"], linewidth=0.8, zorder=1, label="frontier"
            )
            for row in rows.to_dict("records"):
                colour, marker, is_open = marks[str(row["plan"])]
                ends = np.array([[row["kept"] - row["kept_lower"]], [row["kept_upper"] - row["kept"]]])
                panel.errorbar(
                    [row["prefill_ratio"]], [row["kept"]], yerr=np.clip(np.nan_to_num(ends), 0, None), linestyle="",
                    marker=marker, color=colour, markerfacecolor="white" if is_open else colour, markersize=4.2,
                    markeredgecolor=colour, markeredgewidth=0.9, elinewidth=0.9, label=str(row["plan"]),
                )  # fmt: skip
            if len(splits) > 1:
                panel.set_title(split, loc="left")
            panel.set_xlabel("operations of prefill, relative to the full model")
            if number % opened.columns == 0 or not opened.own:
                panel.set_ylabel("accuracy, relative to the full model")
    return opened.axes


def _frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The plans that no cheaper or equally cheap plan exceeds, in ascending order of cost."""
    ordered = rows.sort_values(["prefill_ratio", "kept"], ascending=[True, False])
    above = ordered["kept"].cummax().shift(fill_value=-np.inf)
    return ordered[ordered["kept"] > above]


def marks_of(plans: list[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and whether it is open, of each plan: a colour for a kind, a marker within it."""
    found, used = {}, dict.fromkeys([*_KINDS, "full"], 0)
    for plan in plans:
        is_random = "random@" in plan
        kind = next((name for name in _KINDS if name in plan), "full")
        kind = "attention" if is_random else kind  # the control has the colour of what it is compared with
        colour = _KINDS.get(kind, COLOURS["chance"])
        key = f"{kind} random" if is_random else kind
        number = used.setdefault(key, 0)
        used[key] += 1
        found[plan] = (colour, "X" if kind == "full" else _MARKERS[number % len(_MARKERS)], is_random)
    return found
