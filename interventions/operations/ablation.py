"""Ablation: an activation replaced by what carries no news: zero, its mean over a data set, or that of another picture.

``data_means`` finds the means once for a data set; ``resampled_examples`` shows every example another one's picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.engines.edits import Write
from interventions.operations.patching import patch_edits
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.plan import AblateOptions
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example

# (site, token group) -> what is known of the activation there.
Means = Mapping[tuple[Site, str], Float[Tensor, "*axes"]]


def ablate_edits(spec: CellSpec, masks: Masks, options: AblateOptions, means: Means) -> tuple[Write, ...]:
    """Writes zero, the mean, or the other run's value, at the site in every layer of the window.

    Args:
        spec: Of op ``"ablate"``.
        masks: Of the batch that is changed.
        options: Says which of the three. For ``"resample"`` the other run must show ``resampled_examples``.
        means: By site and group, for ``"mean"``: ``d_model``, or ``head d_head``.

    Raises:
        ValueError: If a mean is missing.

    Source: mean ablation of image tokens in Neo et al. 2024, "Towards Interpreting Visual Information Processing in
        Vision-Language Models", arXiv 2410.07149; resample ablation in Chan et al. 2022, "Causal Scrubbing".
    """
    if options.kind == "resample":
        return patch_edits(spec, masks)
    mask = masks.at(spec.part, spec.tokens)
    if options.kind == "zero":
        return tuple(Write(site, mask, torch.zeros(1), spec.heads) for site in spec.sites)
    missing = [site for site in spec.sites if (site, spec.tokens) not in means]
    if missing:
        raise UserError(
            f"means must hold {str(missing[0])!r} for the group {spec.tokens!r}, got none. collect_statistics finds them."
        )
    return tuple(Write(site, mask, means[site, spec.tokens], spec.heads) for site in spec.sites)


def resampled_examples(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """Every example with the pictures of another one; prompt and answer stay, so that positions agree.

    Args:
        examples: Of the whole data set, so that batches do not matter.
        seed: Says who gets whose.

    Raises:
        ValueError: If an example finds no other with as many pictures, one of them different.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[Example | None] = [None] * len(examples)
    for place, index in enumerate(order):
        mine = examples[index]
        keys = [picture.key for picture in mine.pictures]
        # The next in a random circle: nobody keeps their own, and as a rule no picture is given twice.
        for step in range(1, len(order)):
            theirs = examples[order[(place + step) % len(order)]].pictures
            if keys and len(theirs) == len(keys) and all(t.key != k for t, k in zip(theirs, keys, strict=True)):
                found[index] = replace(mine, pictures=theirs)
                break
        else:
            raise UserError(
                f"examples must hold another one with {len(keys)} other pictures for {mine.id!r}, got none. "
                "Resampling needs two examples with pictures at least; use more, or another ablation."
            )
    return [example for example in found if example is not None]
