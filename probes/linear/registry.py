"""The probes by name. To add one, add its estimators here and its option to `probes.config.Probe`.

Results use the names in `ESTIMATORS`; options have hyphens instead of underscores.
"""

from typing import Any, Literal

from sklearn.utils.validation import has_fit_parameter

from probes.linear.estimators import LogisticProbe, MassMeanProbe, RidgeClassifierProbe, RidgeProbe
from probes.linear.mlp import MLPProbe, MLPRegressorProbe
from tasks.errors import UserError

TargetKind = Literal["class", "continuous"]
ESTIMATORS: dict[str, dict[TargetKind, type[Any]]] = {
    "logistic": {"class": LogisticProbe},
    "ridge": {"class": RidgeClassifierProbe, "continuous": RidgeProbe},
    "mass_mean": {"class": MassMeanProbe},
    "mlp": {"class": MLPProbe, "continuous": MLPRegressorProbe},
}
INSTEAD = {"logistic": "ridge"}  # probes fitted instead to continuous targets


def find_probe(option: str, kind: TargetKind) -> tuple[str, type[Any]]:
    """The name and the estimator of a probe for one kind of target; ``option`` may have underscores or hyphens.

    Raises:
        UserError: If there is no such probe, or none for continuous targets.
    """
    name = option.replace("-", "_")
    if name not in ESTIMATORS:
        raise UserError(f"probe must be {', '.join(map(repr, ESTIMATORS))} or an estimator, got {option!r}.")
    if kind == "continuous":
        name = INSTEAD.get(name, name)
    if kind not in ESTIMATORS[name]:
        raise UserError(f"probe {option!r} must have a class target, got a continuous one. Use 'ridge'.")
    return name, ESTIMATORS[name][kind]


def new_probe(estimator: type[Any], seed: int) -> Any:
    """An unfitted probe; the seed is set if the estimator has one."""
    probe = estimator()
    return probe.set_params(seed=seed) if "seed" in probe.get_params() else probe


def fit_probe(probe: Any, x: Any, y: Any, groups: Any) -> Any:
    """The fitted probe. ``groups`` are passed to a ``fit`` that takes them, to hold some of them out."""
    return probe.fit(x, y, groups=groups) if has_fit_parameter(probe, "groups") else probe.fit(x, y)
