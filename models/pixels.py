"""From a picture to the pixels of the vision tower's input, and back. Its size is checked before it is decoded."""

import copy
import io
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import LlavaImageProcessorPil

from models.adapter import Adapter
from tasks.errors import UserError
from tasks.example import Box, Picture
from tasks.pictures import check_prepared

Preprocess = Literal["hf", "pad"]


class Geometry(NamedTuple):
    """How a picture's pixels map to the model's: ``model = scale * original + offset``, for x and for y."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """The point of the original picture at pixel (``x``, ``y``) of the model's input."""
        return (x - self.offset_x) / self.scale_x, (y - self.offset_y) / self.scale_y

    def to_model(self, box: Box) -> Box:
        """``box``, in pixels of the original picture, in pixels of the model's input."""
        return Box(
            self.scale_x * box.left + self.offset_x,
            self.scale_y * box.top + self.offset_y,
            self.scale_x * box.right + self.offset_x,
            self.scale_y * box.bottom + self.offset_y,
        )


def read_pixels(llava: Adapter, picture: Picture, preprocess: Preprocess = "pad") -> Float[Tensor, "3 H W"]:
    """Open a picture and preprocess it for the vision tower.

    Args:
        llava: The model.
        picture: The picture.
        preprocess: ``"pad"`` pastes it on a square of the mean colour first, as LLaVA-1.5 was trained; ``"hf"`` is the
            checkpoint's own picture processor, which in most scales the shortest edge and crops the centre.

    Raises:
        UserError: See ``open_rgb``.
    """
    return to_pixels(llava, open_rgb(llava, picture, preprocess)[0], preprocess)


def open_rgb(llava: Adapter, picture: Picture, preprocess: Preprocess) -> tuple[Image.Image, Geometry]:
    """A picture in RGB, and the map from its pixels to those of the model's input.

    Raises:
        UserError: If the picture cannot be read, or is so elongated that preparing it would exhaust memory.
    """
    try:
        with picture.open() as opened:
            geometry = _geometry(llava, opened, preprocess, picture.key)  # checks the size before decoding
            return opened.convert("RGB"), geometry
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise UserError(f"picture must be readable, got {picture.key!r} ({error}). Replace or remove it.") from error


def to_pixels(llava: Adapter, image: Image.Image, preprocess: Preprocess) -> Float[Tensor, "3 H W"]:
    """An RGB picture as float32 input of the vision tower."""
    processor = image_processor(llava)
    if _pads(llava, preprocess):
        image = expand_to_square(image, tuple(int(channel * 255) for channel in processor.image_mean))
    values: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
    return values.to(torch.float32)


def to_png(llava: Adapter, values: Float[Tensor, "3 H W"]) -> bytes:
    """The vision tower's input with its colours restored, as a PNG file."""
    processor = image_processor(llava)
    mean, deviation = (torch.tensor(part)[:, None, None] for part in (processor.image_mean, processor.image_std))
    shown = ((values.cpu().float() * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def image_processor(llava: Adapter) -> Any:
    """The checkpoint's own picture processor, for RGB pictures that are padded already if they are to be."""
    own: Any = copy.copy(llava.processor.image_processor)
    own.do_pad = own.do_convert_rgb = False
    return own


def _pads(llava: Adapter, preprocess: Preprocess) -> bool:
    own: Any = llava.processor.image_processor
    return preprocess == "pad" or (isinstance(own, LlavaImageProcessorPil) and bool(own.do_pad))


def expand_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """``image`` centred on a square of its longer side; the odd pixel goes to the right or the bottom.

    Source: ``expand2square`` of Liu et al. 2024, arXiv 2310.03744.
    """
    if image.width == image.height:
        return image
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _geometry(llava: Adapter, image: Image.Image, preprocess: Preprocess, key: str) -> Geometry:
    """The map from the picture's pixels to the model's, by the integer arithmetic of the preprocessing."""
    width, height = image.size
    short, long = min(image.size), max(image.size)
    size: Any = llava.processor.image_processor.size
    before_x, before_y, whole_x, whole_y = 0, 0, width, height
    if _pads(llava, preprocess):
        before_x, before_y, whole_x, whole_y = (long - width) // 2, (long - height) // 2, long, long
        short = long
    if size.height and size.width:
        new_width, new_height = size.width, size.height
    else:
        other = int(size.shortest_edge * long / short)
        new_width, new_height = (size.shortest_edge, other) if whole_x <= whole_y else (other, size.shortest_edge)
    # The intermediate picture is a square of the long side, or a strip of the model's height.
    between = max(whole_x * whole_y, new_width * new_height)
    check_prepared(image.size, between, key)
    scale_x, scale_y = new_width / whole_x, new_height / whole_y
    left, top = (new_width - llava.image_size) // 2, (new_height - llava.image_size) // 2
    return Geometry(width, height, scale_x, scale_y, scale_x * before_x - left, scale_y * before_y - top)
