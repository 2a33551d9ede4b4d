"""A part of a mix: its samples by index in LLaVA's layout, with format prompt and picture folder."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import UserError, shown
from tasks.files import is_file
from tasks.prompts import IMAGE
from tasks.readers.media import PICTURES, given_pictures, picture_name
from tasks.readers.tables import Table, open_table
from tuning.data.conversation import UnusableSampleError
from tuning.data.llava_json import READ, check_media, sample_rows, turns_of
from tuning.data.sources import is_llava
from tuning.mix.config import FORMATS, PartSpec

Sample = dict[str, Any]
_COLUMNS = {"id", "question", "answer", *PICTURES}  # of a table


class Part:
    """The samples of a part. A file in LLaVA's layout is read by index; of a table, the row numbers are in memory.

    Raises:
        UserError: If the file is missing, has another layout or no samples.
    """

    def __init__(self, spec: PartSpec) -> None:
        if not is_file(spec.path):
            raise UserError(f"part {spec.name} must be an existing file, got {str(spec.path)!r}. Check the path.")
        self.spec = spec
        self.unread: Counter[str] = Counter()  # keys that are not read, of the samples that were returned
        self._prompt = FORMATS[spec.format]
        self._table: Table | None = None
        if is_llava(spec.path):
            self._rows = sample_rows(spec.path)
            self._groups: list[list[int]] = []
            n = len(self._rows)
        else:
            self._table = open_table(spec.path)
            self._groups = _groups(self._table, join=spec.join)
            n = len(self._groups)
        if not n:
            raise UserError(f"part {spec.name} must have at least one sample, got none in {str(spec.path)!r}.")
        self._n = n
        with spec.path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def __len__(self) -> int:
        """The number of samples in the file."""
        return self._n

    def chosen(self, seed: int) -> npt.NDArray[np.int64]:
        """The samples that are used, in the order of the file: a random share, or a random number of them.

        Raises:
            UserError: If more are asked for than there are.
        """
        n = self.spec.take if self.spec.take is not None else max(1, round(self.spec.share * self._n))
        if n > self._n:
            raise UserError(f"take must be at most {self._n} in part {self.spec.name}, got {n}. Lower it.")
        rng = np.random.default_rng([seed, *self.spec.name.encode()])
        return np.sort(rng.permutation(self._n)[:n])

    def __getitem__(self, index: int) -> Sample:
        """The sample as it is written.

        Raises:
            UnusableSampleError: If its turns, pictures or placeholders cannot be used, or a key holds a picture, video
                or sound that is not read.
        """
        if self._table is not None:
            return self._from_table(self._table, self._groups[index])
        row = self._rows[index]
        name = str(row.get("id", index))
        pictures = [one for key in PICTURES for one in given_pictures(row.get(key))]
        if not all(isinstance(picture, str) for picture in pictures):
            raise UnusableSampleError("its picture is no path; a mix holds paths", name)
        try:
            check_media(row, READ, map(str, pictures))
            turns_of(row.get("conversations"), len(pictures), words_only=not pictures)
        except UnusableSampleError as error:
            raise UnusableSampleError(str(error), name) from error
        turns = [{"from": turn["from"], "value": turn["value"]} for turn in row["conversations"]]
        self.unread.update(key for key in row if key not in READ)
        return self._sample(name, [str(picture) for picture in pictures], turns)

    def _from_table(self, table: Table, numbers: Sequence[int]) -> Sample:
        """A conversation from rows with a question and an answer about one picture."""
        turns: list[dict[str, str]] = []
        picture = None
        for position, number in enumerate(numbers):
            row = table[number]
            texts = [row.get("question"), row.get("answer")]
            if not all(isinstance(text, str | int | float) and str(text).strip() for text in texts):
                raise UnusableSampleError(f"question and answer must be texts, got {shown(texts)}", table.where(number))
            picture = _picture(row)
            check_media(row, _COLUMNS, [picture] if picture else [])
            question = f"{IMAGE}\n{texts[0]}" if picture and not position else str(texts[0])
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": str(texts[1])}]
            self.unread.update(key for key in row if key not in _COLUMNS)
        first = table[numbers[0]].get("id")
        return self._sample(str(numbers[0] if first is None else first), [picture] if picture else [], turns)

    def _sample(self, name: str, pictures: Sequence[str], turns: list[dict[str, str]]) -> Sample:
        """The sample with the format prompt after its first question, unless a question has it, as in LLaVA-1.5."""
        asked = [turn for turn in turns if turn["from"] == "human"]
        if self._prompt and not any(self._prompt.lower() in turn["value"].lower() for turn in asked):
            asked[0]["value"] = f"{asked[0]['value']}\n{self._prompt}"
        paths = [self._prefixed(picture, name) for picture in pictures]
        image: Sample = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
        return {"id": f"{self.spec.name}-{name}", **image, "conversations": turns}

    def _prefixed(self, picture: str, name: str) -> str:
        """The path of a picture with the folder of the part before it; a picture written as text has none."""
        if not self.spec.prefix or not picture_name(picture):
            return picture
        if os.path.isabs(picture) or "://" in picture[:12]:
            raise UnusableSampleError(f"its picture {shown(picture)} is no relative path; prefix needs one", name)
        return f"{self.spec.prefix}/{picture}"


def pictures_of(sample: Mapping[str, Any]) -> list[str]:
    """The paths of a sample's pictures."""
    image = sample.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def _picture(row: Mapping[str, Any]) -> str | None:
    found = [one for key in PICTURES for one in given_pictures(row.get(key))]
    if len(found) > 1 or not all(isinstance(one, str) for one in found):
        raise UnusableSampleError(f"image must be one path, got {shown(found)}")
    return str(found[0]) if found else None


def _groups(table: Table, *, join: bool) -> list[list[int]]:
    """The rows of each sample: all about one picture in the order of the file, or each alone."""
    found: dict[object, list[int]] = {}
    for number, row in enumerate(table):
        if number == 0 and not {"question", "answer"} <= set(row):
            raise UserError(
                f"part must have conversations as LLaVA's data, or the columns question and answer, got neither in "
                f"{table.where(0)}. Rename the columns."
            )
        picture = row.get("image") if join else None
        found.setdefault(picture if isinstance(picture, str) and picture else number, []).append(number)
    return list(found.values())
