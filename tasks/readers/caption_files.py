"""Captions from the files that people have, joined to rows by picture: ``read_captions(path).of("000000000285.jpg")``.

Read are COCO's ``captions_*.json``, Karpathy's ``dataset_flickr30k.json`` (and ``dataset_coco.json``), Flickr30k's
``results_20130124.token`` (``1000092795.jpg#0``, a tab, the sentence), and a CSV file with a column of pictures and one
of captions, separated by commas or, as in Flickr30k's ``results.csv``, by bars.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.errors import UserError, one_line, shown
from tasks.files import read_file
from tasks.readers.parse import decode_text, parse_json

_PICTURES = ("image_name", "image", "image_id", "filename", "file_name")
_CAPTIONS = ("comment", "caption", "sentence", "text")
_NUMBER = "comment_number"
_LACKS_A_BAR = re.compile(r"\d+\s{2,}\S")  # one blank could be inside a caption, such as "2 dogs run"
_LAYOUTS = (
    "Give COCO's captions JSON, Karpathy's dataset JSON, a .token file, or a .csv file with columns image and caption."
)


class CaptionFile:
    """The captions of a file by picture.

    Args:
        name: Name of the file, for messages.
        captions: Path of each picture, as the file writes it, and its captions.
        digest: A hash of the file.
    """

    def __init__(self, name: str, captions: Mapping[str, tuple[str, ...]], digest: str = "") -> None:
        self.name, self.captions, self.digest = name, captions, digest
        self._named: dict[str, list[str]] = {}
        for path in captions:
            self._named.setdefault(PurePosixPath(path).name, []).append(path)
        self._joined: dict[str, str] = {}  # path in the file -> path in the data

    def of(self, picture: str) -> tuple[str, ...]:
        """The captions of a picture: of its path, or of its file name if that is enough; empty if there are none.

        Args:
            picture: Its path in the data, such as ``"val2017/000000000285.jpg"``.

        Raises:
            UserError: If two pictures, of the file or of the data, have this file name.
        """
        picture = PurePosixPath(picture.replace("\\", "/")).as_posix()
        found = [picture] if picture in self.captions else self._named.get(PurePosixPath(picture).name, [])
        if not found:
            return ()
        if len(found) > 1:
            raise UserError(
                f"captions must name pictures as the data do if file names repeat, got {found[0]!r} and {found[1]!r} "
                f"in {self.name!r} for {picture!r}."
            )
        before = self._joined.setdefault(found[0], picture)
        if before != picture:
            raise UserError(
                f"captions must name pictures as the data do if file names repeat, got {found[0]!r} in {self.name!r} "
                f"for {before!r} and {picture!r}."
            )
        return self.captions[found[0]]


def read_captions(path: str | Path) -> CaptionFile:
    r"""The captions of a file, in the order of the file; white space is made even.

    Raises:
        UserError: If the file cannot be read, has another layout, or has no caption.

    Example:
        >>> _ = Path("results.token").write_text("1.jpg#0\tA dog runs .\n1.jpg#1\tA brown dog .\n")
        >>> read_captions("results.token").of("1.jpg")
        ('A dog runs .', 'A brown dog .')
    """
    path = Path(path)
    found: dict[str, list[str]] = {}
    try:
        data = read_file(path)
        for picture, text in _pairs(path, data):
            if not isinstance(picture, str) or not picture or not isinstance(text, str) or not text.strip():
                raise ValueError(f"picture {shown(picture, 40)} with caption {shown(text, 40)}")
            found.setdefault(PurePosixPath(picture).as_posix(), []).append(" ".join(text.split()))
    except OSError as error:
        raise UserError(f"captions must be a readable file, got {str(path)!r} ({one_line(error)}).") from error
    except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(
            f"captions must have a layout that is known, got {type(error).__name__}: {one_line(error)} in "
            f"{path.name!r}. {_LAYOUTS}"
        ) from error
    if not found:
        raise UserError(f"captions must have at least one caption, got none in {path.name!r}. {_LAYOUTS}")
    texts = {picture: tuple(own) for picture, own in found.items()}
    return CaptionFile(path.name, texts, hashlib.sha256(data).hexdigest()[:16])


def _pairs(path: Path, data: bytes) -> Iterator[tuple[Any, Any]]:
    """Each picture and caption of a file."""
    if path.suffix.lower() == ".json":
        loaded = parse_json(data)
        yield from _coco(loaded) if "annotations" in loaded else _karpathy(loaded)
        return
    text = decode_text(data)
    lines = text.split("\n")
    if path.suffix.lower() == ".csv" or (lines[0] and "#" not in lines[0].partition("\t")[0]):
        yield from _columns(text)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        picture, mark, count = name.rpartition("#")
        if not (tab and mark and count.strip().isdigit()):
            raise ValueError(f"line {number} must be a picture, #, a number, a tab and a caption")
        yield picture, text


def _coco(loaded: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    names = {image["id"]: image["file_name"] for image in loaded["images"]}
    for one in loaded["annotations"]:
        yield names[one["image_id"]], one["caption"]


def _karpathy(loaded: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    for image in loaded["images"]:
        folder = image.get("filepath")
        picture = f"{folder}/{image['filename']}" if folder else image["filename"]
        for sentence in image["sentences"]:
            yield picture, sentence["raw"]


def _columns(text: str) -> Iterator[tuple[Any, Any]]:
    """The rows of a CSV file; Flickr30k's bars have spaces beside them, and its captions may hold bars of their own.

    One row of Flickr30k's ``results.csv`` lacks the bar after the number: ``2199200615.jpg| 4   A dog runs ...``.
    """
    lines = text.split("\n")
    header = lines[0]
    if "|" in header:
        names = [name.strip() for name in header.split("|")]
        rows = [[part.strip() for part in line.split("|", len(names) - 1)] for line in lines[1:] if line.strip()]
    else:
        names, *rows = [[part.strip() for part in row] for row in csv.reader(io.StringIO(text, newline="")) if row] or [
            []
        ]
    picture, caption = (
        next((names.index(name) for name in known if name in names), None) for known in (_PICTURES, _CAPTIONS)
    )
    if picture is None or caption is None:
        raise ValueError(f"columns {', '.join(names)[:60] or 'none'}")
    numbered = "|" in header and names[caption - 1] == _NUMBER and caption == len(names) - 1
    for number, row in enumerate(rows, start=2):
        if numbered and len(row) == caption and _LACKS_A_BAR.match(row[-1]):
            row[-1:] = row[-1].split(maxsplit=1)
        if len(row) <= max(picture, caption):
            raise ValueError(f"row {number} has {len(row)} columns")
        yield row[picture], row[caption]
