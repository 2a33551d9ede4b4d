"""Questions about a scene in LLaVA-1.5's response formats: a word or phrase, an option letter, yes or no, a caption.

``ask`` makes one question of a family; ``with_caption`` replaces the picture by its caption, as a control for what the
language model answers from words.
"""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from tasks.errors import UserError
from tasks.example import Example
from tasks.prompts import CAPTION, LETTER, SHORT
from tasks.scenes.drawings import CATEGORIES, KINDS
from tasks.scenes.scene import COLOURS, PLACES, Scene, SceneObject, article

Family = Literal["what", "colour", "where", "count", "exists", "category", "choice"]
FAMILIES: tuple[Family, ...] = get_args(Family)
_OPTION_LETTERS = "ABCD"
# The accuracy of a uniform guess among the possible answers.
CHANCE: dict[Family, float] = {
    "what": 1 / len(KINDS),
    "colour": 1 / len(COLOURS),
    "where": 1 / len(PLACES),
    "count": 1 / 4,
    "exists": 1 / 2,
    "category": 1 / len(CATEGORIES),
    "choice": 1 / len(_OPTION_LETTERS),
}


def ask(scene: Scene, family: Family, *, seed: int = 0) -> Example:
    """A question of ``family`` about ``scene``; the seed determines the object, distractors and order of options.

    Raises:
        UserError: If the family is unknown.

    Example:
        >>> from tasks.scenes.scene import make_scene
        >>> ask(make_scene(0, split="test"), "colour").answer
        'green'
    """
    if family not in FAMILIES:
        raise UserError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}.")
    rng = np.random.default_rng([seed, FAMILIES.index(family), scene.noise_seed])
    index = int(rng.integers(len(scene.objects)))
    question, answer = _question(scene, scene.objects[index], family, rng)
    return about(scene, index, id=f"{scene.id}/{family}", question=question, answer=answer, family=family)


def about(scene: Scene, index: int, *, id: str, question: str, answer: str, family: str) -> Example:  # noqa: A002
    """An example about object ``index`` of a scene, with its labels and boxes."""
    return Example(
        id=id,
        pictures=(scene.picture,),
        question=question,
        answer=answer,
        group=scene.id,
        split=scene.split,
        labels=scene.labels(index),
        boxes=scene.boxes,
        focus=f"object{index}",
        family=family,
        captions=(scene.caption,),
    )


def _question(scene: Scene, thing: SceneObject, family: Family, rng: np.random.Generator) -> tuple[str, str]:
    match family:
        case "what":
            return f"What is the object at the {thing.place}?\n{SHORT}", thing.kind
        case "colour":
            return f"What color is the {thing.kind}?\n{SHORT}", thing.colour
        case "where":
            return f"Where is the {thing.kind}?\n{SHORT}", thing.place
        case "count":
            return f"How many objects are there?\n{SHORT}", str(len(scene.objects))
        case "exists":
            kinds = [o.kind for o in scene.objects]
            there = bool(rng.integers(2))
            others = [k for k in KINDS if k not in kinds]
            kind = thing.kind if there else others[int(rng.integers(len(others)))]
            return f"Is there {article(kind)} {kind}?\n{SHORT}", "yes" if there else "no"
        case "category":
            options = f"{', '.join(CATEGORIES[:-1])} or {CATEGORIES[-1]}"
            return f"What is the object at the {thing.place}: {options}?\n{SHORT}", thing.category
        case "choice":
            others = [k for k in KINDS if k != thing.kind]
            choices = [thing.kind, *(others[int(i)] for i in rng.choice(len(others), size=3, replace=False))]
            order = [int(i) for i in rng.permutation(4)]
            lines = "\n".join(f"{letter}. {choices[i]}" for letter, i in zip(_OPTION_LETTERS, order, strict=True))
            letter = _OPTION_LETTERS[order.index(0)]
            return f"What is the object at the {thing.place}?\n{lines}\n{LETTER}", letter


def ask_for_caption(scene: Scene) -> Example:
    """The request for a one-sentence caption, answered by ``scene.caption``.

    Example:
        >>> from tasks.scenes.scene import make_scene
        >>> ask_for_caption(make_scene(0)).question
        'Provide a one-sentence caption for the provided image.'
    """
    example = ask(scene, "what")
    return replace(example, id=f"{scene.id}/caption", question=CAPTION, answer=scene.caption, family="caption")


def with_caption(example: Example, caption: str) -> Example:
    """The same question about a caption instead of a picture.

    Example:
        >>> from tasks.scenes.scene import make_scene
        >>> scene = make_scene(0)
        >>> with_caption(ask(scene, "what"), scene.caption).pictures
        ()
    """
    question = f"{caption}\n{example.question}"
    return replace(example, id=f"{example.id}/text", pictures=(), question=question, boxes={}, focus=None)
