"""Pictures and numbers as text that stands in the page: thumbnails as data addresses, maps as packed bytes."""

import base64
import io
import zlib
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex
from PIL import Image

_STOPS = 33  # of a colour scale; between them the page interpolates
_QUALITY = 82


def thumbnail(path: Path, side: int) -> str:
    """A picture of at most ``side`` pixels as a ``data:`` address.

    Raises:
        ValueError: If the file is no picture.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except OSError as error:
        raise ValueError(f"picture must be readable, got {path.name!r} ({error}). Run the sweep again.") from error
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def packed(*arrays: npt.NDArray[np.unsignedinteger]) -> str:
    """The bytes of the arrays one after the other, little-endian, deflated, in base 64."""
    raw = b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
    return base64.b64encode(zlib.compress(raw, 6)).decode("ascii")


def quantise(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Probabilities in steps of 1/1000, what the page shows: first the low bytes of all, then the high ones.

    Apart they deflate better than in turn.
    """
    steps = np.rint(np.clip(probability, 0.0, 1.0) * 1000).astype(np.uint16)
    return np.stack([steps % 256, steps // 256]).astype(np.uint8)


def colour_scale(name: str) -> list[str]:
    """Colours of a Matplotlib map at even steps from its low to its high end."""
    return [to_hex(mpl.colormaps[name](step / (_STOPS - 1))) for step in range(_STOPS)]
