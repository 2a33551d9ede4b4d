"""Probes one at a time, with scikit-learn's estimator interface: fit, predict, score, clone.

    probe = LogisticProbe(strength=100.0).fit(x, y)
    probe.direction("cat")        # unit vector in the space of x, towards "cat"

``x`` may be an array or a tensor; tensors are fitted on their device. Learned attributes are NumPy arrays.
"""

import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn.utils import skip_init

from probes.linear.ridge import solve_ridge
from probes.linear.solver import check_activations, rotate, solve_logistic, to_original
from tasks.errors import UserError

Array = npt.NDArray[np.float64]


def _tensor(x: npt.ArrayLike | Tensor, fitted: int | None = None) -> Tensor:
    """Activations as a checked float32 or float64 matrix; 16-bit and integer values are widened without loss."""
    x = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    check_activations(x)
    if fitted is not None and x.shape[1] != fitted:
        raise UserError(f"x must have {fitted} dimensions, as fitted, got {x.shape[1]}. Use the same site.")
    return x


def _classes(y: npt.ArrayLike | Tensor, n: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    labels = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape != (n,):
        raise UserError(f"y must have one label per example ({n}), got shape {labels.shape}.")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise UserError("y must be finite, got NaN or infinity. Drop those examples.")
    classes, code = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"y must have at least two classes, got only {classes[0]!r}. There is nothing to tell apart.")
    return classes, code


