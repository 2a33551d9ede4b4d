"""The pairs of a sweep: a clean and a corrupt example with the same question, an answer and a foil.

``load_pairs(options, ...)`` draws scenes that differ in one attribute, pairs questions of a benchmark, or reads a JSONL
or Parquet file with the columns ``clean`` and ``corrupt`` (pictures), ``question``, ``answer``, ``foil``, and
optionally ``id`` and ``captions`` (of the clean picture, for the metric ``cider``).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from interventions.benchmark_pairs import capitalised, pair_questions
from interventions.config import DEFAULT_LIMIT, PairOptions
from interventions.plan.options import check_among
from tasks.benchmarks.layout.dataset import PREFIX, benchmark_dataset
from tasks.errors import UserError, shown, user_errors
from tasks.example import Example
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.rows import is_missing
from tasks.readers.tables import Row, open_table
from tasks.scenes.pairs import ATTRIBUTES, make_pairs
from tasks.scenes.scene import SIZE, Split

SCENES = "scenes"
_COLUMNS = ("clean", "corrupt", "question", "answer", "foil")
_READ = {*_COLUMNS, "id", "captions"}


@dataclass(frozen=True)
class Pair:
    """Two examples with the same prompt and the clean answer, so that the two runs have the same positions.

    ``foil`` is the answer to compare with, usually the right answer to the corrupt example.
    """

    clean: Example
    corrupt: Example
    foil: str

    @property
    def id(self) -> str:
        """Id of the pair, unique in the data."""
        return self.clean.id.removesuffix("/clean")


@dataclass(frozen=True)
class Pairs:
    """The pairs of a sweep in the order of the run, and a hash of everything in them that affects results."""

    name: str
    pairs: tuple[Pair, ...]
    digest: str
    unread: tuple[tuple[str, int], ...] = ()
    """The columns of the file that are not read, with the number of rows that have them."""


def load_pairs(
    options: PairOptions, *, seed: int, size: int = SIZE, length: Callable[[str], int] | None = None
) -> Pairs:
    """The pairs of the settings. The pictures that a file names are opened once to check them.

    Scenes are ``size`` pixels wide and high. ``length`` counts the tokens of an answer; the foil of a scene is chosen
    to have as many.

    Raises:
        UserError: If the data cannot be used.
    """
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit must be >= 1, got {options.limit}.")
    if options.capital_answers and not options.spec.startswith(PREFIX):
        raise UserError(f"capital-answers must go with data benchmark:NAME=FOLDER, got data {options.spec!r}.")
    if options.spec != SCENES:
        with user_errors(OSError):
            if options.spec.startswith(PREFIX):
                return _of_benchmark(options, seed)
            return _read(Path(options.spec), options)
    attribute: Any = options.attribute
    split: Any = options.split or "test"
    check_among("pair", attribute, ATTRIBUTES)
    check_among("split", split, get_args(Split))
    made = make_pairs(attribute, n=options.limit or DEFAULT_LIMIT, split=split, seed=seed, size=size, length=length)
    # The corrupt example gets the clean question and answer.
    pairs = [Pair(p.clean, replace(p.corrupt, question=p.clean.question, answer=p.clean.answer), p.foil) for p in made]
    digest = hashlib.sha256(repr([(pair.clean_scene, pair.corrupt_scene) for pair in made]).encode())
    digest.update(
        made[0].clean.pictures[0].open().tobytes()
    )  # the pixels, which depend on fonts and on the version of Pillow
    return _finished(f"scenes-{split}-{attribute}", pairs, digest)


def check_scenes(options: PairOptions, *, seed: int) -> None:
    """Check the options of scenes by drawing one pair."""
    load_pairs(replace(options, limit=1 if options.limit is None else min(1, options.limit)), seed=seed)


def _finished(name: str, pairs: Sequence[Pair], digest: Any) -> Pairs:
    texts = [(p.clean.id, p.clean.question, p.clean.answer, p.foil) for p in pairs]
    digest.update(repr(texts).encode())
    return Pairs(name, tuple(pairs), digest.hexdigest()[:16])


def _of_benchmark(options: PairOptions, seed: int) -> Pairs:
    """Pairs of a benchmark's questions; see ``pair_questions``."""
    if options.split is not None:
        raise UserError(f"split must not be given for a benchmark, got {options.split!r}. Leave it out.")
    data = benchmark_dataset(options.spec, options.images, follow_links=options.follow_links)
    if not any(example.answer for example in data.examples):
        raise UserError(
            f"data must be questions with labels, got none in {options.spec!r}. Add the benchmark's labels."
        )
    found = pair_questions(data.examples, seed=seed, limit=options.limit)
    if not found:
        raise UserError(
            "data must have two questions with the same words, other pictures and other answers, got none in "
            f"{options.spec!r}. Give a file of pairs."
        )
    pairs = []
    for one in map(capitalised, found) if options.capital_answers else found:
        clean, corrupt = one
        renamed = replace(corrupt, id=f"{clean.id}/corrupt", answer=clean.answer)
        pairs.append(Pair(clean, renamed, corrupt.answer))
        for picture in (*clean.pictures, *corrupt.pictures):
            picture.open()
    digest = hashlib.sha256(data.digest.encode())
    digest.update(repr([(pair.corrupt.pictures[0].key, pair.clean.captions) for pair in pairs]).encode())
    return _finished(data.name, pairs, digest)


