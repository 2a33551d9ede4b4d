"""The probes behave as scikit-learn estimators and hand out directions."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from probes.config import Probe
from probes.linear.estimators import LogisticProbe, MassMeanProbe, RidgeClassifierProbe, RidgeProbe
from probes.linear.mlp import MLPProbe, MLPRegressorProbe
from probes.linear.registry import ESTIMATORS, INSTEAD, find_probe

PROBES = [
    LogisticProbe(),
    RidgeClassifierProbe(),
    MassMeanProbe(),
    MassMeanProbe(whiten=True),
    MLPProbe(hidden=16, learning_rate=1e-2, max_epochs=40),
]


def blobs(classes: int, *, n: int = 200, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    code = np.arange(n) % classes
    x = generator.normal(size=(n, d)) + 2 * generator.normal(size=(classes, d))[code]
    return x.astype(np.float32) * np.linspace(0.5, 3, d, dtype=np.float32) + 4, np.array(list("abcdef"))[code]


@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_clone_reads_separated_classes_from_arrays_and_tensors_alike(probe: object, classes: int) -> None:
    x, y = blobs(classes)
    fitted = clone(probe).fit(x, y)
    assert fitted.score(x, y) > 0.9
    assert list(fitted.classes_) == list("abcdef")[:classes]
    again = clone(probe).fit(torch.from_numpy(x), y)
    assert (fitted.predict(x) == again.predict(torch.from_numpy(x))).all()
    if hasattr(fitted, "predict_proba"):
        proba = fitted.predict_proba(x)
        np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
        assert (fitted.classes_[proba.argmax(1)] == fitted.predict(x)).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_coefficients_equal_scikit_learn_on_raw_activations(classes: int) -> None:
    x, y = blobs(classes)
    ours = LogisticProbe(strength=2.0, standardise=False).fit(x, y)
    theirs = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(
        ours.intercept_, theirs.intercept_, atol=5e-3
    )  # carries the means of x, up to 4 a dimension
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-3)
    np.testing.assert_allclose(ours.decision_function(x), theirs.decision_function(x), atol=1e-2)


def test_standardised_coefficients_are_for_the_activations_as_given() -> None:
    x, y = blobs(3)
    ours = LogisticProbe(strength=2.0).fit(x, y)
    scale = x.std(0)
    theirs = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit((x - x.mean(0)) / scale, y)
    np.testing.assert_allclose(ours.coef_ * scale, theirs.coef_, atol=1e-3)


def test_ridge_equals_scikit_learn_and_points_along_the_value() -> None:
    x, _ = blobs(2)
    value = x @ np.eye(12)[3] * 2 + 7
    ours = RidgeProbe(strength=0.5, standardise=False).fit(x, value)
    theirs = Ridge(alpha=0.5).fit(x.astype(np.float64), value)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-2)
    assert ours.score(x, value) == pytest.approx(theirs.score(x, value), abs=1e-4)
    assert ours.direction()[3] > 0.999


def test_mass_mean_is_the_nearest_centroid_and_the_difference_of_means() -> None:
    x, y = blobs(3)
    probe = MassMeanProbe().fit(x, y)
    assert (probe.predict(x) == NearestCentroid().fit(x, y).predict(x)).all()
    x, y = blobs(2)
    difference = x[y == "b"].mean(0) - x[y == "a"].mean(0)
    np.testing.assert_allclose(
        MassMeanProbe().fit(x, y).direction("b"), difference / np.linalg.norm(difference), atol=1e-5
    )


def test_whitened_mass_mean_is_linear_discriminant_analysis() -> None:
    x, y = blobs(2)
    ours = MassMeanProbe(whiten=True, shrinkage=1e-9).fit(x, y).direction("b")
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x.astype(np.float64), y).coef_[0]
    np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs), atol=1e-5)
    plain = MassMeanProbe().fit(x, y).direction("b")
    assert abs(plain @ ours) < 0.99  # whitening matters here


@pytest.mark.parametrize("probe", PROBES[:4], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_moving_along_a_direction_leads_to_its_class(probe: object, classes: int) -> None:
    x, y = blobs(classes)
    fitted = clone(probe).fit(x, y)
    for name in fitted.classes_:
        direction = fitted.direction(name)
        assert np.linalg.norm(direction) == pytest.approx(1)
        assert (fitted.predict(x + 100 * direction) == name).all()
    with pytest.raises(ValueError, match="class_ must be one of"):
        fitted.direction("z")


def test_the_mlp_reads_what_is_not_linear_and_repeats_itself() -> None:
    x = np.random.default_rng(0).normal(size=(600, 4))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    assert LogisticProbe().fit(x, y).score(x, y) < 0.65
    first, again, other = (MLPProbe(hidden=32, learning_rate=1e-2, max_epochs=60, seed=s).fit(x, y) for s in (1, 1, 2))
    assert first.score(x, y) > 0.9
    assert np.array_equal(first.predict_proba(x), again.predict_proba(x))
    assert not np.array_equal(first.predict_proba(x), other.predict_proba(x))
    value = x[:, 0] * x[:, 1] * 10 + 100
    assert MLPRegressorProbe(hidden=32, learning_rate=1e-2, max_epochs=60).fit(x, value).score(x, value) > 0.8


def test_the_mlp_stops_on_held_out_groups() -> None:
    x = np.random.default_rng(0).normal(size=(40, 50)).repeat(5, 0)
    y = np.random.default_rng(1).integers(0, 2, 40).repeat(5)
    leaked = MLPProbe(learning_rate=1e-2, max_epochs=60).fit(x, y)
    grouped = MLPProbe(learning_rate=1e-2, max_epochs=60).fit(x, y, groups=np.arange(40).repeat(5))
    assert grouped.n_epochs_ < leaked.n_epochs_


def test_fitting_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    MLPProbe(max_epochs=1).fit(*blobs(2))
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_steps_warn() -> None:
    x, y = blobs(3)
    with pytest.warns(ConvergenceWarning, match="LogisticProbe stopped"):
        LogisticProbe(strength=1e-3, max_iter=1).fit(x, y)


CHECKS = """
from sklearn.utils.estimator_checks import check_estimator
from probes.linear.estimators import *
from probes.linear.mlp import *
for probe in [
    LogisticProbe(),
    RidgeProbe(),
    RidgeClassifierProbe(),
    MassMeanProbe(),
    MassMeanProbe(whiten=True),
    MLPProbe(hidden=16, learning_rate=1e-2, max_epochs=60),
    MLPRegressorProbe(hidden=16, learning_rate=1e-2, max_epochs=60),
]:
    check_estimator(probe, on_skip=None)
    print(probe)
