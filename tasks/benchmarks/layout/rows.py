"""The rows of question and label files: JSONL, JSON, Parquet with embedded pictures."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tasks.benchmarks.layout.question import Id
from tasks.errors import UserError, one_line, shown
from tasks.example import Picture
from tasks.files import check_regular, is_folder, read_file
from tasks.pictures import open_picture
from tasks.readers.media import EMBEDDED, given_pictures, unread_media
from tasks.readers.parse import parse_json
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.tables import Parquet, is_parquet, open_table

# Texts of a row, which may be the names of files.
_TEXTS = ("id", "question_id", "text", "question", "answer", "answers", "label", "category", "hint", "context")


class Row(NamedTuple):
    """The values of a row, and its place for messages. Embedded pictures are ``Picture``s."""

    values: Mapping[str, Any]
    where: str

    def text(self, name: str, default: str | None = None) -> str:
        """A text of the row; ``default`` if it is missing or null."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise UserError(f"row must have a text {name!r}, got {shown(value)} in {self.where}. Check the layout.")
        return value

    def id(self, *names: str) -> Id:
        """The first of ``names`` that the row has, as text or whole number."""
        value = next((self.values[name] for name in names if self.values.get(name) is not None), None)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(
                f"row must have an id under {' or '.join(map(repr, names))}, got {shown(value)} in {self.where}. "
                "Check the layout."
            )
        return value

    def plain(self) -> dict[str, Any]:
        """The values without pictures."""
        return {name: value for name, value in self.values.items() if not _has_picture(value)}


@dataclass(frozen=True)
class Source:
    """The files of a benchmark: its questions, the folder of its pictures, and its labels.

    Example:
        >>> Source((Path("llava_pope_test.jsonl"),), Path("val2014")).labels is None
        True
    """

    questions: tuple[Path, ...]
    images: Path
    labels: Path | None = None
    follow_links: bool = False
    labels_given: bool = False
    """Whether the user named the labels, which then must be those of the questions."""
    folder: PictureFolder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Open the folder of pictures."""
        object.__setattr__(self, "folder", PictureFolder(self.images, follow_links=self.follow_links))

    @property
    def is_parquet(self) -> bool:
        """True for the layout of Hugging Face data sets."""
        return is_parquet(self.questions[0])

    def rows(self) -> list[Row]:
        """The rows of the question files in order."""
        found = [row for path in self.questions for row in read_rows(path)]
        if not found:
            raise UserError(f"questions must have at least one row, got none in {str(self.questions[0])!r}.")
        return found

    def picture(self, row: Row, name: str = "image") -> Picture | None:
        """The picture of a row; None if it has none. See ``picture_of``."""
        return picture_of(row, self.folder, name, read=_TEXTS)

    def missing(self, picture: Picture | None) -> bool:
        """True if the picture is a path without a file."""
        return picture is not None and self.folder.is_missing(picture)


def picture_of(row: Row, folder: PictureFolder, name: str = "image", *, read: Iterable[str] = ()) -> Picture | None:
    """The picture of a row, of several the one in the middle; None if it has none.

    Args:
        row: The row.
        folder: The folder of the pictures.
        name: The key of the picture.
        read: Other keys that are read.

    Raises:
        UserError: If the value is no picture, or a key that is not read holds a picture, video or sound.
    """
    given = given_pictures(row.values.get(name))
    value = given[len(given) // 2] if given else None  # the middle frame of a video, as in LLaVA's evaluation
    found = value if value is None or isinstance(value, Picture) else folder.read(value, row.where)
    medium = unread_media(row.values, {*read, name}, [] if found is None else [found.key])
    if medium is not None:
        raise UserError(
            f"picture must be under {name!r}, got {shown(medium)} in {row.where}, which is not read. "
            f"{'Rename the key.' if found is None else 'Drop the key.'}"
        )
    return found


@dataclass(frozen=True)
class FileNames:
    """The names under which a benchmark's files lie in a folder, the first found counts; patterns are allowed."""

    questions: tuple[str, ...]
    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def find(
        self,
        folder: Path,
        *,
        questions: Path | None = None,
        images: Path | None = None,
        labels: Path | None = None,
        follow_links: bool = False,
    ) -> Source:
        """The files in ``folder``, or those that are given.

        Raises:
            UserError: If the folder, its questions or a given path do not exist.
        """
        if not is_folder(folder):
            raise UserError(f"benchmark must name an existing folder, got {str(folder)!r}. Check the path.")
        for name, path in (("questions", questions), ("images", images), ("labels", labels)):
            if path is not None and not os.path.exists(path):
                raise UserError(f"{name} must exist, got {str(path)!r}. Check the path.")
        if images is not None and not is_folder(images):
            raise UserError(f"images must be a folder, got {str(images)!r}. Name the folder of the pictures.")
        found = [questions] if questions else _first(folder, self.questions)[:1]
        if found and found[0].is_dir():
            found = sorted(found[0].glob("*.parquet"))
        if not found:
            found = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
        if not found:
            raise UserError(
                f"benchmark folder must contain {' or '.join(self.questions)} or Parquet files, got neither in "
                f"{str(folder)!r}. Name the file with --questions."
            )
        label = labels or next(iter(_first(folder, self.labels)), None)
        picture_folder = images or next((p for p in _first(folder, self.images) if p.is_dir()), None)
        return Source(tuple(found), picture_folder or folder, label, follow_links, labels is not None)


