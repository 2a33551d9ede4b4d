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
NOUNS: dict[str, dict[str, dict[str, str]]] = json.loads(
    Path(__file__).with_name("nouns.json").read_text(encoding="utf-8")
)
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
    return paths[".ttf"], json.loads(paths[".json"].read_text(encoding="utf-8"))
