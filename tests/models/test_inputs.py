"""Inputs: pixels as original LLaVA and as Hugging Face prepare them, prompts in order, and bad ones refused."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from models.inputs import prepare
from models.llava import Llava
from models.pixels import Geometry, Preprocess, expand_to_square, image_processor
from tasks.dataset import LazyExamples
from tasks.errors import UserError
from tasks.example import Box, Example, Picture
from tasks.pictures import open_picture
from tasks.prompts import SYSTEM, vicuna_v1

SIZES = [(40, 23), (23, 40), (41, 24), (24, 41), (33, 33), (7, 90), (301, 200)]  # wide, tall, odd differences, small


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _picture(image: Image.Image, key: str) -> Picture:
    return Picture(key=key, open=lambda: image)


def _example(*pictures: Picture, question: str = "What is it?", name: str = "x") -> Example:
    return Example(id=name, pictures=pictures, question=question, answer="cat", group=name)


def _original_llava(image: Image.Image, size: int) -> torch.Tensor:
    """What original LLaVA does, written from its description: canvas of CLIP's mean, bicubic resize, normalisation."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    side = max(height, width)
    canvas = np.empty((side, side, 3), dtype=np.uint8)
    canvas[:] = [int(channel * 255) for channel in mean]
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    resized = np.asarray(Image.fromarray(canvas).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return torch.from_numpy((resized / 255 - np.array(mean)) / np.array(std)).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", SIZES)
def test_pad_equals_the_original_preprocessing(llava: Llava, size: tuple[int, int]) -> None:
    image = _noise(*size)
    inputs = prepare(llava, [_example(_picture(image, "a"))], preprocess="pad")
    assert inputs.pixel_values is not None
    # float32 against float64 arithmetic on values up to 2.7
    assert_close(inputs.pixel_values[0].cpu(), _original_llava(image, llava.image_size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_pad_equals_the_padding_option_of_transformers(llava: Llava, size: tuple[int, int]) -> None:
    image, side = _noise(*size), llava.image_size
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    inputs = prepare(llava, [_example(_picture(image, "a"))], preprocess="pad")
    assert inputs.pixel_values is not None
    assert_close(inputs.pixel_values.cpu(), processor(image, return_tensors="pt")["pixel_values"], atol=0, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_hf_equals_the_clip_processor_of_transformers(llava: Llava, size: tuple[int, int]) -> None:
    image, side = _noise(*size), llava.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    inputs = prepare(llava, [_example(_picture(image, "a"))], preprocess="hf")
    assert inputs.pixel_values is not None
    assert_close(inputs.pixel_values.cpu(), processor(image, return_tensors="pt")["pixel_values"], atol=0, rtol=0)


def test_the_two_preprocessings_differ_unless_the_picture_is_square(llava: Llava) -> None:
    def pixels(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
        found = prepare(llava, [_example(_picture(image, "a"))], preprocess=preprocess).pixel_values
        assert found is not None
        return found

    wide, square = _noise(40, 23), _noise(40, 40)
    assert not torch.equal(pixels(wide, "pad"), pixels(wide, "hf"))
    assert torch.equal(pixels(square, "pad"), pixels(square, "hf"))


def test_the_canvas_gets_its_odd_pixel_on_the_right_and_at_the_bottom() -> None:
    wide = np.asarray(expand_to_square(Image.new("RGB", (4, 1), "white"), (1, 2, 3)))
    assert wide.shape == (4, 4, 3)
    assert [tuple(row[0]) for row in wide] == [(1, 2, 3), (255, 255, 255), (1, 2, 3), (1, 2, 3)]
    tall = np.asarray(expand_to_square(Image.new("RGB", (1, 4), "white"), (1, 2, 3)))
    assert [tuple(pixel) for pixel in tall[0]] == [(1, 2, 3), (255, 255, 255), (1, 2, 3), (1, 2, 3)]


@pytest.mark.parametrize("preprocess", ["pad", "hf"])
@pytest.mark.parametrize("size", [(280, 210), (210, 280), (301, 200), (200, 301), (280, 280)])
def test_geometry_says_where_a_pixel_of_the_original_ends_up(
    llava: Llava, preprocess: Preprocess, size: tuple[int, int]
) -> None:
    width, height = size
    # a white square in the middle, thus neither cropped away nor in the padding
    box = Box(width // 2 - 30, height // 2 - 45, width // 2 + 50, height // 2 + 35)
    image = Image.new("RGB", size, "black")
    image.paste((255, 255, 255), (int(box.left), int(box.top), int(box.right), int(box.bottom)))
    inputs = prepare(llava, [_example(_picture(image, "a"))], preprocess=preprocess)
    assert inputs.pixel_values is not None
    processor = image_processor(llava)
    brightness = inputs.pixel_values[0, 0].cpu().numpy() * processor.image_std[0] + processor.image_mean[0]
    white = np.argwhere(brightness > 0.55)  # half way up the edge from black to white, and above padding's 0.48
    seen = inputs.geometry[0].to_model(box)
    found = (white[:, 1].min(), white[:, 0].min(), white[:, 1].max() + 1, white[:, 0].max() + 1)
    np.testing.assert_allclose(found, seen, atol=1.0)  # whole pixels


def test_geometry_there_and_back_is_the_identity() -> None:
    geometry = Geometry(300, 200, 0.3, 0.5, -7.0, 4.0)
    seen = geometry.to_model(Box(10, 20, 30, 40))
    assert geometry.to_original(seen.left, seen.top) == pytest.approx((10, 20))
    assert geometry.to_original(seen.right, seen.bottom) == pytest.approx((30, 40))


def test_equal_pictures_are_prepared_once_and_given_to_every_placeholder(llava: Llava) -> None:
    opened: list[str] = []

    def picture(key: str, seed: int) -> Picture:
        def load() -> Image.Image:
            opened.append(key)
            return _noise(30, 30, seed)

        return Picture(key=key, open=load)

    examples = [
        _example(picture("a", 0)),
        _example(picture("b", 1), picture("a", 0)),
        _example(),
        _example(picture("b", 1), picture("b", 1), picture("c", 2)),
    ]
    inputs = prepare(llava, examples)
    assert inputs.picture_keys == ("a", "b", "c")
    assert opened == ["a", "b", "a", "b", "b", "c"]  # each record is opened: equal keys are no proof of equal pixels
    assert inputs.image_of == ((0,), (1, 0), (), (1, 1, 2))
    assert inputs.pixel_values is not None and inputs.pixel_values.shape[0] == 3
    expanded = inputs.model_kwargs()["pixel_values"]
    assert torch.equal(expanded, inputs.pixel_values[[0, 1, 0, 1, 1, 2]])


def test_each_placeholder_becomes_as_many_tokens_as_the_model_has_patches(llava: Llava) -> None:
    a, b = _picture(_noise(20, 30), "a"), _picture(_noise(30, 20), "b")
    inputs = prepare(llava, [_example(a, b), _example(a), _example()])
    per_row = (inputs.input_ids == llava.image_token_id).sum(1).tolist()
    assert per_row == [2 * llava.n_image_tokens, llava.n_image_tokens, 0]
    assert llava.n_image_tokens == llava.grid[0] * llava.grid[1]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_ids_are_those_of_the_expanded_text(llava: Llava, padding_side: str) -> None:
    a = _picture(_noise(20, 30), "a")
    examples = [_example(a, a, question="Which?"), _example(question="A much longer question about nothing?")]
    inputs = prepare(llava, examples, padding_side="left" if padding_side == "left" else "right")
    for row, example in enumerate(examples):
        text = vicuna_v1(example.question, n_images=len(example.pictures))
        text = text.replace("<image>", "<image>" * llava.n_image_tokens)
        expected = llava.tokenizer(text)["input_ids"]
        real = inputs.input_ids[row][inputs.attention_mask[row].bool()]
        assert real.tolist() == expected
        start = inputs.n_positions - len(expected) if padding_side == "left" else 0
        assert tuple(inputs.layout[row].real) == (start, start + len(expected))
        assert inputs.position_ids[row][inputs.attention_mask[row].bool()].tolist() == list(range(len(expected)))


@pytest.mark.parametrize("pad_token", ["<image>", None])
def test_padding_never_holds_the_image_token(llava: Llava, pad_token: str | None) -> None:
    odd = replace(llava, processor=copy.deepcopy(llava.processor))
    odd.tokenizer.pad_token = pad_token
    inputs = prepare(odd, [_example(question="Short?"), _example(question="This one is a good deal longer?")])
    assert inputs.attention_mask.sum() < inputs.attention_mask.numel()
    assert not (inputs.input_ids == llava.image_token_id).any()


def test_answers_follow_the_prompt_and_end_the_text(llava: Llava) -> None:
    example = _example(_picture(_noise(20, 30), "a"))
    without, with_ = prepare(llava, [example]), prepare(llava, [example], answers=True)
    stop = with_.layout[0].prompt_stop
    assert stop == without.layout[0].prompt_stop == without.n_positions
    assert torch.equal(with_.input_ids[:, :stop], without.input_ids)
    assert llava.tokenizer.decode(with_.input_ids[0, stop:]) == f" cat{llava.tokenizer.eos_token}"


def test_a_prompt_of_the_callers_own_is_used_as_it_is(llava: Llava) -> None:
    example = _example(_picture(_noise(20, 30), "a"))
    inputs = prepare(llava, [example], prompts=["Look: <image> What is it? Say."])
    assert inputs.prompts == ("Look: <image> What is it? Say.",)
    assert SYSTEM not in llava.tokenizer.decode(inputs.input_ids[0])
    question = inputs.layout[0].question
    assert question is not None
    assert str(llava.tokenizer.decode(inputs.input_ids[0, slice(*question)])).strip() == "What is it?"


def test_select_keeps_the_rows_asked_for_and_their_pictures_alone(llava: Llava) -> None:
    a, b, c = (_picture(_noise(20 + i, 30, i), key) for i, key in enumerate("abc"))
    inputs = prepare(llava, [_example(a), _example(b, c), _example(), _example(c, question="And what is that?")])
    part = inputs.select([3, 1])
    assert part.picture_keys == ("c", "b")
    assert part.image_of == ((0,), (1, 0))
    assert torch.equal(part.input_ids, inputs.input_ids[[3, 1]])
    assert part.layout == (inputs.layout[3], inputs.layout[1])
    assert torch.equal(part.model_kwargs()["pixel_values"], inputs.model_kwargs()["pixel_values"][[3, 1, 2]])
    assert inputs.select([2]).pixel_values is None and "pixel_values" not in inputs.select([2]).model_kwargs()
    with pytest.raises(ValueError, match=r"rows must be in \[0, 4\) and not empty, got \[4\]"):
        inputs.select([4])
    with pytest.raises(ValueError, match=r"rows must be in \[0, 4\) and not empty, got \[\]"):
        inputs.select([])


def test_to_moves_every_tensor(llava: Llava) -> None:
    moved = prepare(llava, [_example(_picture(_noise(20, 30), "a"))]).to("meta")
    assert {tensor.device.type for tensor in moved.model_kwargs().values()} == {"meta"}


def test_placeholders_and_pictures_must_match(llava: Llava) -> None:
    a = _picture(_noise(20, 30), "a")
    with pytest.raises(ValueError, match="prompt of example 'x' must have one <image> for each of its 1 .*, got 2"):
        prepare(llava, [_example(a, question="Is <image> there?")])
    with pytest.raises(ValueError, match="must have one <image> for each of its 2 pictures, got 0"):
        prepare(llava, [_example(a, a)], prompts=["no picture here"])
    with pytest.raises(ValueError, match="must have one <image> for each of its 0 pictures, got 1"):
        prepare(llava, [_example()], prompts=["<image> here"])


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(llava: Llava) -> None:
    text: Any = llava.config.text_config
    limit = text.max_position_embeddings
    with pytest.raises(ValueError, match=rf"prompt must have at most {limit} tokens for .*, got \d+ in example 'x'"):
        prepare(llava, [_example(question="why " * limit)])
    one = prepare(llava, [_example(_picture(_noise(20, 30), "a"))]).n_positions
    too_many = (limit - one) // llava.n_image_tokens + 2
    pictures = [_picture(_noise(20, 30), "a")] * too_many
    with pytest.raises(ValueError, match=f"{too_many} pictures of {llava.n_image_tokens} tokens"):
        prepare(llava, [_example(*pictures)])


def test_unusable_arguments_are_refused(llava: Llava) -> None:
    with pytest.raises(ValueError, match="examples must contain at least one example, got none"):
        prepare(llava, [])
    with pytest.raises(ValueError, match="prompts must have one text for each of 1 examples, got 2"):
        prepare(llava, [_example()], prompts=["a", "b"])


@pytest.mark.parametrize("broken", ["missing", "truncated", "text"])
def test_a_bad_picture_is_refused_by_name_before_anything_runs(llava: Llava, tmp_path: Path, broken: str) -> None:
    path = tmp_path / f"{broken}.png"
    if broken == "truncated":
        _noise(64, 64).save(tmp_path / "whole.png")
        path.write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    elif broken == "text":
        path.write_text("no picture")
    good = _picture(_noise(20, 30), "good")
    openers: list[Callable[[], Image.Image]] = [lambda: open_picture(path), lambda: Image.open(path)]
    for opener in openers:  # our own reader, and a caller's that leaves decoding to Pillow
        bad = Picture(key=str(path), open=opener)
        with pytest.raises(UserError, match=f"{broken}.png"):
            prepare(llava, [_example(good), _example(bad)])


@pytest.mark.parametrize("side", [11, 20])
def test_a_decompression_bomb_is_refused_by_name(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    _noise(side, side).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for opener in (lambda: open_picture(tmp_path / "bomb.png"), lambda: Image.open(tmp_path / "bomb.png")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a caller that does not turn Pillow's warning into an error
            with pytest.raises(UserError, match="bomb.png"):
                prepare(llava, [_example(Picture(key="bomb.png", open=opener))])


@pytest.mark.parametrize("preprocess", ["pad", "hf"])
def test_a_picture_too_elongated_to_prepare_is_refused_by_name(
    llava: Llava, monkeypatch: pytest.MonkeyPatch, preprocess: Preprocess
) -> None:
    strip = _example(_picture(Image.new("RGB", (3000, 1)), "strip"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(UserError, match="at most 1000000 pixels to prepare, got 3000 x 1 in 'strip'"):
        prepare(llava, [strip], preprocess=preprocess)


def test_two_pictures_with_one_key_are_two_pictures(llava: Llava) -> None:
    first, second = _noise(20, 20, seed=1), _noise(20, 20, seed=2)
    inputs = prepare(llava, [_example(_picture(first, "same")), _example(_picture(second, "same"))])
    assert inputs.image_of == ((0,), (1,))
    assert len(set(inputs.picture_keys)) == 2
    assert inputs.pixel_values is not None
    alone = prepare(llava, [_example(_picture(second, "other"))]).pixel_values
    assert alone is not None
    assert torch.equal(inputs.pixel_values[1:], alone)


def test_one_picture_with_two_keys_is_prepared_once(llava: Llava) -> None:
    image = _noise(20, 20)
    inputs = prepare(llava, [_example(_picture(image, "a")), _example(_picture(image.copy(), "b"))])
    assert inputs.image_of == ((0,), (0,))
    assert inputs.picture_keys == ("a",)


def test_a_batch_laid_out_anew_is_the_batch_prepared_so(llava: Llava) -> None:
    examples = [
        _example(_picture(_noise(20, 20), "a"), question="Is it a cat?"), _example(question="What?", name="y")
    ]  # fmt: skip
    right, left = (prepare(llava, examples, padding_side=side, answers=True) for side in ("right", "left"))
    for side, wanted in (("left", left), ("right", right)):
        for start in (left, right):
            moved = start.laid_out(side)
            assert moved.layout == wanted.layout
            assert torch.equal(moved.position_ids, wanted.position_ids)
            real = wanted.attention_mask.bool()
            assert torch.equal(moved.attention_mask, wanted.attention_mask)
            assert torch.equal(moved.input_ids[real], wanted.input_ids[real])
    prompts = prepare(llava, examples, padding_side="left")
    cut = right.laid_out("left", answers=False, room=2)
    assert torch.equal(cut.attention_mask[:, :-2], prompts.attention_mask)
    assert bool(cut.attention_mask[:, -2:].all())
    assert [layout.prompt_stop for layout in cut.layout] == [layout.prompt_stop for layout in prompts.layout]


def test_a_lazy_sequence_gives_the_batch_of_its_list(llava: Llava) -> None:
    def make(index: int) -> Example:
        picture = Picture(f"p{index // 2}", lambda: _noise(40, 30, index // 2))
        return Example(str(index), (picture,), "What is it?", "", group="g")

    lazy = LazyExamples(3, make)
    assert lazy[0].pictures[0] is not lazy[0].pictures[0]
    batch, wanted = prepare(llava, lazy), prepare(llava, list(lazy))
    assert batch.image_of == wanted.image_of == ((0,), (0,), (1,))
    assert batch.pixel_values is not None and wanted.pixel_values is not None
    assert_close(batch.pixel_values, wanted.pixel_values, rtol=0, atol=0)
