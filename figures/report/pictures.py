"""Encode pictures and numbers as text for the page: thumbnails as ``data:`` URLs, maps as packed bytes."""

import base64
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex
from PIL import Image

from tasks.checksums import check_whole
from tasks.pictures import open_picture

Json = dict[str, Any]
_STOPS = 33  # colours of a scale; the page interpolates between them
_QUALITY = 82


def thumbnail(path: Path, side: int) -> str:
    """A picture of at most ``side`` pixels as a ``data:`` URL; ``ValueError`` if the file is not a picture."""
    check_whole(path, advice="Start the same command again: it is made anew.")
    picture = open_picture(path, path.name)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def packed(*arrays: npt.NDArray[np.unsignedinteger]) -> str:
    """The bytes of the arrays, little-endian, deflated, in base 64."""
    raw = b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
    return base64.b64encode(zlib.compress(raw, 6)).decode("ascii")


def quantise(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Probabilities in steps of 1/1000: first all low bytes, then all high ones, which compresses better."""
    steps = np.rint(np.clip(probability, 0.0, 1.0) * 1000).astype(np.uint16)
    return np.stack([steps % 256, steps // 256]).astype(np.uint8)


def colour_scale(name: str) -> list[str]:
    """Colours of a Matplotlib map at even steps from its low to its high end."""
    return [to_hex(mpl.colormaps[name](step / (_STOPS - 1))) for step in range(_STOPS)]


def maps_section(caption: str, choose: str, scale: Json, choices: Sequence[Json], examples: Sequence[Json]) -> Json:
    """A section of maps over the patches of pictures."""
    text = {"type": "maps", "title": "Where in the picture", "caption": caption, "choose": choose}
    return {**text, "scale": scale, "choices": list(choices), "examples": list(examples)}
