"""``import laccolith``: quick, lazy, and clear about a folder that hides one of its packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import laccolith as lc

ROOT = Path(__file__).parents[2]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_import_loads_no_heavy_library(tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'sklearn', 'matplotlib'}"
    done = python(f"import laccolith, sys; print(sorted({heavy} & set(sys.modules)), len(dir(laccolith)))", tmp_path)
    assert done.stdout.startswith("[] "), done.stderr


@pytest.mark.parametrize("name", ["models.py", "tasks/__init__.py"])
def test_a_folder_that_hides_a_package_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    done = python("import laccolith", tmp_path)
    package = name.split("/")[0].removesuffix(".py")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: package '{package}' must be laccolith's own, got {tmp_path}")
    assert done.returncode == 1


def test_every_name_is_there_and_others_are_an_error() -> None:
    assert [name for name in lc.__all__ if not hasattr(lc, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'pach'"):
        lc.pach  # noqa: B018
