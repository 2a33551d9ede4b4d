"""A batch with the masks, statistics and noise that the edits of its cells need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from interventions.operations.corruption import EMBEDDINGS, noised
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import PatchOptions
from models.capture import capture
from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site
from tasks.example import Example

Kind = TypeVar("Kind")


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """The argument ``batch`` of every operation's ``edits(spec, batch)``.

    ``noise`` is added to the image embeddings; None unless the plan patches with noise as corruption. ``noisy`` holds
    activations of the noisy run by site and group, in the columns of the batch; only for direction ``"noise"``.
    """

    masks: Masks
    statistics: DatasetStatistics
    noise: Tensor | None = None
    noisy: Mapping[tuple[Site, str], Tensor] = field(default_factory=dict)

    def options(self, kind: type[Kind]) -> Kind:
        """The plan's options, whose class must be ``kind``."""
        options = self.statistics.plan.options
        assert isinstance(options, kind)
        return options


def prepare_batch(
    specs: Sequence[CellSpec],
    llava: Llava,
    inputs: Inputs,
    examples: Sequence[Example],
    statistics: DatasetStatistics,
    seed: int | None,
) -> PreparedBatch:
    """The batch that the edits of some cells are made from; the arguments are those of ``build_edits``."""
    masks = Masks(llava, inputs, examples)
    plan = statistics.plan
    if not isinstance(plan.options, PatchOptions) or plan.corruption.kind != "noise":
        return PreparedBatch(masks, statistics)
    noise = statistics.draw_noise(llava, inputs, seed)
    noisy = _noisy_values(specs, masks, noise) if plan.options.direction == "noise" else {}
    return PreparedBatch(masks, statistics, noise, noisy)


def _noisy_values(specs: Sequence[CellSpec], masks: Masks, noise: Tensor) -> dict[tuple[Site, str], Tensor]:
    """Activations of the noisy run at the sites and groups of the cells, in the columns of the batch."""
    by_group: dict[str, set[Site]] = {}
    for spec in specs:
        if sites := set(spec.sites) - {EMBEDDINGS}:
            by_group.setdefault(spec.tokens, set()).update(sites)
    found: dict[tuple[Site, str], Tensor] = {}
    for text, sites in by_group.items():
        mask = masks.at("language_model", text)
        with noised(masks.llava, masks.inputs, noise):
            values = capture(masks.llava, masks.inputs, sorted(sites), tokens=mask)
        for site in sites:
            whole = torch.zeros(*mask.shape, *values[site].shape[2:], dtype=values[site].dtype, device=mask.device)
            whole[mask] = values[site][values.mask[site]]
            found[site, text] = whole
    return found
