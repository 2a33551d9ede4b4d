"""Probes with one hidden layer, as scikit-learn estimators. They can fit labels that are not linear in the activation.

Training stops after ``patience`` epochs without a lower loss on held-out groups; the weights are the best epoch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor, nn
from torch.nn.utils import skip_init

from probes.linear.estimators import Array, checked_data, encode_classes, training_data
from tasks.errors import UserError


class _MLP(BaseEstimator):  # type: ignore[misc]
    def __init__(
        self,
        hidden: int = 128,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 128,
        max_epochs: int = 200,
        patience: int = 10,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.hidden, self.learning_rate, self.weight_decay = hidden, learning_rate, weight_decay
        self.batch_size, self.max_epochs, self.patience = batch_size, max_epochs, patience
        self.validation, self.seed = validation, seed


class MLPProbe(ClassifierMixin, _MLP):  # type: ignore[misc]
    """Classifier with one hidden layer of ReLU units.

    Args:
        hidden: Units of the hidden layer.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        batch_size: Examples in a step.
        max_epochs: Largest number of passes over the examples.
        patience: Epochs without a lower validation loss before training stops.
        validation: Share of the groups that is held out.
        seed: Seed of initial weights, batches and held-out groups.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> probe = MLPProbe(learning_rate=1e-2).fit(x, x[:, 0] * x[:, 1] > 0)
        >>> bool(probe.score(x, x[:, 0] * x[:, 1] > 0) > 0.9)
        True
    """

    def fit(
        self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor, *, groups: npt.ArrayLike | None = None
    ) -> "MLPProbe":
        """Fit; sets ``network_``, ``n_epochs_`` and ``classes_``.

        Examples of one group are held out together; with ``groups`` None, each example is its own group.

        Raises:
            UserError: If ``x`` or ``y`` is not finite, or there are fewer than two classes or groups.
        """
        data, labels = training_data(self, x, y)
        self.classes_, code = encode_classes(labels)
        _train(self, data, torch.from_numpy(code), len(self.classes_), nn.functional.cross_entropy, groups)
        return self

    def predict_proba(self, x: npt.ArrayLike | Tensor) -> Array:
        """Probabilities, "example class"."""
        scaled: Array = softmax(_outputs(self, x), axis=1)
        return scaled

    def predict(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """The most probable class."""
        best = self.predict_proba(x).argmax(1)  # first, because it checks that the probe is fitted
        predicted: npt.NDArray[Any] = self.classes_[best]
        return predicted


class MLPRegressorProbe(RegressorMixin, _MLP):  # type: ignore[misc]
    """Regression of a continuous target with one hidden layer of ReLU units; the arguments are those of `MLPProbe`.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> bool(MLPRegressorProbe(learning_rate=1e-2).fit(x, x[:, 0] ** 2).score(x, x[:, 0] ** 2) > 0.8)
        True
    """

    def fit(
        self, x: npt.ArrayLike | Tensor, y: npt.ArrayLike | Tensor, *, groups: npt.ArrayLike | None = None
    ) -> "MLPRegressorProbe":
        """Fit; sets ``network_`` and ``n_epochs_``. See `MLPProbe.fit`."""
        data, found = training_data(self, x, y)
        values = found.astype(np.float64)
        self.y_mean_, self.y_scale_ = float(values.mean()), float(values.std() or 1.0)
        target = torch.from_numpy((values - self.y_mean_) / self.y_scale_).to(torch.float32)
        _train(self, data, target, 1, _squared_error, groups)
        return self

    def predict(self, x: npt.ArrayLike | Tensor) -> Array:
        """The value of each example."""
        return _outputs(self, x)[:, 0] * self.y_scale_ + self.y_mean_


def _squared_error(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(z[:, 0], y)


def _train(
    probe: Any,
    x: Tensor,
    target: Tensor,
    outputs: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    groups: npt.ArrayLike | None,
) -> None:
    """Set ``network_``, ``mean_``, ``scale_`` and ``n_epochs_`` of the probe."""
    data, target = x.to(torch.float32), target.to(x.device)
    n, d = data.shape
    owner = np.arange(n) if groups is None else np.asarray(groups)
    if owner.shape != (n,) or len(np.unique(owner)) < 2:
        raise UserError(f"groups must name at least two groups, got shape {owner.shape} for n_samples = {n}.")
    splitter: Any = GroupShuffleSplit(1, test_size=probe.validation, random_state=probe.seed)
    train, held = (torch.from_numpy(part).to(data.device) for part in next(splitter.split(owner, groups=owner)))
    probe.mean_, spread = data[train].mean(0), data[train].std(0, correction=0)
    constant = spread <= 10 * torch.finfo(data.dtype).eps * probe.mean_.abs()
    probe.scale_ = torch.where(constant, torch.ones_like(spread), spread)
    data = (data - probe.mean_) / probe.scale_
    generator = torch.Generator().manual_seed(probe.seed)
    network = _network(d, probe.hidden, outputs, generator).to(data.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=probe.learning_rate, weight_decay=probe.weight_decay)
    best, best_state, waited = float("inf"), network.state_dict(), 0
    for epoch in range(probe.max_epochs):
        for batch in torch.split(torch.randperm(len(train), generator=generator).to(data.device), probe.batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(network(data[train[batch]]), target[train[batch]]))
            optimizer.step()
        with torch.no_grad():
            loss = float(loss_of(network(data[held]), target[held]))
        probe.n_epochs_ = epoch + 1
        if loss < best:
            best, waited = loss, 0
            best_state = {key: value.clone() for key, value in network.state_dict().items()}
        else:
            waited += 1
            if waited >= probe.patience:
                break
    network.load_state_dict(best_state)
    probe.network_ = network


@torch.no_grad()
def _outputs(probe: Any, x: npt.ArrayLike | Tensor) -> Array:
    data = checked_data(probe, x).to(probe.mean_)
    outputs: Array = probe.network_((data - probe.mean_) / probe.scale_).cpu().numpy().astype(np.float64)
    return outputs


def _network(d: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Layers with torch's usual initial range, drawn from ``generator`` and not from the global state."""
    first, second = (skip_init(nn.Linear, *shape) for shape in ((d, hidden), (hidden, outputs)))
    with torch.no_grad():
        for layer in (first, second):
            bound = float(layer.in_features) ** -0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.ReLU(), second)
