"""The questions of ``inference-cost``: scenes with every family of question, or the rows of a file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from interventions.token_plans.config import DEFAULT_LIMIT, QuestionOptions
from tasks.dataset import join
from tasks.errors import UserError, user_errors
from tasks.example import Example
from tasks.readers.load_dataset import check_pictures, load_dataset
from tasks.scenes.questions import FAMILIES, ask
from tasks.scenes.scene import MOST_SCENES, SIZE, Split, make_scene

SCENES = "scenes"
_FIRST_SCENE = 200_000  # on these the embedded checkpoints were not trained; comparisons are scored on them too


@dataclass(frozen=True)
class Questions:
    """The questions of a run in their order, and a hash of everything in them that affects results."""

    name: str
    examples: Sequence[Example]
    digest: str


def load_questions(options: QuestionOptions, *, seed: int, size: int = SIZE) -> Questions:
    """The questions of the settings; scenes are ``size`` pixels wide.

    Raises:
        UserError: If the data cannot be used, or a question has no answer.
    """
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit must be >= 1, got {options.limit}. Leave it out for the default.")
    if options.spec == SCENES:
        return _scenes(options, seed, size)
    parts = []
    with user_errors(OSError):
        for split in options.split.split("+") if options.split else [None]:
            found = load_dataset(
                options.spec, options.images, split=split, limit=options.limit, targets=(),
                follow_links=options.follow_links,
            )  # fmt: skip
            bad = check_pictures(found)
            if bad:
                raise UserError(f"{bad[0].reason} It belongs to example {bad[0].id!r}.")
            parts.append(found)
    examples = parts[0].examples
    for part in parts[1:]:
        examples = join(examples, part.examples)
    for index in range(len(examples)):
        if not examples[index].answer.strip():
            raise UserError(f"question must have an answer, got none in {examples[index].id!r}. Add the column answer.")
    return Questions(parts[0].name, examples, "+".join(part.digest for part in parts))


def _scenes(options: QuestionOptions, seed: int, size: int) -> Questions:
    splits: list[Any] = (options.split or "test+unseen").split("+")
    for split in splits:
        if split not in get_args(Split) or splits.count(split) > 1:
            raise UserError(f"split must be 'train', 'test', 'unseen' or several joined by '+', got {options.split!r}.")
    n = options.limit or DEFAULT_LIMIT
    if n > MOST_SCENES:
        raise UserError(f"limit must be at most {MOST_SCENES:,} for scenes, got {n:,}. Ask for fewer.")
    examples = []
    for split in splits:
        for number in range(n):
            scene = make_scene(_FIRST_SCENE + number // len(FAMILIES), split=split, seed=seed, size=size)
            examples.append(replace(ask(scene, FAMILIES[number % len(FAMILIES)], seed=seed), split=split))
    described = repr([(e.id, e.question, e.answer, e.split) for e in examples]).encode()
    digest = hashlib.sha256(described)
    digest.update(examples[0].pictures[0].open().tobytes())  # depends on fonts and the version of Pillow
    return Questions(f"scenes-{'+'.join(splits)}", examples, digest.hexdigest()[:16])
