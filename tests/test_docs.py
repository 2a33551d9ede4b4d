"""The code in the documents prints what they show, and the site needs nothing from another host.

``python -m tests.test_docs docs/tour.md`` runs a page and writes what its code prints into it.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/tour.md", "docs/interventions.md")
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n(?:<!--.*?-->\n)?```\n(?P<output>.*?)^```$)?", re.DOTALL | re.MULTILINE
)


def run_page(text: str) -> list[tuple[re.Match[str], str]]:
    """Every block of Python of a page, run in order in one namespace, with what it printed."""
    names: dict[str, object] = {"__name__": "__main__"}
    done = []
    for block in BLOCK.finditer(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block["code"], "<page>", "exec"), names)
        done.append((block, printed.getvalue()))
    return done


def rewritten(text: str) -> str:
    """The page with what its code prints."""
    for block, printed in reversed(run_page(text)):
        if block["output"] is not None:
            text = text[: block.start("output")] + printed + text[block.end("output") :]
    return text


@pytest.mark.smol
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_prints_what_it_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = run_page(text)
    assert blocks
    for block, printed in blocks:
        if block["output"] is not None:
            assert printed == block["output"]


def test_tasks_of_the_tour_take_at_most_eight_lines() -> None:
    tasks = (ROOT / "docs/tour.md").read_text(encoding="utf-8").split("\n## ")[1:]
    counts = {}
    for task in tasks:
        code = "".join(block["code"] for block in BLOCK.finditer(task))
        lines = [line for line in code.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
        counts[task.splitlines()[0]] = len(lines)
    assert len([n for n in counts.values() if n]) == 8
    assert max(counts.values()) <= 8


def test_a_page_is_run_block_by_block_in_one_namespace() -> None:
    page = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```\nold\n```\n"
    assert [printed for _, printed in run_page(page)] == ["", "1\n"]
    assert rewritten(page).endswith("```\n1\n```\n")


@pytest.mark.process
def test_the_site_needs_nothing_from_another_host(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "tour.html").exists()
    needed = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=.?https?:|<link[^>]*rel=.?stylesheet[^>]*href=.?https?:"
    )
    pages = {page.name: needed.findall(page.read_text(encoding="utf-8")) for page in tmp_path.rglob("*.html")}
    styles = {
        p.name: re.findall(r"(?:@import|url\()\s*[\"']?https?:", p.read_text("utf-8")) for p in tmp_path.rglob("*.css")
    }
    assert {name: found for name, found in (pages | styles).items() if found} == {}
    assert needed.findall('<script src="https://x.org/a.js">')


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
            os.chdir(ROOT)
