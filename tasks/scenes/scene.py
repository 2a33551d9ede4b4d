"""Scenes: real-world things drawn in colour on a 2 x 2 grid, every fact about them known.

The drawings are glyphs of four icon families that the package ``qtawesome`` ships as fonts (the font files are read,
the package is never imported). One drawing of each noun is held out of training, so "unseen drawing" tells meaning
from template. A scene is a function of (split, seed, index) alone: nothing is stored, and no two splits share one.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tasks.errors import UserError
from tasks.example import Box, Picture

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
# noun -> {family: glyph}; the family that comes last is the drawing held out of training.
NOUNS: dict[str, dict[str, dict[str, str]]] = {
    "animal": {
        "cat": {"md": "cat", "ph": "cat-fill", "fa": "cat"},
        "dog": {"md": "dog", "fa": "dog", "ph": "dog-fill"},
        "fish": {"fa": "fish", "ph": "fish-fill", "md": "fish"},
        "horse": {"fa": "horse", "md": "horse", "ph": "horse-fill"},
        "bird": {"fa": "dove", "ph": "bird-fill", "md": "bird"},
        "bug": {"fa": "bug", "ph": "bug-fill", "ri": "bug-fill", "md": "bug"},
        "spider": {"fa": "spider", "md": "spider"},
    },
    "vehicle": {
        "car": {"fa": "car", "md": "car", "ph": "car-fill", "ri": "car-fill"},
        "bus": {"fa": "bus", "md": "bus", "ri": "bus-fill", "ph": "bus-fill"},
        "truck": {"md": "truck", "ph": "truck-fill", "ri": "truck-fill", "fa": "truck"},
        "train": {"fa": "train", "ph": "train-fill", "ri": "train-fill", "md": "train"},
        "plane": {"fa": "plane", "md": "airplane", "ph": "airplane-fill", "ri": "plane-fill"},
        "rocket": {"fa": "rocket", "md": "rocket", "ri": "rocket-fill", "ph": "rocket-fill"},
        "bicycle": {"fa": "bicycle", "md": "bicycle", "ph": "bicycle-fill"},
    },
    "food": {
        "apple": {"fa": "apple-whole", "md": "food-apple"},
        "cake": {"fa": "cake-candles", "md": "cake", "ph": "cake-fill", "ri": "cake-fill"},
        "cookie": {"fa": "cookie-bite", "md": "cookie", "ph": "cookie-fill"},
        "pizza": {"fa": "pizza-slice", "md": "pizza", "ph": "pizza-fill"},
        "carrot": {"fa": "carrot", "md": "carrot"},
        "egg": {"fa": "egg", "md": "egg"},
        "cheese": {"fa": "cheese", "md": "cheese"},
    },
    "tool": {
        "hammer": {"fa": "hammer", "ri": "hammer-fill", "md": "hammer"},
        "key": {"fa": "key", "md": "key", "ri": "key-fill", "ph": "key-fill"},
        "scissors": {"fa": "scissors", "ph": "scissors-fill", "ri": "scissors-fill", "md": "content-cut"},
        "wrench": {"fa": "wrench", "ph": "wrench-fill", "md": "wrench"},
        "knife": {"md": "knife", "ri": "knife-fill", "ph": "knife-fill"},
        "ruler": {"fa": "ruler", "md": "ruler", "ph": "ruler-fill", "ri": "ruler-fill"},
        "brush": {"fa": "brush", "md": "brush", "ph": "paint-brush-fill", "ri": "brush-fill"},
    },
    "device": {
        "camera": {"fa": "camera", "md": "camera", "ri": "camera-fill", "ph": "camera-fill"},
        "phone": {"fa": "phone", "md": "phone", "ph": "phone-fill", "ri": "phone-fill"},
        "laptop": {"fa": "laptop", "ph": "laptop-fill", "md": "laptop"},
        "radio": {"fa": "radio", "md": "radio", "ri": "radio-fill", "ph": "radio-fill"},
        "printer": {"fa": "print", "md": "printer", "ph": "printer-fill", "ri": "printer-fill"},
        "clock": {"fa": "clock", "md": "clock", "ri": "time-fill", "ph": "clock-fill"},
        "robot": {"fa": "robot", "ri": "robot-fill", "ph": "robot-fill", "md": "robot"},
    },
    "nature": {
        "tree": {"fa": "tree", "ph": "tree-fill", "md": "tree"},
        "leaf": {"fa": "leaf", "md": "leaf", "ph": "leaf-fill", "ri": "leaf-fill"},
        "flower": {"md": "flower", "fa": "spa", "ph": "flower-fill"},
        "cactus": {"md": "cactus", "ri": "cactus-fill"},
        "sun": {"fa": "sun", "md": "white-balance-sunny", "ph": "sun-fill", "ri": "sun-fill"},
        "moon": {"fa": "moon", "ph": "moon-fill", "md": "moon-waning-crescent", "ri": "moon-fill"},
        "cloud": {"fa": "cloud", "md": "cloud", "ph": "cloud-fill", "ri": "cloud-fill"},
    },
}
CATEGORIES = tuple(NOUNS)
KINDS = tuple(kind for kinds in NOUNS.values() for kind in kinds)
CATEGORY_OF = {kind: category for category, kinds in NOUNS.items() for kind in kinds}
DRAWINGS = {kind: drawings for kinds in NOUNS.values() for kind, drawings in kinds.items()}
_FONTS = {
    "fa": "fontawesome6-solid-webfont",
    "md": "materialdesignicons6-webfont",
    "ph": "phosphor",
    "ri": "remixicon",
}
SIZE = 112
_NOISE = 6.0  # standard deviation of the pixel noise, of 255: visible, yet a person never mistakes it for ink


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene: what it is, how it is drawn, and where."""

    kind: str
    colour: str
    place: str
    family: str
    box: Box

    @property
    def category(self) -> str:
        """The superordinate of ``kind``."""
        return CATEGORY_OF[self.kind]


