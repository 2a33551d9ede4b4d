"""Ablation: replace an activation by zero, by its mean over a data set, or by another example's activation."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from interventions.engines.edits import Edit, Write
from interventions.operations.patching import take_other
from interventions.operations.prepare_batch import PreparedBatch
from interventions.plan.cells import CellSpec
from interventions.plan.options import AblateOptions
from tasks.errors import UserError
from tasks.example import Example


def edits(spec: CellSpec, batch: PreparedBatch) -> tuple[Edit, ...]:
    """Write zero, the mean, or the other run's activation at the site in every layer of the window.

    For ``"resample"`` the other run must be on ``resampled_examples``.

    Source: mean ablation of image tokens in Neo et al. 2024, "Towards Interpreting Visual Information Processing in
        Vision-Language Models", arXiv 2410.07149; resample ablation in Chan et al. 2022, "Causal Scrubbing".
    """
    kind, means = batch.options(AblateOptions).kind, batch.statistics.means
    if kind == "resample":
        return take_other(spec, batch.masks)
    mask = batch.masks.at(spec.part, spec.tokens)
    if kind == "zero":
        return tuple(Write(site, mask, torch.zeros(1), spec.heads) for site in spec.sites)
    missing = [site for site in spec.sites if (site, spec.tokens) not in means]
    if missing:
        raise UserError(
            f"means must contain {str(missing[0])!r} for group {spec.tokens!r}, got none. Call collect_statistics."
        )
    return tuple(Write(site, mask, means[site, spec.tokens], spec.heads) for site in spec.sites)


def resampled_examples(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """Every example with the pictures of another example; prompts and answers stay, so that positions agree.

    Pass the complete data set, so that the result does not depend on batches.

    Raises:
        UserError: If an example has no other example with the same number of pictures, all of them different.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[Example | None] = [None] * len(examples)
    for place, index in enumerate(order):
        mine = examples[index]
        keys = [picture.key for picture in mine.pictures]
        # Take the next example of a random circle: none keeps its own pictures, and few are used twice.
        for step in range(1, len(order)):
            theirs = examples[order[(place + step) % len(order)]].pictures
            if keys and len(theirs) == len(keys) and all(t.key != k for t, k in zip(theirs, keys, strict=True)):
                found[index] = replace(mine, pictures=theirs)
                break
        else:
            raise UserError(
                f"examples must contain another with {len(keys)} other pictures for {mine.id!r}, got none. "
                "Resampling needs at least two examples with different pictures."
            )
    return [example for example in found if example is not None]
