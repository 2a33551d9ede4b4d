"""Ridge regression in closed form, with one Gram matrix for all targets and strengths."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probes.linear.solver import Basis
from tasks.errors import UserError


class RidgeFit(NamedTuple):
    """Ridge solutions in the coordinates of the basis, in float64."""

    weight: Float[Tensor, "strength target rank"]
    bias: Float[Tensor, "strength target"]


def solve_ridge(
    basis: Basis,
    y: Float[Tensor, "target example"],
    weights: Float[Tensor, " example"],
    strengths: Sequence[float],
) -> RidgeFit:
    """Minimise ``sum_i weight_i * (y_i - prediction_i)^2 + strength * |coef|^2`` for every target and strength.

    The objective is that of scikit-learn's ``Ridge(alpha=strength)``; the intercept is not penalised. It is solved in
    float64, because the Gram matrix squares the condition number.
    """
    made = RidgeEquations(basis, y, weights)
    weight = torch.stack([made.weight(made.solve(strength)) for strength in strengths])
    return RidgeFit(weight, made.target_mean - weight @ made.row_mean)


class RidgeEquations:
    """The equations of `solve_ridge`: predictions of many targets without their weights.

    Coefficients are those of the rank axes or, if these are more than the examples to fit on, of the examples.

    Args:
        basis: All examples.
        y: Values.
        weights: Of the examples.
    """

    def __init__(self, basis: Basis, y: Float[Tensor, "target example"], weights: Float[Tensor, " example"]) -> None:
        used = weights > 0
        if not bool(used.any()):
            raise UserError("weights must be positive for some example, got none. Check the folds.")
        root = weights[used].to(torch.float64).sqrt()
        rows, target = basis.rows[used].to(torch.float64), y[:, used].to(torch.float64)
        share = root.square() / root.square().sum()
        self.row_mean, self.target_mean = share @ rows, target @ share
        rows = (rows - self.row_mean) * root[:, None]
        target = (target - self.target_mean[:, None]) * root
        self._axes: Tensor | None = None
        if len(rows) < rows.shape[1]:
            self._axes, self._gram, self._cross = rows.T, rows @ rows.T, target
        else:
            self._gram, self._cross = rows.T @ rows, target @ rows

    @property
    def n_coefficients(self) -> int:
        """Of one target."""
        return len(self._gram)

    def solve(self, strength: float, chosen: Tensor | slice = slice(None)) -> Float[Tensor, "target axis"]:
        """Coefficients of the chosen targets at a strength."""
        if strength <= 0:
            raise UserError(f"strength must be positive, got {strength}. With 0 the optimum may not be unique.")
        identity = torch.eye(len(self._gram), dtype=self._gram.dtype, device=self._gram.device)
        factor = torch.linalg.cholesky(self._gram + strength * identity)
        return torch.cholesky_solve(self._cross[chosen].T, factor).T

    def weight(self, coefficients: Float[Tensor, "target axis"]) -> Float[Tensor, "target rank"]:
        """Weights of the rank axes."""
        return coefficients if self._axes is None else coefficients @ self._axes.T

    def project(self, rows: Float[Tensor, "row rank"]) -> Float[Tensor, "axis row"]:
        """Rows as the coefficients read them: predictions are ``coefficients @ projected + target_mean``."""
        centred = rows.to(torch.float64) - self.row_mean
        return (centred if self._axes is None else centred @ self._axes).T

    def predictor(
        self, coefficients: Float[Tensor, "target axis"], n_rows: int
    ) -> Callable[[Float[Tensor, "row rank"]], Float[Tensor, "target row"]]:
        """A function that predicts rows, in the form that takes fewer operations for ``n_rows`` of them."""
        (targets, axes), rank, offset = coefficients.shape, len(self.row_mean), self.target_mean[:, None]
        if n_rows * axes * (rank + targets) < targets * rank * (axes + n_rows):
            return lambda rows: coefficients @ self.project(rows) + offset
        weight = self.weight(coefficients)
        return lambda rows: weight @ (rows.to(torch.float64) - self.row_mean).T + offset
