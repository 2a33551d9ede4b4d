"""Every public function and class has an example in its docstring, and every example runs."""

import ast
import doctest
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layout import MODULES, ROOT, module_name

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def without_example(module: types.ModuleType, names: list[str]) -> list[str]:
    """The functions and classes among ``names`` whose docstring has no ``Example:`` section with a ``>>>`` line."""
    missing = []
    for name in names:
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isroutine(found):
            _, _, example = (found.__doc__ or "").partition("Example:")
            if ">>>" not in example:
                missing.append(name)
    return missing


def examples(path: Path) -> Iterator[tuple[str, int, str]]:
    """Name, line and text of every docstring of a file that holds an example."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and ">>>" in text:
                yield getattr(node, "name", path.stem), getattr(node, "lineno", 0), text


def failures(name: str, text: str, names: dict[str, object], file: str, line: int) -> str:
    """What the examples in ``text`` print that they should not; empty if all pass."""
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, names, name, file, line)
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=said.append)
    return "".join(said)


PACKAGES = [path for path in MODULES if path.name == "__init__.py" and not path.is_relative_to(ROOT / "benchmarks")]
WITH_EXAMPLES = [path for path in MODULES if ">>>" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", [p for p in PACKAGES if p.parent.parent == ROOT], ids=lambda p: p.parent.name)
def test_the_package_lists_its_public_names(path: Path) -> None:
    module = importlib.import_module(module_name(path.relative_to(ROOT).as_posix()))
    assert module.__all__, "a package says in __all__ what is public"
    assert module.__doc__


@pytest.mark.parametrize("path", PACKAGES, ids=lambda p: p.parent.relative_to(ROOT).as_posix())
def test_every_public_name_has_an_example(path: Path) -> None:
    module = importlib.import_module(module_name(path.relative_to(ROOT).as_posix()))
    assert without_example(module, getattr(module, "__all__", [])) == []


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module_name(path.relative_to(ROOT).as_posix()))
    for name, line, text in examples(path):
        assert failures(name, text, dict(vars(module)), str(path), line) == ""


def test_the_checks_find_missing_and_wrong_examples(tmp_path: Path) -> None:
    module = types.ModuleType("made")
    exec(
        'def bare():\n    "Does it."\ndef shown():\n    """Does it.\n\n    Example:\n        >>> 1\n        1\n    """',
        vars(module),
    )
    assert without_example(module, ["bare", "shown"]) == ["bare"]
    file = tmp_path / "made.py"
    file.write_text('def f():\n    """Adds.\n\n    Example:\n        >>> 1 + 1\n        3\n    """\n')
    ((name, line, text),) = examples(file)
    assert "Expected:\n    3\nGot:\n    2" in failures(name, text, {}, "made.py", line)
