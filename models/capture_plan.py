"""Plan a capture: which rows run, which positions are kept, and which examples share a row."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.adapter import Adapter
from models.hooks import Pool, Selection
from models.inputs import Inputs
from models.sites import Part, Site
from models.tokens import Group, token_mask
from tasks.errors import UserError
from tasks.example import Example


class Row(NamedTuple):
    """A row that the language model runs: columns ``start`` to ``start + length`` of an example."""

    example: int
    start: int
    length: int


class CapturePlan(NamedTuple):
    """The rows of the language model, and by part the selected values and their positions."""

    rows: list[Row]
    selections: dict[Part, Selection]
    positions: dict[Part, Int[Tensor, "example pos"]]
    needs_pictures: bool


def wanted_positions(
    llava: Adapter, inputs: Inputs, tokens: Group | Tensor, pool: Pool, examples: Sequence[Example] | None
) -> Bool[Tensor, "batch pos"]:
    """A mask of the positions whose values are kept.

    Raises:
        UserError: If ``tokens`` is not a boolean mask of the batch, or an example has no such position.
    """
    if isinstance(tokens, Tensor):
        if tokens.dtype != torch.bool or tokens.shape != inputs.input_ids.shape:
            raise UserError(
                f"tokens must be a boolean mask of shape {tuple(inputs.input_ids.shape)}, got {tokens.dtype} of "
                f"{tuple(tokens.shape)}. token_mask makes one."
            )
        wanted = tokens.to(inputs.input_ids.device)
        if bool((wanted & (inputs.attention_mask == 0)).any()):
            raise UserError("tokens must not hold padding, got some. Combine the mask with attention_mask.")
    else:
        wanted = token_mask(inputs, tokens, llava, examples)
    if pool == "box":
        wanted = wanted & token_mask(inputs, "object", llava, examples)
    empty = (~wanted.any(1)).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"tokens must hold at least one position of every example, got none in row {empty[0]} of the batch. "
            "Choose another group, or leave the example out."
        )
    return wanted


def plan_capture(
    llava: Adapter,
    inputs: Inputs,
    sites: Sequence[Site],
    wanted: Tensor,
    *,
    whole_pictures: bool,
    whole_rows: bool = False,
) -> CapturePlan:
    """Plan the rows to run and the values to keep; ``whole_rows`` runs the batch as it is padded."""
    ids, chosen = inputs.input_ids.tolist(), [row.nonzero().flatten().tolist() for row in wanted.cpu()]
    parts = {site.part for site in sites}
    selections: dict[Part, Selection] = {}
    positions: dict[Part, Tensor] = {}
    rows: list[Row] = []
    needs_pictures = bool(parts - {"language_model"})
    if "language_model" in parts:
        seen: dict[tuple[object, ...], int] = {}
        taken: list[list[tuple[int, int]]] = []
        if whole_rows:
            taken = [[(example, column) for column in columns] for example, columns in enumerate(chosen)]
        for example, columns in enumerate(chosen) if not whole_rows else ():
            layout, pictures = inputs.layout[example], inputs.image_of[example]
            start, stop = layout.real.start, columns[-1] + 1
            # A row ends at the end of a picture, so that boxes in one picture share its run.
            stop = max([stop, *(span.stop for span in layout.images if span.start < stop)])
            shown = tuple(p for p, span in zip(pictures, layout.images, strict=True) if span.start < stop)
            key = (tuple(ids[example][start:stop]), shown)
            if key not in seen:
                seen[key] = len(rows)
                rows.append(Row(example, start, stop - start))
            taken.append([(seen[key], column - start) for column in columns])
            needs_pictures |= bool(shown)
        selections["language_model"] = _selection(taken, llava.device)
        positions["language_model"] = _padded(chosen, inputs.input_ids.device)
    for part in ("vision_tower", "projector"):
        if part in parts:
            taken = [
                _picture_tokens(llava, inputs, example, columns, part, whole_pictures)
                for example, columns in enumerate(chosen)
            ]
            selections[part] = _selection(taken, llava.device)
            positions[part] = _padded([[token for _, token in row] for row in taken], inputs.input_ids.device)
    return CapturePlan(rows, selections, positions, needs_pictures)


def _picture_tokens(
    llava: Adapter, inputs: Inputs, example: int, columns: list[int], part: Part, whole_pictures: bool
) -> list[tuple[int, int]]:
    """The (picture, token) pairs of a part of the vision side for the wanted columns of one example."""
    class_token = 1 if part == "vision_tower" else 0
    if whole_pictures:
        length = llava.grid[0] * llava.grid[1] + max(class_token, llava.n_class_tokens)
        found = [(picture, token) for picture in inputs.image_of[example] for token in range(length)]
    else:
        offset = class_token - llava.n_class_tokens if part == "vision_tower" else 0
        found = [
            (picture, column - span.start + offset)
            for picture, span in zip(inputs.image_of[example], inputs.layout[example].images, strict=True)
            for column in columns
            if span.start <= column < span.stop
        ]
    if not found:
        raise UserError(
            f"tokens must hold image tokens for the sites of the {part.replace('_', ' ')}, got none in row {example} "
            "of the batch. Use the group 'image' or 'object', or sites of the language model."
        )
    return found


def _selection(taken: list[list[tuple[int, int]]], device: torch.device) -> Selection:
    """The distinct selections, padded with their first entry, so that only wanted values are read."""
    distinct: dict[tuple[tuple[int, int], ...], int] = {}
    of_example = tuple(distinct.setdefault(tuple(row), len(distinct)) for row in taken)
    length = max(len(row) for row in distinct)
    filled = torch.tensor([[*row, *[row[0]] * (length - len(row))] for row in distinct], device=device)
    lengths = torch.tensor([len(row) for row in distinct], device=device)
    mask = torch.arange(length, device=device) < lengths[:, None]
    return Selection(filled[..., 0], filled[..., 1], mask, of_example)


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    return pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=-1)