"""


def test_probes_pass_the_checks_of_scikit_learn() -> None:
    """In a process without runtime type checks: the checks pass arguments of wrong types on purpose."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKS], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"passed:\n{done.stdout}\n{done.stderr}"
    assert done.stdout.count("Probe(") == 7


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_probes_are_classifiers_in_pipelines_and_stratified_cross_validation(probe: object) -> None:
    assert is_classifier(probe)
    x, y = blobs(2)
    order = np.argsort(y)  # folds that are not stratified would hold one class each
    scores = cross_val_score(Pipeline([("scale", StandardScaler()), ("probe", probe)]), x[order], y[order], cv=2)
    assert scores.min() > 0.9
    assert is_regressor(RidgeProbe()) and is_regressor(MLPRegressorProbe())


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_errors_name_the_argument_and_the_remedy(probe: object) -> None:
    array, y = blobs(2)
    fresh, x = clone(probe), torch.from_numpy(array)
    with pytest.raises(NotFittedError):
        fresh.predict(x)
    with pytest.raises(ValueError, match="y must have at least two classes, got one class"):
        fresh.fit(x, np.full(len(x), "a"))
    with pytest.raises(ValueError, match="y must have one label per example"):
        fresh.fit(x, y[:3])
    with pytest.raises(ValueError, match="x must be a non-empty matrix"):
        fresh.fit(x[:0], y[:0])
    with pytest.raises(ValueError, match="x must have 12 dimensions, as fitted, got 5"):
        fresh.fit(x, y).predict(x[:, :5])
    broken = x.clone()
    broken[4, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in example 4"):
        fresh.fit(broken, y)


def test_the_choices_of_the_option_are_the_registered_probes() -> None:
    assert [option.replace("-", "_") for option in get_args(Probe)] == list(ESTIMATORS)


@pytest.mark.parametrize("option", get_args(Probe))
def test_every_registered_probe_fits_classes_and_only_those_with_a_regressor_fit_numbers(option: str) -> None:
    name, estimator = find_probe(option, "class")
    assert is_classifier(estimator())
    number = INSTEAD.get(name, name)
    if "continuous" in ESTIMATORS[number]:
        found, estimator = find_probe(option, "continuous")
        assert found == number
        assert is_regressor(estimator())
    else:
        with pytest.raises(ValueError, match=f"probe '{option}' must have a class target"):
            find_probe(option, "continuous")


def test_an_unknown_probe_is_an_error() -> None:
    with pytest.raises(ValueError, match="probe must be 'logistic', 'ridge', 'mass_mean', 'mlp'"):
        find_probe("svm", "class")