def _read(path: Path, options: PairOptions) -> Pairs:
    """The pairs of a file."""
    if options.split is not None:
        raise UserError(f"split must not be given for pairs of a file, got {options.split!r}. Leave it out.")
    table = open_table(path)
    folder = PictureFolder(options.images or path.parent, follow_links=options.follow_links)
    rows: list[tuple[Row, str]] = []
    for number, row in enumerate(table):
        if options.limit is not None and number >= options.limit:
            break
        rows.append((row, table.where(number)))
    if not rows:
        raise UserError(f"data must have at least one row, got none in {str(path)!r}. Add pairs.")
    for row, where in rows:
        for column in _COLUMNS:
            if not isinstance(row.get(column), str) or not row[column]:
                raise UserError(
                    f"pair must have text in {', '.join(_COLUMNS)}, got {row.get(column)!r} for {column!r} in {where}. "
                    "The row has: " + (", ".join(row) or "no columns") + "."
                )
        for column in ("clean", "corrupt"):
            folder.add(row[column], where)
    folder.find_equal_files()
    pairs = [_pair(row, number, folder, where) for number, (row, where) in enumerate(rows)]
    names = [pair.clean.id for pair in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"id must be unique, got {twice!r} again. Rename one, or drop the column.")
    for pair in pairs:
        for picture in (*pair.clean.pictures, *pair.corrupt.pictures):
            picture.open()
    digest = hashlib.sha256(repr(sorted(folder.stats.items())).encode())
    captions = [pair.clean.captions for pair in pairs]
    digest.update(repr(captions).encode() if any(captions) else b"")
    unread = Counter(
        column
        for row, _ in rows
        for column, value in row.items()
        if column not in _READ and not (is_missing(value) or value == "")
    )
    return replace(_finished(path.name, pairs, digest), unread=tuple(unread.most_common()))


def _pair(row: Row, number: int, folder: PictureFolder, where: str) -> Pair:
    if row["answer"] == row["foil"]:
        raise UserError(f"foil must differ from the answer, got {row['foil']!r} for both in {where}. Change one.")
    name = str(row["id"]) if row.get("id") is not None else str(number)
    clean, corrupt = (
        Example(f"{name}/{which}", (folder.picture(row[which]),), row["question"], row["answer"], group=name)
        for which in ("clean", "corrupt")
    )
    captions = row.get("captions") or ()
    if not isinstance(captions, list | tuple) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise UserError(f"captions must be a list of texts, got {shown(captions)} in {where}.")
    return Pair(replace(clean, id=name, captions=tuple(captions)), corrupt, row["foil"])
