"""The unchanged runs of a batch, computed once for all its cells: ``prepare_base(llava, inputs, other, ...)``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.engines.names import EngineName, check_engine
from models.cached_blocks import Run, TowerRun, inference, run_cached, run_tower
from models.inputs import Inputs
from models.llava import Llava
from tasks.errors import UserError

# Called with the logits of a cell at the readout.
Read = Callable[[Float[Tensor, "example slot vocab"]], Tensor]


class PositionFacts(NamedTuple):
    """Masks over the positions of a batch, ``example pos`` each.

    Args:
        relevant: Real tokens that a readout can depend on.
        readout: Where logits are read.
        same: Embedding and position id equal the other run's.
        common: ``same`` is True here and at every earlier position.
        aligned: Padding and position ids equal the other run's here and at every earlier position.
    """

    relevant: Bool[Tensor, "example pos"]
    readout: Bool[Tensor, "example pos"]
    same: Bool[Tensor, "example pos"]
    common: Bool[Tensor, "example pos"]
    aligned: Bool[Tensor, "example pos"]


class Placeholder(NamedTuple):
    """A picture in a prompt: the prompt's row, its columns, and the picture's row in the vision tower's run.

    ``other_picture`` is the row of the other prompt's picture; ``in_place`` is True if it has the same columns.
    """

    example: int
    start: int
    stop: int
    picture: int
    other_picture: int | None
    in_place: bool


@dataclass(frozen=True, eq=False)
class Prefix:
    """The two runs that the incremental engine starts from, up to the last readout.

    ``run`` is the run of the changed batch, ``other`` the run of the other batch; ``other_real`` is True at the other
    batch's tokens. ``tower`` is the vision tower's run on all distinct pictures of both batches; the changed
    batch's pictures come first, in its order.
    """

    run: Run
    other: Run | None
    tower: TowerRun | None
    position_ids: Int[Tensor, "example pos"]
    other_position_ids: Int[Tensor, "example pos"] | None
    other_real: Bool[Tensor, "example pos"] | None
    placeholders: tuple[Placeholder, ...]
    facts: PositionFacts


@dataclass(frozen=True, eq=False)
class Base:
    """A batch and its unchanged runs; ``run_cells`` can be called on it any number of times.

    Args:
        inputs: The batch that is changed.
        other: The batch whose run ``OTHER`` refers to.
        readout: Columns of ``inputs`` where logits are read; -1 marks an unused slot.
        logits: Float32 logits of the unchanged run; zeros at unused slots.
        prefix: The runs that ``incremental`` starts from; None if the base was prepared for ``full``.
    """

    inputs: Inputs
    other: Inputs | None
    readout: Int[Tensor, "example slot"]
    logits: Float[Tensor, "example slot vocab"]
    prefix: Prefix | None


def prepare_base(
    llava: Llava,
    inputs: Inputs,
    other: Inputs | None = None,
    *,
    readout: Int[Tensor, "example slot"],
    engine: EngineName = "incremental",
) -> Base:
    """Run a batch, and the other batch, unchanged.

    Args:
        llava: The model.
        inputs: The batch that is changed.
        other: The batch that ``Write(value=OTHER)`` takes values from. It has as many examples, in the same order, and
            equal positions wherever something is written.
        readout: Columns of ``inputs`` where logits are read; -1 marks an unused slot.
        engine: A base for ``"full"`` is faster to prepare, but ``incremental`` cannot use it.

    Raises:
        UserError: If ``readout`` is empty or at padding, the batches differ in length, or the engine is unknown.
    """
    check_engine(engine)
    readout = readout.to(inputs.input_ids.device)
    _check(inputs, other, readout)
    if engine == "full":
        return Base(inputs, other, readout, plain_logits(llava, inputs, readout), None)
    with inference(llava):
        prefix = _prefix(llava, inputs, other, readout)
        found = llava.unembed(prefix.run.resid[-1][_index(readout)]).float()
    return Base(inputs, other, readout, at_slots(readout, found), prefix)


def plain_logits(
    llava: Llava, inputs: Inputs, readout: Int[Tensor, "example slot"]
) -> Float[Tensor, "example slot vocab"]:
    """Float32 logits of a plain forward of the Hugging Face model at some columns; zeros at unused slots (-1)."""
    columns = readout[readout >= 0].unique()
    with inference(llava):
        scores = llava.model(**inputs.model_kwargs(), logits_to_keep=columns, use_cache=False).logits
        rows, kept = _index(readout)
        found = scores[rows, torch.searchsorted(columns, kept)].float()
    return at_slots(readout, found)


def at_slots(
    readout: Int[Tensor, "example slot"], found: Float[Tensor, "used vocab"]
) -> Float[Tensor, "example slot vocab"]:
    """Logits by slot, with zeros at unused slots; call it outside inference mode."""
    logits = torch.zeros(*readout.shape, found.shape[-1], device=found.device)
    logits[readout >= 0] = found
    return logits


def _check(inputs: Inputs, other: Inputs | None, readout: Tensor) -> None:
    if readout.shape[0] != len(inputs):
        raise UserError(
            f"readout must have one row for each of {len(inputs)} examples, got {readout.shape[0]}. Pad rows with -1."
        )
    used = readout[readout >= 0]
    if not len(used):
        raise UserError("readout must name at least one position, got none. -1 marks an unused slot.")
    if int(readout.min()) < -1 or int(readout.max()) >= inputs.n_positions:
        raise UserError(
            f"readout must be in [-1, {inputs.n_positions}), got {int(readout.min())} to {int(readout.max())}. "
            "Columns of the batch count from 0."
        )
    if not bool(inputs.attention_mask[_index(readout)].all()):
        raise UserError("readout must be at real tokens, got padding. See Inputs.layout.")
    if other is not None and len(other) != len(inputs):
        raise UserError(f"other must have {len(inputs)} examples, got {len(other)}. Rows are paired.")


def _index(readout: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the used slots, in order."""
    rows, slots = (readout >= 0).nonzero(as_tuple=True)
    return rows, readout[rows, slots]


