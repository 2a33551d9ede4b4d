"""Your own data: ``read_table`` makes a ``Dataset`` of a JSONL or Parquet file and a folder of pictures.

One row is one example. Columns: ``image`` (a path relative to the folder) or ``images`` (a list of them),
``question``, ``answer``, and optionally ``id``, ``group``, ``split``, ``family``, ``boxes`` (name -> [left, top, right,
bottom] in pixels) and ``focus`` (the name of one box). Every other column is a label that probes may read. The file is
checked once, row by row, and rows are read again when they are asked for: no row and no picture is held in memory.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.dataset import Dataset, LazyExamples
from tasks.errors import UserError
from tasks.example import Example
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.rows import RowReader
from tasks.readers.scan import scan_table
from tasks.readers.tables import open_table
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.scene import SIZE

_DEFAULT_SCENES = 400


class BadPicture(NamedTuple):
    """An example whose picture cannot be read, and why.

    Example:
        >>> BadPicture("7", "picture must exist").id
        '7'
    """

    id: str
    reason: str


def load_dataset(
    spec: str,
    images: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: int = SIZE,
    targets: Sequence[str] | None = None,
) -> Dataset:
    """The data set called ``spec``: ``"scenes"``, or the path of a JSONL or Parquet file.

    Args:
        spec: ``"scenes"`` or a path.
        images: The folder of the pictures; None for the folder that the file lies in.
        split: Keep one split; None for all rows (of scenes: ``"test"``).
        limit: Keep the first so many examples.
        seed: Of the scenes.
        size: Width and height of the scenes in pixels.
        targets: As for ``read_table``.

    Raises:
        UserError: If the data cannot be used.

    Example:
        >>> len(load_dataset("scenes", limit=3))
        3
    """
    if spec == "scenes":
        n = _DEFAULT_SCENES if limit is None else limit
        return scenes_dataset(split=split or "test", n=n, seed=seed, size=size)
    return read_table(spec, images, split=split, limit=limit, targets=targets)


def read_table(
    path: str | Path,
    images: str | Path | None = None,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    image_column: str | None = None,
    question_column: str = "question",
    answer_column: str = "answer",
) -> Dataset:
    """The examples of a JSONL (``.jsonl``) or Parquet (``.parquet``) file, each made when it is indexed.

    Rows that share a picture, a ``group``, or two files with equal bytes are one group: otherwise a probe could be
    scored on a picture it was fitted on. A label of floats with more than 20 distinct values is continuous, any other
    is a class; it belongs to the focused box if every row has a ``focus``, else to the picture. A missing label (null
    or NaN) is left out of ``Example.labels``. The digest covers the bytes of the file, and of each picture its path,
    size and time of change.

    Args:
        path: The file.
        images: The folder that picture paths are relative to and may not leave; None for the file's own folder.
        targets: The labels to offer, each required in every row; ``"age:continuous"``, ``"age:class"``,
            ``"colour:object"`` and ``"colour:image"`` override what is inferred. None for every label column.
        split: Keep the rows whose ``split`` is this one.
        limit: Keep the first so many of them.
        image_column: The column of picture paths; None for ``image`` or ``images``, whichever a row has.
        question_column: The column of questions.
        answer_column: The column of answers.

    Raises:
        UserError: If the file, a row, a path, a box, a label, a target or a split cannot be used; messages about rows
            count lines (JSONL) or rows (Parquet) from 1.

    Example:
        >>> import json, tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps({"question": "Is it red?", "answer": "yes", "kind": "cat"}))
        ...     file.flush()
        ...     read_table(file.name).examples[0].labels["kind"]
        'cat'
    """
    path = Path(path)
    folder = Path(images) if images is not None else path.parent
    if not folder.is_dir():
        raise UserError(f"images must be a folder, got {str(folder)!r}. Name the folder that picture paths start from.")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be >= 1, got {limit}. Leave it out for all rows.")
    table = open_table(path)
    reader = RowReader(image_column, question_column, answer_column, PictureFolder(folder))
    scan = scan_table(table, reader, split, targets)
    kept = scan.kept[:limit]
    if not kept:
        raise UserError(f"data must have at least one row, got none in {str(path)!r}. Add examples.")
    groups, floats = scan.groups(), scan.floats

    def make(index: int) -> Example:
        number = kept[index]
        return reader.example(table[number], table.where(number), number, groups[number], floats)

    settings = [split, limit, image_column, question_column, answer_column, sorted(targets or [])]
    return Dataset(
        name=path.name,
        examples=LazyExamples(len(kept), make),
        targets=scan.targets(targets),
        digest=_digest(path, reader.folder, settings),
    )


def check_pictures(dataset: Dataset) -> list[BadPicture]:
    """The examples whose pictures cannot be read, with the reason; each distinct picture is decoded once.

    Example:
        >>> check_pictures(load_dataset("scenes", limit=2))
        []
    """
    reasons: dict[str, str | None] = {}
    bad = []
    for example in dataset.examples:
        for picture in example.pictures:
            if picture.key not in reasons:
                try:
                    picture.open()
                    reasons[picture.key] = None
                except UserError as error:
                    reasons[picture.key] = str(error)
        reason = next((reason for p in example.pictures if (reason := reasons[p.key]) is not None), None)
        if reason is not None:
            bad.append(BadPicture(example.id, reason))
    return bad


def _digest(path: Path, folder: PictureFolder, settings: Sequence[object]) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([settings, sorted(folder.stats.items())]).encode())
    return digest.hexdigest()[:16]
