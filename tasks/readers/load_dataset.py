"""Your own data: ``read_table`` makes a ``Dataset`` of a JSONL or Parquet file and a folder of pictures.

One row is one example. Columns: ``image`` (a path in the folder, ``data:image/png;base64,...``, or bytes as
``datasets`` writes them) or ``images`` (a list of them),
``question``, ``answer``, and optionally ``id``, ``group``, ``split``, ``family``, ``boxes`` (name -> [left, top, right,
bottom] in pixels), ``focus`` (the name of one box), and ``caption`` or ``captions`` (a sentence about the picture, or
a list of them). A row with captions and without a question asks for a caption. Every other column is a label that
probes may read. The file is checked once; rows and pictures are read again on demand, so memory stays flat.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.benchmarks.layout.dataset import PREFIX, benchmark_dataset
from tasks.dataset import Dataset, LazyExamples
from tasks.errors import UserError
from tasks.example import Example
from tasks.files import is_folder
from tasks.readers.caption_files import read_captions
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.rows import RowReader
from tasks.readers.scan import Scan
from tasks.readers.tables import open_table
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.scene import SIZE

_DEFAULT_SCENES = 400


class BadPicture(NamedTuple):
    """The id of an example whose picture cannot be read, and the reason.

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
    captions: str | Path | None = None,
    follow_links: bool = False,
) -> Dataset:
    """The data set called ``spec``: ``"scenes"``, a benchmark, or the path of a JSONL or Parquet file.

    Args:
        spec: ``"scenes"``, ``"benchmark:NAME=FOLDER"``, or a path.
        images: The folder of the pictures; None for the file's own folder.
        split: Keep one split; None for all rows (for scenes: ``"test"``).
        limit: The largest number of examples.
        seed: Seed of the scenes.
        size: Width and height of the scenes in pixels.
        targets: See ``read_table``.
        captions: See ``read_table``.
        follow_links: See ``read_table``.

    Raises:
        UserError: If the data are invalid.

    Example:
        >>> len(load_dataset("scenes", limit=3))
        3
    """
    if captions is not None and (spec == "scenes" or spec.startswith(PREFIX)):
        raise UserError(
            f"captions must go with a JSONL or Parquet file of pictures, got data {spec!r}. Leave them out."
        )
    if spec == "scenes":
        n = _DEFAULT_SCENES if limit is None else limit
        return scenes_dataset(split=split or "test", n=n, seed=seed, size=size)
    if spec.startswith(PREFIX):
        if split is not None:
            raise UserError(f"split must be left out for a benchmark, got {split!r}. Its file holds one split.")
        return benchmark_dataset(spec, images, limit=limit, follow_links=follow_links)
    return read_table(
        spec, images, split=split, limit=limit, targets=targets, captions=captions, follow_links=follow_links
    )


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
    captions: str | Path | None = None,
    follow_links: bool = False,
) -> Dataset:
    """The examples of a JSONL (``.jsonl``) or Parquet (``.parquet``) file, each made when it is indexed.

    Rows that share a ``group``, a picture, or pictures with equal bytes form one group, so that no probe is scored on
    a picture it was fitted on. A label of floats with more than 20 distinct values is continuous, any other is a class;
    its scope is ``"object"`` if every row has a ``focus``, else ``"image"``. Missing labels (null or NaN) are left out
    of ``Example.labels``. The digest covers the bytes of the file, and path, size and time of change of each picture.

    Args:
        path: The file.
        images: The folder that holds all pictures and that paths are relative to; None for the file's own folder.
        targets: Labels that every row must have; ``"age:continuous"``, ``"age:class"``, ``"colour:object"`` and
            ``"colour:image"`` override the inferred kind or scope. None for every label column.
        split: Keep the rows of this ``split``.
        limit: The largest number of rows to keep.
        image_column: The column of picture paths; None for ``image`` or ``images``, whichever a row has.
        question_column: The column of questions.
        answer_column: The column of answers.
        captions: A file of captions, joined by picture: see ``tasks.readers.caption_files``. Rows without a question
            then ask for a caption.
        follow_links: Whether links in the folder may lead out of it.

    Raises:
        UserError: If the file, a row, a target or a split is invalid; the message names the line (JSONL) or row
            (Parquet), counted from 1.

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
    if not is_folder(folder):
        raise UserError(f"images must be a folder, got {str(folder)!r}. Name the folder that picture paths start from.")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be >= 1, got {limit}. Leave it out for all rows.")
    table = open_table(path)
    texts = None if captions is None else read_captions(captions)
    pictures = PictureFolder(folder, follow_links=follow_links)
    reader = RowReader(image_column, question_column, answer_column, pictures, texts)
    scan = Scan(table, reader, split)
    kept = scan.kept[:limit]
    if not kept:
        raise UserError(f"data must have at least one row, got none in {str(path)!r}. Add examples.")
    if texts is not None and not scan.n_captioned:
        raise UserError(
            f"captions must describe pictures of the data, got none of {len(kept)} rows in {texts.name!r}. The file "
            f"names pictures like {next(iter(texts.captions))!r}."
        )
    groups, floats = scan.groups(), scan.floats

    def make(index: int) -> Example:
        number = kept[index]
        return reader.example(table[number], table.where(number), number, groups[number], floats)

    settings = [split, limit, image_column, question_column, answer_column, sorted(targets or [])]
    settings += [] if texts is None else [texts.digest]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([settings, sorted(reader.folder.stats.items())]).encode())
    return Dataset(
        name=path.name,
        examples=LazyExamples(len(kept), make),
        targets=scan.targets(targets),
        digest=digest.hexdigest()[:16],
    )


def check_pictures(dataset: Dataset) -> list[BadPicture]:
    """The examples whose pictures cannot be read, with the reason; each picture is decoded once.

    Example:
        >>> check_pictures(load_dataset("scenes", limit=2))
        []
    """
    reasons: dict[str, str] = {}
    bad = []
    for example in dataset.examples:
        for picture in example.pictures:
            if picture.key not in reasons:
                reasons[picture.key] = ""
                try:
                    picture.open()
                except UserError as error:
                    reasons[picture.key] = str(error)
        found = [reasons[picture.key] for picture in example.pictures if reasons[picture.key]]
        if found:
            bad.append(BadPicture(example.id, found[0]))
    return bad
