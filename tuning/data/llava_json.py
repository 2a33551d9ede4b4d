"""Read LLaVA's JSON files of conversations, of any size, one sample at a time."""

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import UserError
from tasks.prompts import IMAGE
from tasks.readers.picture_folder import PictureFolder
from tuning.data.conversation import Conversation, Turn, UnusableSampleError

_CHUNK = 1 << 20
_LARGEST = 1 << 26  # bytes of one sample; otherwise a broken file would be read to its end


class LlavaFile:
    """A file in LLaVA's layout: a JSON array (or JSONL) of ``id``, ``image``, ``conversations``.

    ``conversations`` alternates ``{"from": "human", "value": ...}`` and ``{"from": "gpt", "value": ...}``; ``image`` is
    a path in the picture folder, a list of them, or missing for text-only samples. The placeholder ``<image>`` moves to
    the beginning of its turn, as in LLaVA.
    """

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Read the file once to index its samples.

        Raises:
            UserError: If the file is missing, is not a JSON array of objects, or is empty.
        """
        if not path.is_file():
            raise UserError(f"data must be 'scenes' or an existing file, got {str(path)!r}. Check the path.")
        folder = images if images is not None else path.parent
        if not folder.is_dir():
            raise UserError(f"images must be a folder, got {str(folder)!r}. Name the folder that paths start from.")
        self.name = path.name
        self._path, self._folder = path, PictureFolder(folder)
        starts, lengths = array("q"), array("q")
        for start, length in _places(path):
            starts.append(start)
            lengths.append(length)
        self._starts, self._lengths = np.array(starts), np.array(lengths)
        if not len(self._starts):
            raise UserError(f"data must have at least one sample, got none in {str(path)!r}. Add samples.")
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._starts)

    def __getitem__(self, index: int) -> Conversation:
        """Read one sample from the file.

        Raises:
            UnusableSampleError: If its turns do not alternate, it has no assistant turn, or the numbers of placeholders
                and pictures differ.
            UserError: If the file changed, or a picture's path leaves the folder.
        """
        with self._path.open("rb") as file:
            file.seek(int(self._starts[index]))
            data = file.read(int(self._lengths[index]))
        where = f"sample {index} of {self._path.name}"
        try:
            row = json.loads(data.decode("utf-8"))
        except ValueError as error:
            raise UserError(
                f"sample must be JSON, got {where}: {error}. Do not change the file during a run."
            ) from error
        try:
            return self._conversation(row, where, index)
        except UnusableSampleError as error:
            raise UnusableSampleError(str(error), str(row.get("id", index))) from error

    def _conversation(self, row: dict[str, Any], where: str, index: int) -> Conversation:
        given = row.get("image")
        names = [] if given is None else given if isinstance(given, list) else [given]
        pictures = []
        for name in names:
            checked = self._folder.add(name, where)
            if self._folder.stats[checked][0] < 0:
                raise UnusableSampleError(f"its picture {checked!r} is missing")
            pictures.append(self._folder.picture(checked))
        return Conversation(str(row.get("id", index)), tuple(pictures), _turns(row.get("conversations"), len(pictures)))


def _turns(given: object, n_pictures: int) -> tuple[Turn, ...]:
    """Questions and answers of LLaVA's list; placeholders are counted and removed."""
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
    counts: list[int] = [text.count(IMAGE) for _, text in entries]
    if counts[0] != n_pictures or any(counts[1:]):
        raise UnusableSampleError(
            f"{n_pictures} pictures, {sum(counts)} placeholders, {counts[0]} of them in the first question"
        )
    turns = []
    for index in range(0, len(entries) - 1, 2):
        question, answer = entries[index][1], entries[index + 1][1]
        if IMAGE in question:
            question = question.replace(IMAGE, "").strip()
        turns.append(Turn(question, answer))
    return tuple(turns)


def is_llava_jsonl(path: Path) -> bool:
    """True if the first row of a JSONL file has LLaVA's list of turns."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    return False
                return isinstance(row, dict) and "conversations" in row
    return False


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """Start and length in bytes of each sample, in an array or with one object per line.

    The bytes are decoded as Latin-1, in which each byte is one character, so that text positions are file positions.
    """
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        text, base, position, opened, number = file.read(_CHUNK).decode("latin-1"), 0, 0, False, 0
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
            except json.JSONDecodeError as error:
                more = file.read(_CHUNK).decode("latin-1")
                if not more and position >= len(text) and not opened:
                    return
                if not more or len(text) - position > _LARGEST:
                    raise UserError(
                        f"data must be a JSON array of samples, got something else at sample {number} of {path.name} "
                        f"({error.msg}). Write the file again."
                    ) from error
                text, base, position = text[position:] + more, base + position, 0
                continue
            if not isinstance(value, dict):
                raise UserError(
                    f"sample must be a JSON object, got {type(value).__name__} at sample {number} of {path.name}."
                )
            yield base + position, end - position
            position, number = end, number + 1
