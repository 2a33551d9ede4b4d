"""What a plan needs to know of a whole data set: means for ablation, norms for steering, the deviation for noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interventions.operations.corruption import embedding_deviation
from interventions.operations.steering import direction_at
from interventions.plan.groups import Masks
from interventions.plan.plan import AblateOptions, InterventionPlan, SteerOptions
from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.sites import Site
from tasks.example import Example


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """A plan and what it needs besides a batch.

    Args:
        plan: The plan.
        means: By site and group, for mean ablation: ``d_model`` (q, k, v, z: ``head d_head``).
        norms: By site and group, for steering in norms: the mean L2 norm.
        directions: By name, for steering: ``d_model`` or ``layer d_model``.
        deviation: Standard deviation of the image embeddings, for noise.
    """

    plan: InterventionPlan
    means: Mapping[tuple[Site, str], Tensor] = field(default_factory=dict)
    norms: Mapping[tuple[Site, str], float] = field(default_factory=dict)
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    deviation: float | None = None


def collect_statistics(
    plan: InterventionPlan,
    llava: Llava,
    examples: Sequence[Example],
    *,
    directions: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
    preprocess: Preprocess = "pad",
) -> DatasetStatistics:
    """What ``plan`` needs to know of ``examples``, and nothing that it does not.

    Means and norms are taken over the positions of the group in an example, then over examples, each of which counts
    alike.

    Args:
        plan: The plan.
        llava: The model.
        examples: The clean ones of the whole data set.
        directions: For steering, by name.
        batch_size: Rows that are run together.
        preprocess: See ``prepare``.

    Raises:
        ValueError: If the plan does not fit the model, an example lacks a group, or a direction is missing.
    """
    options = plan.options
    specs = plan.cells(llava)
    given = dict(directions or {})
    means: dict[tuple[Site, str], Tensor] = {}
    norms: dict[tuple[Site, str], float] = {}
    wanted = {(site, spec.tokens) for spec in specs if spec.op in ("ablate", "steer") for site in spec.sites}
    if isinstance(options, AblateOptions) and options.kind == "mean":
        means = _averages(llava, examples, wanted, batch_size, preprocess, norms=False)
    if isinstance(options, SteerOptions):
        for site, _ in wanted:
            direction_at(given, options.direction, site)  # refused before anything runs
        if options.unit == "norm":
            found = _averages(llava, examples, wanted, batch_size, preprocess, norms=True)
            norms = {key: float(value) for key, value in found.items()}
    deviation = None
    if plan.corruption.kind == "noise":
        deviation = embedding_deviation(llava, examples, batch_size=batch_size, preprocess=preprocess)
    return DatasetStatistics(plan, means, norms, given, deviation)


def _averages(
    llava: Llava,
    examples: Sequence[Example],
    wanted: set[tuple[Site, str]],
    batch_size: int,
    preprocess: Preprocess,
    *,
    norms: bool,
) -> dict[tuple[Site, str], Tensor]:
    """The mean activation at each site and group, or the mean of its norm."""
    totals: dict[tuple[Site, str], Tensor] = {}
    by_group: dict[str, list[Site]] = {}
    for site, text in sorted(wanted):
        by_group.setdefault(text, []).append(site)
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        inputs = prepare(llava, batch, preprocess=preprocess, answers=True)
        masks = Masks(llava, inputs, batch)
        for text, sites in by_group.items():
            # capture reads "all" as every token of a picture, the class token included, as the masks of edits do
            tokens = text if text == "all" else masks.at("language_model", text)
            found = capture(llava, inputs, sites, tokens=tokens, pool="none" if norms else "mean", examples=batch)  # type: ignore[arg-type]
            for site in sites:
                value = found[site].double()
                if norms:
                    inside = found.mask[site].double()
                    value = (value.norm(dim=-1) * inside).sum(1) / inside.sum(1)
                totals[site, text] = totals.get((site, text), torch.zeros(())).to(value.device) + value.sum(0)
    return {key: (total / len(examples)).float() for key, total in totals.items()}
