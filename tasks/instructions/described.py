"""Pictures as text: captions and boxes, from COCO's annotation files or from JSONL or Parquet rows."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import UserError, one_line, shown
from tasks.example import are_shares
from tasks.files import read_file
from tasks.readers.caption_files import read_captions
from tasks.readers.media import unread_media
from tasks.readers.parse import parse_json
from tasks.readers.tables import open_table

_READ = ("id", "image", "captions", "width", "height", "objects")
_BOXES = ("boxes", "box", "bboxes", "bbox")  # other names of objects
_FAR = 1e9  # pixels; also refuses NaN and whole numbers that no float holds


class PlacedObject(NamedTuple):
    """A named box; left, top, right and bottom are shares of the picture's width and height.

    Example:
        >>> PlacedObject("dog", (0.1, 0.2, 0.5, 0.75)).name
        'dog'
    """

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Described:
    """A picture that a language model reads as text.

    Args:
        id: Unique in its file.
        image: The path of the picture, as the training data will name it.
        captions: At least one.
        objects: May be empty.

    Example:
        >>> print(Described("1", "1.jpg", ("A dog.",), (PlacedObject("dog", (0.1, 0.2, 0.5, 0.75)),)).text(boxes=True))
        A dog.
        <BLANKLINE>
        dog: [0.100, 0.200, 0.500, 0.750]
    """

    id: str
    image: str
    captions: tuple[str, ...]
    objects: tuple[PlacedObject, ...] = ()

    def text(self, *, boxes: bool) -> str:
        """The captions, and with ``boxes`` a line for each object, in the layout of LLaVA's prompts."""
        lines = list(self.captions)
        if boxes and self.objects:
            lines.append("")
            lines += [f"{name}: [{', '.join(f'{edge:.3f}' for edge in box)}]" for name, box in self.objects]
        return "\n".join(lines)


class DescribedPictures(NamedTuple):
    """The pictures of a file, and what was left out of it."""

    pictures: tuple[Described, ...]
    skipped: tuple[str, ...]
    unread: tuple[tuple[str, int], ...] = ()
    """The keys of rows that are not read, each with its number of rows."""


def read_described(captions: Path, boxes: Path | None = None, *, skip_bad: bool = False) -> DescribedPictures:
    """Read captions and boxes.

    Args:
        captions: COCO's ``captions_*.json``, another file of ``tasks.readers.caption_files``, or JSONL or Parquet rows
            with ``image`` and ``captions`` and, if there are boxes, ``width``, ``height`` and ``objects``: a list of
            ``{"name", "box"}`` with left, top, right and bottom in pixels. ``id`` is optional. Other keys are counted;
            one that holds another picture, a video or boxes is an error.
        boxes: COCO's ``instances_*.json``; only with COCO's captions.
        skip_bad: Leave out pictures that cannot be used, and list them; otherwise the first one is an error.

    Raises:
        UserError: If a file has another layout, or no picture is left.

    Example:
        >>> row = '{"image": "1.jpg", "captions": ["A dog."], "width": 10, "height": 20}'
        >>> _ = Path("rows.jsonl").write_text(row)
        >>> read_described(Path("rows.jsonl")).pictures[0].captions
        ('A dog.',)
    """
    if captions.suffix.lower() == ".json":
        try:
            rows: list[tuple[str, Mapping[str, Any]]] = _coco_or_karpathy(captions, boxes)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"captions and boxes must have COCO's layout, got {type(error).__name__} {one_line(error)} in "
                f"{captions.name!r} or its boxes. Download the files again."
            ) from error
    elif captions.suffix.lower() in (".token", ".txt", ".csv") and boxes is None:
        rows = _caption_rows(captions)
    elif boxes is not None:
        raise UserError("boxes must come with COCO's captions_*.json; a JSONL or Parquet file holds its own objects.")
    else:
        table = open_table(captions)
        rows = [(table.where(number), row) for number, row in enumerate(table)]
    found: list[Described] = []
    skipped: list[str] = []
    unread: Counter[str] = Counter()
    seen: set[str] = set()
    for number, (where, row) in enumerate(rows):
        try:
            picture = _described(row, where, number)
            if picture.id in seen:
                raise UserError(f"id must be unique, got {picture.id!r} again in {where}. Rename one.")
        except UserError as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
            continue
        seen.add(picture.id)
        found.append(picture)
        unread.update(key for key in row if key not in _READ)
    if not found:
        raise UserError(f"captions must describe at least one picture, got none in {captions.name!r}. Check the file.")
    return DescribedPictures(tuple(found), tuple(skipped), tuple(unread.items()))


