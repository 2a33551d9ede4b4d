"""Questions about a scene in LLaVA-1.5's response formats: one word or phrase, option letter, yes or no, caption.

``ask`` writes one question of a family; ``with_caption`` turns it into the same question about the caption, with no
picture, so that what the language model can do with words is told apart from what it can do with the image.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from tasks.errors import UserError
from tasks.example import Example
from tasks.prompts import CAPTION, LETTER, SHORT
from tasks.scenes.scene import CATEGORIES, COLOURS, KINDS, PLACES, Scene, SceneObject, with_article

Family = Literal["what", "colour", "where", "count", "exists", "category", "choice"]
FAMILIES: tuple[Family, ...] = get_args(Family)
OPTION_LETTERS = "ABCD"
# What a guess is worth: one of the answers the family can have.
CHANCE: dict[Family, float] = {
    "what": 1 / len(KINDS),
    "colour": 1 / len(COLOURS),
    "where": 1 / len(PLACES),
    "count": 1 / 4,
    "exists": 1 / 2,
    "category": 1 / len(CATEGORIES),
    "choice": 1 / len(OPTION_LETTERS),
}


def ask(scene: Scene, family: Family, *, seed: int = 0) -> Example:
    """One question of ``family`` about ``scene``; object, distractors and option order follow from the seed.

    Raises:
        ValueError: If the family is unknown.
    """
    rng = np.random.default_rng([seed, FAMILIES.index(family) if family in FAMILIES else 0, scene.noise_seed])
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    question, answer = _question(scene, thing, family, rng)
    return Example(
        id=f"{scene.id}/{family}",
        pictures=(scene.picture,),
        question=question,
        answer=answer,
        group=scene.id,
        split=scene.split,
        labels={
            "kind": thing.kind,
            "category": thing.category,
            "colour": thing.colour,
            "place": thing.place,
            "count": len(scene.objects),
            "drawing": thing.family,
        },
        boxes={f"object{i}": o.box for i, o in enumerate(scene.objects)},
        focus=f"object{index}",
        family=family,
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
            return f"Is there {with_article(kind)}?\n{SHORT}", "yes" if there else "no"
        case "category":
            options = ", ".join(CATEGORIES[:-1]) + " or " + CATEGORIES[-1]
            return f"What is the object at the {thing.place}: {options}?\n{SHORT}", thing.category
        case "choice":
            others = [k for k in KINDS if k != thing.kind]
            options_ = [thing.kind, *(others[int(i)] for i in rng.choice(len(others), size=3, replace=False))]
            order = rng.permutation(4)
            lines = "\n".join(f"{letter}. {options_[int(i)]}" for letter, i in zip(OPTION_LETTERS, order, strict=True))
            letter = OPTION_LETTERS[[int(i) for i in order].index(0)]
            return f"What is the object at the {thing.place}?\n{lines}\n{LETTER}", letter
    raise UserError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}. Pick one of them.")


def ask_all(scene: Scene, families: Sequence[Family] = FAMILIES, *, seed: int = 0) -> list[Example]:
    """One question of each family about ``scene``, in the order given."""
    return [ask(scene, family, seed=seed) for family in families]


def ask_for_caption(scene: Scene) -> Example:
    """The request for a one-sentence caption, answered by ``scene.caption``."""
    base = ask(scene, "what")
    return replace(base, id=f"{scene.id}/caption", question=CAPTION, answer=scene.caption, family="caption")


def with_caption(example: Example, caption: str) -> Example:
    """The same question asked of a caption instead of a picture (a text-only example)."""
    return replace(
        example, id=f"{example.id}/text", pictures=(), question=f"{caption}\n{example.question}", boxes={}, focus=None
    )
