"""The rules of the code's layout, checked on its text: who may import whom, and what must not occur."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folder -> the folders of ours that it may import, besides itself.
MAY_IMPORT = {
    "models": {"tasks"},  # the example type that inputs are made of, and the prompts
    "tasks": set(),
    "records": {"models", "tasks"},
    "probes": {"models", "tasks", "records"},
    "interventions": {"models", "tasks", "records"},
    "tuning": {"models", "tasks", "records"},
    "figures": set(),
    "benchmarks": {"models", "tasks", "records", "probes", "interventions", "tuning", "figures"},
}
# A sweep draws at its end, and a command writes a report; those are the places where results meet figures.
EXCEPTIONS = {
    ("probes/sweep.py", "figures"),
    ("interventions/sweep.py", "figures"),
    ("tuning/compare/compare.py", "figures"),
    ("records/cli_arguments.py", "figures"),
    ("records/command.py", "figures"),
}
LATE = {"transformer_lens", "nnsight", "beartype"}  # slow, or for development only: imported inside functions
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported module with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node


def at_module_level(tree: ast.Module) -> set[str]:
    """The modules that importing the file imports; what only type checkers read does not count."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {name.split(".")[0] for name, _ in imports(node)}
        pending.extend(ast.iter_child_nodes(node))
    return names


def misplaced(relative: str, tree: ast.AST) -> list[str]:
    """The imports of ours that point down the table, and relative ones."""
    folder = relative.split("/")[0]
    allowed = MAY_IMPORT[folder] | {folder}
    return [
        name
        for name, _ in imports(tree)
        if name.startswith(".")
        or (
            (top := name.split(".")[0]) in MAY_IMPORT.keys() | {"tests"}
            and top not in allowed
            and (relative, top) not in EXCEPTIONS
        )
    ]


HARMLESS = {
    "from pickle import UnpicklingError",  # what torch raises on a file it refuses
    "from joblib import Parallel, delayed, parallel_config",  # between processes of one run; no file is written or read
}


def unsafe(tree: ast.AST) -> list[str]:
    """Uses of pickle, and loads that would run it."""
    found = [
        name
        for name, statement in imports(tree)
        if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib"} and ast.unparse(statement) not in HARMLESS
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        safe = keywords.get("weights_only")
        if call == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
            found.append("torch.load without weights_only=True")
        if call == "torch.save":
            found.append("torch.save")
        if call.endswith("np.load") and "allow_pickle" in keywords:
            found.append("np.load with allow_pickle")
        remote = keywords.get("trust_remote_code")
        if isinstance(remote, ast.Constant) and remote.value:
            found.append("trust_remote_code")
    return found


def swallowed(tree: ast.AST) -> list[int]:
    """Lines where any exception at all is dropped."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]


@pytest.fixture(params=MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def module(request: pytest.FixtureRequest) -> tuple[str, ast.Module]:
    path: Path = request.param
    return path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_imports_point_up_the_table(module: tuple[str, ast.Module]) -> None:
    assert misplaced(*module) == []


def test_slow_and_development_packages_are_imported_inside_functions(module: tuple[str, ast.Module]) -> None:
    assert not at_module_level(module[1]) & LATE


def test_nothing_is_pickled_and_no_exception_is_dropped(module: tuple[str, ast.Module]) -> None:
    assert unsafe(module[1]) == []
    assert swallowed(module[1]) == []


def test_no_file_holds_an_absolute_path_of_some_machine() -> None:
    pattern = re.compile(r"(?<![\w.:/$~])/(?:home|Users|work|root|mnt|opt|tmp|data)/\w+")
    texts = [*MODULES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    found = {path.name: pattern.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_the_checks_find_what_they_look_for() -> None:
    down = ast.parse("from probes.sweep import run_sweep\nfrom . import x\nimport torch")
    assert misplaced("models/llava.py", down) == ["probes.sweep", "."]
    assert misplaced("figures/layers.py", ast.parse("from models.llava import load")) == ["models.llava"]
    late = (
        "import torch\ntry:\n    import nnsight\nexcept ImportError: ...\ndef f() -> None:\n    import transformer_lens"
    )
    assert at_module_level(ast.parse(late)) == {"torch", "nnsight"}
    assert unsafe(ast.parse("from joblib import load")) != []
    assert unsafe(ast.parse("import pickle\ntorch.load(p)\ntorch.load(p, weights_only=True)")) == [
        "pickle",
        "torch.load without weights_only=True",
    ]
    assert swallowed(ast.parse("try:\n    f()\nexcept Exception:\n    pass")) == [3]