def _first(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files or folders of the first name or pattern that matches any."""
    for name in names:
        if found := sorted(folder.glob(name)):
            return found
    return []


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL or Parquet file, or of a JSON list.

    Raises:
        UserError: If the file cannot be read; the message names the row.
    """
    if path.suffix.lower() == ".json" and _begins_with_list(path):
        return [Row(object_of(value, f"entry {i} of {path.name}"), f"entry {i} of {path.name}")
                for i, value in enumerate(read_json(path), 1)]  # fmt: skip
    if path.suffix.lower() == ".json":  # POPE's labels are JSONL with this ending
        lines = read_bytes(path).splitlines()
        return [_line(line, f"line {i} of {path.name}") for i, line in enumerate(lines, 1) if line.strip()]
    with _readable(path):
        table = open_table(path)
    if not isinstance(table, Parquet):
        return [Row(values, table.where(i)) for i, values in enumerate(table)]
    return [
        Row({name: _embedded(value, table, i, name) for name, value in values.items()}, table.where(i))
        for i, values in enumerate(table)
    ]


def read_json(path: Path) -> Any:
    """The value of a JSON file; ``UserError`` if it cannot be read."""
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise UserError(f"file must be JSON, got {str(path)!r} ({one_line(error)}). Check the layout.") from error


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; ``UserError`` if it cannot be read."""
    with _readable(path):
        return read_file(path)


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    r"""Rows as JSONL in the authors' layout: ASCII, one object a line.

    Example:
        >>> json_lines([{"question_id": 1, "text": "\u00e9"}])
        b'{"question_id": 1, "text": "\\u00e9"}\n'
    """
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def digest_of(paths: Iterable[Path]) -> str:
    """A hash of the bytes of files and of the files in folders."""
    digest = hashlib.sha256()
    for path in paths:
        for part in sorted(path.glob("*.json*")) if path.is_dir() else [path]:
            with _readable(part), part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Check that the path leads to a regular file, and re-raise an ``OSError`` as ``UserError``."""
    try:
        check_regular(path)
        yield
    except OSError as error:
        raise UserError(f"file must be readable, got {str(path)!r} ({one_line(error)}).") from error


def _begins_with_list(path: Path) -> bool:
    with _readable(path), path.open("rb") as file:
        return file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _line(line: bytes, where: str) -> Row:
    try:
        return Row(object_of(parse_json(line), where), where)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"row must be JSON, got {where}: {one_line(error)}. Write one object a line.") from error


def object_of(value: object, where: str) -> Mapping[str, Any]:
    """The value of a row, which must be an object; ``where`` is its place in the message."""
    if not isinstance(value, dict):
        raise UserError(f"row must be a JSON object, got {type(value).__name__} in {where}. Check the layout.")
    return value


def _has_picture(value: object) -> bool:
    return isinstance(value, Picture) or (isinstance(value, list) and any(isinstance(v, Picture) for v in value))


def _embedded(value: Any, table: Parquet, number: int, column: str) -> Any:
    """Bytes of a picture as a ``Picture`` that is read again on demand; any other value unchanged."""
    if isinstance(value, list):
        if not (value and isinstance(value[0], dict) and isinstance(value[0].get("bytes"), bytes)):
            return value
        return [_picture(one["bytes"], table, number, column, i) for i, one in enumerate(value)]
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return _picture(value["bytes"], table, number, column, None)
    return value


def _picture(content: bytes, table: Parquet, number: int, column: str, index: int | None) -> Picture:
    key = f"{EMBEDDED} {hashlib.sha256(content).hexdigest()[:16]}"
    return Picture(key, partial(_open_embedded, table, number, column, index, key))


def _open_embedded(table: Parquet, number: int, column: str, index: int | None, key: str) -> Image.Image:
    value: Any = table[number][column]
    return open_picture(value["bytes"] if index is None else value[index]["bytes"], key)
