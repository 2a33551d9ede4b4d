"""Scenes: one to four coloured drawings on a 2 x 2 grid, made from (split, seed, index)."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from tasks.errors import UserError
from tasks.example import Box, Label, Picture
from tasks.scenes.drawings import CATEGORY_OF, DRAWINGS, KINDS, icon

Split = Literal["train", "test", "unseen"]

PLACES = ("top left", "top right", "bottom left", "bottom right")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (245, 225, 50),
    "green": (60, 190, 75),
    "blue": (60, 110, 240),
    "purple": (165, 80, 215),
    "white": (240, 240, 240),
}
MOST_SCENES = 1_000_000  # of one data set: more are a slip of the keyboard
SIZE = 112
_LARGEST = 4096  # pixels; a scene then takes 500 MB while it is drawn
_NOISE = 6.0  # standard deviation of the pixel noise, of 255: visible, but much weaker than a drawing


@dataclass(frozen=True)
class SceneObject:
    """One object in a scene: its noun, colour and place, the icon family that draws it, and its box."""

    kind: str
    colour: str
    place: str
    family: str
    box: Box

    @property
    def category(self) -> str:
        """The category of ``kind``, for example ``"animal"``."""
        return CATEGORY_OF[self.kind]


@dataclass(frozen=True)
class Scene:
    """All that determines the pixels of a picture; ``size`` is its width and height in pixels.

    Example:
        >>> scene = make_scene(0, split="test")
        >>> scene.objects[0].colour, scene.objects[0].kind, scene.objects[0].place
        ('orange', 'cactus', 'top left')
        >>> scene.picture.open().size
        (112, 112)
    """

    id: str
    split: str
    size: int
    objects: tuple[SceneObject, ...]
    angles: tuple[float, ...]
    tints: tuple[tuple[int, int, int], ...]
    background: tuple[int, int, int]
    noise_seed: int

    @property
    def picture(self) -> Picture:
        """The picture, rendered each time it is opened (2 ms at 112 px)."""
        return Picture(key=f"scene:{self.digest}", open=lambda: render(self))

    @property
    def digest(self) -> str:
        """A hash of all that determines the pixels."""
        parts = (self.size, self.objects, self.angles, self.tints, self.background, self.noise_seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def caption(self) -> str:
        """One sentence that names every object, its colour and its place, in reading order."""
        parts = [f"{article(o.colour)} {o.colour} {o.kind} at the {o.place}" for o in self.objects]
        text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        return text[0].upper() + text[1:] + "."

    @property
    def boxes(self) -> dict[str, Box]:
        """The box of each object, named ``object0``, ``object1``, ... in reading order."""
        return {f"object{i}": thing.box for i, thing in enumerate(self.objects)}

    def labels(self, index: int) -> dict[str, Label]:
        """The labels of object ``index``; control tasks give each ``control_type`` one random label.

        Source: Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv 1909.03368.
        """
        thing = self.objects[index]
        return {
            "kind": thing.kind,
            "category": thing.category,
            "colour": thing.colour,
            "place": thing.place,
            "drawing": thing.family,
            "count": len(self.objects),
            "control_type": f"{thing.kind}/{thing.family}",
        }


def article(noun: str) -> str:
    """The indefinite article of ``noun``."""
    return "an" if noun[0] in "aeiou" else "a"


def drawing_families(kind: str, split: Split) -> tuple[str, ...]:
    """The icon families of ``kind`` in ``split``: the last one for ``"unseen"``, else all others."""
    families = tuple(DRAWINGS[kind])
    return families[-1:] if split == "unseen" else families[:-1]


def make_scene(
    index: int, *, split: Split = "train", seed: int = 0, size: int = SIZE, n_objects: int | None = None
) -> Scene:
    """Scene number ``index`` of a split: one to four objects of different kinds in the cells of a 2 x 2 grid.

    Args:
        index: From 0, without an upper limit.
        split: ``"train"`` and ``"test"`` use the same drawings, ``"unseen"`` the held-out ones.
        seed: Another seed gives another data set.
        size: Width and height in pixels.
        n_objects: The number of objects; None draws one to four.

    Raises:
        UserError: If ``split`` is unknown, ``index`` negative, or ``size`` not in [28, 4096] or ``n_objects`` in [1, 4].

    Example:
        >>> [thing.kind for thing in make_scene(0, n_objects=2).objects]
        ['brush', 'plane']
    """
    if split not in ("train", "test", "unseen"):
        raise UserError(f"split must be 'train', 'test' or 'unseen', got {split!r}.")
    if index < 0:
        raise UserError(f"index must be >= 0, got {index}.")
    if size < 28:
        raise UserError(f"size must be >= 28 pixels, got {size}. Smaller drawings are not legible.")
    if size > _LARGEST:
        raise UserError(f"size must be at most {_LARGEST} pixels, got {size}. Scenes have no finer details.")
    if n_objects is not None and not 1 <= n_objects <= 4:
        raise UserError(f"n_objects must be in [1, 4], got {n_objects}. A scene has four cells.")
    digest = hashlib.sha256(f"{split}/{seed}/{index}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    drawn = int(rng.integers(1, 5))
    n_objects = drawn if n_objects is None else n_objects
    cells = sorted(int(c) for c in rng.choice(4, size=n_objects, replace=False))
    kinds = [KINDS[int(k)] for k in rng.choice(len(KINDS), size=n_objects, replace=False)]
    colours = [tuple(COLOURS)[int(c)] for c in rng.integers(0, len(COLOURS), size=n_objects)]
    objects, angles, tints = [], [], []
    half, unit = size / 2, size / SIZE
    for cell, kind, colour in zip(cells, kinds, colours, strict=True):
        families = drawing_families(kind, split)
        family = families[int(rng.integers(len(families)))]
        extent = float(rng.uniform(34, 48)) * unit
        left = (cell % 2) * half + float(rng.uniform(0, half - extent))
        top = (cell // 2) * half + float(rng.uniform(0, half - extent))
        box = Box(round(left, 2), round(top, 2), round(left + extent, 2), round(top + extent, 2))
        objects.append(SceneObject(kind, colour, PLACES[cell], family, box))
        angles.append(round(float(rng.uniform(-15, 15)), 2))
        jitter = rng.integers(-20, 21, size=3)
        r, g, b = (int(np.clip(c + j, 0, 255)) for c, j in zip(COLOURS[colour], jitter, strict=True))
        tints.append((r, g, b))
    red, green, blue = (int(v) for v in rng.integers(0, 61, size=3))
    return Scene(
        id=f"{split}-{seed}-{index}" + (f"-{n_objects}" if n_objects != drawn else ""),
        split=split,
        size=size,
        objects=tuple(objects),
        angles=tuple(angles),
        tints=tuple(tints),
        background=(red, green, blue),
        noise_seed=int(rng.integers(2**31)),
    )


def render(scene: Scene) -> Image.Image:
    """The picture of a scene in RGB, ``scene.size`` pixels square."""
    rng = np.random.default_rng(scene.noise_seed)
    canvas = Image.new("RGB", (scene.size, scene.size), scene.background)
    for thing, angle, tint in zip(scene.objects, scene.angles, scene.tints, strict=True):
        mask = icon(thing.kind, thing.family, round(thing.box.right - thing.box.left))
        mask = mask.rotate(angle, resample=Image.Resampling.BICUBIC)
        canvas.paste(tint, (round(thing.box.left), round(thing.box.top)), mask)
    noisy = np.asarray(canvas, dtype=np.float32) + rng.normal(0.0, _NOISE, (scene.size, scene.size, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
