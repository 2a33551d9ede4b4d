"""Linear probes as scikit-learn estimators with a direction for each class.

    probe = LogisticProbe(strength=100.0).fit(x, y)
    probe.direction("cat")        # unit vector in the space of x, towards "cat"

``x`` is an array or a tensor; tensors are fitted on their device. Learned attributes are NumPy arrays.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from probes.linear.ridge import solve_ridge
from probes.linear.solver import check_activations, rotate, solve_logistic, to_original
from tasks.errors import UserError

Array = npt.NDArray[np.float64]
_FLOATS = (np.float64, np.float32)  # arrays of other types become float64


def training_data(
    probe: BaseEstimator, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor
) -> tuple[Tensor, npt.NDArray[Any]]:
    """Check ``x`` and ``y`` and set ``n_features_in_``; scikit-learn checks arrays, tensors stay on their device."""
    labels: Any = y.cpu().numpy() if isinstance(y, Tensor) else y
    if not isinstance(x, Tensor):
        numeric = isinstance(probe, RegressorMixin)
        data, labels = validate_data(probe, x, labels, dtype=_FLOATS, y_numeric=numeric)
        return torch.from_numpy(np.array(data)), labels
    tensor = _floats(x)
    labels = column_or_1d(labels)
    if len(labels) != len(tensor):
        raise UserError(f"y must have one label per example ({len(tensor)}), got {len(labels)}.")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise UserError("y must be finite, got NaN or infinity. Drop those examples.")
    probe.n_features_in_ = tensor.shape[1]
    return tensor, labels


def checked_data(probe: BaseEstimator, x: npt.ArrayLike | Tensor) -> Tensor:
    """Check that ``probe`` is fitted and that ``x`` has the width it was fitted on."""
    check_is_fitted(probe)
    if not isinstance(x, Tensor):
        return torch.from_numpy(np.array(validate_data(probe, x, dtype=_FLOATS, reset=False)))
    tensor = _floats(x)
    if tensor.shape[1] != probe.n_features_in_:
        raise UserError(
            f"x must have {probe.n_features_in_} dimensions, as fitted, got {tensor.shape[1]}. Use the same site."
        )
    return tensor


def encode_classes(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The sorted classes and the class index of each label; raise ``UserError`` if there are fewer than two classes."""
    check_classification_targets(labels)
    classes, code = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"y must have at least two classes, got one class, {classes[0]!r}.")
    return classes, code


def _floats(x: Tensor) -> Tensor:
    """Activations as a checked float32 or float64 matrix; 16-bit and integer values are widened without loss."""
    x = x.detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    check_activations(x)
    return x


def _logits(probe: Any, x: npt.ArrayLike | Tensor) -> Array:
    """``x @ coef_.T + intercept_``, in float64."""
    data = checked_data(probe, x).cpu().numpy().astype(np.float64)
    logits: Array = data @ probe.coef_.T + probe.intercept_
    return logits


def _probabilities(z: Array) -> Array:
    scaled: Array = softmax(np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z, axis=1)
    return scaled


def class_direction(coef: Array, classes: npt.NDArray[Any], class_: object) -> Array:
    """Unit vector along which the logit of ``class_`` rises relative to the other classes.

    For two classes ``coef`` has one row, which points towards the second class; otherwise it has one row per class.

    Raises:
        UserError: If the class is unknown or the coefficients are all zero.
    """
    names = list(classes)
    if class_ not in names:
        raise UserError(f"class_ must be one of {names}, got {class_!r}.")
    number = names.index(class_)
    if len(coef) == 1:
        return unit(coef[0] if number == 1 else -coef[0])
    return unit(coef[number] - coef.mean(0))


def unit(vector: Array) -> Array:
    """``vector`` divided by its length; raises ``UserError`` if all its entries are zero."""
    length = np.linalg.norm(vector)
    if length == 0:
        raise UserError("coef_ must be non-zero to give a direction, got all zeros. The probe ignores its input.")
    scaled: Array = vector / length
    return scaled


