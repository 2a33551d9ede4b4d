"""A POPE-style benchmark of your own pictures: files in POPE's layout from lists of the objects in each picture.

Each picture gets as many questions about absent objects as about present ones, three at most. Absent objects are drawn
at random, or are the most frequent of all pictures (popular), or those seen most often beside the present ones
(adversarial).
It is called POPE-style because the pictures and objects are not POPE's.

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355, section 5.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.benchmarks.layout.rows import Row, json_lines, picture_of, read_rows
from tasks.errors import UserError, shown, user_errors
from tasks.example import Picture
from tasks.prompts import SHORT
from tasks.readers.media import EMBEDDED
from tasks.readers.picture_folder import PictureFolder
from tasks.scenes.scene import MOST_SCENES, SIZE, article, make_scene

CATEGORIES = {
    "adversarial": 0,
    "random": 10_000_000,
    "popular": 20_000_000,
}  # first id of each, less 1, as in POPE's file
MOST_ASKED = 3  # present objects of a picture, as in POPE
_COLUMNS = ("id", "objects")
_FIRST_SCENE = 300_000  # on these the embedded checkpoints were not trained


class Annotated(NamedTuple):
    """A picture's file name, the objects in it, and a function that returns its bytes."""

    name: str
    objects: tuple[str, ...]
    content: Callable[[], bytes]


def scene_pictures(n: int, *, seed: int = 0, size: int = SIZE) -> list[Annotated]:
    """``n`` scenes of the split ``test``, ``size`` pixels wide.

    Raises:
        UserError: If ``n`` is not in [1, 1,000,000].
    """
    if not 1 <= n <= MOST_SCENES:
        raise UserError(f"pictures must be in [1, {MOST_SCENES:,}], got {n}.")
    found = []
    for index in range(n):
        scene = make_scene(_FIRST_SCENE + index, split="test", seed=seed, size=size)
        found.append(
            Annotated(f"{scene.id}.png", tuple(thing.kind for thing in scene.objects), partial(_png, scene.picture))
        )
    return found


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.open().save(buffer, format="PNG")
    return buffer.getvalue()


def listed_pictures(
    path: Path, images: Path | None = None, *, limit: int | None = None, follow_links: bool = False
) -> list[Annotated]:
    """The pictures of a JSONL file with the columns ``image`` and ``objects``: names, or objects with ``name``.

    Each picture is opened once. Embedded ones become PNG files that are named after their bytes.

    Args:
        path: The file.
        images: The folder of the pictures; None for that of the file.
        limit: The largest number of pictures.
        follow_links: Whether links in the folder may lead out of it.

    Raises:
        UserError: If a row has another layout, or a picture cannot be read.
    """
    folder = PictureFolder(images or path.parent, follow_links=follow_links)
    return [_listed(row, folder) for row in read_rows(path)[:limit]]


def pope_files(
    pictures: Sequence[Annotated], *, vocabulary: Sequence[str] = (), ending: str = " in the image?", seed: int = 0
) -> dict[str, bytes]:
    r"""The question file and the label files in POPE's layout, by relative name; pictures belong in ``val2014``.

    Args:
        pictures: The pictures; those without objects, or with all of them, are left out.
        vocabulary: All objects that are asked about; those of the pictures if empty.
        ending: How a question ends after the object.
        seed: Of the order of present objects and of the random absent ones.

    Raises:
        UserError: If no question can be asked.

    Example:
        >>> two = [Annotated("a.png", ("cat",), bytes), Annotated("b.png", ("dog",), bytes)]
        >>> sorted(pope_files(two))[0], pope_files(two)["llava_pope_test.jsonl"].count(b"\n")
        ('coco/coco_pope_adversarial.json', 12)
    """
    counts = Counter(name for picture in pictures for name in set(picture.objects))
    names = sorted(set(vocabulary) | set(counts))
    beside = Counter(
        (one, other) for p in pictures for one in set(p.objects) for other in set(p.objects) if one != other
    )
    questions, files = [], {}
    for category, start in CATEGORIES.items():
        rng = np.random.default_rng([seed, start])
        labels: list[dict[str, Any]] = []
        for picture in pictures:
            present, absent = _asked(picture, category, names, counts, beside, rng)
            for name, label in _in_turn(present, absent):
                text = f"Is there {article(name)} {name}{ending}"
                labels.append({"question_id": len(labels) + 1, "image": picture.name, "text": text, "label": label})
        questions += [
            {"question_id": start + row["question_id"], "image": row["image"], "text": f"{row['text']}\n{SHORT}",
             "category": category} for row in labels
        ]  # fmt: skip
        files[f"coco/coco_pope_{category}.json"] = json_lines(labels)
    if not questions:
        raise UserError("pictures must have objects, and miss others, got none to ask about. Give more pictures.")
    return {"llava_pope_test.jsonl": json_lines(questions), **files}


