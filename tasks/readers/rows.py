"""One row of a table as an ``Example``: the meaning of the columns and the checks of their values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import UserError, printable, shown, shown_text
from tasks.example import Box, Example, Label, Picture, are_shares
from tasks.prompts import CAPTION
from tasks.readers.caption_files import CaptionFile
from tasks.readers.media import PICTURES, given_pictures, picture_name, unread_media
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.tables import Row

_FAR = 1e9  # pixels; also refuses NaN and whole numbers that no float holds
_CAPTIONS = ("caption", "captions")
_RESERVED = (
    "id", "image", "images", "question", "answer", "group", "split", "family", "boxes", "focus", *_CAPTIONS,
)  # fmt: skip


@dataclass(frozen=True)
class RowReader:
    """Reads examples from rows, given the columns of pictures, questions and answers."""

    image_column: str | None
    question_column: str
    answer_column: str
    folder: PictureFolder
    captions: CaptionFile | None = None

    def _pictures(self, row: Row, where: str) -> list[Picture]:
        """The row's pictures."""
        columns = (self.image_column,) if self.image_column else PICTURES
        given = [found for column in columns if (found := given_pictures(row.get(column)))]
        if self.image_column and self.image_column not in row:
            raise _unknown_column("image_column", self.image_column, row, where)
        if len(given) > 1:
            raise UserError(f"row must have image or images, got both in {where}. Keep one of the two columns.")
        pictures = [self.folder.read(value, where) for value in (given[0] if given else [])]
        read = {*_RESERVED, self.question_column, self.answer_column}.difference(PICTURES) | {*columns}
        medium = unread_media(row, read, (picture.key for picture in pictures))
        if medium is not None and not (pictures and self.image_column):  # where a column is named, it alone is wanted
            raise UserError(
                f"picture must be in the column {' or '.join(columns)}, got {shown(medium)} in {where}, which is "
                f"not read. {'Drop the column.' if pictures else 'Rename the column, or drop the row.'}"
            )
        return pictures

    def _text(self, row: Row, role: str, column: str, where: str, instead: str | None) -> str:
        if column not in row and instead is not None and column == role:
            return instead
        if column not in row:
            raise _unknown_column(f"{role}_column", column, row, where)
        value = row[column]
        if not isinstance(value, str | int | float) or is_missing(value):
            raise UserError(f"{role} must be text, got {shown(value)} in {where}. Write it as a string.")
        return str(value)

    def _captions(self, row: Row, where: str) -> tuple[str, ...]:
        """The sentences that describe the row's picture."""
        given = [name for name in _CAPTIONS if not is_missing(row.get(name))]
        if len(given) > 1:
            raise UserError(f"row must have caption or captions, got both in {where}. Keep one of the two columns.")
        if self.captions is not None:
            if given:
                raise UserError(
                    f"captions must be given once, got a file of captions and the column {given[0]!r} in {where}. "
                    "Leave out one of them."
                )
            columns = (self.image_column,) if self.image_column else PICTURES
            names = [picture_name(one) for column in columns for one in given_pictures(row.get(column))]
            return self.captions.of(names[0]) if len(names) == 1 and names[0] else ()
        value = row[given[0]] if given else []
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{given[0]} must be text or a list of texts, got {shown(text)} in {where}.")
        return tuple(" ".join(text.split()) for text in texts)

    def _boxes(self, row: Row, pictures: Sequence[Picture], where: str) -> dict[str, Box]:
        """The boxes of a row, in its first picture."""
        given = row.get("boxes")
        if isinstance(given, list) and all(isinstance(pair, tuple) for pair in given):
            given = dict(given)  # pyarrow returns a map as pairs
        if given is not None and not isinstance(given, dict):
            raise UserError(
                f"boxes must map names to [left, top, right, bottom], got {shown(given)} in {where}. Use a mapping."
            )
        boxes = {}
        size = self.folder.size(pictures[0]) if given and pictures else None
        for name, corners in (given or {}).items():
            if corners is None:  # a Parquet struct has every name in every row
                continue
            found = f"got {shown_text(str(name))}: {shown(corners)} in {where}."
            numbers = isinstance(corners, list) and all(isinstance(c, int | float) for c in corners)
            if not numbers or len(corners) != 4 or not all(abs(c) < _FAR for c in corners):
                raise UserError(f"box must be [left, top, right, bottom], {found} Give four numbers.")
            box = Box(*map(float, corners))
            if not (box.left < box.right and box.top < box.bottom):
                raise UserError(f"box must have left < right and top < bottom, {found} Swap corners.")
            if box.left < 0 or box.top < 0 or (size and (box.right > size[0] or box.bottom > size[1])):
                extent = f"{size[0]} x {size[1]}" if size else "picture"
                raise UserError(f"box must lie inside its picture ({extent}), {found} Clip it.")
            if are_shares(box):
                raise UserError(
                    f"box must be in pixels, {found} Multiply shares between 0 and 1 by the picture's width and height."
                )
            boxes[str(name)] = box
        focus = row.get("focus")
        if focus is not None and not (isinstance(focus, str) and focus in boxes):
            raise UserError(
                f"focus must be one of the boxes ({shown_text(', '.join(boxes) or 'none')}), got {shown(focus)} in "
                f"{where}. Name a box."
            )
        return boxes

    def labels(self, row: Row) -> dict[str, Any]:
        """The columns without another role."""
        roles = {*_RESERVED, self.image_column, self.question_column, self.answer_column}
        return {key: value for key, value in row.items() if key not in roles and not key.startswith("__index_level_")}

    def example(self, row: Row, where: str, number: int, group: str, floats: frozenset[str]) -> Example:
        """The example of a row; ``floats`` are the labels to convert to floats.

        Raises:
            UserError: If a value is missing or invalid.
        """
        pictures, captions = self._pictures(row, where), self._captions(row, where)
        # A file of captions asks for one.
        question, answer = (CAPTION, captions[0]) if captions and "question" not in row else (None, None)
        if self.captions is not None and not captions and "question" not in row:
            question, answer = CAPTION, ""
        labels: dict[str, Label] = {
            key: float(value) if key in floats else printable(value) if isinstance(value, str) else value
            for key, value in {**self.labels(row), "answer": row.get(self.answer_column)}.items()
            if is_label(value)
        }
        return Example(
            id=row_id(row, number),
            pictures=tuple(pictures),
            question=self._text(row, "question", self.question_column, where, question),
            answer=self._text(row, "answer", self.answer_column, where, answer),
            group=group,
            split=str(row["split"]) if row.get("split") is not None else "all",
            labels=labels,
            boxes=self._boxes(row, pictures, where),
            focus=row.get("focus"),
            family=printable(str(row.get("family") or "")),
            captions=captions,
        )


def row_id(row: Row, number: int) -> str:
    """The id of a row; by default its number."""
    return str(row["id"]) if row.get("id") is not None else str(number)


def is_label(value: object) -> bool:
    """Whether a value is text, a truth value, or a number that 64 bits hold."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    return isinstance(value, str | int | float) and not is_missing(value)


def is_missing(value: object) -> bool:
    """Whether a label is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _unknown_column(argument: str, column: str, row: Row, where: str) -> UserError:
    return UserError(
        f"{argument} must be a column, got {column!r} in {where}. The row has: "
        f"{shown_text(', '.join(row) or 'nothing', 160)}."
    )
