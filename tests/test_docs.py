"""The code in the documents prints what they show, and the site needs nothing from another host.

``python -m tests.test_docs docs/tour.md`` runs a page and writes what its code prints into it.
"""

import ast
import contextlib
import importlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import records.command
from records.command import Report, Subcommand
from tasks.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/tour.md", "docs/interventions.md")
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n(?:<!--.*?-->\n)?```\n(?P<output>.*?)^```$)?", re.DOTALL | re.MULTILINE
)

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "figures/gallery/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "LOG.md")  # these are about the past
)
COMMANDS = {
    "probe-sweep": "probes.cli",
    "patch-sweep": "interventions.cli",
    "layerwise-finetune": "tuning.cli",
    "inference-cost": "interventions.token_plans.cli",
    "geometry-sweep": "probes.geometry.sweep.cli",
    "generate-instructions": "tuning.instructions.cli",
    "capture-activations": "probes.activations.cli",
    "transfer-sweep": "probes.transfer.cli",
    "benchmark-eval": "records.evaluation.cli",
    "lens-sweep": "probes.lenses.cli",
}


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


def missing_imports(text: str) -> list[str]:
    """The imports of a page's Python that fail, or that take a name from a module which only imports it."""
    missing = []
    for block in BLOCK.finditer(text):
        for node in ast.walk(ast.parse(block["code"])):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    home = getattr(getattr(module, name, None), "__module__", module.__name__)
                    ours = (ROOT / home.partition(".")[0]).is_dir() and module.__name__ != "laccolith"
                    if not hasattr(module, name) or (ours and not home.startswith(module.__name__)):
                        missing.append(f"{module.__name__}.{name}")
    return missing


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each of our commands in a page's shell blocks, and of those in its sentences that name ``--out``."""
    blocks = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    loops = dict(re.findall(r"for (\w+) in ([\w-]+)", text))  # the first value of each variable
    shell = [line for kind, code in blocks.findall(text) if kind in ("", "bash") for line in unfolded(code)]
    for line in [*shell, *(code for code in re.findall(r"`([^`\n]+)`", blocks.sub("", text)) if "--out" in code)]:
        if Path(line.partition(" ")[0]).name in COMMANDS:
            filled = re.sub(r"\$(\w+)", lambda name: loops.get(name[1], "1"), line)
            words = shlex.split(filled.partition(";")[0], comments=True)
            yield [Path(words[0]).name, *words[1:]]


def unfolded(code: str) -> list[str]:
    """The lines of a shell block, each command on one."""
    return [line.strip() for line in code.replace("\\\n", " ").splitlines()]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Parse a command line by its own command and run nothing."""

    def only_parse(name: str, subcommands: Sequence[Subcommand], arguments: Sequence[str], *, about: str) -> None:
        records.command._parse(name, (*subcommands, Subcommand("report", Report, print)), arguments, about)

    def parsed(words: Sequence[str]) -> None:
        module = importlib.import_module(COMMANDS[words[0]])
        monkeypatch.setattr(module, "run_command", only_parse)
        module.main(list(words[1:]))

    return parsed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_imports_and_commands_of_a_document_are_todays(
    path: Path, parse: Callable[[Sequence[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    assert missing_imports(text) == []
    for words in command_lines(text):
        parse(words)


def test_stale_imports_and_options_of_a_document_are_found(parse: Callable[[Sequence[str]], None]) -> None:
    assert missing_imports("```python\nfrom tuning.plan.layers import gone\n```\n") == ["tuning.plan.layers.gone"]
    elsewhere = "```python\nfrom tuning.plan.layers import parse_layers\n```\n"  # of models.layer_ranges
    assert missing_imports(elsewhere) == ["tuning.plan.layers.parse_layers"]
    for kind in ("", "bash"):
        (words,) = command_lines(f"```{kind}\nprobe-sweep --model smol \\\n  --gone 3  # comment\n```\n")
        assert words == ["probe-sweep", "--model", "smol", "--gone", "3"]
    with pytest.raises(UserError, match="--gone"):
        parse(words)


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
