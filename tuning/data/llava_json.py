"""Read LLaVA's conversations from JSON, JSON lines or Parquet, of any size, one sample at a time."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tasks.errors import UserError, shown_text
from tasks.files import is_file, is_folder
from tasks.prompts import IMAGE
from tasks.readers.media import PICTURES, given_pictures, unread_media
from tasks.readers.parse import decode_text, parse_json
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.tables import Parquet, is_parquet
from tuning.data.conversation import Conversation, Turn, UnusableSampleError

_CHUNK = 1 << 20
_LARGEST = 1 << 26  # bytes of one sample; otherwise a broken file would be read to its end
READ = {"id", "conversations", *PICTURES}  # the keys of a sample


@runtime_checkable
class SampleRows(Protocol):
    """The samples of a file by index, as they stand in it."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class LlavaFile:
    """A file in LLaVA's layout: a JSON array, JSONL or Parquet of ``id``, ``image``, ``conversations``.

    ``conversations`` alternates ``{"from": "human", "value": ...}`` and ``{"from": "gpt", "value": ...}``. ``image``
    (or ``images``) is a picture as ``PictureFolder.read`` takes it, a list of them, or missing in text-only samples.
    As in LLaVA, placeholders ``<image>`` move to the beginning of their own turn, several in one turn may stand for one
    picture, and in text-only samples ``<image>`` is a word.

    Source: ``preprocess_multimodal`` of Liu et al. 2024, arXiv 2310.03744.
    """

    is_file = True  # the digest covers the bytes of all samples

    def __init__(self, path: Path, images: Path | None = None, *, follow_links: bool = False) -> None:
        """Read the file once to index its samples.

        Raises:
            UserError: If the file is missing, is not a JSON array of objects, or is empty.
        """
        if not is_file(path):
            raise UserError(f"data must be 'scenes' or an existing file, got {str(path)!r}. Check the path.")
        folder = images if images is not None else path.parent
        if not is_folder(folder):
            raise UserError(f"images must be a folder, got {str(folder)!r}. Name the folder that paths start from.")
        self.name = path.name
        self._folder = PictureFolder(folder, follow_links=follow_links)
        self._rows = sample_rows(path)
        if not len(self._rows):
            raise UserError(f"data must have at least one sample, got none in {str(path)!r}. Add samples.")
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        """Read one sample from the file.

        Raises:
            UnusableSampleError: If its turns do not alternate, it has no assistant turn, the numbers of placeholders
                and pictures differ, or a key holds a picture, video or sound that is not read.
            UserError: If the file changed, or a picture's path leaves the folder.
        """
        where = f"sample {index} of {self.name}"
        name = str(index)
        try:
            row = self._rows[index]
            name = str(row.get("id", index))
            return self._conversation(row, name, where)
        except UnusableSampleError as error:
            raise UnusableSampleError(str(error), name) from error

    def _conversation(self, row: Mapping[str, Any], name: str, where: str) -> Conversation:
        given = [found for key in PICTURES if (found := given_pictures(row.get(key)))]
        if len(given) > 1:
            raise UnusableSampleError("pictures under both image and images; keep one of the two keys")
        pictures = [self._folder.read(value, where) for value in (given[0] if given else [])]
        missing = next((picture.key for picture in pictures if self._folder.is_missing(picture)), None)
        if missing is not None:
            raise UnusableSampleError(f"its picture {missing!r} is missing")
        unread = tuple(key for key in row if key not in READ)
        if unread:
            check_media(row, READ, (picture.key for picture in pictures))
        # LLaVA decides by the key: without one, <image> is a word. A key with an empty value is one.
        words_only = not any(key in row for key in PICTURES)
        turns, placed = turns_of(row.get("conversations"), len(pictures), words_only=words_only)
        return Conversation(name, tuple(pictures), turns, placed=placed, unread=unread)


def check_media(row: Mapping[str, Any], read: Iterable[str], names: Iterable[str]) -> None:
    """Check that a row holds no picture, video or sound under a key that is not read; see ``unread_media``.

    Raises:
        UnusableSampleError: If it does: without it the sample would have words alone.
    """
    if (key := unread_media(row, read, names)) is not None:
        raise UnusableSampleError(f"{key!r} holds media that are not read; only pictures under image or images are")


def sample_rows(path: Path) -> SampleRows:
    """The samples of a JSON array, JSONL or Parquet file, read on access; nulls of Parquet are left out."""
    return _ParquetSamples(path) if is_parquet(path) else _JsonSamples(path)


