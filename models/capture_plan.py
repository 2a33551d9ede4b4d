"""Plan a capture: which rows run, which positions are kept, and which examples share a row."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from models.adapter import Adapter
from models.hooks import Pool, Selection
from models.inputs import Inputs
from models.sites import Part, Site
from models.tokens import Group, token_mask
from tasks.errors import UserError
from tasks.example import Example


class _Row(NamedTuple):
    """A row that the language model runs: the example it is taken from, its first column, and how much of it."""

    example: int
    start: int
    length: int


class _Plan(NamedTuple):
    rows: list[_Row]
    selections: dict[Part, Selection]
    positions: dict[Part, Int[Tensor, "example pos"]]
    needs_pictures: bool


def _wanted(
    llava: Adapter, inputs: Inputs, tokens: Group | Tensor, pool: Pool, examples: Sequence[Example] | None
) -> Bool[Tensor, "batch pos"]:
    """The wanted positions, checked."""
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


def _plan(
    llava: Adapter,
    inputs: Inputs,
    sites: Sequence[Site],
    wanted: Tensor,
    *,
    whole_pictures: bool,
    whole_rows: bool = False,
) -> _Plan:
    """Which rows run, and what is taken from which; ``whole_rows`` runs the batch as it is padded."""
    ids, chosen = inputs.input_ids.tolist(), [row.nonzero().flatten().tolist() for row in wanted.cpu()]
    parts = {site.part for site in sites}
    selections: dict[Part, Selection] = {}
    positions: dict[Part, Tensor] = {}
    rows: list[_Row] = []
    needs_pictures = bool(parts - {"language_model"})
    if "language_model" in parts:
        seen: dict[tuple[object, ...], int] = {}
        taken: list[list[tuple[int, int]]] = []
        if whole_rows:
            taken = [[(example, column) for column in columns] for example, columns in enumerate(chosen)]
        for example, columns in enumerate(chosen) if not whole_rows else ():
            layout, pictures = inputs.layout[example], inputs.image_of[example]
            start, stop = layout.real.start, columns[-1] + 1
            # A row reaches to the end of a picture that it enters, so that boxes in one picture share its run.
            stop = max([stop, *(span.stop for span in layout.images if span.start < stop)])
            shown = tuple(p for p, span in zip(pictures, layout.images, strict=True) if span.start < stop)
            key = (tuple(ids[example][start:stop]), shown)
            if key not in seen:
                seen[key] = len(rows)
                rows.append(_Row(example, start, stop - start))
            taken.append([(seen[key], column - start) for column in columns])
            needs_pictures |= bool(shown)
        selections["language_model"] = _selection(taken, llava.device)
        positions["language_model"] = _padded(chosen, -1, inputs.input_ids.device)
    for part in ("vision_tower", "projector"):
        if part in parts:
            taken = [
                _picture_tokens(llava, inputs, example, columns, part, whole_pictures)
                for example, columns in enumerate(chosen)
            ]
            selections[part] = _selection(taken, llava.device)
            positions[part] = _padded([[token for _, token in row] for row in taken], -1, inputs.input_ids.device)
    return _Plan(rows, selections, positions, needs_pictures)


def _picture_tokens(
    llava: Adapter, inputs: Inputs, example: int, columns: list[int], part: Part, whole_pictures: bool
) -> list[tuple[int, int]]:
    """The (picture, token) pairs of the vision side that belong to the wanted columns of one example."""
    class_token = 1 if part == "vision_tower" else 0
    if whole_pictures:
        length = llava.grid[0] * llava.grid[1] + max(class_token, llava.n_class_tokens)
        found = [(picture, token) for picture in inputs.image_of[example] for token in range(length)]
    else:
        offset = class_token - llava.n_class_tokens if part == "vision_tower" else 0
        wanted = set(columns)
        found = [
            (picture, column - span.start + offset)
            for picture, span in zip(inputs.image_of[example], inputs.layout[example].images, strict=True)
            for column in range(*span)
            if column in wanted
        ]
    if not found:
        raise UserError(
            f"tokens must hold image tokens for the sites of the {part.replace('_', ' ')}, got none in row {example} "
            "of the batch. Use the group 'image' or 'object', or sites of the language model."
        )
    return found


def _selection(taken: list[list[tuple[int, int]]], device: torch.device) -> Selection:
    """The distinct selections, padded; a padded slot repeats the first, so that nothing unwanted is looked at."""
    distinct: dict[tuple[tuple[int, int], ...], int] = {}
    of_example = tuple(distinct.setdefault(tuple(row), len(distinct)) for row in taken)
    length = max(len(row) for row in distinct)
    filled = torch.tensor([[*row, *[row[0]] * (length - len(row))] for row in distinct], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in distinct], device=device)
    return Selection(filled[..., 0], filled[..., 1], mask, of_example)


def _padded(rows: list[list[int]], filler: int, device: torch.device) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows], device=device)