class _LinearClassProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The base of the classifiers. ``coef_`` has one row for two classes, towards the second, or one per class."""

    coef_: Array
    classes_: npt.NDArray[Any]

    def predict(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """The class with the largest logit."""
        z = _logits(self, x)  # first, because it checks that the probe is fitted
        predicted: npt.NDArray[Any] = self.classes_[(z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(1)]
        return predicted

    def direction(self, class_: object) -> Array:
        """Unit vector towards ``class_`` and away from the other classes."""
        check_is_fitted(self)
        return class_direction(self.coef_, self.classes_, class_)


class LogisticProbe(_LinearClassProbe):
    """Logistic regression with scikit-learn's objective at ``C = 1 / strength``, fitted by the batched solver.

    Args:
        strength: Weight of the L2 penalty.
        standardise: Scale each dimension to unit variance before fitting; ``coef_`` still applies to ``x`` as given.
        tol: Estimated gap between the objective and its minimum, relative to the objective, at which to stop.
        max_iter: Steps allowed.

    Example:
        >>> x, y = [[0.0, 1.0], [0.2, 0.9], [3.0, 1.1], [2.8, 1.0]], ["cat", "cat", "dog", "dog"]
        >>> probe = LogisticProbe(strength=1.0).fit(x, y)
        >>> probe.predict([[2.5, 1.0]]).tolist()
        ['dog']
        >>> probe.direction("dog").shape
        (2,)
    """

    def __init__(
        self, strength: float = 100.0, *, standardise: bool = True, tol: float = 1e-8, max_iter: int = 500
    ) -> None:
        self.strength, self.standardise, self.tol, self.max_iter = strength, standardise, tol, max_iter

    def fit(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor) -> "LogisticProbe":
        """Fit; sets ``coef_``, ``intercept_``, ``classes_``.

        Raises:
            ValueError: If ``x`` is not a finite matrix or ``y`` has one class.
        """
        data, labels = training_data(self, x, y)
        self.classes_, code = encode_classes(labels)
        basis = rotate(data, standardise=self.standardise)
        codes = torch.from_numpy(code)[None].to(data.device)
        weights, strength = data.new_ones(1, len(data)), data.new_tensor([self.strength])
        fit = solve_logistic(
            basis, codes, weights, [len(self.classes_)], strength, tol=self.tol, max_iter=self.max_iter
        )
        if not bool(fit.converged.all()):
            warnings.warn(
                f"LogisticProbe stopped {float(fit.gap[0]):.1e} above its minimum, at step {int(fit.iterations[0])}. "
                "Raise strength, max_iter or tol, or fit in float64.",
                ConvergenceWarning,
                stacklevel=2,
            )
        coef, intercept = to_original(basis, *fit.linear(0))
        self.coef_, self.intercept_ = coef.double().cpu().numpy(), intercept.double().cpu().numpy()
        self.n_iter_ = int(fit.iterations[0])
        return self

    def decision_function(self, x: npt.ArrayLike | Tensor) -> Array:
        """Logits, "example class"; for two classes "example", towards the second."""
        z = _logits(self, x)
        return z[:, 0] if z.shape[1] == 1 else z

    def predict_proba(self, x: npt.ArrayLike | Tensor) -> Array:
        """Probabilities, "example class"."""
        return _probabilities(_logits(self, x))


class _Ridge(BaseEstimator):  # type: ignore[misc]
    def __init__(self, strength: float = 100.0, *, standardise: bool = True) -> None:
        self.strength, self.standardise = strength, standardise

    def _solve(self, data: Tensor, target: Array) -> tuple[Array, Array]:
        """Coefficients and intercepts, one row for each row of ``target``."""
        basis = rotate(data, standardise=self.standardise)
        ones = data.new_ones(len(data))
        fit = solve_ridge(basis, torch.from_numpy(target).to(data.device), ones, [self.strength])
        coef, intercept = to_original(basis, fit.weight[0], fit.bias[0])
        return coef.double().cpu().numpy(), intercept.double().cpu().numpy()


class RidgeProbe(RegressorMixin, _Ridge):  # type: ignore[misc]
    """Ridge regression for a continuous target in closed form; the objective is scikit-learn's at ``alpha = strength``.

    Args:
        strength: Weight of the L2 penalty.
        standardise: Scale each dimension to unit variance before fitting; ``coef_`` still applies to ``x`` as given.

    Example:
        >>> probe = RidgeProbe(strength=1e-3).fit([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]], [10.0, 12.0, 14.0])
        >>> probe.predict([[3.0, 1.0]]).round(1).tolist()
        [16.0]
    """

    def fit(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor) -> "RidgeProbe":
        """Fit; sets ``coef_`` (a vector) and ``intercept_`` (a number).

        Raises:
            ValueError: If ``x`` or ``y`` is not finite.
        """
        data, values = training_data(self, x, y)
        coef, intercept = self._solve(data, values.astype(np.float64)[None])
        self.coef_, self.intercept_ = coef[0], intercept[0]
        return self

    def predict(self, x: npt.ArrayLike | Tensor) -> Array:
        """The value of each example."""
        return _logits(self, x)

    def direction(self) -> Array:
        """Unit vector along which the value rises."""
        check_is_fitted(self)
        return unit(self.coef_)


class RidgeClassifierProbe(_LinearClassProbe, _Ridge):
    """Ridge regression on class indicators; the class with the largest output is predicted.

    The arguments are those of `RidgeProbe`.

    Example:
        >>> probe = RidgeClassifierProbe(strength=1.0).fit([[0.0], [0.1], [2.0], [2.1]], ["cat", "cat", "dog", "dog"])
        >>> probe.predict([[1.9]]).tolist()
        ['dog']
    """

    def fit(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor) -> "RidgeClassifierProbe":
        """Fit; sets ``coef_``, ``intercept_``, ``classes_``, with a row for every class.

        Raises:
            ValueError: If ``x`` is not a finite matrix or ``y`` has one class.
        """
        data, labels = training_data(self, x, y)
        self.classes_, code = encode_classes(labels)
        self.coef_, self.intercept_ = self._solve(data, np.eye(len(self.classes_))[code].T)
        return self


class MassMeanProbe(_LinearClassProbe):
    """Nearest class mean; for two classes the direction is the difference of means.

    Prediction assumes equal prior odds; probabilities assume that all classes have the same covariance.

    Args:
        whiten: Measure distance by the pooled covariance within classes instead of the Euclidean norm.
        shrinkage: Share of a spherical covariance mixed into the pooled one, in (0, 1]; at 0, fewer examples than
            dimensions leave the covariance singular.

    Source: Marks & Tegmark, The Geometry of Truth, 2023, arXiv 2310.06824.

    Example:
        >>> probe = MassMeanProbe().fit([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]], [0, 0, 1, 1])
        >>> probe.direction(1).tolist()
        [1.0, 0.0]
    """

    def __init__(self, *, whiten: bool = False, shrinkage: float = 0.1) -> None:
        self.whiten, self.shrinkage = whiten, shrinkage

    def fit(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor) -> "MassMeanProbe":
        """Fit; sets ``means_``, ``coef_``, ``intercept_``, ``classes_``.

        Raises:
            ValueError: If ``x`` is not a finite matrix, ``y`` has one class, or ``shrinkage`` is outside (0, 1].
        """
        if self.whiten and not 0 < self.shrinkage <= 1:
            raise UserError(
                f"shrinkage must be in (0, 1], got {self.shrinkage}. Zero may leave the covariance singular."
            )
        data, labels = training_data(self, x, y)
        data = data.to(torch.float64)
        self.classes_, code = encode_classes(labels)
        member = nn.functional.one_hot(torch.from_numpy(code), len(self.classes_)).to(data)
        means = (member.T @ data) / member.sum(0)[:, None]
        within = data - means[torch.from_numpy(code).to(data.device)]
        variance = within.square().mean().clamp_min(torch.finfo(torch.float64).tiny)
        centre = means.mean(0)
        if self.whiten:
            covariance = (1 - self.shrinkage) * within.T @ within / len(data)
            covariance += self.shrinkage * variance * torch.eye(data.shape[1], dtype=data.dtype, device=data.device)
            coef = torch.cholesky_solve((means - centre).T, torch.linalg.cholesky(covariance)).T
        else:
            coef = (means - centre) / variance
        # Half the squared distance of each mean from the common centre: the midpoint between two means is the border.
        intercept = -0.5 * (coef * (means - centre)).sum(1) - coef @ centre
        if len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.means_ = means.cpu().numpy()
        self.coef_, self.intercept_ = coef.double().cpu().numpy(), intercept.double().cpu().numpy()
        return self

    def predict_proba(self, x: npt.ArrayLike | Tensor) -> Array:
        """Probabilities, "example class"."""
        return _probabilities(_logits(self, x))