def turns_of(given: object, n_pictures: int, *, words_only: bool) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
    """Questions and answers of LLaVA's list without placeholders, and the number of pictures before each of them."""
    if not isinstance(given, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("value"), str) for entry in given
    ):
        raise UnusableSampleError("conversations is not a list of from and value")
    entries = [(str(entry.get("from")), str(entry["value"])) for entry in given]
    if entries and entries[0][0] == "gpt":  # as LLaVA does for an answer without a question
        entries = entries[1:]
    expected = ["human", "gpt"] * (len(entries) // 2 + 1)
    if [role for role, _ in entries] != expected[: len(entries)]:
        raise UnusableSampleError("turns do not alternate between human and gpt")
    if len(entries) < 2:
        raise UnusableSampleError("no assistant turn")
    texts = [text for _, text in entries[: len(entries) // 2 * 2]]
    counts = [0 if words_only else text.count(IMAGE) for text in texts]
    once = [min(1, count) for count in counts]  # LLaVA writes one placeholder for all of a turn
    placed = counts if sum(counts) == n_pictures else once
    if sum(placed) != n_pictures:
        raise UnusableSampleError(f"{n_pictures} pictures, {sum(counts)} placeholders")
    words = [text.replace(IMAGE, "").strip() if n else text for text, n in zip(texts, placed, strict=True)]
    turns = tuple(Turn(*pair) for pair in zip(words[::2], words[1::2], strict=True))
    return turns, tuple(placed) if sum(placed[1:]) else ()


def is_llava_jsonl(path: Path) -> bool:
    """True if the first row of a JSONL file has LLaVA's list of turns."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError:
                    return False
                return isinstance(row, dict) and "conversations" in row
    return False


class _ParquetSamples:
    """The samples of a Parquet file. A column exists in every row, so one that holds null is a key that is missing."""

    def __init__(self, path: Path) -> None:
        self._table = Parquet(path)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return {key: value for key, value in self._table[number].items() if not _is_null(value)}


def _is_null(value: object) -> bool:
    """Whether a value is null, or a struct of nulls, as ``datasets`` writes no picture."""
    return value is None or (isinstance(value, dict) and all(map(_is_null, value.values())))


class _JsonSamples:
    """The samples of a JSON array or of JSON lines, read by their places in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        starts, lengths = array("q"), array("q")
        for start, length in _places(path):
            starts.append(start)
            lengths.append(length)
        self._starts, self._lengths = np.array(starts), np.array(lengths)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        with self._path.open("rb") as file:
            file.seek(int(self._starts[number]))
            data = file.read(int(self._lengths[number]))
        try:
            row: Mapping[str, Any] = parse_json(data)
        except json.JSONDecodeError as error:
            raise UserError(
                f"sample must be JSON, got sample {number} of {self._path.name}: {error}. Do not change the file "
                "during a run."
            ) from error
        except ValueError as error:  # JSON that is not plain
            raise UnusableSampleError(str(error)) from error
        return row


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """Start and length in bytes of each sample, in an array or with one object per line.

    The bytes are decoded as Latin-1, in which each byte is one character, so that text positions are file positions.
    """
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        first = file.read(_CHUNK)
        if first[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in first[:2]:
            try:
                decode_text(first[:2])
            except ValueError as error:
                raise UserError(f"data must be JSON, got {path.name!r}: {error}.") from error
        text, base, position, opened, number = first.decode("latin-1"), 0, 0, False, 0
        text = "   " + text[3:] if text.startswith("\xef\xbb\xbf") else text
        while True:
            while position < len(text) and text[position] in " \t\r\n,":
                position += 1
            if position < len(text) and text[position] == "[" and not opened and number == 0:
                opened, position = True, position + 1
                continue
            if position < len(text) and text[position] == "]" and opened:
                return
            try:
                value, end = decoder.raw_decode(text, position)
            except RecursionError:
                raise UserError(
                    f"data must be a JSON array of samples, got values nested too deeply at sample {number} of "
                    f"{path.name}. Flatten them."
                ) from None
            except ValueError as error:  # a JSONDecodeError, or a whole number of thousands of digits
                more = file.read(_CHUNK).decode("latin-1")
                if not more and position >= len(text) and not opened:
                    return
                if not more or len(text) - position > _LARGEST:
                    raise UserError(
                        f"data must be a JSON array of samples, got something else at sample {number} of {path.name} "
                        f"({shown_text(getattr(error, 'msg', str(error)))}). Write the file again."
                    ) from error
                text, base, position = text[position:] + more, base + position, 0
                continue
            if not isinstance(value, dict):
                raise UserError(
                    f"sample must be a JSON object, got {type(value).__name__} at sample {number} of {path.name}."
                )
            yield base + position, end - position
            position, number = end, number + 1
