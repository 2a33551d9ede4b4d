"""Examples from pictures in memory, paths, a DataFrame or a Hugging Face dataset."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.errors import UserError
from tasks.example import Example, Label, Picture
from tasks.files import is_folder
from tasks.pictures import open_picture, upright

ImageLike = Image.Image | np.ndarray | str | Path | Picture


def picture_from(image: ImageLike) -> Picture:
    """A picture from a PIL image, an array, a path or a ``Picture``.

    Args:
        image: An array is ``H W 3`` or ``H W``, uint8 in 0..255 or float in 0..1. A file is opened on demand.

    Raises:
        UserError: If an array has another shape, type or range, or ``image`` is none of these types.

    Example:
        >>> picture_from(np.zeros((30, 40), np.uint8)).open().size
        (40, 30)
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return Picture(str(image), partial(open_picture, image))
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"image must be a PIL image, an array or a path, got {type(image).__name__}.")
    rgb = upright(image).convert("RGB")
    return Picture(f"pixels:{content_hash(rgb)[:16]}", rgb.copy)


def content_hash(image: Image.Image) -> str:
    """The SHA-256 of the pixels and the size of an RGB picture."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def examples_from(
    source: Any,
    *,
    question: str | Sequence[str],
    labels: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    answer: str | Sequence[str] = "",
    image: str = "image",
) -> list[Example]:
    """Examples of your own pictures; files and rows of a dataset are opened on demand.

    Examples with the same file or pixels share a group, so no split separates them.

    Args:
        source: Paths, PIL images or arrays; a folder, read in order of file names; a DataFrame; or a Hugging Face
            dataset.
        question: One text for all examples, one for each, or the name of a column.
        labels: For pictures: values by label name, one value for each example. For a table: the names of columns.
        answer: Like ``question``; needed only to score answers.
        image: The column of pictures or paths of a table.

    Raises:
        UserError: If there are no examples, a column is missing, or the lengths differ.

    Example:
        >>> pictures = [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)]
        >>> examples = examples_from(pictures, question="What is it?", labels={"light": ["dark", "bright"]})
        >>> [example.labels["light"] for example in examples]
        ['dark', 'bright']
    """
    columns = getattr(source, "column_names", None) or list(getattr(source, "columns", ()))
    if columns:
        names = [labels] if isinstance(labels, str) else list(labels)
        wanted = [image, *names, *(text for text in (question, answer) if isinstance(text, str) and text in columns)]
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise UserError(f"source must have the column {missing[0]!r}, got {', '.join(map(str, columns))}.")
        n = len(source)
        pictures = _of_table(source, image, n)
        values: Mapping[str, Sequence[Any]] = {name: list(source[name]) for name in names}
        question, answer = (list(source[t]) if isinstance(t, str) and t in columns else t for t in (question, answer))
    else:
        if isinstance(source, str | Path) and is_folder(Path(source)):
            source = sorted(path for path in Path(source).iterdir() if path.is_file())
        pictures = [picture_from(one) for one in ([source] if isinstance(source, str | Path) else source)]
        n = len(pictures)
        if not isinstance(labels, Mapping) and len(labels):
            raise UserError("labels must be values by label name for a list of pictures, such as {'kind': ['cat']}.")
        values = labels if isinstance(labels, Mapping) else {}
    if not n:
        raise UserError("source must hold at least one picture, got none. Check the folder or the table.")
    texts = {"question": question, "answer": answer}
    spread = {name: [text] * n if isinstance(text, str) else list(text) for name, text in texts.items()}
    for name, given in {**spread, **values}.items():
        if len(given) != n:
            raise UserError(f"{name} must have one value for each of {n} pictures, got {len(given)}.")
    return [
        Example(
            id=str(i), pictures=(picture,), question=spread["question"][i], answer=spread["answer"][i],
            group=picture.key, labels={name: _label(given[i]) for name, given in values.items()},
        )
        for i, picture in enumerate(pictures)
    ]  # fmt: skip


def _of_table(source: Any, image: str, n: int) -> list[Picture]:
    if not hasattr(source, "column_names"):
        return [picture_from(one) for one in source[image]]

    def open_row(row: int) -> Image.Image:
        return picture_from(source[row][image]).open()

    name = getattr(source, "_fingerprint", "the dataset")
    return [Picture(f"row {row} of {name}", partial(open_row, row)) for row in range(n)]


def _from_array(pixels: np.ndarray) -> Image.Image:
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    floating = np.issubdtype(pixels.dtype, np.floating)
    inside = pixels.dtype == np.uint8 or (floating and pixels.size and pixels.min() >= 0 and pixels.max() <= 1)
    if not shaped or not inside:
        raise UserError(
            f"image must be H W 3 or H W, uint8 or float in 0..1, got {pixels.dtype} of shape {pixels.shape}. "
            "Convert it first."
        )
    return Image.fromarray((pixels * 255).round().astype(np.uint8) if floating else np.ascontiguousarray(pixels))


def _label(value: Any) -> Label:
    return value.item() if isinstance(value, np.generic) else value  # type: ignore[no-any-return]