def _prefix(llava: Llava, inputs: Inputs, other: Inputs | None, readout: Tensor) -> Prefix:
    n = int(readout.max()) + 1
    ids, real, position_ids = _columns(inputs, n)
    tower, of_other = _run_pictures(llava, inputs, other)
    placeholders = _placeholders(inputs, other, of_other)
    n_pictures = 0 if inputs.pixel_values is None else inputs.pixel_values.shape[0]
    embeddings = _embed(llava, ids, inputs, list(range(n_pictures)), tower)
    run = run_cached(llava, embeddings, real.long(), position_ids)
    relevant = real & (torch.arange(n, device=ids.device) <= readout.max(1).values[:, None])
    read = torch.zeros_like(real)
    read[_index(readout)] = True
    if other is None:
        nowhere = torch.zeros_like(real)
        facts = PositionFacts(relevant, read, nowhere, nowhere, nowhere)
        return Prefix(run, None, tower, position_ids, None, None, placeholders, facts)
    other_ids, other_real, other_position_ids = _columns(other, n)
    other_embeddings = _embed(llava, other_ids, other, of_other, tower)
    other_run = run_cached(llava, other_embeddings, other_real.long(), other_position_ids)
    agrees = (real == other_real) & (position_ids == other_position_ids)
    same = agrees & (embeddings == other_embeddings).all(-1)
    facts = PositionFacts(relevant, read, same, holds_up_to_here(same | (agrees & ~real)), holds_up_to_here(agrees))
    return Prefix(run, other_run, tower, position_ids, other_position_ids, other_real, placeholders, facts)


def holds_up_to_here(mask: Tensor) -> Tensor:
    """True where the mask is True at this and every earlier position."""
    return (~mask).cumsum(-1, dtype=torch.int32) == 0


def _columns(inputs: Inputs, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask of real tokens, position ids of the first ``n`` columns; a shorter batch is padded at the end."""
    missing = max(0, n - inputs.n_positions)
    ids, real, position_ids = (
        torch.nn.functional.pad(part[:, :n], (0, missing))
        for part in (inputs.input_ids, inputs.attention_mask, inputs.position_ids)
    )
    return ids, real.bool(), position_ids


def _run_pictures(llava: Llava, inputs: Inputs, other: Inputs | None) -> tuple[TowerRun | None, list[int]]:
    """The vision tower's run on all distinct pictures, and the row of each picture of ``other`` in it."""
    rows: list[Tensor] = [] if inputs.pixel_values is None else list(inputs.pixel_values)
    of_other: list[int] = []
    if other is not None and other.pixel_values is not None:
        for pixels in other.pixel_values:
            # Equal pictures share a row, so that their features are exactly equal.
            known = next((i for i, row in enumerate(rows) if torch.equal(row, pixels)), len(rows))
            if known == len(rows):
                rows.append(pixels)
            of_other.append(known)
    return (run_tower(llava, torch.stack(rows)) if rows else None), of_other


def _placeholders(inputs: Inputs, other: Inputs | None, of_other: list[int]) -> tuple[Placeholder, ...]:
    found: list[Placeholder] = []
    for example, (pictures, layout) in enumerate(zip(inputs.image_of, inputs.layout, strict=True)):
        theirs = () if other is None else other.image_of[example]
        spans = () if other is None else other.layout[example].images
        for number, (picture, span) in enumerate(zip(pictures, layout.images, strict=True)):
            partner = of_other[theirs[number]] if number < len(theirs) else None
            in_place = number < len(spans) and spans[number] == span
            found.append(Placeholder(example, span.start, span.stop, picture, partner, in_place))
    return tuple(found)


def _embed(llava: Llava, ids: Tensor, inputs: Inputs, rows: list[int], tower: TowerRun | None) -> Tensor:
    """The input of the first block: token embeddings, with image features at the image tokens."""
    embeddings = llava.embed(ids)
    for example, (pictures, layout) in enumerate(zip(inputs.image_of, inputs.layout, strict=True)):
        for picture, span in zip(pictures, layout.images, strict=True):
            stop = min(span.stop, ids.shape[1])
            if span.start < stop:
                assert tower is not None  # there is a picture
                embeddings[example, span.start : stop] = tower.features[rows[picture], : stop - span.start].to(
                    embeddings.dtype
                )
    return embeddings
