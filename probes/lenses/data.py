"""The examples of ``lens-sweep``, the word of each, and the text of a latent lens."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.loading.smol import PARTS
from probes.lenses.config import SCENE_LIMIT, SCENES, CorpusOptions, DataOptions, TrainDataOptions
from tasks.dataset import Dataset, join
from tasks.errors import UserError, one_line, user_errors
from tasks.example import Example
from tasks.files import read_file
from tasks.readers.load_dataset import check_pictures, load_dataset
from tasks.readers.parse import decode_text
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.scene import SIZE, make_scene

_CORPUS_SCENES = 400  # training scenes whose captions are indexed; the number of tokens is limited apart
_TRAIN_SCENES = 64


@dataclass(frozen=True)
class LensData:
    """Examples in their order, the word of the object in focus of each, and a hash of all that affects results."""

    name: str
    examples: Sequence[Example]
    words: tuple[str, ...]
    splits: tuple[str, ...]
    """The split of each example, as it was asked for."""
    digest: str


def load_examples(options: DataOptions, target: str | None, *, seed: int, size: int = SIZE) -> LensData:
    """The examples of the settings; scenes are ``size`` pixels wide.

    Raises:
        UserError: If the data cannot be used, or an example lacks a picture, a box in focus or a word.
    """
    parts: list[Dataset] = []
    splits: list[str] = []
    named = (options.split or "").split("+")
    if len(set(named)) < len(named):
        raise UserError(f"split must name each split once, got {options.split!r}.")
    if options.spec == SCENES:
        n = SCENE_LIMIT if options.limit is None else options.limit
        names: list[str | None] = list((options.split or "test+unseen").split("+"))
        parts = [scenes_dataset(split=str(name), n=n, seed=seed, size=size) for name in names]
    else:
        names = list(options.split.split("+")) if options.split else [None]
        parts = [_file(options, split, options.limit) for split in names]
    for name, part in zip(names, parts, strict=True):
        splits += [name or "all"] * len(part)
    examples: Sequence[Example] = parts[0].examples
    for part in parts[1:]:
        examples = join(examples, part.examples)
    wanted = target or ("kind" if options.spec == SCENES else None)
    words = tuple(_word(examples[i], wanted) for i in range(len(examples)))
    name = f"scenes-{'+'.join(map(str, names))}" if options.spec == SCENES else parts[0].name
    return LensData(name, examples, words, tuple(splits), "+".join(part.digest for part in parts))


def load_training(
    options: TrainDataOptions, *, seed: int, size: int = SIZE, held_out: bool = True
) -> tuple[Dataset, Dataset | None]:
    """The examples to train on, and those held out, None if they are not wanted.

    Raises:
        UserError: If the data cannot be used, or there is no held-out split.
    """
    if options.spec == SCENES:
        n = _TRAIN_SCENES if options.limit is None else options.limit
        fitted = scenes_dataset(split=options.split or "train", n=n, seed=seed, size=size)
        if not held_out:
            return fitted, None
        return fitted, scenes_dataset(split=options.eval_split or "test", n=options.eval_limit, seed=seed, size=size)
    fitted = _file(options, options.split, options.limit)
    if not held_out:
        return fitted, None
    if options.eval_split is None or options.eval_split == options.split or options.split is None:
        raise UserError(
            f"eval-split must be given with another split for your own data, got split {options.split!r} and "
            f"eval-split {options.eval_split!r}. A lens is scored on examples that it was not made from."
        )
    return fitted, _file(options, options.eval_split, options.eval_limit)


def load_corpus(options: CorpusOptions, spec: str, *, seed: int) -> list[str]:
    """The texts of a latent lens: the paragraphs of a file, or captions of training scenes and the passage of ``smol``.

    Raises:
        UserError: If the file cannot be read or has no text, or no file is given for data that are no scenes.
    """
    if options.corpus is None:
        if spec != SCENES:
            raise UserError("corpus must be given for a latent lens on your own data, got none. Name a text file.")
        captions = [make_scene(i, split="train", seed=seed).caption for i in range(_CORPUS_SCENES)]
        passage = (Path(PARTS) / "passage.txt").read_text(encoding="utf-8")
        return [*_paragraphs(passage), *dict.fromkeys(captions)]
    try:
        text = decode_text(read_file(options.corpus))
    except (OSError, ValueError) as error:
        raise UserError(
            f"corpus must be a readable text file, got {str(options.corpus)!r} ({one_line(error)})."
        ) from error
    found = _paragraphs(text)
    if not found:
        raise UserError(f"corpus must have at least one token, got none in {str(options.corpus)!r}.")
    return found


def digest_of(texts: Sequence[str]) -> str:
    """A hash of some texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def without_picture_marks(text: str) -> str:
    """The text without the placeholder of a picture."""
    return text.replace("<image>", "")


def answered(example: Example) -> Example:
    """The example; one without an answer gets none."""
    return example if example.answer else replace(example, answer="")


def _paragraphs(text: str) -> list[str]:
    found = (re.sub(r"\s+", " ", without_picture_marks(part)).strip() for part in re.split(r"\n\s*\n", text))
    return [part for part in found if part]


def _file(options: DataOptions | TrainDataOptions, split: str | None, limit: int | None) -> Dataset:
    with user_errors(OSError):
        found = load_dataset(
            options.spec, options.images, split=split, limit=limit, targets=(), follow_links=options.follow_links
        )
        bad = check_pictures(found)
    if bad:
        raise UserError(f"{bad[0].reason} It belongs to example {bad[0].id!r}.")
    return found


def _word(example: Example, target: str | None) -> str:
    """The word of the object in focus."""
    if not example.pictures:
        raise UserError(f"example must have a picture, got none in {example.id!r}. Lenses are read at its patches.")
    if example.focus is None or example.focus not in example.boxes:
        raise UserError(
            f"example must have a box in focus, got none in {example.id!r}. Add the columns boxes and focus."
        )
    if target is None:
        return example.focus.strip().lower()
    if target not in example.labels:
        known = ", ".join(example.labels) or "no label"
        raise UserError(
            f"target must be a label of every example, got {target!r} for {example.id!r}, which has {known}."
        )
    return str(example.labels[target]).strip().lower()
