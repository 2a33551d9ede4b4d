"""Runs a notebook top to bottom in a fresh kernel; as a command, refreshes what the committed notebooks show.

    python -m tests.notebooks.execute notebooks/01_see_inside.ipynb

The command writes the outputs back, without what differs from machine to machine: standard error, timings, ids.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
TIMEOUT = 180  # seconds for a cell, and about that for a notebook
# No network, no threads beside each other's, and no warning turned into an error by what runs the tests.
ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "default",
}
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def execute(
    path: Path,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    timeout: int = TIMEOUT,
    values: Mapping[str, object] | None = None,
) -> NotebookNode:
    """The notebook with the outputs of a fresh run.

    Args:
        path: The notebook.
        folder: Where it runs and where its files go.
        settings: More environment variables.
        timeout: Seconds that a cell may take.
        values: Other values for settings of the first code cell.

    Raises:
        CellExecutionError: If a cell fails.
        CellTimeoutError: If one takes longer than the limit.
        ValueError: If the first code cell does not set one of ``values``.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in (values or {}).items():
        first["source"], found = re.subn(rf"^{name} = .*?(?=  #|$)", f"{name} = {value!r}", first.source, flags=re.M)
        if found != 1:
            raise ValueError(f"{path.name} must set {name} once in its first code cell, got {found} times.")
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    home = {"IPYTHONDIR": str(folder / ".ipython"), "JUPYTER_RUNTIME_DIR": str(folder / ".jupyter")}
    client.execute(env={**os.environ, **ENVIRONMENT, **home, **(settings or {})})
    return notebook


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """The notebook without standard error, terminal codes, progress, and what only one run or machine has."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
        if cell.cell_type != "code":
            continue
        kept: list[Any] = [o for o in cell.outputs if not _is_noise(o)]
        for output in kept:
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
            if output.output_type == "stream":
                output["text"] = _TERMINAL.sub("", output.text)
        cell["outputs"] = kept
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _is_noise(output: Any) -> bool:
    """Whether it is standard error or a bar that tells how far a call was."""
    if output.output_type == "stream":
        return bool(output.name == "stderr")
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data or "<progress" in str(data.get("text/html", ""))


def main() -> None:
    """Executes each notebook and writes it back."""
    parser = argparse.ArgumentParser(description="Refresh the outputs of notebooks.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them where none is named")
    for path in parser.parse_args().notebooks or sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = cleaned(execute(path, Path(folder), timeout=20 * TIMEOUT))  # patient on a busy machine
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
