"""Attribution patching: an estimate of activation patching for all cells at once, from one gradient.

``attribute`` estimates the patched run's metric to first order in the patched activation; ``attribution_gap`` compares
the estimate with exact patching. The estimate takes two forward passes and one backward pass for all cells. It is exact
only if the model is linear between the site and the metric.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.engines.base_runs import at_slots
from interventions.operations.choose_runs import check_positions
from interventions.operations.corruption import noised
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import PatchOptions
from models.hooks import edited, recorded
from models.inputs import Inputs
from models.llava import Llava
from models.precision import fast_bfloat16
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example


class Attribution(NamedTuple):
    """Metrics of the unchanged run, and estimated metrics of the patched runs."""

    base: Float[Tensor, "metric example"]
    estimated: Float[Tensor, "metric cell example"]


class AttributionGap(NamedTuple):
    """Difference between estimated and exact patching, over cells and examples.

    Args:
        correlation: Pearson's r of estimated and exact changes; NaN if either is constant.
        mean_error: Mean absolute difference, in the metric's unit.
        relative_error: ``mean_error`` divided by the mean absolute exact change; 1 for an estimate of no change.
        n: Number of cells x examples.
    """

    correlation: float
    mean_error: float
    relative_error: float
    n: int


def attribute(
    llava: Llava,
    inputs: Inputs,
    other: Inputs | None,
    specs: Sequence[CellSpec],
    examples: Sequence[Example],
    statistics: DatasetStatistics,
    score: Callable[[Float[Tensor, "example slot vocab"]], Float[Tensor, "metric example"]],
    *,
    readout: Int[Tensor, "example slot"],
    seed: int | None = None,
) -> Attribution:
    """Estimate the patched run of every cell: the sum over its positions and heads of gradient x (other - base).

    Args:
        llava: The model.
        inputs: ``Runs.inputs``, the run that patching would change.
        other: ``Runs.other``, the run that values come from; None if it is ``inputs`` with noise.
        specs: Cells of op ``"patch"`` or ``"attribute"`` with one layer each.
        examples: The clean examples of the batch.
        statistics: The result of ``collect_statistics``.
        score: Computes the metrics from logits at ``readout``; an example's metrics may depend on its own logits only.
        readout: Columns of ``inputs`` where logits are read; -1 at unused slots.
        seed: Seed of the noise; only for corruption by noise.

    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Syed et al. 2023, "Attribution
        Patching Outperforms Automated Circuit Discovery", arXiv 2310.10348.
    """
    plan, options = statistics.plan, statistics.plan.options
    if not isinstance(options, PatchOptions):
        raise UserError(f"op must be patch or attribute, got {plan.op!r}.")
    wide = [spec for spec in specs if len(spec.layers) > 1]
    if wide:
        raise UserError(f"window must be one layer for attribution, got {wide[0].window!r}. Use window 1.")
    noise = statistics.draw_noise(llava, inputs, seed) if plan.corruption.kind == "noise" else None
    source = inputs if other is None else other
    check_positions(inputs, source)
    masks = Masks(llava, inputs, examples)
    sites = sorted({spec.sites[0] for spec in specs})
    denoises = options.direction == "denoise"
    with torch.no_grad(), fast_bfloat16():
        theirs, _ = _run(llava, source, sites, readout, None if denoises else noise)
    with torch.enable_grad(), fast_bfloat16():
        ours, logits = _run(llava, inputs, sites, readout, noise if denoises else None)
        base = score(logits)
        by_metric = [
            torch.autograd.grad(row.sum(), [ours[site] for site in sites], retain_graph=True, allow_unused=True)
            for row in base
        ]
    # A forward pass takes one picture per placeholder. Store the row of pixels and the example of each.
    pictures = torch.tensor([row for rows in inputs.image_of for row in rows], dtype=torch.int64)
    owners = torch.tensor([example for example, rows in enumerate(inputs.image_of) for _ in rows], dtype=torch.int64)
    effects = torch.zeros(len(by_metric), len(specs), len(inputs), device=base.device)
    for metric, grads in enumerate(by_metric):
        # A site that the metric does not depend on, such as the vision tower's unused last block, has no gradient.
        products = {
            site: (grad.float() * (theirs[site].float() - ours[site].detach().float())).sum(-1)
            for site, grad in zip(sites, grads, strict=True)
            if grad is not None
        }
        for cell, spec in enumerate(specs):
            if spec.sites[0] not in products:
                continue
            product = products[spec.sites[0]]
            mask = masks.at(spec.part, spec.tokens)
            language = spec.part == "language_model"
            if not language:
                mask = mask[pictures.to(mask.device)]
            if product.dim() == 3:  # q, k, v and z have an axis for the heads
                product = product.sum(-1) if spec.heads is None else product[..., list(spec.heads)].sum(-1)
            total = (product * mask).sum(1)
            of_example = torch.arange(len(inputs)) if language else owners
            effects[metric, cell].index_add_(0, of_example.to(total.device), total)
    base = base.detach()
    return Attribution(base, base[:, None] + effects)


def attribution_gap(
    estimated: Float[Tensor, "*axes"], exact: Float[Tensor, "*axes"], base: Float[Tensor, "..."]
) -> AttributionGap:
    """Compare estimated with exactly patched metrics; ``base``, the unchanged run's metrics, broadcasts."""
    if estimated.shape != exact.shape or estimated.numel() == 0:
        raise UserError(
            f"estimated and exact must have the same shape and not be empty, got {tuple(estimated.shape)} and "
            f"{tuple(exact.shape)}. Pass the same cells and examples."
        )
    guess, truth = ((values - base).double().flatten() for values in (estimated, exact))
    error = float((guess - truth).abs().mean())
    size = float(truth.abs().mean())
    constant = float(guess.std(correction=0)) == 0 or float(truth.std(correction=0)) == 0
    correlation = float("nan") if constant else float(torch.corrcoef(torch.stack([guess, truth]))[0, 1])
    return AttributionGap(correlation, error, error / size if size else float("nan"), guess.numel())


def _run(
    llava: Llava, inputs: Inputs, sites: Sequence[Site], readout: Tensor, noise: Tensor | None
) -> tuple[dict[Site, Tensor], Tensor]:
    """Activations at the sites and logits at the readout; they have an autograd graph if gradients are enabled."""

    def rooted(value: Tensor) -> Tensor:  # frozen weights alone make no graph
        return value if value.requires_grad or not torch.is_grad_enabled() else value.detach().requires_grad_()

    kwargs: dict[str, Any] = inputs.model_kwargs()
    if "pixel_values" in kwargs:
        kwargs["pixel_values"] = rooted(kwargs["pixel_values"].to(llava.dtype))
    columns = readout[readout >= 0].unique()
    with ExitStack() as stack:
        if noise is not None:
            stack.enter_context(noised(llava, inputs, noise))
        stack.enter_context(edited(llava, {Site("language_model", 0, "resid_pre"): rooted}))
        values = stack.enter_context(recorded(llava, sites))
        scores = llava.model(**kwargs, logits_to_keep=columns, use_cache=False).logits
    rows, slots = (readout >= 0).nonzero(as_tuple=True)
    found = scores[rows, torch.searchsorted(columns, readout[rows, slots])].float()
    return values, at_slots(readout, found)
