"""The table at the end of ``benchmark-eval``: this model beside the published scores."""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from records.evaluation.table import MAIN
from tasks.benchmarks.layout.judge import NOT_JUDGED
from tasks.benchmarks.published import PUBLISHED, PUBLISHED_QUESTIONS, SOURCE
from tasks.benchmarks.registry import BENCHMARKS


def render_summary(results: pd.DataFrame) -> Table:
    """One column for each benchmark; rows: this model, its interval, lmms-eval's rule, and the published models.

    Published numbers that are not comparable have a star; the reason is below the table.
    """
    main = results[results["metric"] == MAIN].set_index("benchmark")
    names = list(main.index)
    first = results.iloc[0]
    plan = "" if first["token_plan"] == "all" else f" under {first['token_plan']}"
    table = Table(
        title=escape(f"{first['model']}{plan} beside published scores"),
        caption=(
            f"published: {SOURCE}; 95 %: interval over pictures; a dash: not published, or a server or judge is "
            "needed; all numbers: results.csv"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(BENCHMARKS[name].column, justify="right", no_wrap=True)
    table.add_row(escape(str(first["model"])), *(_number(main.loc[name, "score"], name) for name in names))
    table.add_row("  95 %", *(_interval(main.loc[name, "lower"], main.loc[name, "upper"], name) for name in names))
    table.add_row("  questions", *(str(int(main.loc[name, "n"])) for name in names))
    ungraded = {name: _not_judged(results, name) for name in names}
    if any(ungraded.values()):
        table.add_row("  not judged", *(str(ungraded[name] or "-") for name in names))
    other = {name: _other_rule(results, name) for name in names}
    if any(other.values()):
        table.add_row("  by lmms-eval's rule", *(other[name] or "-" for name in names))
    told = main.get("unlike_published", pd.Series("", main.index))  # a table from before this column has none
    unlike = {name: str(told[name]) for name in names}
    marks = {name: "*" if reason else "" for name, reason in unlike.items()}
    published = [row for row in PUBLISHED if set(names) & row.scores.keys()]
    if any(marks.values()) and published:
        counts = {
            name: f"{official.n:,}{marks[name]}" if (official := PUBLISHED_QUESTIONS.get(name)) else "-"
            for name in names
        }
        table.add_row("  questions of published rows", *counts.values())
        reasons = [f"{BENCHMARKS[name].column}: {reason}" for name, reason in unlike.items() if reason]
        table.caption = f"{table.caption}\n* not comparable with the score above: {escape('. '.join(reasons))}"
    for row in published:
        cells = {name: _number(row.scores.get(name), name) for name in names}
        table.add_row(row.model, *(cell if cell == "-" else cell + marks[name] for name, cell in cells.items()))
    return table


def notes_of(results: pd.DataFrame) -> tuple[str, ...]:
    """What a reader must know about the scores, one line for each benchmark that has notes."""
    main = results[results["metric"] == MAIN]
    return tuple(f"{row['benchmark']}: {row['notes']}" for row in main.to_dict("records") if row["notes"])


def _other_rule(results: pd.DataFrame, name: str) -> str | None:
    """The first number by lmms-eval's rule of a benchmark, which corresponds to the main score."""
    own = results[(results["benchmark"] == name) & (results["rule"] == "lmms-eval")]
    return None if own.empty else _number(own["score"].iloc[0], name)


def _not_judged(results: pd.DataFrame, name: str) -> int:
    """The number of answers without a grade, which are left out of a judged score."""
    own = results[(results["benchmark"] == name) & (results["metric"] == NOT_JUDGED)]
    return int(own["score"].sum())


def _number(value: object, name: str) -> str:
    number = float("nan") if value is None else float(str(value))
    return "-" if number != number else f"{number:.1f}"


def _interval(lower: object, upper: object, name: str) -> str:
    ends = _number(lower, name), _number(upper, name)
    return "-" if "-" in ends else f"{ends[0]}..{ends[1]}"
