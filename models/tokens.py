"""Token groups: the positions of image tokens, one patch, a box, the question, or the last position.

``token_mask(inputs, "image", llava)`` returns a boolean ``batch pos`` mask; ``box(...)`` and ``patch(r, c)`` make the
groups that need an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from models.adapter import Adapter
from models.inputs import Inputs, Span
from models.pixels import Geometry
from tasks.errors import UserError
from tasks.example import Box, Example

GroupName = Literal["image", "object", "caption", "question", "last", "text", "all"]
GROUPS: tuple[GroupName, ...] = get_args(GroupName)
_SLACK = 1.0  # pixels by which a box may exceed its picture, since annotation tools round outwards


@dataclass(frozen=True)
class BoxGroup:
    """The image tokens of the patches in a box of one of an example's pictures."""

    bounds: Box
    picture: int = 0


@dataclass(frozen=True)
class PatchGroup:
    """The image token of one patch of one of an example's pictures."""

    row: int
    column: int
    picture: int = 0


class PatchAt(NamedTuple):
    """A place in the patch grid of an example's picture; rows count from the top, columns from the left."""

    picture: int
    row: int
    column: int


Group = GroupName | BoxGroup | PatchGroup


def box(bounds: Box, *, picture: int = 0) -> BoxGroup:
    """The group of the patches whose centre lies in ``bounds``, given in pixels of the original picture.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> int(token_mask(inputs, box(Box(0, 0, 20, 15)), llava).sum())
        4
    """
    return BoxGroup(bounds, picture)


def patch(row: int, column: int, *, picture: int = 0) -> PatchGroup:
    """The group of a single patch.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> int(token_mask(inputs, patch(0, 3), llava).sum())
        1
    """
    return PatchGroup(row, column, picture)


def token_mask(
    inputs: Inputs, group: Group | str, llava: Adapter, examples: Sequence[Example] | None = None
) -> Bool[Tensor, "batch pos"]:
    """True at the positions of ``group``, for every example of the batch.

    Args:
        inputs: The batch.
        group: ``"image"`` is every image token; ``"object"`` the patches whose centre lies in the focus box of the
            first picture; ``"caption"`` the text before the question; ``"question"`` the user's words; ``"last"`` the
            last position of the prompt; ``"text"`` every real token that is no image token; ``"all"`` every real
            token; or a result of ``box`` or ``patch``.
        llava: The model, which has the patch grid.
        examples: The examples of the batch; None takes those in ``inputs``.

    Raises:
        UserError: If the group is unknown or an example has no such positions: no picture, no focus box, a box that
            lies outside the picture that the model gets, a patch outside the grid, a prompt without the question.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> int(token_mask(inputs, "image", llava).sum())
        16
    """
    if isinstance(group, str) and group not in GROUPS:
        raise UserError(f"group must be one of {', '.join(GROUPS)}, got {group!r}. box() and patch() make the others.")
    if examples is None and inputs.examples:
        examples = inputs.examples
    if examples is not None and len(examples) != len(inputs):
        raise UserError(
            f"examples must be the {len(inputs)} that the batch was made of, got {len(examples)}. Pass all of them."
        )
    mask = torch.zeros(inputs.input_ids.shape, dtype=torch.bool)
    for row in range(len(inputs)):
        example = None if examples is None else examples[row]
        mask[row, torch.tensor(_positions(inputs, row, group, llava, example))] = True
    return mask.to(inputs.input_ids.device)


def image_spans(inputs: Inputs) -> list[list[Span]]:
    """For each example the positions of the image tokens of each of its pictures, in order."""
    return [list(layout.images) for layout in inputs.layout]


def position_of(inputs: Inputs, example: int, place: PatchAt, llava: Adapter) -> int:
    """The position in row ``example`` of the image token of a patch; raise ``UserError`` if there is no such patch."""
    spans = inputs.layout[example].images
    if not 0 <= place.picture < len(spans):
        raise UserError(
            f"picture must be in [0, {len(spans)}) for example {example} of the batch, got {place.picture}. "
            "Pictures count from 0."
        )
    height, width = llava.grid
    if not (0 <= place.row < height and 0 <= place.column < width):
        raise UserError(
            f"patch must be in the {height} x {width} grid of {llava.id}, got row {place.row}, column {place.column}. "
            "Rows and columns count from 0."
        )
    return spans[place.picture].start + llava.n_class_tokens + place.row * width + place.column


def patch_at(inputs: Inputs, example: int, position: int, llava: Adapter) -> PatchAt:
    """The patch whose image token is at ``position`` of row ``example``; raise ``UserError`` if there is none."""
    for picture, span in enumerate(inputs.layout[example].images):
        first = span.start + llava.n_class_tokens
        if first <= position < span.stop:
            return PatchAt(picture, *divmod(position - first, llava.grid[1]))
    raise UserError(
        f"position must be that of an image token in row {example} of the batch, got {position}. See image_spans."
    )


