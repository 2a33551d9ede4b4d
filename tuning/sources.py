"""Where training conversations come from: LLaVA's own JSON, a table of questions, or the embedded scenes.

A source is indexed and counted, never held: ``LlavaFile`` keeps the place of each sample in the file (16 bytes)
and reads one when it is asked for, so that ``llava_v1_5_mix665k.json`` needs no more memory than any other file.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tasks.datasets import Dataset
from tasks.example import Example
from tasks.folder import PictureFolder
from tasks.prompts import IMAGE, LETTER, SHORT
from tasks.questions import FAMILIES, Family, ask, ask_for_caption, with_caption
from tasks.readers import read_table
from tasks.scenes import COLOURS, NOUNS, Scene, Split, make_scene
from tasks.tables import DataError
from tuning.labels import Conversation, Turn, Unusable

_CHUNK = 1 << 20
_LARGEST = 1 << 26  # bytes of one sample; a broken file would otherwise be read to its end
# Scenes that neither the embedded tower nor the embedded checkpoints were trained on.
FIRST_TRAINING_SCENE = 4_000_000
FIRST_EVALUATION_SCENE = 200_000
FIRST_CAPTION_SCENE = 6_000_000  # of captions that stage 1 is scored on


@runtime_checkable
class Source(Protocol):
    """Conversations by index, and a digest that changes whenever they do."""

    name: str
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


class LlavaFile:
    """A file in LLaVA's layout: a JSON array (or JSONL) of ``id``, ``image``, ``conversations``.

    ``conversations`` alternates ``{"from": "human", "value": ...}`` and ``{"from": "gpt", "value": ...}``; ``image`` is
    a path in the picture folder, a list of them, or missing for text-only samples. The placeholder ``<image>`` moves
    to the beginning of its turn, as in LLaVA.
    """

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Reads the file once, for the places of its samples.

        Raises:
            DataError: If the file is missing, is no JSON array of objects, or is empty.
        """
        if not path.is_file():
            raise DataError(f"data must be 'scenes' or an existing file, got {str(path)!r}. Check the path.")
        folder = images if images is not None else path.parent
        if not folder.is_dir():
            raise DataError(f"images must be a folder, got {str(folder)!r}. Name the folder that paths start from.")
        self.name = path.name
        self._path, self._folder = path, PictureFolder(folder)
        starts, lengths = array("q"), array("q")
        for start, length in _places(path):
            starts.append(start)
            lengths.append(length)
        self._starts, self._lengths = np.array(starts), np.array(lengths)
        if not len(self._starts):
            raise DataError(f"data must have at least one sample, got none in {str(path)!r}. Add samples.")
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._starts)

    def __getitem__(self, index: int) -> Conversation:
        """The sample, read from the file.

        Raises:
            Unusable: If its turns do not alternate, it has no assistant's turn, or placeholders and pictures differ.
            DataError: If the file changed, or a picture's path leaves the folder.
        """
        with self._path.open("rb") as file:
            file.seek(int(self._starts[index]))
            data = file.read(int(self._lengths[index]))
        where = f"sample {index} of {self._path.name}"
        try:
            row = json.loads(data.decode("utf-8"))
        except ValueError as error:
            raise DataError(
                f"sample must be JSON, got {where}: {error}. Do not change the file during a run."
            ) from error
        try:
            return self._conversation(row, where, index)
        except Unusable as error:
            raise Unusable(str(error), str(row.get("id", index))) from error

    def _conversation(self, row: dict[str, Any], where: str, index: int) -> Conversation:
        given = row.get("image")
        names = [] if given is None else given if isinstance(given, list) else [given]
        pictures = []
        for name in names:
            checked = self._folder.add(name, where)
            if self._folder.stats[checked][0] < 0:
                raise Unusable(f"its picture {checked!r} is missing")
            pictures.append(self._folder.picture(checked))
        return Conversation(str(row.get("id", index)), tuple(pictures), _turns(row.get("conversations"), len(pictures)))


class TableFile:
    """A JSONL or Parquet file with one question and answer a row (``tasks.readers.read_table``)."""

    def __init__(self, dataset: Dataset) -> None:
        """Takes the examples of ``dataset``, each as a conversation of one turn."""
        self.name, self.digest = dataset.name, dataset.digest
        self._examples = dataset.examples
        if any(example.family == "all" for example in dataset.examples):
            raise DataError(f"family must not be 'all' in {dataset.name!r}: scores use it for all of them. Rename it.")

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Conversation:
        """The example as a conversation."""
        return from_examples([self._examples[index]])