@dataclass(frozen=True)
class Scene:
    """A description from which the picture follows bit for bit.

    ``size`` is the width and height in pixels; boxes are in these pixels.
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
        """Names the pixels: scenes that differ in anything visible differ in this."""
        parts = (self.size, self.objects, self.angles, self.tints, self.background, self.noise_seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def caption(self) -> str:
        """One sentence that names every object, its colour and its place, in reading order."""
        parts = [f"{_article(o.colour)} {o.colour} {o.kind} at the {o.place}" for o in self.objects]
        text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        return text[0].upper() + text[1:] + "."


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def with_article(noun: str) -> str:
    """``noun`` behind its indefinite article."""
    return f"{_article(noun)} {noun}"


def drawing_families(kind: str, split: Split) -> tuple[str, ...]:
    """The icon families that may draw ``kind`` in ``split``: all but the last, or the last alone for ``"unseen"``."""
    families = tuple(DRAWINGS[kind])
    return families[-1:] if split == "unseen" else families[:-1]


def make_scene(
    index: int, *, split: Split = "train", seed: int = 0, size: int = SIZE, n_objects: int | None = None
) -> Scene:
    """The scene number ``index`` of a split: one to four objects of different kinds in the cells of a 2 x 2 grid.

    Args:
        index: Any integer from 0; there is no last scene.
        split: ``"train"`` and ``"test"`` draw from the same drawings, ``"unseen"`` from the held-out ones.
        seed: Another seed gives another data set.
        size: Width and height in pixels; everything scales with it.
        n_objects: How many objects; drawn from one to four where it is None.

    Raises:
        ValueError: If ``split`` is unknown, ``index`` negative, ``size`` below 28, or ``n_objects`` not one to four.
    """
    if split not in ("train", "test", "unseen"):
        raise UserError(f"split must be 'train', 'test' or 'unseen', got {split!r}. Pick one of the three.")
    if index < 0:
        raise UserError(f"index must be >= 0, got {index}. Scenes count from 0.")
    if size < 28:
        raise UserError(f"size must be >= 28 pixels, got {size}. Drawings are not legible below that.")
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
    """The scene as an RGB picture of ``scene.size`` pixels square."""
    rng = np.random.default_rng(scene.noise_seed)
    canvas = Image.new("RGB", (scene.size, scene.size), scene.background)
    for thing, angle, tint in zip(scene.objects, scene.angles, scene.tints, strict=True):
        mask = _stamp(thing.kind, thing.family, round(thing.box.right - thing.box.left))
        mask = mask.rotate(angle, resample=Image.Resampling.BICUBIC)
        canvas.paste(tint, (round(thing.box.left), round(thing.box.top)), mask)
    noisy = np.asarray(canvas, dtype=np.float32) + rng.normal(0.0, _NOISE, (scene.size, scene.size, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@lru_cache(maxsize=8192)
def _stamp(kind: str, family: str, extent: int) -> Image.Image:
    """The glyph as a square mask of ``extent`` pixels, its ink scaled to fill 90 % of the side."""
    glyph = _glyph(kind, family)
    scale = 0.9 * extent / max(glyph.size)
    inked = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))))
    mask = Image.new("L", (extent, extent), 0)
    mask.paste(inked, ((extent - inked.width) // 2, (extent - inked.height) // 2))
    return mask


@lru_cache(maxsize=512)
def _glyph(kind: str, family: str) -> Image.Image:
    font_path, charmap = _font(family)
    character = chr(int(charmap[DRAWINGS[kind][family]], 16))
    font = ImageFont.truetype(str(font_path), 128)
    canvas = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(canvas).text((128, 128), character, font=font, fill=255, anchor="mm")
    bounds = canvas.getbbox()
    if bounds is None:
        raise UserError(f"drawing must hold ink, got an empty glyph for {kind!r} in {family!r}. Reinstall qtawesome.")
    return canvas.crop(bounds)


@lru_cache(maxsize=4)
def _font(family: str) -> tuple[Path, dict[str, str]]:
    try:
        files = distribution("qtawesome").files or []
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "qtawesome must be installed to draw scenes (its fonts are read). Run: pip install qtawesome==1.4.2"
        ) from error
    prefix = _FONTS[family]
    paths = {f.suffix: Path(str(f.locate())) for f in files if f.name.startswith(prefix)}
    return paths[".ttf"], json.loads(paths[".json"].read_text())
