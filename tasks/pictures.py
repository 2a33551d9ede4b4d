"""Reading picture files. A file that cannot be read completely raises an error that names it.

Every command opens pictures here: regular files only, raster formats only, and the size is checked before decoding.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tasks.errors import UserError
from tasks.files import not_regular

# Raster formats that Pillow decodes itself. Others, such as EPS, start programs or run code of the file.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height
_ELONGATED = 500  # times as long as wide: less than a pixel of the short side is left in the model's input
# What Pillow's parser of EXIF raises on damaged entries.
_DAMAGED_EXIF = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError,
    struct.error,
)  # fmt: skip


def open_picture(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read a picture in RGB, with its EXIF orientation applied.

    Transparency is dropped, as in LLaVA; only the first frame of an animation is read.

    Args:
        source: A regular file in one of ``FORMATS``, or the bytes of one.
        name: The picture in messages; the path if None.

    Raises:
        UserError: If the file is missing, truncated or not a picture, its pixels have neither 8 nor 16 bits, or it is
            larger than Pillow's limit against decompression bombs.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (40, 30)).save(file.name)
        ...     open_picture(file.name)  # doctest: +ELLIPSIS
        <PIL.Image.Image image mode=RGB size=40x30 at ...>
    """
    name = _name(source) if name is None else name
    with _reading(source, name):
        with _open(source, name) as image:
            image.verify()  # checks PNG checksums; the object is unusable afterwards
        with _open(source, name) as image:
            image.load()
            return _to_rgb(upright(image), name)


def picture_size(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Width and height of the upright picture in pixels, from its header.

    Raises:
        UserError: As ``open_picture`` does for a file without a readable header.
    """
    name = _name(source) if name is None else name
    with _reading(source, name), _open(source, name) as image:
        return (image.height, image.width) if _orientation(image) in _TURNED else (image.width, image.height)


def upright(image: Image.Image) -> Image.Image:
    """The picture with its EXIF orientation applied; damaged EXIF entries are passed over."""
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def check_prepared(size: tuple[int, int], prepared: int, name: str) -> None:
    """Check that preparing a picture takes at most Pillow's limit of pixels.

    Args:
        size: Width and height of the picture.
        prepared: Pixels of the largest picture that preparing it makes.
        name: The picture in the message.

    Raises:
        UserError: If it takes more.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and prepared > limit:
        raise UserError(
            f"picture must take at most {limit} pixels to prepare, got {size[0]} x {size[1]} in {name!r}, which takes "
            f"{prepared}. Shrink it, or crop it if it is elongated."
        )


def _name(source: str | Path | bytes) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def _open(source: str | Path | bytes, name: str) -> Image.Image:
    """The picture with its header read; the size is checked here, before decoding."""
    if not isinstance(source, bytes) and (kind := not_regular(source)) is not None:  # opening a pipe would wait
        raise UserError(f"picture must be a regular file, got {kind} at {name!r}. Replace or remove it.")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    short, long = sorted(image.size)
    if long > _ELONGATED * short:
        check_prepared(image.size, long * long, name)
    return image


@contextmanager
def _reading(source: str | Path | bytes, name: str) -> Iterator[None]:
    """Raise what Pillow raises and warns of as one ``UserError``; other warnings of a damaged file are silenced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"picture must exist, got {name!r}. Check the path and the image folder.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"picture must have at most {Image.MAX_IMAGE_PIXELS} pixels, got more in {name!r}. Shrink it first."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"picture must be a readable image file ({', '.join(FORMATS)}), got {name!r}. Replace or remove it."
        ) from error
    except MemoryError as error:
        raise UserError(f"picture must fit into memory, got {name!r}, which does not. Shrink it first.") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files, struct.error and KeyError too
        raise UserError(
            f"picture must be a readable image file, got {name!r} ({error}). Replace or remove it."
        ) from error


def _orientation(image: Image.Image) -> int:
    """The orientation of EXIF or XMP; 1, which is upright, if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the damaged entries beside it
            found = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED_EXIF:
        return 1
    return found if isinstance(found, int) else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(
            f"picture must have 8 or 16 bits a channel, got pixel type {image.mode!r} in {name!r}. "
            "Convert it to 8-bit RGB."
        )
    return image.convert("RGB")
