"""Fit all logistic probes of one activation matrix together: all folds, targets and strengths in one batch.

    basis = rotate(x)                                    # once per site
    fit = solve_logistic(basis, labels, weights, classes, strength)
    coef, intercept = to_original(basis, *fit.linear(0))

The matrix is rotated onto its principal axes. There the L2 penalty is unchanged and the Hessian is nearly diagonal, so
a diagonal preconditioner works well. With fewer examples than dimensions, the problem shrinks exactly to the span of
the examples. `probes.linear.ridge` solves ridge regression on the same basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks.errors import UserError

MEMORY = 8  # L-BFGS pairs; with the preconditioner, more pairs save few iterations
ARMIJO = 1e-4
HALVINGS = 12


@dataclass(frozen=True)
class Basis:
    """One activation matrix, centred, scaled and rotated onto the principal axes of its fitted examples."""

    rows: Float[Tensor, "example rank"]
    rotation: Float[Tensor, "d_model rank"]
    centre: Float[Tensor, " d_model"]
    scale: Float[Tensor, " d_model"]
    spectrum: Float[Tensor, " rank"]
    n_fitted: int


def rotate(
    x: Float[Tensor, "example d_model"], *, fitted: Bool[Tensor, " example"] | None = None, standardise: bool = True
) -> Basis:
    """Centre, scale and rotate activations. This is an exact change of coordinates for L2-penalised linear probes.

    The result has the device and dtype of ``x``, float32 or float64. ``fitted`` is True for examples that determine
    mean, scale and axes; None takes all. ``standardise`` divides each dimension by its standard deviation; constant
    dimensions become zero.
    """
    check_activations(x)
    inside = x if fitted is None else x[fitted]
    n, d = inside.shape
    # Float64, because float32 sums lose digits if the mean of a dimension is much larger than its spread.
    centre64 = inside.mean(0, dtype=torch.float64)
    scale64 = torch.ones_like(centre64)
    if standardise:
        spread = (inside.to(torch.float64) - centre64).square().mean(0).sqrt()
        # By rounding, a constant dimension can have a spread up to this.
        constant = spread <= 10 * torch.finfo(x.dtype).eps * centre64.abs()
        scale64 = torch.where(constant, scale64, spread)
    else:
        constant = torch.zeros_like(centre64, dtype=torch.bool)
    centred = ((x.to(torch.float64) - centre64) / scale64).masked_fill(constant, 0.0).to(x.dtype)
    inside = centred if fitted is None else centred[fitted]
    if n < d:
        span, _ = torch.linalg.qr(inside.T)
        reduced = inside @ span
    else:
        span, reduced = None, inside
    gram = reduced.to(torch.float64).T @ reduced.to(torch.float64)
    axes = torch.linalg.eigh(gram).eigenvectors.flip(1).to(x.dtype)
    rotation = axes if span is None else span @ axes
    rows = centred @ rotation
    spectrum = (rows if fitted is None else rows[fitted]).square().sum(0)
    return Basis(rows, rotation, centre64.to(x.dtype), scale64.to(x.dtype), spectrum, n)


def to_original(
    basis: Basis, weight: Float[Tensor, "row rank"], bias: Float[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """Coefficients and intercepts for activations before centring, scaling and rotation."""
    coef = (weight.to(torch.float64) @ basis.rotation.to(torch.float64).T) / basis.scale.to(torch.float64)
    intercept = bias.to(torch.float64) - coef @ basis.centre.to(torch.float64)
    return coef.to(weight.dtype), intercept.to(weight.dtype)


def check_activations(x: Tensor) -> None:
    """Raise UserError unless ``x`` is a finite, non-empty float32 or float64 matrix."""
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise UserError(f"x must be a non-empty matrix 'example d_model', got {tuple(x.shape)}. Pool positions first.")
    if x.dtype not in (torch.float32, torch.float64):
        raise UserError(f"x must be float32 or float64, got {x.dtype}. Convert it; 16-bit sums are too coarse.")
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise UserError(f"x must be finite, got NaN or infinity in example {row}. Capture in float32 or drop it.")


@dataclass(frozen=True)
class LogisticFit:
    """Solved logistic problems, in the coordinates of their basis."""

    weight: Float[Tensor, "row rank"]
    """Coefficients; one row for a binary problem, one row per class otherwise."""
    bias: Float[Tensor, " row"]
    """Unpenalised intercepts; in a multinomial problem they sum to zero."""
    rows: tuple[slice, ...]
    """The rows of ``weight`` of each problem."""
    gap: Float[Tensor, " problem"]
    """Estimated distance of the objective from its minimum, relative to the objective."""
    converged: Bool[Tensor, " problem"]
    """True if ``gap`` fell to the tolerance, or to the precision of the dtype."""
    iterations: Int[Tensor, " problem"]

    def linear(self, problem: int) -> tuple[Float[Tensor, "row rank"], Float[Tensor, " row"]]:
        """Weight and bias of one problem."""
        return self.weight[self.rows[problem]], self.bias[self.rows[problem]]


def solve_logistic(
    basis: Basis,
    labels: Int[Tensor, "problem example"],
    weights: Float[Tensor, "problem example"],
    n_classes: Sequence[int],
    strength: Float[Tensor, " problem"],
    *,
    start: LogisticFit | None = None,
    tol: float = 1e-8,
    max_iter: int = 500,
) -> LogisticFit:
    """Minimise ``sum_i weight_i * log_loss_i + strength / 2 * |coef|^2`` for all problems at once.

    This is scikit-learn's ``LogisticRegression(C=1 / strength)``: a sigmoid for two classes, a softmax for more, no
    penalty on the intercept. Each problem has its own L-BFGS memory and step length. Each iteration takes two matrix
    products for all problems; converged problems leave the batch.

    Args:
        basis: The result of `rotate`.
        labels: Class codes from 0; codes of examples with zero weight are ignored, but must be valid.
        weights: Weight of each example in each problem; zero leaves it out.
        n_classes: Number of classes of each problem; each class must occur with positive weight.
        strength: Weight of the penalty; positive.
        start: A fit of the same problems at other strengths or on other examples, to start from.
        tol: Stop if the estimated gap, (objective - minimum) / objective, is below this. The estimate is half of the
            squared gradient over the diagonal of the Hessian, the gap of a quadratic with that Hessian; measured gaps
            are 0.4 to 4 times the estimate. The duality gap, ``|gradient|^2 / (2 strength)`` where the intercept is
            optimal, bounds the gap from above, but is 10 to 100 times too large.
        max_iter: Largest number of steps of a problem.

    Raises:
        UserError: If a strength is not positive or a problem lacks a class.

    Source: Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.4; the diagonal preconditioner is new.
    """
    if not bool((strength > 0).all()):
        raise UserError(f"strength must be positive, got {float(strength.min())}. With 0 there may be no optimum.")
    _check_classes(labels, weights, n_classes)
    order = sorted(range(len(n_classes)), key=lambda p: n_classes[p])
    widths = [1 if n_classes[p] == 2 else n_classes[p] for p in order]
    index = torch.tensor(order, device=labels.device)
    batch = _Batch(basis, labels[index], weights[index], widths, strength[index])
    initial = None
    if start is not None:
        stacked = [torch.cat([w, b[:, None]], 1) for w, b in (start.linear(p) for p in order)]
        initial = torch.cat(stacked)
    w, gap, converged, iterations = _minimise(batch, initial, tol, max_iter)
    ends = torch.tensor(widths).cumsum(0).tolist()
    slices: list[slice] = [slice(0)] * len(order)
    for place, problem in enumerate(order):
        slices[problem] = slice(ends[place] - widths[place], ends[place])
        if widths[place] > 1:
            # The softmax does not depend on a shift of all classes; scikit-learn's solution has none.
            w[slices[problem]] -= w[slices[problem]].mean(0)
    back = torch.empty_like(index)
    back[index] = torch.arange(len(order), device=index.device)
    return LogisticFit(w[:, :-1], w[:, -1], tuple(slices), gap[back], converged[back], iterations[back])


def _check_classes(labels: Tensor, weights: Tensor, n_classes: Sequence[int]) -> None:
    for p, k in enumerate(n_classes):
        seen = int(torch.unique(labels[p][weights[p] > 0]).numel())
        if k < 2 or seen != k:
            raise UserError(
                f"problem {p} must have each of its {k} classes (two or more) among the fitted examples, got {seen}. "
                "Count only the classes that occur."
            )


class _Batch:
    """The unsolved problems, as rows of one coefficient matrix, ordered by number of rows."""

    def __init__(self, basis: Basis, labels: Tensor, weights: Tensor, widths: list[int], strength: Tensor) -> None:
        x = basis.rows
        self.x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.penalised = torch.cat([x.new_ones(x.shape[1]), x.new_zeros(1)])
        # Curvature of each axis per fitted example and unit of p(1 - p); the axis of the intercept is all ones.
        self.spectrum = torch.cat([basis.spectrum / basis.n_fitted, x.new_ones(1)])
        self.labels, self.weights, self.widths = labels, weights.to(x.dtype), widths
        self.strength = strength.to(x.dtype)
        self._index()

    def _index(self) -> None:
        width = torch.tensor(self.widths, device=self.x.device)
        self.owner = torch.repeat_interleave(torch.arange(len(self.widths), device=self.x.device), width)
        self.total = self.weights.sum(1)
        self.blocks: list[tuple[slice, slice, int]] = []  # problems, rows, width: one entry per distinct width
        problem = row = 0
        for size in sorted(set(self.widths)):
            count = self.widths.count(size)
            self.blocks.append((slice(problem, problem + count), slice(row, row + count * size), size))
            problem, row = problem + count, row + count * size

    def keep(self, active: Tensor) -> Tensor:
        """Drop all but the active problems, and return the mask of the rows that stay."""
        rows = active[self.owner]
        self.labels, self.weights, self.strength = self.labels[active], self.weights[active], self.strength[active]
        self.widths = [w for w, stays in zip(self.widths, active.tolist(), strict=True) if stays]
        self._index()
        return rows

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of each problem's rows, in float64."""
        by_row = torch.linalg.vecdot(a, b).to(torch.float64)
        return torch.zeros(len(self.widths), dtype=torch.float64, device=a.device).index_add_(0, self.owner, by_row)

    def loss(self, z: Tensor, *, curved: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Summed log-loss per problem, its gradient by the logits, and, if ``curved``, ``p (1 - p)`` per row."""
        losses, residuals, curvatures = [], [], []
        for problems, rows, size in self.blocks:
            labels, weights = self.labels[problems], self.weights[problems]
            logits = z[rows].view(len(labels), size, -1)
            if size == 1:
                logits = logits[:, 0]
                p = torch.sigmoid(logits)
                each = torch.nn.functional.softplus(torch.where(labels == 1, -logits, logits))
                wp = weights * p
                residual = torch.where(labels == 1, wp - weights, wp)
                if curved:
                    curvatures.append((wp * (1 - p)).sum(1))
            else:
                top = logits.amax(1, keepdim=True)
                p = (logits - top).exp_()
                total = p.sum(1, keepdim=True)
                p /= total
                right = logits.gather(1, labels[:, None])
                each = (total.log() + top - right)[:, 0]
                residual = p * weights[:, None]
                if curved:
                    curvatures.append((residual.sum(2) - torch.einsum("pkn,pkn->pk", residual, p)).reshape(-1))
                residual.scatter_add_(1, labels[:, None], -weights[:, None])
            losses.append((each * weights).sum(1, dtype=torch.float64))
            residuals.append(residual.reshape(-1, z.shape[1]))
        return torch.cat(losses), torch.cat(residuals), torch.cat(curvatures) if curved else None

    def diagonal(self, curvature: Tensor) -> Tensor:
        """Approximate diagonal of the Hessian, with the mean curvature of a row for each of its examples."""
        # Without this lower bound, a perfectly fitted row gives the intercept no curvature.
        data = torch.maximum(curvature, 1e-4 * self.total[self.owner])[:, None] * self.spectrum
        return self.strength[self.owner, None] * self.penalised + data


def _minimise(batch: _Batch, start: Tensor | None, tol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, dtype, device = batch.x, batch.x.dtype, batch.x.device
    n_problems, n_rows = len(batch.widths), len(batch.owner)
    final = x.new_zeros(n_rows, x.shape[1])
    out_gap = torch.zeros(n_problems, dtype=torch.float64, device=device)
    out_converged = torch.zeros(n_problems, dtype=torch.bool, device=device)
    out_iterations = torch.zeros(n_problems, dtype=torch.long, device=device)
    problem_ids, row_ids = torch.arange(n_problems, device=device), torch.arange(n_rows, device=device)

    w = x.new_zeros(n_rows, x.shape[1]) if start is None else start.to(dtype).clone()
    z = w.new_zeros(n_rows, len(x)) if start is None else w @ x.T
    data_loss, residual, curvature = batch.loss(z, curved=True)
    assert curvature is not None
    diagonal = batch.diagonal(curvature)
    penalty = 0.5 * batch.strength * batch.dot(w * batch.penalised, w)
    gradient = residual @ x + batch.strength[batch.owner, None] * (w * batch.penalised)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change of gradient, 1 / their product (0: unusable)
    failures = torch.zeros(n_problems, dtype=torch.long, device=device)

    for iteration in range(max_iter + 1):
        newton = gradient / diagonal
        gap = 0.5 * batch.dot(gradient, newton) / (data_loss + penalty).clamp_min(torch.finfo(dtype).tiny)
        solved = gap <= tol
        done = solved | (failures >= 2)  # two failures, the second without memory: the dtype's limit
        if iteration == max_iter:
            done = torch.ones_like(done)
        # Dropping problems copies the state, so it waits until an eighth of the batch is done.
        if bool(done.all()) or int(done.sum()) * 8 >= len(done):
            rows_done = done[batch.owner]
            final[row_ids[rows_done]] = w[rows_done]
            out_gap[problem_ids[done]] = gap[done]
            # At the precision of the dtype, 100 times the tolerance is still too small to change a score.
            out_converged[problem_ids[done]] = (solved | (gap <= 100 * tol))[done]
            out_iterations[problem_ids[done]] = iteration
            active = ~done
            if not bool(active.any()):
                break
            stay = batch.keep(active)
            problem_ids, row_ids = problem_ids[active], row_ids[stay]
            w, z, gradient, diagonal, newton = w[stay], z[stay], gradient[stay], diagonal[stay], newton[stay]
            data_loss, penalty, failures = data_loss[active], penalty[active], failures[active]
            pairs = [(s[stay], y[stay], rho[active]) for s, y, rho in pairs]
        owner, strength = batch.owner, batch.strength

        direction = -_two_loops(batch, gradient, diagonal, pairs)
        slope = batch.dot(gradient, direction)
        downhill = slope < 0
        if not bool(downhill.all()):
            direction = torch.where(downhill[owner, None], direction, -newton)
            slope = batch.dot(gradient, direction)

        z_direction = direction @ x.T
        linear = strength * batch.dot(w * batch.penalised, direction)
        square = 0.5 * strength * batch.dot(direction * batch.penalised, direction)
        step = torch.ones_like(slope)
        value = data_loss + penalty
        slack = 4 * torch.finfo(dtype).eps * value.abs()  # smaller differences of losses are rounding
        z_new = z + z_direction
        # The curvature changes most in the first steps.
        curved = iteration < 5 or iteration % 5 == 0
        new_loss, residual, curvature = batch.loss(z_new, curved=curved)
        for attempt in range(HALVINGS + 1):
            last = attempt == HALVINGS
            trial = new_loss + penalty + step * linear + step**2 * square
            poor = trial > value + (0 if last else ARMIJO * step * slope) + slack
            if not bool(poor.any()):
                break
            # Minimum of the parabola through value, slope and trial, kept within [0.1, 0.5] of the old step.
            fit = -0.5 * slope * step / ((trial - value) / step - slope)
            shorter = torch.maximum(0.1 * step, torch.minimum(fit, 0.5 * step))
            step = torch.where(poor, torch.zeros_like(step) if last else shorter, step)
            z_new = torch.addcmul(z, step.to(dtype)[owner, None], z_direction)
            new_loss, residual, curvature = batch.loss(z_new, curved=curved)

        moved = direction * step.to(dtype)[owner, None]
        w, z, data_loss = w + moved, z_new, new_loss
        penalty = 0.5 * strength * batch.dot(w * batch.penalised, w)
        new_gradient = residual @ x + strength[owner, None] * (w * batch.penalised)
        change = new_gradient - gradient
        gradient = new_gradient
        product = batch.dot(moved, change)
        usable = (step > 0) & (product > torch.finfo(dtype).eps * batch.dot(change, change / diagonal))
        rho = torch.where(usable, 1 / product.where(usable, torch.ones_like(product)), torch.zeros_like(product))
        stuck = step == 0
        failures = torch.where(stuck, failures + 1, torch.zeros_like(failures))
        if bool(stuck.any()):
            pairs = [(s, y, torch.where(stuck, torch.zeros_like(r), r)) for s, y, r in pairs]
        pairs = [*pairs[-(MEMORY - 1) :], (moved, change, rho)]
        if curvature is not None:
            diagonal = batch.diagonal(curvature)
    return final, out_gap.to(dtype), out_converged, out_iterations


def _two_loops(batch: _Batch, gradient: Tensor, diagonal: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    q = gradient.clone()
    alphas: list[Tensor] = []
    for s, y, rho in reversed(pairs):
        alpha = rho * batch.dot(s, q)
        alphas.append(alpha)
        q.addcmul_(alpha.to(q.dtype)[batch.owner, None], y, value=-1)
    q /= diagonal
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = rho * batch.dot(y, q)
        q.addcmul_((alpha - beta).to(q.dtype)[batch.owner, None], s)
    return q