def write_pope(
    folder: Path,
    pictures: Sequence[Annotated],
    *,
    vocabulary: Sequence[str] = (),
    ending: str = " in the image?",
    seed: int = 0,
) -> None:
    """Write a POPE-style benchmark into a folder: the files of ``pope_files``, then the pictures in ``val2014``.

    The question file is written last, so that a folder that has it is complete.

    Raises:
        UserError: If the folder exists and is not empty, or two pictures have one name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out must be a new or empty folder, got {str(folder)!r}. Choose another name.")
    names = [picture.name for picture in pictures]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"picture must have a name of its own, got {twice!r} twice. Rename one.")
    files = pope_files(pictures, vocabulary=vocabulary, ending=ending, seed=seed)
    with user_errors(OSError):
        for picture in pictures:
            _put(folder / "val2014" / picture.name, picture.content())
        for name, content in sorted(files.items()):
            _put(folder / name, content)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _asked(
    picture: Annotated,
    category: str,
    names: Sequence[str],
    counts: Counter[str],
    beside: Counter[tuple[str, str]],
    rng: np.random.Generator,
) -> tuple[list[str], list[str]]:
    """Present and absent objects to ask about, equally many."""
    inside = sorted(set(picture.objects))
    outside = [name for name in names if name not in inside]
    n = min(len(inside), len(outside), MOST_ASKED)
    present = [inside[int(i)] for i in rng.permutation(len(inside))[:n]]
    order = [outside[int(i)] for i in rng.permutation(len(outside))]  # ties are broken at random
    if category == "popular":
        order.sort(key=lambda name: -counts[name])
    elif category == "adversarial":
        order.sort(key=lambda name: -sum(beside[one, name] for one in inside))
    return present, order[:n]


def _in_turn(present: Sequence[str], absent: Sequence[str]) -> Iterator[tuple[str, str]]:
    for one, other in zip(present, absent, strict=True):
        yield one, "yes"
        yield other, "no"


def _listed(row: Row, folder: PictureFolder) -> Annotated:
    objects = row.values.get("objects")
    found = (
        [one.get("name") if isinstance(one, dict) else one for one in objects] if isinstance(objects, list) else [None]
    )
    if not all(isinstance(one, str) and one for one in found):
        raise UserError(f"objects must be a list of names, got {shown(objects)} in {row.where}.")
    picture = picture_of(row, folder, read=_COLUMNS)
    if picture is None:
        raise UserError(f"row must have a picture under 'image', got none in {row.where}.")
    if folder.is_missing(picture):
        raise UserError(f"picture must exist, got {picture.key!r} in {row.where}. Check the path and --images.")
    picture.open()  # bytes that are no picture are not copied
    if picture.key.startswith(EMBEDDED):
        return Annotated(f"{picture.key.replace(' ', '-')}.png", tuple(map(str, found)), partial(_png, picture))
    path = folder.root / picture.key
    return Annotated(path.name, tuple(map(str, found)), path.read_bytes)
