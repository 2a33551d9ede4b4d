"""Attribution patching: what activation patching would give, for all cells at once, from one gradient.

``attribute`` estimates the patched run's metric to first order in what is patched; ``attribution_gap`` says how far
that is from exact patching. It costs two forwards and one backward, whatever the number of cells, and is exact only
where the model between the site and the metric is linear.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.engines.base_runs import at_slots
from interventions.operations.build_edits import noise_of
from interventions.operations.corruption import noised
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.groups import Masks
from interventions.plan.plan import CellSpec, PatchOptions
from models.hooks import edited, recorded
from models.inputs import Inputs
from models.llava import Llava
from models.precision import fast_bfloat16
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example


class Attribution(NamedTuple):
    """What patching is estimated to give.

    Args:
        base: The metrics of the run that would be changed.
        estimated: The metrics of each patched run: ``base`` and the first-order change.
    """

    base: Float[Tensor, "metric example"]
    estimated: Float[Tensor, "metric cell example"]


class AttributionGap(NamedTuple):
    """How far an estimate is from exact patching, over cells and examples.

    Args:
        correlation: Pearson's, of estimated and exact changes; NaN if either is constant.
        mean_error: Mean absolute difference of the two, in the metric's unit.
        relative_error: The same in mean absolute exact changes; 1 is what estimating no change would score.
        n: Cells x examples.
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
    context: DatasetStatistics,
    score: Callable[[Float[Tensor, "example slot vocab"]], Float[Tensor, "metric example"]],
    *,
    readout: Int[Tensor, "example slot"],
    seed: int | None = None,
) -> Attribution:
    """Estimates every spec's patched run: the sum over its positions and heads of gradient x (other - base).

    Args:
        llava: The model.
        inputs: The run that would be changed: ``Runs.inputs``.
        other: The run that values would come from: ``Runs.other``, None where it is ``inputs`` with noise.
        specs: Of op ``"patch"`` or ``"attribute"``, of one layer each.
        examples: The clean ones of the batch.
        context: Holds the plan; ``collect_statistics`` made it.
        score: The metrics of logits at ``readout``; each example's must depend on its own logits alone.
        readout: Columns of ``inputs`` where logits are read; -1 at unused slots.
        seed: Of the noise, where noise corrupts.

    Raises:
        ValueError: If the plan does not patch, a spec has several layers, or the two runs do not stand alike.

    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Syed et al. 2023, "Attribution
        Patching Outperforms Automated Circuit Discovery", arXiv 2310.10348.
    """
    options = context.plan.options
    if not isinstance(options, PatchOptions):
        raise UserError(f"op must be patch or attribute, got {context.plan.op!r}. Only patching has a gradient form.")
    wide = [spec for spec in specs if len(spec.layers) > 1]
    if wide:
        raise UserError(f"window must be one layer for attribution, got {wide[0].window!r}. Use window 1.")
    noise = noise_of(llava, inputs, context, seed) if context.plan.corruption.kind == "noise" else None
    source = inputs if other is None else other
    _check_alike(inputs, source)
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
    rows = {part: _example_of(inputs, part == "language_model") for part in ("language_model", "picture")}
    effects = torch.zeros(len(by_metric), len(specs), len(inputs), device=base.device)
    for metric, grads in enumerate(by_metric):
        # A site that the metric does not depend on, such as the tower's unused last block, has no gradient.
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
            if spec.part != "language_model":
                mask = mask[_pictures(inputs, mask.device)]
            if product.dim() == 3:  # q, k, v and z have an axis for the heads
                product = product.sum(-1) if spec.heads is None else product[..., list(spec.heads)].sum(-1)
            total = (product * mask).sum(1)
            of_example = rows["language_model" if spec.part == "language_model" else "picture"].to(total.device)
            effects[metric, cell].index_add_(0, of_example, total)
    base = base.detach()
    return Attribution(base, base[:, None] + effects)


def attribution_gap(
    estimated: Float[Tensor, "*axes"], exact: Float[Tensor, "*axes"], base: Float[Tensor, "..."]
) -> AttributionGap:
    """How far estimated metrics are from those of exact patching.

    Args:
        estimated: Of ``attribute``.
        exact: Of the patched runs, same shape.
        base: Of the unchanged run; broadcasts.

    Raises:
        ValueError: If the two have different shapes, or nothing in them.
    """
    if estimated.shape != exact.shape or estimated.numel() == 0:
        raise UserError(
            f"estimated and exact must have one shape and a value at least, got {tuple(estimated.shape)} and "
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
    """The values at the sites, and the logits at the readout; part of a graph where gradients are on."""

    def rooted(value: Tensor) -> Tensor:  # frozen weights alone would leave no graph
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


def _check_alike(inputs: Inputs, other: Inputs) -> None:
    alike = inputs.position_ids.shape == other.position_ids.shape and torch.equal(
        inputs.position_ids, other.position_ids
    )
    counts = [[len(pictures) for pictures in batch.image_of] for batch in (inputs, other)]
    if not alike or counts[0] != counts[1] or not torch.equal(inputs.attention_mask, other.attention_mask):
        raise UserError(
            f"other must stand like inputs, got batches of {tuple(inputs.input_ids.shape)} and "
            f"{tuple(other.input_ids.shape)} with {sum(counts[0])} and {sum(counts[1])} pictures. "
            "Pairs need prompts and answers of equal length."
        )


def _pictures(inputs: Inputs, device: torch.device) -> Tensor:
    """For every placeholder its row of pixels: the model is given a picture for each."""
    return torch.tensor([row for rows in inputs.image_of for row in rows], device=device)


def _example_of(inputs: Inputs, language: bool) -> Tensor:
    """For each row of a site's values the example it belongs to."""
    if language:
        return torch.arange(len(inputs))
    return torch.tensor([example for example, rows in enumerate(inputs.image_of) for _ in rows], dtype=torch.int64)
