"""Ideas that have one home: a second copy elsewhere fails here."""

import ast
from pathlib import Path

import pytest

from tests.test_layout import MODULES, ROOT

RESAMPLING = "records/resampling.py"
# Files that draw many numbers at once for something else than an interval or a p-value.
OTHER_DRAWS = {
    "benchmarks/calibration.py": "labels of simulated data",
    "benchmarks/calibration_of_instruments.py": "clusters of simulated points",
    "benchmarks/random_inputs.py": "pixels of noise",
    "probes/evaluation/controls.py": "labels of a control task",
    "tasks/scenes/scene.py": "colours and noise of a scene",
    "tuning/cost/measure.py": "token ids of a synthetic batch",
}
STATISTICS = {"bootstrap", "permutation_test", "false_discovery_control", "multipletests", "multinomial", "resample"}


def resampled(tree: ast.AST) -> list[str]:
    """Calls that draw units with replacement, or that adjust p-values."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func).rpartition(".")[2]
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        many = "size" in options or len(node.args) > 2
        once = isinstance(value := options.get("replace"), ast.Constant) and value.value is False
        drawn = (call in {"integers", "randint"} and many) or (call == "choice" and (many or len(node.args) > 1))
        if call in STATISTICS or (drawn and not once):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_bootstrap_and_p_values_are_computed_in_one_file(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    found = resampled(ast.parse(path.read_text(encoding="utf-8")))
    if relative == RESAMPLING:
        assert len(found) >= 2  # random signs, the correction
    elif relative in OTHER_DRAWS:
        assert found, f"{relative} draws nothing: remove it from OTHER_DRAWS"
    else:
        assert found == []


def test_the_check_finds_a_bootstrap() -> None:
    for line in (
        "rng.integers(0, n, (draws, n))",
        "rng.integers(n, size=n)",
        "np.random.choice(values, size=n)",
        "rng.choice(n, n, replace=True)",
        "scipy.stats.bootstrap((x,), np.mean)",
    ):
        assert resampled(ast.parse(line)) == [line]
    assert resampled(ast.parse("rng.choice(9, size=3, replace=False); rng.integers(n); random.choice(words)")) == []
