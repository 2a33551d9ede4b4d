"""The notebooks: each runs top to bottom, draws what the committed one shows, and keeps to the rules of its kind."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from models.llava import Llava
from tests.notebooks.execute import NOTEBOOKS, TIMEOUT, cleaned, execute

NAMES = (
    "01_see_inside",
    "02_probe_layers",
    "03_where_in_the_image",
    "04_patch_the_image",
    "05_information_flow",
    "06_skip_and_transplant",
    "07_tune_the_middle",
    "08_your_own_model",
    "09_other_tools",
    "10_words_in_the_picture",
    "11_image_meets_caption",
)
# Fewer examples, layers and steps: what a notebook draws and says is made, in a part of its time.
FEWER: dict[str, dict[str, object]] = {
    "01_see_inside": {"N": 6, "STEP": 10},
    "02_probe_layers": {"N": 30, "N_UNSEEN": 9, "LAYERS": "0,8,16"},
    "03_where_in_the_image": {"N": 36, "N_MAPS": 6, "LAYERS": "0,8,16"},
    "04_patch_the_image": {"N": 4, "LAYERS": "0,12,23,28", "GRID_LAYERS": "23", "ROUNDS": 2},
    "05_information_flow": {"N": 4, "CENTRES": "7,17,27"},
    "06_skip_and_transplant": {"N_SKIP": 3, "N_TRANSPLANT": 2, "SKIPPED": "0,12,23", "UP_TO": "29", "ONWARD": "9"},
    "07_tune_the_middle": {"STEPS": 2, "N_SCORED": 3},
    "09_other_tools": {"REPEATS": 2},
    "10_words_in_the_picture": {"N": 3, "LAYERS": "0,14,26,29", "N_CAPTIONS": 20},  # the last cell reads these layers
    "11_image_meets_caption": {"N": 40, "LAYERS": "0,10,20,29"},
}
_MACHINE_PATH = re.compile(r"(?<![\w.:/$~])/(?:home|Users|work|root|mnt|opt|tmp|data|var|usr)/\w+|[A-Z]:\\\\?Users")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")  # what progress bars and coloured logs leave behind


def read(name: str) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def n_pictures(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def n_functions(notebook: NotebookNode) -> int:
    trees = [ast.parse(re.sub(r"^%.*", "", cell.source, flags=re.M)) for cell in code_cells(notebook)]
    return sum(isinstance(node, ast.FunctionDef | ast.ClassDef) for tree in trees for node in ast.walk(tree))


def names_set(cell: NotebookNode) -> set[str]:
    return set(re.findall(r"^(\w+) = ", cell.source, re.M))


def shown(notebook: NotebookNode) -> str:
    """All text that a reader sees in the outputs."""
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts += [output.get("text", "")] + [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(texts)


def faults(notebook: NotebookNode, size: int) -> list[str]:
    """Which rules a committed notebook breaks."""
    cells = code_cells(notebook)
    title = notebook.cells[0].source.splitlines()[0]
    checks = {
        "the first line is a title that asks": notebook.cells[0].cell_type == "markdown"
        and title.startswith("# ")
        and title.endswith("?"),
        "the first code cell sets model and seed": {"MODEL", "SEED"} <= names_set(cells[0]),
        "at most 15 code cells": len(cells) <= 15,
        "at most one function": n_functions(notebook) <= 1,
        "below 300 KiB": size < 300 * 1024,
        "every code cell was run, in order": [c.execution_count for c in cells] == list(range(1, len(cells) + 1)),
        "no error among the outputs": not any(o.output_type == "error" for c in cells for o in c.outputs),
        "the last cell answers": notebook.cells[-1].cell_type == "code" and bool(cells[-1].outputs),
        "a picture": sum(map(n_pictures, cells)) > 0,
        "nothing on standard error": not any(o.get("name") == "stderr" for c in cells for o in c.outputs),
        "no path of some machine": not _MACHINE_PATH.search(shown(notebook)),
        "no control characters": not _CONTROL.search(shown(notebook)),
    }  # fmt: skip
    return [rule for rule, kept in checks.items() if not kept]


def test_there_are_eleven_notebooks() -> None:
    assert tuple(path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_keeps_the_rules(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert faults(notebook, (NOTEBOOKS / f"{name}.ipynb").stat().st_size) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "tune" in name else ()) for name in NAMES], ids=NAMES
)
@pytest.mark.parametrize("fewer", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fewer", "as-committed"])
@pytest.mark.timeout(TIMEOUT + 60)
def test_the_notebook_runs_top_to_bottom_and_draws_every_picture_that_it_shows(
    name: str, fewer: bool, tmp_path: Path
) -> None:
    values = FEWER.get(name) if fewer else None
    fresh = execute(NOTEBOOKS / f"{name}.ipynb", tmp_path, {"LACCOLITH_MODEL": ""}, values=values)
    for before, now in zip(code_cells(read(name)), code_cells(fresh), strict=True):
        assert n_pictures(now) == n_pictures(before), before.source
    assert code_cells(fresh)[-1].outputs  # the answer


@pytest.mark.timeout(TIMEOUT + 60)
def test_your_own_model_takes_a_folder_and_says_so_where_there_is_none(
    llava: Llava, checkpoint: Path, tmp_path: Path
) -> None:
    assert "LACCOLITH_MODEL is not set" in shown(read("08_your_own_model"))
    fresh = execute(NOTEBOOKS / "08_your_own_model.ipynb", tmp_path, {"LACCOLITH_MODEL": str(checkpoint)})
    assert "LACCOLITH_MODEL is not set" not in shown(fresh)
    assert f"{llava.n_layers} layers, width {llava.d_model}, {llava.n_image_tokens} image tokens" in shown(fresh)


def small(*sources: str) -> NotebookNode:
    """A notebook of some code cells."""
    v4 = nbformat.v4
    return v4.new_notebook(cells=[v4.new_markdown_cell("# Is it so?"), *map(v4.new_code_cell, sources)])


def written(notebook: NotebookNode, folder: Path) -> Path:
    path = folder / "small.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_broken_figure_call_fails_the_run(tmp_path: Path) -> None:
    drawing = "import matplotlib.pyplot as plt\nfigure, panel = plt.subplots()\npanel.plot([0, 1])"
    fresh = execute(written(small("MODEL = SEED = 0", drawing), tmp_path), tmp_path)
    assert [n_pictures(cell) for cell in code_cells(fresh)] == [0, 1]
    broken = small("MODEL = SEED = 0", drawing + "\npanel.no_such_call()")
    with pytest.raises(CellExecutionError, match="no_such_call"):
        execute(written(broken, tmp_path), tmp_path)


def test_the_rules_find_what_they_look_for() -> None:
    good = small("MODEL = 'smol'\nSEED = 0", "def f():\n    return 1", "print(f())")
    for number, cell in enumerate(code_cells(good), start=1):
        cell.execution_count = number
    picture = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    good.cells[-1].outputs = [picture, nbformat.v4.new_output("stream", name="stdout", text="1\n")]
    assert faults(good, 1000) == []
    bad = small("SEED = 0", "def f(): ...\ndef g(): ...", *["1"] * 14, "print('/home/somebody/x')")
    bad.cells[0].source = "# It is so"
    stderr = nbformat.v4.new_output("stream", name="stderr", text="/home/somebody/x.py: warning \x1b[31m")
    bad.cells[-2].outputs = [stderr, nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]
    assert len(faults(bad, 400 * 1024)) == 12
    assert "no path of some machine" not in faults(cleaned(bad), 1000)