def _values(y: npt.ArrayLike | Tensor, n: int) -> Array:
    values = np.asarray(y.cpu() if isinstance(y, Tensor) else y, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise UserError(f"y must be {n} finite numbers, got shape {values.shape}. Drop examples without a value.")
    return values


def _softmax(z: Array) -> Array:
    z = np.exp(z - z.max(1, keepdims=True))
    scaled: Array = z / z.sum(1, keepdims=True)
    return scaled


def _accuracy(truth: npt.ArrayLike, predicted: npt.NDArray[Any]) -> float:
    return float(np.mean(np.asarray(truth) == predicted))


def _r2(truth: npt.ArrayLike, predicted: Array) -> float:
    values = np.asarray(truth, dtype=np.float64)
    return float(1 - ((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum())


def _logits(probe: Any, x: npt.ArrayLike | Tensor) -> Array:
    """``x @ coef_.T + intercept_``, in float64."""
    check_is_fitted(probe)
    data = _tensor(x, probe.n_features_in_).cpu().numpy().astype(np.float64)
    logits: Array = data @ probe.coef_.T + probe.intercept_
    return logits


def _direction(probe: Any, class_: object) -> Array:
    """Unit vector along which the logit of ``class_`` rises, against the other classes, in the space of ``x``."""
    check_is_fitted(probe)
    names = list(probe.classes_)
    if class_ not in names:
        raise UserError(f"class_ must be one of {names}, got {class_!r}.")
    number = names.index(class_)
    if len(probe.coef_) == 1:
        vector = probe.coef_[0] if number == 1 else -probe.coef_[0]
    else:
        vector = probe.coef_[number] - probe.coef_.mean(0)
    return _unit(vector)


def _unit(vector: Array) -> Array:
    length = np.linalg.norm(vector)
    if length == 0:
        raise UserError("direction must have a length, got coefficients that are all zero. The probe found nothing.")
    unit: Array = vector / length
    return unit


class LogisticProbe(BaseEstimator):  # type: ignore[misc]
    """Logistic regression, scikit-learn's objective with ``C = 1 / strength``, fitted by the batched solver.

    Args:
        strength: Weight of the L2 penalty.
        standardise: Scale each dimension to unit variance before fitting; ``coef_`` is for ``x`` as given all the same.
        tol: Distance to the optimum at which to stop, relative to the size of the coefficients.
        max_iter: Steps allowed.
    """

    _estimator_type = "classifier"

    def __init__(
        self, strength: float = 100.0, *, standardise: bool = True, tol: float = 1e-4, max_iter: int = 500
    ) -> None:
        self.strength, self.standardise, self.tol, self.max_iter = strength, standardise, tol, max_iter

    def fit(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor) -> "LogisticProbe":
        """Fit; sets ``coef_``, ``intercept_``, ``classes_``.

        Raises:
            ValueError: If ``x`` is not a finite matrix or ``y`` has one class.
        """
        data = _tensor(x)
        self.classes_, code = _classes(y, len(data))
        basis = rotate(data, standardise=self.standardise)
        labels = torch.from_numpy(code)[None].to(data.device)
        weights, strength = data.new_ones(1, len(data)), data.new_tensor([self.strength])
        fit = solve_logistic(
            basis, labels, weights, [len(self.classes_)], strength, tol=self.tol, max_iter=self.max_iter
        )
        if not bool(fit.converged.all()):
            warnings.warn(
                f"LogisticProbe stopped {float(fit.residual[0]):.1e} from the optimum, {int(fit.iterations[0])} steps. "
                "Raise strength, max_iter or tol, or fit in float64.",
                ConvergenceWarning,
                stacklevel=2,
            )
        coef, intercept = to_original(basis, *fit.linear(0))
        self.coef_, self.intercept_ = coef.double().cpu().numpy(), intercept.double().cpu().numpy()
        self.n_iter_, self.n_features_in_ = int(fit.iterations[0]), data.shape[1]
        return self

    def decision_function(self, x: npt.ArrayLike | Tensor) -> Array:
        """Logits, "example class"; for two classes one column, towards the second."""
        return _logits(self, x)

    def predict_proba(self, x: npt.ArrayLike | Tensor) -> Array:
        """Probabilities, "example class"."""
        z = _logits(self, x)
        return _softmax(np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z)

    def predict(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """The most probable class of each example."""
        best = self.predict_proba(x).argmax(1)  # first: it checks that the probe is fitted
        predicted: npt.NDArray[Any] = self.classes_[best]
        return predicted

    def score(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike) -> float:
        """Accuracy, 0 to 1."""
        return _accuracy(y, self.predict(x))

    def direction(self, class_: object) -> Array:
        """Unit vector towards ``class_``, away from the others."""
        return _direction(self, class_)


class RidgeProbe(BaseEstimator):  # type: ignore[misc]
    """Ridge regression, scikit-learn's objective with ``alpha = strength``, in closed form.

    Args:
        strength: Weight of the L2 penalty.
        task: ``"continuous"`` for numbers; ``"class"`` regresses on indicators and takes the largest output.
        standardise: Scale each dimension to unit variance before fitting; ``coef_`` is for ``x`` as given all the same.
    """

    def __init__(
        self,
        strength: float = 100.0,
        *,
        task: Literal["continuous", "class"] = "continuous",
        standardise: bool = True,
    ) -> None:
        self.strength, self.task, self.standardise = strength, task, standardise

    def fit(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor) -> "RidgeProbe":
        """Fit; sets ``coef_`` and ``intercept_`` (a vector and a number if continuous) and, for classes, ``classes_``.

        Raises:
            ValueError: If ``x`` or ``y`` is not finite or classes are fewer than two.
        """
        data = _tensor(x)
        if self.task == "class":
            self.classes_, code = _classes(y, len(data))
            target = np.eye(len(self.classes_))[code].T
        else:
            target = _values(y, len(data))[None]
        basis = rotate(data, standardise=self.standardise)
        fit = solve_ridge(basis, torch.from_numpy(target).to(data.device), data.new_ones(len(data)), [self.strength])
        coef, intercept = to_original(basis, fit.weight[0], fit.bias[0])
        self.coef_, self.intercept_ = coef.double().cpu().numpy(), intercept.double().cpu().numpy()
        if self.task == "continuous":
            self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0]
        self.n_features_in_ = data.shape[1]
        return self

    def predict(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """Values, or the class with the largest output."""
        z = _logits(self, x)
        return z if self.task == "continuous" else self.classes_[z.argmax(1)]

    def score(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike) -> float:
        """R2, or accuracy for classes."""
        predicted = self.predict(x)
        return _r2(y, predicted) if self.task == "continuous" else _accuracy(y, predicted)

    def direction(self, class_: object = None) -> Array:
        """Unit vector along which the value rises, or towards ``class_``."""
        check_is_fitted(self)
        return _unit(self.coef_) if self.task == "continuous" else _direction(self, class_)


class MassMeanProbe(BaseEstimator):  # type: ignore[misc]
    """Difference of class means: the direction along which the classes lie apart, without fitting anything to errors.

    Prediction is by nearest class mean, with equal prior odds. Probabilities assume that classes are equally wide.

    Args:
        whiten: Measure distance by the pooled covariance within classes, not by the length in activation space.
        shrinkage: How far that covariance is drawn towards a sphere, 0 to 1; without it, fewer examples than dimensions
            leave it singular.

    Source: Marks & Tegmark, The Geometry of Truth, 2023, arXiv 2310.06824.
    """

    _estimator_type = "classifier"

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
        data = _tensor(x).to(torch.float64)
        self.classes_, code = _classes(y, len(data))
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
        self.n_features_in_ = data.shape[1]
        return self

    def predict_proba(self, x: npt.ArrayLike | Tensor) -> Array:
        """Probabilities, "example class"."""
        z = _logits(self, x)
        return _softmax(np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z)

    def predict(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """The class whose mean is nearest."""
        best = self.predict_proba(x).argmax(1)  # first: it checks that the probe is fitted
        predicted: npt.NDArray[Any] = self.classes_[best]
        return predicted

    def score(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike) -> float:
        """Accuracy, 0 to 1."""
        return _accuracy(y, self.predict(x))

    def direction(self, class_: object) -> Array:
        """Unit vector from the mean of the other classes' means to that of ``class_`` (whitened, if asked for)."""
        return _direction(self, class_)


class MLPProbe(BaseEstimator):  # type: ignore[misc]
    """One hidden layer of ReLU units: what can be read from the activations, but not linearly.

    Stops when the loss on held-out groups has not fallen for ``patience`` epochs, and keeps the best epoch.

    Args:
        hidden: Units of the hidden layer.
        task: ``"class"`` or ``"continuous"``.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        batch_size: Examples in a step.
        max_epochs: Passes over the examples at most.
        patience: Epochs without progress before stopping.
        validation: Share of the groups held out.
        seed: Of initial weights, batches and held-out groups.
    """

    def __init__(
        self,
        hidden: int = 128,
        *,
        task: Literal["class", "continuous"] = "class",
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 128,
        max_epochs: int = 200,
        patience: int = 10,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.hidden, self.task, self.learning_rate, self.weight_decay = hidden, task, learning_rate, weight_decay
        self.batch_size, self.max_epochs, self.patience = batch_size, max_epochs, patience
        self.validation, self.seed = validation, seed

    def fit(
        self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor, *, groups: npt.ArrayLike | None = None
    ) -> "MLPProbe":
        """Fit; sets ``network_``, ``n_epochs_`` and, for classes, ``classes_``.

        Args:
            x: Activations.
            y: Labels or values.
            groups: Examples of one group are held out together. None takes each example as its own.

        Raises:
            ValueError: If ``x`` or ``y`` is not finite, classes are fewer than two, or there is one group only.
        """
        data = _tensor(x).to(torch.float32)
        n, d = data.shape
        owner = np.arange(n) if groups is None else np.asarray(groups)
        if owner.shape != (n,) or len(np.unique(owner)) < 2:
            raise UserError(f"groups must name at least two groups over {n} examples, got shape {owner.shape}.")
        if self.task == "class":
            self.classes_, code = _classes(y, n)
            target, outputs = torch.from_numpy(code), len(self.classes_)
        else:
            values = _values(y, n)
            self.y_mean_, self.y_scale_ = float(values.mean()), float(values.std() or 1.0)
            target, outputs = torch.from_numpy((values - self.y_mean_) / self.y_scale_).to(torch.float32), 1
        target = target.to(data.device)
        splitter: Any = GroupShuffleSplit(1, test_size=self.validation, random_state=self.seed)
        train, held = (torch.from_numpy(part).to(data.device) for part in next(splitter.split(owner, groups=owner)))
        self.mean_, spread = data[train].mean(0), data[train].std(0, correction=0)
        constant = spread <= 10 * torch.finfo(data.dtype).eps * self.mean_.abs()
        self.scale_ = torch.where(constant, torch.ones_like(spread), spread)
        data = (data - self.mean_) / self.scale_
        generator = torch.Generator().manual_seed(self.seed)
        self.network_ = _network(d, self.hidden, outputs, generator).to(data.device)
        optimizer = torch.optim.AdamW(self.network_.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        best, best_state, waited = float("inf"), self.network_.state_dict(), 0
        for epoch in range(self.max_epochs):
            for batch in torch.split(torch.randperm(len(train), generator=generator).to(data.device), self.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(self._loss(data[train[batch]], target[train[batch]]))
                optimizer.step()
            with torch.no_grad():
                loss = float(self._loss(data[held], target[held]))
            self.n_epochs_ = epoch + 1
            if loss < best:
                best, waited = loss, 0
                best_state = {key: value.clone() for key, value in self.network_.state_dict().items()}
            else:
                waited += 1
                if waited >= self.patience:
                    break
        self.network_.load_state_dict(best_state)
        self.n_features_in_ = d
        return self

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.network_(x)
        return nn.functional.cross_entropy(z, y) if self.task == "class" else nn.functional.mse_loss(z[:, 0], y)

    @torch.no_grad()
    def _outputs(self, x: npt.ArrayLike | Tensor) -> Array:
        check_is_fitted(self)
        data = _tensor(x, self.n_features_in_).to(self.mean_)
        outputs: Array = self.network_((data - self.mean_) / self.scale_).cpu().numpy().astype(np.float64)
        return outputs

    def predict_proba(self, x: npt.ArrayLike | Tensor) -> Array:
        """Probabilities, "example class"."""
        if self.task != "class":
            raise UserError("predict_proba must be called on a probe of classes, got task='continuous'. Use predict.")
        return _softmax(self._outputs(x))

    def predict(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """The most probable class, or the value."""
        if self.task == "class":
            best = self.predict_proba(x).argmax(1)  # first: it checks that the probe is fitted
            predicted: npt.NDArray[Any] = self.classes_[best]
            return predicted
        return self._outputs(x)[:, 0] * self.y_scale_ + self.y_mean_

    def score(self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike) -> float:
        """Accuracy for classes, R2 for values."""
        predicted = self.predict(x)
        return _accuracy(y, predicted) if self.task == "class" else _r2(y, predicted)


def _bare(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights are still to be drawn; the usual constructor would draw from the global state."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs)
    return layer


def _network(d: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Layers with torch's usual initial range, drawn from ``generator`` and not from the global state."""
    first, second = (_bare(*shape) for shape in ((d, hidden), (hidden, outputs)))
    with torch.no_grad():
        for layer in (first, second):
            bound = float(layer.in_features) ** -0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.ReLU(), second)
