"""The rules of the code's layout, checked on its text: who may import whom, folder sizes, what must not occur."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Folder -> the folders of ours that it may import, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "tasks": set(),
    "models": {"tasks"},
    "records": {"models", "tasks"},
    "figures": {"tasks"},
    "probes": {"models", "tasks", "records", "figures"},
    "interventions": {"models", "tasks", "records", "figures"},
    "tuning": {"models", "tasks", "records", "figures"},
    "benchmarks": {"models", "tasks", "records", "probes", "interventions", "tuning", "figures"},
    "laccolith": {"models", "tasks", "records", "probes", "interventions", "tuning", "figures"},
}
# File -> a folder that it alone may import: every command has `report`, which draws a page.
ALSO = {"records/command.py": {"figures"}}
LATE = {"transformer_lens", "nnsight", "seaborn", "beartype"}  # slow or for development: imported inside functions
NOT_IN_ENGINES = {"pandas", "typer", "tyro", "PIL"}  # an engine computes on tensors
MAX_FILES = 15  # Python files in one folder, besides __init__.py
LARGER_FOLDERS: dict[str, str] = {}  # folder -> the reason
# File -> what it may do that every other file has to import.
OWNERS = {
    "records/resampling.py": "bootstrap",
    "models/layer_ranges.py": "layer range",
    "figures/layer_axis.py": "layer range",  # reads the column `window`; figures/ imports no models
}
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
    """The imports of ours that the table does not allow, and relative ones."""
    folder = relative.split("/")[0]
    allowed = MAY_IMPORT[folder] | {folder} | ALSO.get(relative, set())
    return [
        name
        for name, _ in imports(tree)
        if name.startswith(".") or ((top := name.split(".")[0]) in MAY_IMPORT.keys() | {"tests"} and top not in allowed)
    ]


def module_name(relative: str) -> str:
    """The dotted name of a file: ``models/__init__.py`` is ``models``."""
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules that each of ``sources`` (name -> text) imports, also in functions and under TYPE_CHECKING."""
    graph: dict[str, set[str]] = {}
    for name, text in sources.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {found if found in sources else node.module for found in full}
        graph[name] &= sources.keys() - {name}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules in which each imports itself by way of the others."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        pending, seen = list(graph[start]), set[str]()
        while pending:
            if (module := pending.pop()) not in seen:
                seen.add(module)
                pending.extend(graph[module])
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return sorted(list(group) for group in groups)


def crowded(root: Path) -> dict[str, int]:
    """The folders with more than ``MAX_FILES`` Python files, and how many they hold."""
    counts = {
        folder.relative_to(root).as_posix(): len([f for f in folder.glob("*.py") if f.name != "__init__.py"])
        for top in (*MAY_IMPORT, "tests")
        for folder in [root / top, *(root / top).rglob("*/")]
    }
    return {folder: n for folder, n in counts.items() if n > MAX_FILES and folder not in LARGER_FOLDERS}


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


def heavy_for_engines(relative: str, tree: ast.AST) -> set[str]:
    """What an engine imports and must not; empty for other files."""
    inside = relative.startswith("interventions/engines/")
    return {name.split(".")[0] for name, _ in imports(tree)} & NOT_IN_ENGINES if inside else set()


def untyped(root: Path) -> list[str]:
    """The packages without the marker of inline types."""
    return sorted(folder for folder in MAY_IMPORT if not (root / folder / "py.typed").exists())


def hidden_tracebacks(tree: ast.AST) -> list[int]:
    """Lines of handlers that catch any exception at all and neither raise it again nor hand it to a future."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is None or ast.unparse(kind) in {"Exception", "BaseException"} for kind in caught)
            passed_on = (
                isinstance(inner, ast.Raise) or (isinstance(inner, ast.Attribute) and inner.attr == "set_exception")
                for inner in ast.walk(node)
            )  # fmt: skip
            if broad and not any(passed_on):
                found.append(node.lineno)
    return found


def second_copies(relative: str, tree: ast.AST) -> list[str]:
    """Bootstraps outside of records/resampling.py and parsers of layer ranges outside of models/layer_ranges.py."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if node.func.attr in {"split", "partition", "rpartition"} and first == "-":
                found.append("layer range")
            if node.func.attr in {"quantile", "percentile", "nanquantile", "nanpercentile"}:
                found.append("bootstrap")
    return [copy for copy in found if copy != OWNERS.get(relative)]


