"""One self-contained HTML page about saved runs: ``build_report([Path("runs/smol")]).html``.

The page's content security policy forbids loading or sending anything. Data is embedded as JSON, which the script
inserts as text, never as markup.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from figures.report.palette import as_css
from figures.report.runs import describe_run
from figures.report.tables import MOST_ROWS

Json = dict[str, Any]
BUDGET = 4_900_000  # bytes of a page: small enough to mail and to open at once
_ROWS_OF_ALL = 12_000  # rows of all tables together
_LEAST_ROWS = 200
_SINGLE = ("maps", "attention")  # sections of single examples, of which those that do not fit are left out
_ATTENTION = "// {{attention}}"  # where the script of that view belongs


class Report(NamedTuple):
    """A page of ``size`` bytes."""

    html: str
    size: int
    shown: int
    """Examples with maps on the page."""
    left_out: int
    """Examples left out because they would make the page too large."""


def build_report(runs: Sequence[Path], *, budget: int = BUDGET) -> Report:
    """A page about saved runs.

    Args:
        runs: Run directories of any kinds, in the order of the page.
        budget: Largest size in bytes; examples that do not fit are left out and counted on the page.

    Raises:
        RunError: If a folder contains no finished run.
        ValueError: If there is no run, its files contradict each other, or the tables alone exceed the budget.

    Example:
        >>> import tempfile
        >>> from figures import build_report, example_table
        >>> run = Path(tempfile.mkdtemp())
        >>> example_table("skip_smol").to_csv(run / "results.csv", index=False)
        >>> build_report([run]).html[:15]
        '<!doctype html>'
    """
    if not runs:
        raise ValueError("runs must name at least one run directory, got none.")
    most_rows = max(_LEAST_ROWS, min(MOST_ROWS, _ROWS_OF_ALL // len(runs)))
    described = [describe_run(folder, most_rows=most_rows) for folder in runs]
    shown, left_out = _fit(described, budget)
    page = _page(described)
    size = len(page.encode())
    if size > budget:
        raise ValueError(f"report must stay below {budget:,} bytes, got {size:,}. Report fewer runs at a time.")
    return Report(page, size, shown, left_out)


def _fit(runs: list[Json], budget: int) -> tuple[int, int]:
    """Keep as many examples as fit, in turn from each run; return how many are kept and how many are left out."""
    sections = [section for run in runs for section in run["sections"] if section["type"] in _SINGLE]
    wanted = [section["examples"] for section in sections]
    for section in sections:
        section["examples"], section["left_out"] = [], 0
    room = budget - len(_page(runs).encode()) - 64 * len(sections)
    full = set[int]()
    for turn in range(max(map(len, wanted), default=0)):
        for number, (section, examples) in enumerate(zip(sections, wanted, strict=True)):
            if turn >= len(examples) or number in full:
                continue
            size = len(_json(examples[turn]).encode()) + 1
            if size > room:
                full.add(number)
                continue
            room -= size
            section["examples"].append(examples[turn])
    for section, examples in zip(sections, wanted, strict=True):
        section["left_out"] = len(examples) - len(section["examples"])
    return sum(len(section["examples"]) for section in sections), sum(section["left_out"] for section in sections)


def _page(runs: list[Json]) -> str:
    page, style, script = (_file(f"page.{ending}") for ending in ("html", "css", "js"))
    style = as_css() + style
    script = script.replace(_ATTENTION, _file("attention/view.js").strip())
    title = "Laccolith report: " + ", ".join(run["name"] for run in runs)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "{{policy}}": html.escape(policy, quote=True).replace("&#x27;", "'"),
        "{{title}}": html.escape(title),
        "{{style}}": style,
        "{{script}}": script,
        "{{data}}": _json({"title": title, "runs": runs}),
    }
    return re.sub(r"{{\w+}}", lambda mark: parts[mark[0]], page)  # one pass, so inserted text is not replaced


def _json(data: Json) -> str:
    """JSON with ``<``, ``>`` and ``&`` escaped, so that it cannot end its HTML element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    """The hash of an inline element for the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _file(name: str) -> str:
    return files("figures.report").joinpath(name).read_text(encoding="utf-8")
