"""Which positions of which cells have to be computed: a status for each position, layer by layer.

The residual stream of a position entering a block is equal to the base run's, to the other run's, to both or to
neither. A position is equal to a run behind a block if it and everything before it was equal in front, and no edit in
between says otherwise; only positions equal to neither run have to be computed. All cells of a chunk move together:
statuses are ``example cell pos`` masks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.engines.base_runs import PositionFacts
from interventions.engines.edits import Cut, Write
from interventions.engines.writes import SUBLAYER, cut_has_effect, replaces_by_other


class EqualTo(NamedTuple):
    """Whether a position's residual stream is that of the base run, and that of the other run."""

    base: Bool[Tensor, "example cell pos"]
    other: Bool[Tensor, "example cell pos"]

    def first(self, n: int) -> "EqualTo":
        """Of the first ``n`` cells; shares memory."""
        return EqualTo(self.base[:, :n], self.other[:, :n])


@dataclass(frozen=True, eq=False)
class Between:
    """Something put into the residual stream in front of a block.

    Args:
        cell: Its place in the chunk.
        mask: Where.
        rows: Gives the values at flat (example, pos) indices, which are those of the mask in order; None puts in the
            other run's residual stream.
        add: Whether the values are added.
    """

    cell: int
    mask: Bool[Tensor, "example pos"]
    rows: Callable[[Tensor, Tensor], Tensor] | None
    add: bool = False


@dataclass(frozen=True, eq=False)
class Inside:
    """A write within a block."""

    cell: int
    mask: Bool[Tensor, "example pos"]
    write: Write


@dataclass(frozen=True, eq=False)
class LayerEdits:
    """All edits of a chunk in front of a block and within it; each cell's in their order."""

    between: list[Between] = field(default_factory=list)
    inside: list[Inside] = field(default_factory=list)
    cuts: list[tuple[int, Cut]] = field(default_factory=list)
    holds: list[tuple[int, Bool[Tensor, "example pos"]]] = field(default_factory=list)


class Step(NamedTuple):
    """What a block asks of each position.

    Args:
        own: Its key and value are neither run's.
        compute: Its output has to be computed.
        serve: Its key and value have to be computed, but not its output.
        held: It keeps the residual stream that entered.
        after: The status behind the block.
    """

    own: Bool[Tensor, "example cell pos"]
    compute: Bool[Tensor, "example cell pos"]
    serve: Bool[Tensor, "example cell pos"]
    held: Bool[Tensor, "example cell pos"]
    after: EqualTo


def start(first_layers: list[int], facts: PositionFacts) -> EqualTo:
    """The status of every cell in front of its first block."""
    early = torch.tensor([layer == 0 for layer in first_layers], device=facts.same.device)[:, None]
    other = torch.where(early, facts.same[:, None], facts.common[:, None])
    return EqualTo(torch.ones_like(other), other | ~facts.relevant[:, None])


def enter(status: EqualTo, edits: LayerEdits, facts: PositionFacts) -> None:
    """Notes what is put into the residual stream in front of a block."""
    for edit in edits.between:
        mark(status, edit, facts)


def mark(status: EqualTo, edit: Between, facts: PositionFacts) -> None:
    """Notes one such edit."""
    base, other = status.base[:, edit.cell], status.other[:, edit.cell]
    if edit.rows is None:
        base.copy_(torch.where(edit.mask, facts.common, base))
        other |= edit.mask
    else:
        base &= ~edit.mask
        other &= ~edit.mask


def step(status: EqualTo, edits: LayerEdits, next_edits: LayerEdits, facts: PositionFacts, *, last: bool) -> Step:
    """What one block asks, given the status in front of it.

    Args:
        status: In front of the block, of the cells that have begun.
        edits: Of this block.
        next_edits: Of the next: what is overwritten in front of it need not be computed.
        facts: See ``PositionFacts``.
        last: Whether this is the last block, whose output matters at readouts alone.
    """
    base, other = status
    n_cells = base.shape[1]
    rewritten = torch.zeros_like(base)
    for edit in edits.inside:
        if edit.write.site.name in ("k", "v"):
            rewritten[:, edit.cell] |= _effective(edit, base[:, edit.cell], facts)
    irrelevant = ~facts.relevant[:, None]
    after = EqualTo(
        _throughout((base & ~rewritten) | irrelevant) | irrelevant,
        (_throughout((other & ~rewritten) | irrelevant) & facts.aligned[:, None]) | irrelevant,
    )
    for cell, cut in edits.cuts:
        _spoil(after, cell, cut_has_effect(cut, facts.relevant))
    for edit in sorted(edits.inside, key=lambda e: SUBLAYER.index(e.write.site.name)):
        name = edit.write.site.name
        if name == "resid_mid" and replaces_by_other(edit.write):
            # The MLP then sees and adds what it does in the other run.
            mark(after, Between(edit.cell, edit.mask, None), facts)
        elif name not in ("k", "v"):
            _spoil(after, edit.cell, _effective(edit, after.base[:, edit.cell], facts))
    held = torch.zeros_like(base)
    for cell, mask in edits.holds:
        _spoil(after, cell, mask)
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


def _throughout(mask: Tensor) -> Tensor:
    """Whether the mask holds here and everywhere before."""
    return (~mask).cumsum(-1, dtype=torch.int32) == 0


def _spoil(status: EqualTo, cell: int, mask: Tensor) -> None:
    status.base[:, cell] &= ~mask
    status.other[:, cell] &= ~mask


def _effective(edit: Inside, unchanged: Tensor, facts: PositionFacts) -> Tensor:
    """Where a write changes anything: the other run's value is the same where both runs agree and nothing changed."""
    if isinstance(edit.write.value, str) and not edit.write.add:
        return edit.mask & ~(facts.common & unchanged)
    return edit.mask