@cache
def trees() -> dict[str, ast.Module]:
    """The parsed files, by path relative to the root."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def findings(check: Callable[[str, ast.Module], object]) -> dict[str, object]:
    """What ``check`` finds, for the files in which it finds something."""
    return {relative: found for relative, tree in trees().items() if (found := check(relative, tree))}


def test_imports_follow_the_table() -> None:
    assert findings(misplaced) == {}


def test_no_import_circle() -> None:
    sources = {module_name(path.relative_to(ROOT).as_posix()): path.read_text(encoding="utf-8") for path in MODULES}
    assert circles(import_graph(sources)) == []


def test_no_folder_is_crowded() -> None:
    assert crowded(ROOT) == {}


def test_slow_and_development_packages_are_imported_inside_functions() -> None:
    assert findings(lambda _, tree: at_module_level(tree) & LATE) == {}


def test_engines_import_no_tables_command_line_or_pictures() -> None:
    assert any(relative.startswith("interventions/engines/") for relative in trees())
    assert findings(heavy_for_engines) == {}


def test_nothing_is_pickled() -> None:
    assert findings(lambda _, tree: unsafe(tree)) == {}


def test_no_traceback_is_hidden() -> None:
    assert findings(lambda _, tree: hidden_tracebacks(tree)) == {}


def test_resampling_and_layer_ranges_have_one_copy() -> None:
    assert findings(second_copies) == {}


def test_every_package_ships_its_types() -> None:
    assert untyped(ROOT) == []


def test_no_file_holds_an_absolute_path_of_some_machine() -> None:
    pattern = re.compile(r"(?<![\w.:/$~])/(?:home|Users|work|root|mnt|opt|tmp|data)/\w+")
    texts = [*MODULES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    texts += [*(ROOT / ".github").rglob("*.*ml"), ROOT / "mkdocs.yml", ROOT / "CITATION.cff"]
    found = {path.name: pattern.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_the_check_of_imports_finds_wrong_arrows() -> None:
    down = ast.parse("from probes.sweep import run_sweep\nfrom . import x\nimport torch")
    assert misplaced("models/llava.py", down) == ["probes.sweep", "."]
    assert misplaced("figures/style.py", ast.parse("from models.llava import Llava")) == ["models.llava"]
    assert misplaced("probes/sweep.py", ast.parse("from tuning.run import run_tuning")) == ["tuning.run"]
    assert misplaced("probes/sweep.py", ast.parse("def f():\n    from figures.style import style")) == []


def test_the_check_of_circles_finds_them_in_functions_and_under_type_checking() -> None:
    sources = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b.inner import f",
        "b": "",
        "b.inner": "def f():\n    import c",
        "c": "from a import x",
        "d": "import a\nfrom b import inner",
    }
    assert import_graph(sources)["d"] == {"a", "b.inner"}
    assert circles(import_graph(sources)) == [["a", "b.inner", "c"]]
    assert circles(import_graph({**sources, "c": ""})) == []


def test_the_check_of_folders_counts_files(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "inner"
    folder.mkdir(parents=True)
    for n in range(MAX_FILES):
        (folder / f"m{n}.py").touch()
    (folder / "__init__.py").touch()
    assert crowded(tmp_path) == {}
    (folder / "more.py").touch()
    assert crowded(tmp_path) == {"models/inner": MAX_FILES + 1}


def test_the_check_of_handlers_finds_hidden_tracebacks() -> None:
    hidden = "try:\n    f()\nexcept {}:\n    {}"
    for kind in ("Exception", "BaseException as error", "(ValueError, Exception)"):
        assert hidden_tracebacks(ast.parse(hidden.format(kind, "print(1)"))) == [3]
        assert hidden_tracebacks(ast.parse(hidden.format(kind, "raise UserError('x') from None"))) == []
    assert hidden_tracebacks(ast.parse("try:\n    f()\nexcept:\n    pass")) == [3]
    assert hidden_tracebacks(ast.parse(hidden.format("OSError", "pass"))) == []


def test_the_check_of_copies_finds_them() -> None:
    code = ast.parse("low, high = text.split('-')\nnp.quantile(draws, 0.5)\nname.split('.')")
    assert second_copies("tuning/x.py", code) == ["layer range", "bootstrap"]
    assert second_copies("models/layer_ranges.py", code) == ["bootstrap"]


def test_the_other_checks_find_what_they_look_for(tmp_path: Path) -> None:
    hidden = ast.parse("def f():\n    from PIL.Image import open\nimport torch")
    assert heavy_for_engines("interventions/engines/edits.py", hidden) == {"PIL"}
    assert heavy_for_engines("interventions/sweep.py", hidden) == set()
    for folder in MAY_IMPORT.keys() - {"probes"}:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "py.typed").touch()
    assert untyped(tmp_path) == ["probes"]
    late = (
        "import torch\ntry:\n    import nnsight\nexcept ImportError: ...\ndef f() -> None:\n    import transformer_lens"
    )
    assert at_module_level(ast.parse(late)) == {"torch", "nnsight"}
    assert unsafe(ast.parse("from joblib import load")) != []
    assert unsafe(ast.parse("import pickle\ntorch.load(p)\ntorch.load(p, weights_only=True)")) == [
        "pickle",
        "torch.load without weights_only=True",
    ]


def test_import_laccolith_loads_no_heavy_package() -> None:
    """Torch alone takes longer than the two seconds that the import may take, so its absence is what is tested."""
    code = "import sys, time; t = time.time(); import laccolith; print(time.time() - t, *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    assert not {"torch", "transformers", "pandas", "sklearn", "matplotlib"} & set(loaded)
    assert float(seconds) < 2
