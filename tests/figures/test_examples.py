"""The examples in docstrings run."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import figures

MODULES = [
    module.name
    for module in pkgutil.walk_packages(figures.__path__, "figures.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_every_public_name_exists_and_has_an_example() -> None:
    for name in figures.__all__:
        assert ">>>" in (getattr(figures, name).__doc__ or ""), name
    with pytest.raises(AttributeError, match="No figures attribute draw"):
        _ = figures.draw  # type: ignore[attr-defined]
