"""Which modules state the shapes of tensors. Their functions are checked by jaxtyping and beartype in every test."""

import sys
from pathlib import Path

from _pytest.assertion.rewrite import AssertionRewritingHook
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
PACKAGES = sorted({path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "tests"})


def modules_with_shapes() -> list[str]:
    """Modules that import jaxtyping; checking all modules would double the time of the tests.

    Raises:
        RuntimeError: If one is imported already, because it would not be checked.
    """
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in sorted(package.rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]
    if early := [module for module in modules if module in sys.modules]:
        raise RuntimeError(f"Shapes are checked in modules that are imported later, got {', '.join(early)}.")
    return modules


def check_shapes() -> None:
    """Check shapes in this process if pytest runs in it; processes that tests start import modules as users do."""
    if any(isinstance(finder, AssertionRewritingHook) for finder in sys.meta_path):
        install_import_hook(modules_with_shapes(), "beartype.beartype")
