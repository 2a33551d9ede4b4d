"""Token groups as a table writes them: ``image``, ``patch(3,4)``, ``pos(-1)``, ``image-object``, ``last+answer``.

``group_mask(inputs, "image-object", llava, examples)`` returns a mask over the columns of the batch, ``picture_mask``
one over the tokens of the vision tower or the projector. Besides the groups of ``models.tokens`` there are ``answer``,
the positions after the prompt; ``patch(row,column)`` and ``box(left,top,right,bottom)``, both with the picture's number
as an optional last argument; and ``pos(i)``, the i-th real token of the row, or counted back from the prompt's end if
negative (``pos(-1)`` is ``last``). ``+`` adds a group and ``-`` removes one, from left to right.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from models.inputs import Inputs
from models.llava import Llava
from models.sites import Part
from models.tokens import GROUPS, BoxGroup, PatchGroup, token_mask
from tasks.errors import UserError
from tasks.example import Box, Example

PATCHES = "patches"  # in a plan: one cell for each patch of the grid
_NAMES = (*GROUPS, "answer")
_PICTURED = ("image", "object", "all", "patch", "box")  # groups that exist before the language model
_SPLIT = re.compile(r"([+-])(?![^(]*\))")
_CALL = re.compile(r"(patch|box|pos)\(([^()]*)\)")
_COUNTS = {"patch": (2, 3), "box": (4, 5), "pos": (1, 1)}


class Masks:
    """The masks of one batch, each computed once for all cells; only the group ``object`` needs ``examples``."""

    def __init__(self, llava: Llava, inputs: Inputs, examples: Sequence[Example] | None) -> None:
        self.llava, self.inputs, self.examples = llava, inputs, examples
        self._made: dict[tuple[Part, str], Tensor] = {}

    def at(self, part: Part, text: str) -> Bool[Tensor, "row token"]:
        """The mask of a group in a part of the model, in the shape of ``edits.Write.mask``."""
        key = (part, text)
        if key not in self._made:
            if part == "language_model":
                self._made[key] = group_mask(self.inputs, text, self.llava, self.examples)
            else:
                self._made[key] = picture_mask(self.inputs, text, part, self.llava, self.examples)
        return self._made[key]


class Term(NamedTuple):
    """One group of a sum or difference: sign, name, and arguments."""

    sign: int
    name: str
    numbers: tuple[float, ...]


def parse_group(text: str) -> tuple[Term, ...]:
    """Parse a group into its terms, from left to right."""
    pieces = _SPLIT.split(text.replace(" ", ""))
    signs = [1, *(1 if mark == "+" else -1 for mark in pieces[1::2])]
    return tuple(_term(sign, piece, text) for sign, piece in zip(signs, pieces[::2], strict=True))


def is_pictured(text: str) -> bool:
    """True if the group exists in the vision tower and the projector: image tokens only, or ``all``."""
    terms = parse_group(text)
    return all(term.name in _PICTURED for term in terms) and (len(terms) == 1 or all(t.name != "all" for t in terms))


def group_mask(
    inputs: Inputs, text: str, llava: Llava, examples: Sequence[Example] | None = None
) -> Bool[Tensor, "example pos"]:
    """True at the columns of a group, for every example of the batch; only the group ``object`` needs ``examples``.

    Raises:
        UserError: If the syntax is invalid, or an example has no position of the group.
    """
    mask = torch.zeros_like(inputs.input_ids, dtype=torch.bool)
    for term in parse_group(text):
        found = _term_mask(inputs, term, llava, examples)
        mask = mask | found if term.sign > 0 else mask & ~found
    _check_not_empty(mask, text, examples)
    return mask


def picture_mask(
    inputs: Inputs, text: str, part: Part, llava: Llava, examples: Sequence[Example] | None = None
) -> Bool[Tensor, "image token"]:
    """True at the tokens of a group in the vision tower or the projector, one row for each of ``Inputs.pixel_values``.

    An image token selects its patch; ``all`` selects every token of every picture, including the class token.

    Raises:
        UserError: As for ``group_mask``; also if the group has text tokens, or examples that share a picture select
            different tokens of it.
    """
    if not is_pictured(text):
        raise UserError(
            f"tokens must be image tokens or 'all' at a site of the {part.replace('_', ' ')}, got {text!r}. "
            "Use image, object, patch(r,c), box(...), or a site of the language model."
        )
    if inputs.pixel_values is None:
        raise UserError(f"batch must contain pictures for a site of the {part.replace('_', ' ')}, got none.")
    height, width = llava.grid
    tower = part == "vision_tower"
    length = height * width + (1 if tower else llava.n_class_tokens)
    offset = 1 - llava.n_class_tokens if tower else 0
    columns = group_mask(inputs, text, llava, examples).cpu()
    mask = torch.zeros(inputs.pixel_values.shape[0], length, dtype=torch.bool)
    owner: dict[int, int] = {}
    for row, pictures in enumerate(inputs.image_of):
        for picture, span in zip(pictures, inputs.layout[row].images, strict=True):
            wanted = torch.zeros(length, dtype=torch.bool)
            wanted[offset : offset + span.stop - span.start] = columns[row, span.start : span.stop]
            if text.strip() == "all":
                wanted[:] = True
            if picture in owner and not torch.equal(mask[picture], wanted):
                raise UserError(
                    f"tokens must be the same in examples that share a picture, got {text!r} for rows "
                    f"{owner[picture]} and {row} of the batch, which show {inputs.picture_keys[picture]!r}. "
                    "Run them in separate batches."
                )
            owner[picture] = row
            mask[picture] = wanted
    return mask.to(inputs.pixel_values.device)


def _term(sign: int, piece: str, text: str) -> Term:
    """One term of ``text``."""
    if piece in _NAMES:
        return Term(sign, piece, ())
    match = _CALL.fullmatch(piece)
    if match:
        name, inside = match[1], match[2].split(",")
        whole = name != "box"
        pattern = r"-?\d+" if whole else r"-?\d+(\.\d+)?"
        if len(inside) in _COUNTS[name] and all(re.fullmatch(pattern, number) for number in inside):
            return Term(sign, name, tuple(float(number) for number in inside))
    raise UserError(
        f"tokens must be one of {', '.join(_NAMES)}, patch(row,column), box(left,top,right,bottom), pos(i), or such "
        f"joined by + and -, got {text!r}. For example image-object."
    )


def _term_mask(inputs: Inputs, term: Term, llava: Llava, examples: Sequence[Example] | None) -> Tensor:
    if term.name == "patch":
        row, column, picture = (int(number) for number in (*term.numbers, 0)[:3])
        return token_mask(inputs, PatchGroup(row, column, picture), llava, examples)
    if term.name == "box":
        left, top, right, bottom, which = (*term.numbers, 0.0)[:5]
        return token_mask(inputs, BoxGroup(Box(left, top, right, bottom), int(which)), llava, examples)
    if term.name not in ("pos", "answer"):
        return token_mask(inputs, term.name, llava, examples)
    mask = torch.zeros(inputs.input_ids.shape, dtype=torch.bool)
    for row, layout in enumerate(inputs.layout):
        if term.name == "answer":
            mask[row, layout.prompt_stop : layout.real.stop] = True
            continue
        index = int(term.numbers[0])
        column = index + (layout.real.start if index >= 0 else layout.prompt_stop)
        if not layout.real.start <= column < layout.real.stop:
            raise UserError(
                f"pos must be in [{layout.real.start - layout.prompt_stop}, {layout.real.stop - layout.real.start}) "
                f"for row {row} of the batch, got {index}. Positions count from the first real token, or back from "
                "the prompt's end."
            )
        mask[row, column] = True
    return mask.to(inputs.input_ids.device)


def _check_not_empty(mask: Tensor, text: str, examples: Sequence[Example] | None) -> None:
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        name = f"row {empty[0]} of the batch" if examples is None else f"example {examples[empty[0]].id!r}"
        raise UserError(
            f"tokens must contain a position of every example, got none for {text!r} in {name}. "
            "Choose another group, or leave the example out."
        )
