"""Which positions of which cells have to be computed, layer by layer.

At the input of a block, the residual stream at a position equals the stream of the base run, the other run, both or
neither. A position still equals a run after the block if it and all earlier positions equalled it before the block, and
no edit applies. Only positions that equal neither run are computed. Masks have axes ``example cell pos``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.engines.base_runs import PositionFacts, holds_up_to_here
from interventions.engines.edits import Cut, Write
from interventions.engines.write_values import SUBLAYER, cut_has_effect, replaces_by_other


class EqualTo(NamedTuple):
    """Two masks: where the residual stream equals the base run's, and where it equals the other run's."""

    base: Bool[Tensor, "example cell pos"]
    other: Bool[Tensor, "example cell pos"]

    def first(self, n: int) -> "EqualTo":
        """The masks of the first ``n`` cells; shares memory."""
        return EqualTo(self.base[:, :n], self.other[:, :n])


@dataclass(frozen=True, eq=False)
class Between:
    """A write to the residual stream at the input of a block.

    ``rows`` takes the flat (example, pos) indices where ``mask`` is True and returns the values there; None writes
    the other run's residual stream.
    """

    cell: int
    mask: Bool[Tensor, "example pos"]
    rows: Callable[[Tensor, Tensor], Tensor] | None
    add: bool = False


@dataclass(frozen=True, eq=False)
class Inside:
    """A write inside a block."""

    cell: int
    mask: Bool[Tensor, "example pos"]
    write: Write


@dataclass(frozen=True, eq=False)
class LayerEdits:
    """The edits of a chunk at the input of a block and inside it; the edits of one cell keep their order."""

    between: list[Between] = field(default_factory=list)
    inside: list[Inside] = field(default_factory=list)
    cuts: list[tuple[int, Cut]] = field(default_factory=list)
    holds: list[tuple[int, Bool[Tensor, "example pos"]]] = field(default_factory=list)


class Step(NamedTuple):
    """What one block computes at each position.

    Args:
        own: Key and value equal neither run's.
        compute: The output has to be computed.
        serve: Key and value have to be computed, but not the output.
        held: The output is the input (``Hold``).
        after: Equality after the block.
    """

    own: Bool[Tensor, "example cell pos"]
    compute: Bool[Tensor, "example cell pos"]
    serve: Bool[Tensor, "example cell pos"]
    held: Bool[Tensor, "example cell pos"]
    after: EqualTo


def start(first_layers: list[int], facts: PositionFacts) -> EqualTo:
    """Equality of every cell at the input of its first block."""
    early = torch.tensor([layer == 0 for layer in first_layers], device=facts.same.device)[:, None]
    other = torch.where(early, facts.same[:, None], facts.common[:, None])
    return EqualTo(torch.ones_like(other), other | ~facts.relevant[:, None])


def enter(status: EqualTo, edits: LayerEdits, facts: PositionFacts) -> None:
    """Update the equality masks for all writes at the input of a block."""
    for edit in edits.between:
        mark(status, edit, facts)


def mark(status: EqualTo, edit: Between, facts: PositionFacts) -> None:
    """Update the equality masks for one write at the input of a block."""
    base, other = status.base[:, edit.cell], status.other[:, edit.cell]
    if edit.rows is None:
        base.copy_(torch.where(edit.mask, facts.common, base))
        other |= edit.mask
    else:
        base &= ~edit.mask
        other &= ~edit.mask


def step(status: EqualTo, edits: LayerEdits, next_edits: LayerEdits, facts: PositionFacts, *, last: bool) -> Step:
    """What one block has to compute for the cells that have started; ``status`` is the equality at its input.

    Values that ``next_edits``, the edits of the next block, overwrite are not computed. The output of the last block is
    computed only at readouts.
    """
    base, other = status
    n_cells = base.shape[1]
    rewritten = torch.zeros_like(base)
    for edit in edits.inside:
        if edit.write.site.name in ("k", "v"):
            rewritten[:, edit.cell] |= _effective(edit, base[:, edit.cell], facts)
    irrelevant = ~facts.relevant[:, None]
    after = EqualTo(
        holds_up_to_here((base & ~rewritten) | irrelevant) | irrelevant,
        (holds_up_to_here((other & ~rewritten) | irrelevant) & facts.aligned[:, None]) | irrelevant,
    )
    for cell, cut in edits.cuts:
        _differ(after, cell, cut_has_effect(cut, facts.relevant))
    for edit in sorted(edits.inside, key=lambda e: SUBLAYER.index(e.write.site.name)):
        name = edit.write.site.name
        if name == "resid_mid" and replaces_by_other(edit.write):
            # The MLP then reads and adds the same values as in the other run.
            mark(after, Between(edit.cell, edit.mask, None), facts)
        elif name not in ("k", "v"):
            _differ(after, edit.cell, _effective(edit, after.base[:, edit.cell], facts))
    held = torch.zeros_like(base)
    for cell, mask in edits.holds:
        _differ(after, cell, mask)
        held[:, cell] |= mask
    wanted = torch.zeros_like(base) | (facts.readout if last else facts.relevant)[:, None]
    for following in next_edits.between:
        if not following.add and following.cell < n_cells:
            wanted[:, following.cell] &= ~following.mask
    held &= wanted
    own = ~(base | other) | rewritten
    compute = ~(after.base | after.other) & wanted & ~held
    seen_later = compute.flip(-1).cumsum(-1).flip(-1) > 0
    return Step(own, compute, own & ~compute & seen_later, held, after)


def _differ(status: EqualTo, cell: int, mask: Tensor) -> None:
    status.base[:, cell] &= ~mask
    status.other[:, cell] &= ~mask


def _effective(edit: Inside, unchanged: Tensor, facts: PositionFacts) -> Tensor:
    """True where a write has an effect: writing the other run's value has none if both runs are equal up to there."""
    if isinstance(edit.write.value, str) and not edit.write.add:
        return edit.mask & ~(facts.common & unchanged)
    return edit.mask
