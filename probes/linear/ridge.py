"""Ridge regression in closed form, with one Gram matrix for all targets and strengths."""

from collections.abc import Sequence
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
    if min(strengths) <= 0:
        raise UserError(f"strength must be positive, got {min(strengths)}. With 0 the optimum may not be unique.")
    used = weights > 0
    if not bool(used.any()):
        raise UserError("weights must be positive for some example, got none. Check the folds.")
    root = weights[used].to(torch.float64).sqrt()
    rows, target = basis.rows[used].to(torch.float64), y[:, used].to(torch.float64)
    share = root.square() / root.square().sum()
    row_mean, target_mean = share @ rows, target @ share
    rows = (rows - row_mean) * root[:, None]
    cross = ((target - target_mean[:, None]) * root) @ rows
    gram = rows.T @ rows
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.stack(
        [torch.cholesky_solve(cross.T, torch.linalg.cholesky(gram + strength * identity)).T for strength in strengths]
    )
    return RidgeFit(weight, target_mean - weight @ row_mean)