def _described(row: Mapping[str, Any], where: str, number: int) -> Described:
    image, texts = row.get("image"), row.get("captions")
    if not isinstance(image, str) or not image:
        raise UserError(f"image must be the path of a picture, got {shown(image)} in {where}.")
    medium = unread_media(row, _READ, [image])
    if medium is not None:
        raise UserError(
            f"picture must be under image, got {shown(medium)} in {where}, which is not read. Drop the key, or the row."
        )
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"captions must be a list of texts, got {shown(texts)} in {where}.")
    given = row.get("objects")
    if given is not None and not isinstance(given, list):
        raise UserError(f"objects must be a list of name and box, got {shown(given)} in {where}.")
    other = next((key for key in _BOXES if row.get(key)), None)
    if given is None and other is not None:
        raise UserError(
            f"objects must be a list of name and box, got {other!r} in {where}, which is not read. Write each box as "
            '{"name": ..., "box": [left, top, right, bottom]} under objects.'
        )
    objects = tuple(_placed(one, row, where) for one in given or ())
    name = row.get("id")
    captions = tuple(" ".join(text.split()) for text in texts)
    return Described(str(number if name is None else name), image, captions, objects)


def _placed(given: Any, row: Mapping[str, Any], where: str) -> PlacedObject:
    """An object with its box as shares of the picture, cut at the edges."""
    size: list[Any] = [row.get("width"), row.get("height")]
    if not all(_is_number(n) and n > 0 for n in size):
        raise UserError(
            f"width and height must be positive numbers of pixels if there are objects, got {size} in {where}."
        )
    name, box = (given.get("name"), given.get("box")) if isinstance(given, Mapping) else (None, None)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"objects must have a name each, got {shown(given)} in {where}.")
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
        raise UserError(f"box must be left, top, right and bottom in pixels, got {shown(box)} in {where}.")
    if are_shares(box):
        raise UserError(
            f"box must be in pixels, got {shown(box)} in {where}. Multiply shares between 0 and 1 by the picture's "
            "width and height."
        )
    left, top, right, bottom = (min(max(edge / size[i % 2], 0.0), 1.0) for i, edge in enumerate(box))
    if not (left < right and top < bottom):
        raise UserError(f"box must have left < right and top < bottom in the picture, got {shown(box)} in {where}.")
    return PlacedObject(" ".join(name.split()), (left, top, right, bottom))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FAR


def _coco_or_karpathy(captions: Path, boxes: Path | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of COCO's annotations, or of Karpathy's file, which has captions alone."""
    try:
        return _coco_rows(captions, boxes)
    except UserError:
        if boxes is None:
            with contextlib.suppress(UserError):
                return _caption_rows(captions)
        raise


def _caption_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a file that has nothing but captions; a picture's id is its path."""
    found = read_captions(path).captions
    return [
        (f"picture {shown(image)} of {path.name}", {"id": image, "image": image, "captions": list(texts)})
        for image, texts in found.items()
    ]  # fmt: skip


def _coco_rows(captions: Path, boxes: Path | None) -> list[tuple[str, Mapping[str, Any]]]:
    """COCO's annotations as rows, in the order of its pictures; crowds have no box of one object and are left out."""
    given = _coco(captions, "captions", "caption")
    texts: dict[Any, list[str]] = defaultdict(list)
    for one in given["annotations"]:
        texts[one["image_id"]].append(one["caption"])
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    if boxes is not None:
        instances = _coco(boxes, "boxes", "bbox")
        names = {one["id"]: one["name"] for one in instances.get("categories", ())}
        for one in instances["annotations"]:
            if not one.get("iscrowd"):
                x, y, width, height = one["bbox"]
                box = [x, y, x + width, y + height]
                objects[one["image_id"]].append({"name": names.get(one.get("category_id")), "box": box})
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for image in given["images"]:
        row = {"id": image["id"], "image": image.get("file_name"), "captions": texts.get(image["id"], [])}
        row |= {"width": image.get("width"), "height": image.get("height"), "objects": objects.get(image["id"], [])}
        rows.append((f"image {image['id']} of {captions.name}", row))
    return rows


def _coco(path: Path, argument: str, key: str) -> dict[str, Any]:
    """A file of COCO annotations; outlines are dropped while it is read, because they are most of it."""
    try:
        loaded = parse_json(read_file(path), without=("segmentation",))
        _ = loaded["images"][0]["id"], loaded["annotations"][0]["image_id"], loaded["annotations"][0][key]
    except OSError as error:
        raise UserError(f"{argument} must be a readable file, got {str(path)!r} ({one_line(error)}).") from error
    except (ValueError, LookupError, TypeError) as error:
        said = one_line(error) if isinstance(error, ValueError) else "something else"
        raise UserError(
            f"{argument} must have COCO's layout with 'images' and 'annotations' that have {key!r}, got {said} in "
            f"{path.name!r}. Rows of your own go into a .jsonl file."
        ) from error
    return dict(loaded)
