"""Pictures: a checkpoint's own settings are followed or refused; saved processors prepare as models were trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.loading.processors import clip_pictures, offline_processor, with_padding
from models.loading.smol import compose
from models.pixels import Preprocess
from tasks.errors import UserError
from tasks.example import Box, Example, Picture
from tests.conftest import tiny_config

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos" / "images"


def photographs() -> list[Image.Image]:
    """Real photographs where they are present, and smooth colour gradients with noise."""
    made = []
    for width, height in ((60, 80), (97, 41), (28, 28), (31, 200)):
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        noise = np.random.default_rng(0).normal(0, 20, (height, width))
        made.append(Image.fromarray(np.stack([x, y, 128 + noise], -1).clip(0, 255).astype(np.uint8)))
    return made + [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))[:6]]


def pixels(llava: Llava, image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    example = Example("a", (Picture("k", image.copy),), "What?", "a cat", "g")
    found = prepare(llava, [example], preprocess=preprocess).pixel_values
    assert found is not None
    return found


Settings = Callable[..., Path]


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> Settings:
    """A checkpoint with some settings of its picture processor changed."""

    def write(**changes: Any) -> Path:
        folder = Path(shutil.copytree(checkpoint, tmp_path / "changed"))
        plain = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        (folder / "processor_config.json").unlink()
        (folder / "preprocessor_config.json").write_text(json.dumps({**plain, **changes}))
        return folder

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"resample": 2},
        {"rescale_factor": 1 / 128},
        {"size": {"height": 28, "width": 28}, "do_center_crop": False},
        {"size": {"height": 28, "width": 28}},
        {"size": {"shortest_edge": 32}},
        {"size": 28, "crop_size": 28},
        {"image_processor_type": "CLIPFeatureExtractor"},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"shortest_edge": 40}},
        {"image_processor_type": "CLIPImageProcessor", "do_pad": True},
    ],
)
def test_the_checkpoint_s_own_settings_are_followed(settings: Settings, changes: dict[str, Any]) -> None:
    folder = settings(**changes)
    llava = load(folder)
    padded = changes.get("image_processor_type") == "LlavaImageProcessor"
    own: Any = (LlavaImageProcessorPil if padded else CLIPImageProcessorPil).from_pretrained(folder)
    for image in photographs():
        wanted = own(image, return_tensors="pt")["pixel_values"].float()
        assert torch.equal(pixels(llava, image, "hf"), wanted)
        assert torch.equal(pixels(llava, image, "pad"), wanted) or not padded
        inputs = prepare(llava, [Example("a", (Picture("k", image.copy),), "What?", "a", "g")], preprocess="hf")
        geometry, (width, height) = inputs.geometry[0], image.size
        centre = geometry.to_model(Box(width // 2 - 1, height // 2 - 1, width // 2 + 1, height // 2 + 1))
        middle = ((centre.left + centre.right) / 2, (centre.top + centre.bottom) / 2)
        assert np.allclose(middle, 14, atol=1.0)  # all of them keep the centre of the picture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_normalize": False}, "do_normalize of the picture processor must be true, got False"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"shortest_edge": 20}}, "size of the picture processor must be a shortest edge of at least 28"),
        ({"size": {"height": 30, "width": 28}}, "size .* must be 28 x 28 pixels"),
        ({"size": {"shortest_edge": 10**9}}, "size"),
        ({"crop_size": {"height": 20, "width": 28}}, "crop_size .* must be 28 x 28 pixels"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"image_std": [0.0, 0.5, 0.5]}, "image_std .* must be three numbers above 0"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_mean": 0.5}, "image_mean"),
        ({"resample": 77}, "resample"),
        ({"resample": "bicubic"}, "resample"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"size": "large"}, "picture processor must be readable"),
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type must be CLIPImageProcessor"),
        ({"image_processor_type": ["CLIPImageProcessor"]}, "picture processor|image_processor_type"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    settings: Settings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(settings(**changes))
    assert len(str(caught.value)) < 400


def test_a_processor_saved_after_padding_prepares_pictures_as_they_were_trained(llava: Llava, tmp_path: Path) -> None:
    llava.model.save_pretrained(tmp_path)
    with_padding(llava.processor).save_pretrained(tmp_path)
    plain: Any = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    whole: Any = LlavaProcessor.from_pretrained(tmp_path, backend="pil")
    again = load(tmp_path)
    differ = 0
    for image in photographs():
        trained = pixels(llava, image, "pad")
        assert torch.equal(plain(image, return_tensors="pt")["pixel_values"], trained)
        asked = whole(text="<image>", images=image, return_tensors="pt")
        assert torch.equal(asked["pixel_values"], trained)
        assert torch.equal(pixels(again, image, "hf"), trained)
        assert torch.equal(pixels(again, image, "pad"), trained)
        differ += not torch.equal(pixels(llava, image, "hf"), trained)
    assert differ >= 3  # cropped pictures are others
    assert whole.chat_template == llava.processor.chat_template


def test_padding_keeps_every_other_setting() -> None:
    config: LlavaConfig = tiny_config()
    processor = offline_processor(config)
    processor.image_processor = CLIPImageProcessorPil(
        size={"height": 28, "width": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=False, resample=2,
        image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7],
    )  # fmt: skip
    padded = with_padding(processor).image_processor
    for name in ("size", "do_center_crop", "resample", "image_mean", "image_std"):
        assert getattr(padded, name) == getattr(processor.image_processor, name)
    assert padded.do_pad and not getattr(clip_pictures(28), "do_pad", False)
    assert not isinstance(processor.image_processor, LlavaImageProcessorPil)  # the model's own does not change


def test_smol_prepares_pictures_as_it_was_trained_in_plain_transformers() -> None:
    folder = compose("smol-stage1")
    plain: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    llava = load("smol-stage1", validate=False)
    for image in photographs():
        assert torch.equal(plain(image, return_tensors="pt")["pixel_values"], pixels(llava, image, "pad"))