class SceneMix:
    """The embedded instruction mix: questions about scenes in LLaVA-1.5's response formats.

    Each sample is one scene with several questions that do not see each other (``apart``), or that follow each other
    as in LLaVA's data. Some samples are about a caption in words instead of a picture.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int = 0,
        questions: int = 7,
        text_share: float = 0.25,
        caption_share: float = 0.25,
        format_prompts: bool = True,
        apart: bool = True,
        stage: int = 2,
        first: int = FIRST_TRAINING_SCENE,
    ) -> None:
        """Describes the mix; nothing is drawn before it is asked for.

        Args:
            n: How many scenes.
            seed: Another seed asks other questions about other scenes.
            questions: How many about each; the option-letter family is asked twice, for it is learned last.
            text_share: Of samples about a caption in words.
            caption_share: Of picture samples that also ask for a caption.
            format_prompts: Whether questions say how to answer ("... a single word or phrase.").
            apart: Whether questions about one scene are hidden from each other.
            stage: 1 for captions alone, as LLaVA's first stage has them; 2 for the mix.
            first: The number of the first scene.

        Raises:
            DataError: If a number is out of its range.
        """
        if n < 1 or not 1 <= questions <= len(FAMILIES) + 1 or not (0 <= text_share <= 1 and 0 <= caption_share <= 1):
            raise DataError(
                f"scenes must have n >= 1, questions in [1, {len(FAMILIES) + 1}] and shares in [0, 1], got "
                f"{n}, {questions}, {text_share}, {caption_share}. Correct them."
            )
        self.name = "scenes"
        self._n, self._seed, self._questions, self._stage, self._first = n, seed, questions, stage, first
        self._text, self._caption, self._formats, self._apart = text_share, caption_share, format_prompts, apart
        drawn = make_scene(first, seed=seed)
        described = [n, seed, questions, text_share, caption_share, format_prompts, apart, stage, first, NOUNS, COLOURS]
        digest = hashlib.sha256(json.dumps(described).encode())
        digest.update(drawn.picture.open().tobytes())  # fonts and Pillow decide the pixels
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """The number of scenes."""
        return self._n

    def __getitem__(self, index: int) -> Conversation:
        """The sample about scene ``index``."""
        if not 0 <= index < self._n:
            raise IndexError(index)
        scene = make_scene(self._first + index, seed=self._seed)
        if self._stage == 1:
            return from_examples([ask_for_caption(scene)])
        rng = np.random.default_rng([self._seed, index])
        drawn = self._draw(rng)
        asked = [ask(scene, family, seed=self._seed * 1009 + index + 7919 * turn) for turn, family in enumerate(drawn)]
        if rng.random() < self._text:
            asked = [with_caption(example, scene.caption) for example in asked]
        elif rng.random() < self._caption:
            asked.append(ask_for_caption(scene))
        return from_examples(asked, apart=self._apart, format_prompts=self._formats)

    def _draw(self, rng: np.random.Generator) -> list[Family]:
        """Which families are asked: all different but for one more option letter."""
        twice = ["choice", "choice"] if self._questions > 1 else []
        others = [family for family in FAMILIES if not twice or family != "choice"]
        picked = [others[int(i)] for i in rng.permutation(len(others))[: self._questions - len(twice)]]
        mixed = [*picked, *twice]
        return [mixed[int(i)] for i in rng.permutation(len(mixed))]  # type: ignore[misc]


class SceneQuestions:
    """One question of every family about each of ``n`` scenes that no training run has seen, for scoring."""

    def __init__(self, n: int, *, split: Split = "test", text: bool = False, format_prompts: bool = True) -> None:
        """Describes the questions.

        Args:
            n: How many scenes.
            split: ``"test"`` draws with the drawings of training, ``"unseen"`` with the held-out ones.
            text: Whether a caption in words stands in for the picture.
            format_prompts: Whether questions say how to answer.
        """
        if n < 1:
            raise DataError(f"n must be >= 1, got {n}. Ask about at least one scene.")
        self.name = f"scenes-{'text' if text else split}"
        self._n, self._split, self._text, self._formats = n, split, text, format_prompts
        described = json.dumps([n, split, text, format_prompts, NOUNS, COLOURS, FIRST_EVALUATION_SCENE])
        self.digest = hashlib.sha256(described.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """The number of scenes."""
        return self._n

    def __getitem__(self, index: int) -> Conversation:
        """All questions about scene ``index``, hidden from each other."""
        if not 0 <= index < self._n:
            raise IndexError(index)
        scene: Scene = make_scene(FIRST_EVALUATION_SCENE + index, split=self._split)
        asked = [ask(scene, family) for family in FAMILIES]
        if self._text:
            asked = [with_caption(example, scene.caption) for example in asked]
        return from_examples(asked, apart=True, format_prompts=self._formats)


class Subset:
    """Some samples of a source, by their place."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        """``indices`` count from 0."""
        self.name = source.name
        self._source, self._indices = source, indices
        chosen = hashlib.sha256(json.dumps([int(i) for i in indices]).encode()).hexdigest()[:8]
        self.digest = f"{source.digest}-{chosen}"

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Conversation:
        """The sample."""
        return self._source[int(self._indices[index])]


def first_of(source: Source, n: int | None) -> Source:
    """The first ``n`` samples; the source itself where it has no more, or where ``n`` is None."""
    return source if n is None or n >= len(source) else Subset(source, range(n))


def open_source(spec: str, images: Path | None = None, *, scenes: SceneMix | None = None) -> Source:
    """The source that ``spec`` names.

    Args:
        spec: ``"scenes"``, a ``.json`` or ``.jsonl`` file in LLaVA's layout, or a JSONL or Parquet file with columns
            ``question`` and ``answer``.
        images: The folder that picture paths start from; the file's own where it is None.
        scenes: What ``"scenes"`` means; 4,000 scenes where it is None.

    Raises:
        DataError: If the file cannot be read.
    """
    if spec == "scenes":
        return scenes or SceneMix(4000)
    path = Path(spec)
    if path.suffix.lower() == ".json" or (path.suffix.lower() in (".jsonl", ".ndjson") and _is_llava(path)):
        return LlavaFile(path, images)
    return TableFile(read_table(path, images))


def from_examples(examples: Sequence[Example], *, apart: bool = False, format_prompts: bool = True) -> Conversation:
    """Questions about the same pictures as one conversation.

    Where turns follow each other a format prompt stands on the first question of its format alone, as in LLaVA-1.5's
    data; where they stand apart each question has its own.
    """
    seen: set[str] = set()
    turns = []
    for example in examples:
        question = example.question
        for prompt in (SHORT, LETTER):
            if question.endswith(f"\n{prompt}"):
                if not format_prompts or (prompt in seen and not apart):
                    question = question.removesuffix(f"\n{prompt}")
                seen.add(prompt)
        turns.append(Turn(question, example.answer))
    first = examples[0]
    if not first.pictures and not apart:  # the caption is said once, in the first turn
        caption = first.question.partition("\n")[0]
        turns = [turns[0], *(replace_prefix(turn, f"{caption}\n") for turn in turns[1:])]
    families = tuple(example.family for example in examples)
    return Conversation(first.id.rsplit("/", 1)[0] if len(examples) > 1 else first.id, first.pictures, tuple(turns),
                        apart, families)  # fmt: skip


def replace_prefix(turn: Turn, prefix: str) -> Turn:
    """``turn`` without ``prefix`` before its question."""
    return turn._replace(question=turn.question.removeprefix(prefix))


def without_pictures(conversation: Conversation) -> Conversation:
    """The same words with nothing shown."""
    return replace(conversation, pictures=())


def _turns(given: object, n_pictures: int) -> tuple[Turn, ...]:
    """Questions and answers of LLaVA's list; placeholders are counted and taken out."""
    if not isinstance(given, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("value"), str) for entry in given
    ):
        raise Unusable("conversations is no list of from and value")
    entries = [(str(entry.get("from")), str(entry["value"])) for entry in given]
    if entries and entries[0][0] == "gpt":  # LLaVA drops an answer that nobody asked for
        entries = entries[1:]
    expected = ["human", "gpt"] * (len(entries) // 2 + 1)
    if [role for role, _ in entries] != expected[: len(entries)]:
        raise Unusable("turns do not alternate between human and gpt")
    if len(entries) < 2:
        raise Unusable("no assistant turn")
    counts: list[int] = [text.count(IMAGE) for _, text in entries]
    if counts[0] != n_pictures or any(counts[1:]):
        raise Unusable(f"{n_pictures} pictures, {sum(counts)} placeholders, {counts[0]} of them in the first question")
    turns = []
    for index in range(0, len(entries) - 1, 2):
        question, answer = entries[index][1], entries[index + 1][1]
        if IMAGE in question:
            question = question.replace(IMAGE, "").strip()
        turns.append(Turn(question, answer))
    return tuple(turns)


def _is_llava(path: Path) -> bool:
    """Whether the first row of a JSONL file has LLaVA's list of turns."""
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
    """Where each sample starts in the file and how many bytes it has, for an array or for one object a line.

    The bytes are read as Latin-1, in which each is one character, so that places in the text are places in the file.
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
                    raise DataError(
                        f"data must be a JSON array of samples, got something else at sample {number} of {path.name} "
                        f"({error.msg}). Write the file again."
                    ) from error
                text, base, position = text[position:] + more, base + position, 0
                continue
            if not isinstance(value, dict):
                raise DataError(
                    f"sample must be a JSON object, got {type(value).__name__} at sample {number} of {path.name}."
                )
            yield base + position, end - position
            position, number = end, number + 1