def patches_in_box(geometry: Geometry, bounds: Box, llava: Adapter) -> list[tuple[int, int]]:
    """The (row, column) of every patch whose centre lies in ``bounds``, in reading order.

    ``bounds`` are in pixels of the original picture. A box without any patch centre means the one patch that contains
    the centre of the box.

    Raises:
        UserError: If the box is empty, exceeds the picture, or lies in the part that was cropped away.
    """
    if not (bounds.left < bounds.right and bounds.top < bounds.bottom):
        raise UserError(f"box must have left < right and top < bottom, got {tuple(bounds)}. Boxes are in pixels.")
    if (
        bounds.left < -_SLACK
        or bounds.top < -_SLACK
        or bounds.right > geometry.width + _SLACK
        or bounds.bottom > geometry.height + _SLACK
    ):
        raise UserError(
            f"box must lie in its picture of {geometry.width} x {geometry.height} pixels, got {tuple(bounds)}. "
            "Boxes are (left, top, right, bottom) in pixels of the original."
        )
    height, width = llava.grid
    vision: Any = llava.config.vision_config
    side = int(vision.patch_size)
    inside = [
        (row, column)
        for row in range(height)
        for column in range(width)
        for x, y in [geometry.to_original((column + 0.5) * side, (row + 0.5) * side)]
        if bounds.left <= x < bounds.right and bounds.top <= y < bounds.bottom
    ]
    if inside:
        return inside
    seen = geometry.to_model(bounds)
    row, column = int((seen.top + seen.bottom) / 2 // side), int((seen.left + seen.right) / 2 // side)
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(
            f"box must lie in the part of its picture that the model sees, got {tuple(bounds)} in a picture of "
            f"{geometry.width} x {geometry.height} pixels. Use preprocess='pad', which crops nothing."
        )
    return [(row, column)]


def _positions(inputs: Inputs, row: int, group: Group | str, llava: Adapter, example: Example | None) -> list[int]:
    """The positions of ``group`` in one row of the batch; never empty."""
    layout = inputs.layout[row]
    name = f"example {row} of the batch" if example is None else f"example {example.id!r}"
    if isinstance(group, PatchGroup):
        return [position_of(inputs, row, PatchAt(group.picture, group.row, group.column), llava)]
    if isinstance(group, BoxGroup):
        return _box_positions(inputs, row, group, llava, name)
    if group == "object":
        if example is None:
            raise UserError("examples must be given for the group 'object', got None. Pass those of the batch.")
        if example.focus is None or example.focus not in example.boxes:
            raise UserError(
                f"group 'object' must have a focus box, got focus {example.focus!r} with boxes {sorted(example.boxes)} "
                f"in {name}. Give the example a box, or use the group 'image'."
            )
        return _box_positions(inputs, row, BoxGroup(example.boxes[example.focus]), llava, name)
    image = [position for span in layout.images for position in range(*span)]
    if group == "image":
        if not image:
            raise UserError(f"group 'image' must have a picture, got none in {name}. Use 'text', 'last' or 'all'.")
        return image
    if group == "question":
        if layout.question is None:
            raise UserError(
                f"group 'question' must find the question in the prompt, got {inputs.prompts[row]!r} in {name}. "
                "Write the question once and unchanged into the prompt."
            )
        return list(range(*layout.question))
    if group == "caption":
        if layout.context is None:
            raise UserError(
                f"group 'caption' must have a caption before the question, got none in {name}. "
                "tasks.captions.captioned puts one there."
            )
        return list(range(*layout.context))
    if group == "last":
        return [layout.prompt_stop - 1]
    real = range(*layout.real)
    if group == "all":
        return list(real)
    text = sorted(set(real) - set(image))
    if not text:
        raise UserError(f"group 'text' must have a word, got image tokens alone in {name}. Write a prompt around it.")
    return text


def _box_positions(inputs: Inputs, row: int, group: BoxGroup, llava: Adapter, name: str) -> list[int]:
    if not 0 <= group.picture < len(inputs.image_of[row]):
        raise UserError(
            f"picture must be in [0, {len(inputs.image_of[row])}) for {name}, got {group.picture}. "
            "Pictures count from 0."
        )
    geometry = inputs.geometry[inputs.image_of[row][group.picture]]
    patches = patches_in_box(geometry, group.bounds, llava)
    return [position_of(inputs, row, PatchAt(group.picture, r, c), llava) for r, c in patches]
