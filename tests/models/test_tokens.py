"""Token groups: each holds exactly the positions it names, under either padding and either preprocessing."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from models.inputs import Inputs, PaddingSide, prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.tokens import (
    GROUPS,
    Group,
    PatchAt,
    box,
    image_spans,
    patch,
    patch_at,
    patches_in_box,
    position_of,
    token_mask,
)
from tasks.example import Box, Example, Picture
from tasks.prompts import SHORT
from tasks.scenes.datasets import scenes_dataset

SIDES: tuple[PaddingSide, ...] = ("left", "right")
PREPROCESSES: tuple[Preprocess, ...] = ("pad", "hf")


def _example(n_pictures: int, question: str, size: tuple[int, int] = (40, 40), focus: Box | None = None) -> Example:
    pictures = tuple(Picture(key=f"{size}-{i}", open=lambda: Image.new("RGB", size, "grey")) for i in range(n_pictures))
    return Example(
        id=question,
        pictures=pictures,
        question=question,
        answer="cat",
        group=question,
        boxes={} if focus is None else {"thing": focus},
        focus=None if focus is None else "thing",
    )


def _words(llava: Llava, inputs: Inputs, row: int, group: Group, examples: list[Example]) -> str:
    mask = token_mask(inputs, group, llava, examples)
    return str(llava.tokenizer.decode(inputs.input_ids[row][mask[row]]))


@pytest.mark.parametrize("padding_side", SIDES)
def test_each_group_holds_the_words_it_names(llava: Llava, padding_side: PaddingSide) -> None:
    examples = [
        _example(2, f"What color is the cat?\n{SHORT}"),
        _example(0, "A cat lies here.\nWhere?"),
        _example(1, "ASSISTANT: é 猫"),  # words of the template, bytes and accents inside the question
        _example(1, "A"),
    ]
    inputs = prepare(llava, examples, padding_side=padding_side, answers=True)
    for row, example in enumerate(examples):
        n_image = len(example.pictures) * llava.n_image_tokens
        assert _words(llava, inputs, row, "question", examples).strip() == example.question
        assert _words(llava, inputs, row, "last", examples) == ":"
        real = token_mask(inputs, "all", llava, examples)[row]
        assert torch.equal(real, inputs.attention_mask[row].bool())
        image = inputs.input_ids[row] == llava.image_token_id
        assert int(image.sum()) == n_image
        assert torch.equal(token_mask(inputs, "text", llava, examples)[row], real & ~image)
    with_pictures = [0, 2, 3]
    part, kept = inputs.select(with_pictures), [examples[row] for row in with_pictures]
    assert torch.equal(token_mask(part, "image", llava, kept), part.input_ids == llava.image_token_id)


@pytest.mark.parametrize("padding_side", SIDES)
def test_last_is_the_end_of_the_prompt_whether_or_not_an_answer_follows(
    llava: Llava, padding_side: PaddingSide
) -> None:
    examples = [_example(1, "Short?"), _example(1, "This question is a good deal longer?")]
    for answers in (False, True):
        inputs = prepare(llava, examples, padding_side=padding_side, answers=answers)
        mask = token_mask(inputs, "last", llava)
        assert mask.sum(1).tolist() == [1, 1]
        for row in range(2):
            position = int(mask[row].nonzero())
            after = llava.tokenizer.decode(inputs.input_ids[row, position + 1 : inputs.layout[row].real.stop])
            assert after == (f" cat{llava.tokenizer.eos_token}" if answers else "")


@pytest.mark.parametrize("padding_side", SIDES)
def test_positions_and_patches_map_onto_each_other(llava: Llava, padding_side: PaddingSide) -> None:
    inputs = prepare(llava, [_example(0, "Nothing?"), _example(3, "What?")], padding_side=padding_side)
    height, width = llava.grid
    spans = image_spans(inputs)
    assert spans[0] == [] and len(spans[1]) == 3
    seen = []
    for picture, span in enumerate(spans[1]):
        assert bool((inputs.input_ids[1, slice(*span)] == llava.image_token_id).all())
        for row in range(height):
            for column in range(width):
                place = PatchAt(picture, row, column)
                position = position_of(inputs, 1, place, llava)
                assert patch_at(inputs, 1, position, llava) == place
                mask = token_mask(inputs.select([1]), patch(row, column, picture=picture), llava)
                assert mask.nonzero().tolist() == [[0, position]]
                seen.append(position)
    assert seen == (inputs.input_ids[1] == llava.image_token_id).nonzero().flatten().tolist()


@pytest.mark.parametrize("preprocess", PREPROCESSES)
@pytest.mark.parametrize("size", [(280, 280), (401, 280), (280, 401), (600, 400), (19, 23)])
def test_a_box_around_one_patch_selects_exactly_that_patch(
    llava: Llava, preprocess: Preprocess, size: tuple[int, int]
) -> None:
    inputs = prepare(llava, [_example(1, "What?", size)], preprocess=preprocess)
    geometry, (height, width) = inputs.geometry[0], llava.grid
    side = llava.image_size / width
    tried = 0
    for row in range(height):
        for column in range(width):
            left, top = geometry.to_original(column * side, row * side)
            right, bottom = geometry.to_original((column + 1) * side, (row + 1) * side)
            bounds = Box(left, top, right, bottom)
            if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
                continue  # a patch that shows padding
            tried += 1
            assert patches_in_box(geometry, bounds, llava) == [(row, column)]
            mask = token_mask(inputs, box(bounds), llava)
            assert torch.equal(mask, token_mask(inputs, patch(row, column), llava))
            middle = Box(*(0.999 * a + 0.001 * b for a, b in zip(bounds, (right, bottom, left, top), strict=True)))
            assert patches_in_box(geometry, middle, llava) == [(row, column)]
            x, y = (left + right) / 2, (top + bottom) / 2
            tiny = Box(x + 0.1 * (right - x), y + 0.1 * (bottom - y), x + 0.2 * (right - x), y + 0.2 * (bottom - y))
            assert patches_in_box(geometry, tiny, llava) == [(row, column)]  # holds no centre
    assert tried >= (height * width if preprocess == "hf" else width)


@pytest.mark.parametrize("preprocess", PREPROCESSES)
@pytest.mark.parametrize("size", [(280, 280), (401, 280), (300, 577)])
def test_ink_in_a_box_falls_on_the_pixels_of_the_patches_that_the_box_selects(
    llava: Llava, preprocess: Preprocess, size: tuple[int, int]
) -> None:
    def pixels(picture: Image.Image, key: str) -> Inputs:
        return prepare(llava, [Example("x", (Picture(key, lambda: picture),), "What?", "", "x")], preprocess=preprocess)

    black = Image.new("RGB", size, "black")
    before = pixels(black, "black")
    side = llava.image_size // llava.grid[0]
    middle = [extent // 2 for extent in size]
    for dx, dy in [(-90, -90), (-90, 40), (0, 0), (30, -80), (60, 60)]:  # all shown by both preprocessings
        bounds = Box(middle[0] + dx, middle[1] + dy, middle[0] + dx + 60, middle[1] + dy + 60)
        picture = black.copy()
        picture.paste((255, 255, 255), (int(bounds.left), int(bounds.top), int(bounds.right), int(bounds.bottom)))
        after = pixels(picture, "spot")
        assert before.pixel_values is not None and after.pixel_values is not None
        change = (after.pixel_values - before.pixel_values)[0].sum(0).cpu()
        by_patch = change.unfold(0, side, side).unfold(1, side, side).sum((2, 3))
        share = by_patch / by_patch.sum()
        selected = patches_in_box(after.geometry[0], bounds, llava)
        inside = sum(float(share[place]) for place in selected) / len(selected)
        outside = (1 - inside * len(selected)) / (share.numel() - len(selected))
        # centres in the box: at least a quarter of such a patch is ink; elsewhere at most half of a few border patches
        assert inside > 4 * outside
        assert max(float(share[place]) for place in selected) > 0.95 * float(share.max())  # neighbours may tie


@pytest.mark.parametrize("padding_side", SIDES)
def test_object_selects_the_patches_whose_centre_lies_in_the_focus_box(llava: Llava, padding_side: PaddingSide) -> None:
    examples = list(scenes_dataset(n=6).examples)
    inputs = prepare(llava, examples, padding_side=padding_side)
    mask = token_mask(inputs, "object", llava, examples)
    cell = 112 / llava.grid[0]
    for row, example in enumerate(examples):
        bounds = example.boxes[str(example.focus)]
        expected = [
            position_of(inputs, row, PatchAt(0, r, c), llava)
            for r in range(llava.grid[0])
            for c in range(llava.grid[1])
            if bounds.left <= (c + 0.5) * cell < bounds.right and bounds.top <= (r + 0.5) * cell < bounds.bottom
        ]
        assert expected
        assert mask[row].nonzero().flatten().tolist() == expected
        assert torch.equal(mask[row], token_mask(inputs.select([row]), box(bounds), llava)[0])


def test_groups_that_do_not_apply_are_refused(llava: Llava) -> None:
    words, shown = _example(0, "Where?"), _example(1, "What?")
    text, picture = prepare(llava, [words]), prepare(llava, [shown])
    with pytest.raises(ValueError, match="group must be one of image, object, .* got 'images'"):
        token_mask(text, "images", llava)
    with pytest.raises(ValueError, match="group 'image' must have a picture, got none in example 'Where\\?'"):
        token_mask(text, "image", llava, [words])
    with pytest.raises(ValueError, match="examples must be given for the group 'object'"):
        token_mask(replace(picture, examples=()), "object", llava)
    with pytest.raises(ValueError, match="group 'object' must have a focus box, got focus None .* 'What\\?'"):
        token_mask(picture, "object", llava, [shown])
    with pytest.raises(ValueError, match="examples must be the 1 that the batch was made of, got 2"):
        token_mask(picture, "all", llava, [shown, shown])
    unseen = prepare(llava, [shown], prompts=["Describe <image>"])
    with pytest.raises(ValueError, match="group 'question' must find the question .*, got 'Describe <image>'"):
        token_mask(unseen, "question", llava)
    assert set(GROUPS) == {"image", "object", "caption", "question", "last", "text", "all"}


def test_patches_and_boxes_outside_are_refused(llava: Llava) -> None:
    inputs = prepare(llava, [_example(1, "What?", (400, 200))], preprocess="hf")
    height, width = llava.grid
    with pytest.raises(ValueError, match=f"must be in the {height} x {width} grid of .* got row {height}, column 0"):
        token_mask(inputs, patch(height, 0), llava)
    with pytest.raises(ValueError, match="got row 0, column -1"):
        token_mask(inputs, patch(0, -1), llava)
    with pytest.raises(ValueError, match=r"picture must be in \[0, 1\) .* got 1"):
        token_mask(inputs, patch(0, 0, picture=1), llava)
    with pytest.raises(ValueError, match=r"picture must be in \[0, 1\) .* got 1"):
        token_mask(inputs, box(Box(0, 0, 9, 9), picture=1), llava)
    with pytest.raises(ValueError, match="box must lie in its picture of 400 x 200 pixels, got"):
        token_mask(inputs, box(Box(390, 0, 410, 10)), llava)
    with pytest.raises(ValueError, match="box must lie in its picture of 400 x 200 pixels, got"):
        token_mask(inputs, box(Box(0, -5, 10, 10)), llava)
    with pytest.raises(ValueError, match="box must have left < right and top < bottom, got"):
        token_mask(inputs, box(Box(20, 0, 20, 10)), llava)
    with pytest.raises(ValueError, match="box must lie in the part of its picture that the model sees, got"):
        token_mask(inputs, box(Box(0, 0, 40, 40)), llava)  # cropped away: the centre 200 x 200 is left
    with pytest.raises(ValueError, match="position must be that of an image token in row 0 of the batch, got 0"):
        patch_at(inputs, 0, 0, llava)
