"""Sort cells by first layer, divide them into chunks that fit into memory, and sort each chunk's edits by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from interventions.engines.base_runs import Placeholder, Prefix
from interventions.engines.edits import Cell, Cut, Hold, Write
from interventions.engines.needed_positions import Between, Inside, LayerEdits, enter, start, step
from interventions.engines.vision import changed_placeholders, edited_features
from interventions.engines.write_values import boundary_of, first_layer, is_vision, replaces_by_other, value_rows
from models.llava import Llava

# Largest number of elements of a mask ``example cell pos``; a few such masks exist at once.
_MOST_STATUSES = 2**23
# Attention scores of a block: 256 MB in float32.
_MOST_SCORES = 2**26


@dataclass(frozen=True, eq=False)
class Chunk:
    """Cells that are computed together: their indices, sorted by the first block that each can change.

    ``layers`` holds the edits of each block, then the edits at the last block's output; ``final`` holds the writes at
    the output of the final norm.
    """

    cells: tuple[int, ...]
    first_layers: list[int]
    layers: list[LayerEdits]
    final: list[Inside]


def plan_chunks(llava: Llava, prefix: Prefix, cells: Sequence[Cell], cells_at_once: int | None) -> Iterator[Chunk]:
    """Yield chunks of ``cells_at_once`` cells; None chooses the number by memory."""
    first_layers = [first_layer(cell, llava) for cell in cells]
    order = sorted(range(len(cells)), key=lambda number: first_layers[number])
    n_statuses = prefix.facts.relevant.numel()
    at_once = cells_at_once or max(1, _MOST_STATUSES // n_statuses)
    for first in range(0, len(order), at_once):
        numbers = order[first : first + at_once]
        planned = _build_chunk(llava, prefix, cells, numbers, first_layers)
        if cells_at_once is not None:
            yield planned
            continue
        begin = 0
        for end in _ends(llava, prefix, planned):
            whole = begin == 0 and end == len(numbers)
            yield planned if whole else _build_chunk(llava, prefix, cells, numbers[begin:end], first_layers)
            begin = end


def _build_chunk(
    llava: Llava, prefix: Prefix, cells: Sequence[Cell], numbers: Sequence[int], first_layers: Sequence[int]
) -> Chunk:
    """The chunk of some cells, with masks limited to relevant positions."""
    facts = prefix.facts
    layers = [LayerEdits() for _ in range(llava.n_layers + 1)]
    final: list[Inside] = []
    trim = partial(_trim, like=facts.relevant)
    for place, number in enumerate(numbers):
        edits = cells[number].edits
        vision = [edit for edit in edits if isinstance(edit, Write) and is_vision(edit)]
        if vision:
            layers[0].between.extend(_pictures(llava, prefix, place, vision))
        # Writes to the output of a block come before writes to the input of the next; at one site, in the order given.
        for write in sorted((e for e in edits if isinstance(e, Write) and not is_vision(e)), key=lambda w: w.site):
            mask = trim(write.mask) & facts.relevant
            layer = boundary_of(write)
            if layer is not None:
                if layer == llava.n_layers:
                    mask &= facts.readout
                layers[layer].between.append(_between(llava, prefix, place, mask, write, layer))
            elif write.site.layer is None:
                final.append(Inside(place, mask & facts.readout, write))
            else:
                layers[write.site.layer].inside.append(Inside(place, mask, write))
        for edit in edits:
            if isinstance(edit, Cut):
                cut = replace(edit, queries=trim(edit.queries), keys=trim(edit.keys))
                layers[edit.layer].cuts.append((place, cut))
            elif isinstance(edit, Hold):
                layers[edit.layer].holds.append((place, trim(edit.mask) & facts.relevant))
    return Chunk(tuple(numbers), [first_layers[number] for number in numbers], layers, final)


def _trim(mask: Tensor, *, like: Tensor) -> Tensor:
    return mask[:, : like.shape[1]].to(like.device)


def _between(llava: Llava, prefix: Prefix, place: int, mask: Tensor, write: Write, layer: int) -> Between:
    """A write to the residual stream at the input of a block."""
    if replaces_by_other(write):
        return Between(place, mask, None)
    return Between(place, mask, partial(_written_rows, llava, prefix, write, layer), write.add)


def _written_rows(llava: Llava, prefix: Prefix, write: Write, layer: int, example: Tensor, pos: Tensor) -> Tensor:
    if isinstance(write.value, str):
        assert prefix.other is not None  # checked
        return prefix.other.resid[layer][example, pos]
    return value_rows(write.value, (llava.d_model,), example, pos)


def _pictures(llava: Llava, prefix: Prefix, place: int, writes: Sequence[Write]) -> list[Between]:
    """Writes before the language model, as writes at the input of its first block."""
    placeholders = changed_placeholders(llava, prefix, writes)
    facts = prefix.facts
    mask = torch.zeros_like(facts.relevant)
    for placeholder in placeholders:
        mask[placeholder.example, placeholder.start : placeholder.stop] = True
    mask &= facts.relevant
    if not bool(mask.any()):
        return []
    if _shows_other(prefix, placeholders, writes):
        return [Between(place, mask, None)]
    return [Between(place, mask, partial(_feature_rows, llava, prefix, writes, placeholders))]


def _shows_other(prefix: Prefix, placeholders: Sequence[Placeholder], writes: Sequence[Write]) -> bool:
    """True if the other run's projector output replaces this run's, for complete pictures at the same columns."""
    last = writes[-1]
    return (
        last.site.part == "projector"
        and last.site.name == "out"
        and replaces_by_other(last)
        and all(p.in_place and bool(last.mask[p.picture].all()) for p in placeholders)
    )


def _feature_rows(
    llava: Llava, prefix: Prefix, writes: Sequence[Write], shown: Sequence[Placeholder], example: Tensor, pos: Tensor
) -> Tensor:
    """Image features under the writes, at flat positions."""
    n = prefix.facts.relevant.shape[1]
    features = edited_features(llava, prefix, writes, shown)
    table = features[0].new_zeros(len(prefix.facts.relevant), n, features[0].shape[-1])
    for placeholder, found in zip(shown, features, strict=True):
        stop = min(placeholder.stop, n)
        if placeholder.start < stop:
            table[placeholder.example, placeholder.start : stop] = found[: stop - placeholder.start]
    return table[example, pos]


def _ends(llava: Llava, prefix: Prefix, planned: Chunk) -> list[int]:
    """The end of each chunk in the sorted cells, chosen so that packing stays efficient in every layer."""
    counts = _counts(llava, prefix, planned)
    n_examples, n_columns = prefix.facts.relevant.shape
    by_head = any(cut.heads is not None for edits in planned.layers for _, cut in edits.cuts)
    rows = n_examples * (llava.n_heads if by_head or llava.attention == "eager" else 1)
    # A cell attends to its own keys only, but scores are computed for the keys of all cells. With this many, at most a
    # sixth of a block's work.
    most = max(256, llava.d_model)
    while most > 16 and rows * most * (most + 2 * n_columns) > _MOST_SCORES:
        most //= 2
    ends: list[int] = []
    total = torch.zeros_like(counts[0])
    for cell, count in enumerate(counts):
        total = total + count
        if cell and int(total.max()) > most:
            ends.append(cell)
            total = count
    return [*ends, len(counts)]


def _counts(llava: Llava, prefix: Prefix, planned: Chunk) -> Int[Tensor, "cell layer"]:
    """For each cell and block, the largest number of packed positions in any example."""
    n_layers = llava.n_layers
    status = start(planned.first_layers, prefix.facts)
    counts = torch.zeros(len(planned.cells), n_layers, dtype=torch.int64)
    for layer in range(planned.first_layers[0], n_layers):
        n = sum(first <= layer for first in planned.first_layers)
        active = status.first(n)
        enter(active, planned.layers[layer], prefix.facts)
        asked = step(active, planned.layers[layer], planned.layers[layer + 1], prefix.facts, last=layer == n_layers - 1)
        counts[:n, layer] = (asked.compute | asked.serve).sum(-1).amax(0).cpu()
        status.base[:, :n], status.other[:, :n] = asked.after.base, asked.after.other
    return counts
