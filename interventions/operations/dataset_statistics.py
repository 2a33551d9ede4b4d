"""Statistics of a data set that a plan needs: means for ablation, norms for steering, the deviation for noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.operations.corruption import draw_noise, embedding_deviation
from interventions.operations.directions import direction_at
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import AblateOptions, SteerOptions
from interventions.plan.plan import InterventionPlan
from models.capture import capture
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example

Key = tuple[Site, str]  # a site and a token group


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """A plan and the statistics that it needs.

    Args:
        plan: The plan.
        means: Mean activation by site and group, for mean ablation: ``d_model`` (q, k, v, z: ``head d_head``).
        norms: Mean L2 norm by site and group, for steering in norms.
        directions: Steering directions by name: ``d_model`` or ``layer d_model``.
        deviation: Standard deviation of the image embeddings, for noise.
    """

    plan: InterventionPlan
    means: Mapping[Key, Tensor] = field(default_factory=dict)
    norms: Mapping[Key, float] = field(default_factory=dict)
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    deviation: float | None = None

    def draw_noise(self, llava: Llava, inputs: Inputs, seed: int | None = None) -> Float[Tensor, "image token d_model"]:
        """The noise of the plan on a batch; ``seed`` None takes the plan's first seed."""
        if self.deviation is None:
            raise UserError("deviation must be given for noise, got None. Call collect_statistics.")
        corruption = self.plan.corruption
        seed = corruption.seeds[0] if seed is None else seed
        return draw_noise(llava, inputs, deviation=corruption.scale * self.deviation, seed=seed)


def collect_statistics(
    plan: InterventionPlan,
    llava: Llava,
    examples: Sequence[Example],
    *,
    specs: Sequence[CellSpec] | None = None,
    directions: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
    preprocess: Preprocess = "pad",
) -> DatasetStatistics:
    """The statistics that ``plan`` needs over ``examples``, all clean examples of the data set.

    Means and norms are taken over the positions of the group in an example, then over examples with equal weight.
    ``specs`` is ``plan.cells(llava)``, if already computed; ``directions`` are the steering directions by name.

    Raises:
        UserError: If the plan does not fit the model, an example has no position of a group, or a direction is missing.
    """
    options = plan.options
    given = dict(directions or {})
    means: dict[Key, Tensor] = {}
    norms: dict[Key, float] = {}
    wanted: set[Key] = set()
    if isinstance(options, AblateOptions | SteerOptions):
        wanted = {(site, spec.tokens) for spec in specs or plan.cells(llava) for site in spec.sites}
    if isinstance(options, AblateOptions) and options.kind == "mean":
        means = _averages(llava, examples, wanted, batch_size, preprocess, norms=False)
    if isinstance(options, SteerOptions):
        for site, _ in wanted:
            direction_at(given, options.direction, site)  # raises before any forward
        if options.unit == "norm":
            found = _averages(llava, examples, wanted, batch_size, preprocess, norms=True)
            norms = {key: float(value) for key, value in found.items()}
    deviation = None
    if plan.corruption.kind == "noise":
        deviation = embedding_deviation(llava, examples, batch_size=batch_size, preprocess=preprocess)
    return DatasetStatistics(plan, means, norms, given, deviation)


def _averages(
    llava: Llava, examples: Sequence[Example], wanted: set[Key], batch_size: int, preprocess: Preprocess, *, norms: bool
) -> dict[Key, Tensor]:
    """The mean activation at each site and group, or the mean of its norm."""
    totals: dict[Key, Tensor] = {}
    by_group: dict[str, list[Site]] = {}
    for site, text in sorted(wanted):
        by_group.setdefault(text, []).append(site)
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        inputs = prepare(llava, batch, preprocess=preprocess, answers=True)
        masks = Masks(llava, inputs, batch)
        for text, sites in by_group.items():
            # "all" includes the class token of a picture, in capture and in the masks of edits
            tokens = text if text == "all" else masks.at("language_model", text)
            found = capture(llava, inputs, sites, tokens=tokens, pool="none" if norms else "mean", examples=batch)  # type: ignore[arg-type]
            for site in sites:
                value = found[site].double()
                if norms:
                    inside = found.mask[site].double()
                    value = (value.norm(dim=-1) * inside).sum(1) / inside.sum(1)
                totals[site, text] = totals.get((site, text), torch.zeros(())).to(value.device) + value.sum(0)
    return {key: (total / len(examples)).float() for key, total in totals.items()}
