"""Drawings of nouns: glyphs of four icon families, read from the font files of the package ``qtawesome``.

One drawing of each noun is held out of training: a probe that recognises it has learned more than a template.
"""

import json
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tasks.errors import UserError

# category -> noun -> {icon family: glyph}; the last family of each noun is the drawing held out of training.
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
_FONTS = {"fa": "fontawesome6-solid-webfont", "md": "materialdesignicons6-webfont", "ph": "phosphor", "ri": "remixicon"}


@lru_cache(maxsize=8192)
def icon(kind: str, family: str, extent: int) -> Image.Image:
    """The drawing of ``kind`` in an icon family, as a mask of ``extent`` x ``extent`` pixels that it fills to 90 %."""
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
        raise UserError(f"glyph must not be empty, got none for {kind!r} in {family!r}. Reinstall qtawesome.")
    return canvas.crop(bounds)


@lru_cache(maxsize=4)
def _font(family: str) -> tuple[Path, dict[str, str]]:
    try:
        files = distribution("qtawesome").files or []
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "qtawesome must be installed to draw scenes. Run: pip install qtawesome==1.4.2"
        ) from error
    paths = {f.suffix: Path(str(f.locate())) for f in files if f.name.startswith(_FONTS[family])}
    return paths[".ttf"], json.loads(paths[".json"].read_text())
