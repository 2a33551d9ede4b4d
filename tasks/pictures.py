"""Reading picture files. A file that cannot be read completely raises an error that names it."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tasks.errors import UserError


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture in RGB, with its EXIF orientation applied.

    Transparency is dropped, as in LLaVA; only the first frame of an animation is read.

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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.verify()  # checks PNG checksums; the object is unusable afterwards
            with Image.open(path) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), path)
    except FileNotFoundError as error:
        raise UserError(f"picture must exist, got {str(path)!r}. Check the path and the image folder.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"picture must have at most {Image.MAX_IMAGE_PIXELS} pixels, got more in {str(path)!r}. Shrink it first."
        ) from error
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on broken files
        raise UserError(
            f"picture must be a readable image file, got {str(path)!r} ({error}). Replace or remove it."
        ) from error


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(
            f"picture must have 8 or 16 bits a channel, got pixel type {image.mode!r} in {str(path)!r}. "
            "Convert it to 8-bit RGB."
        )
    return image.convert("RGB")
