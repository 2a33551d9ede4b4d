"""Engines know tensors and the model only."""

import ast
from pathlib import Path

from interventions import engines

UNKNOWN = ("pandas", "typer", "PIL", "interventions.plan", "interventions.operations", "interventions.metrics")


def test_engines_import_neither_tables_nor_pictures_nor_plans() -> None:
    found = {
        f"{path.name}: {name}"
        for path in Path(str(engines.__file__)).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.startswith(UNKNOWN)
    }
    assert found == set()
