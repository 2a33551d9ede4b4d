"""A folder of pictures that a table refers to: no path may leave it, and equal files are known as one picture."""

import hashlib
import os
import reprlib
from functools import partial
from pathlib import Path

from PIL import Image

from tasks.errors import UserError
from tasks.example import Picture
from tasks.pictures import open_picture

_EXIF_ORIENTATION = 0x0112


class PictureFolder:
    """The pictures that rows name: inside one folder, and equal files known as the same picture."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.stats: dict[str, tuple[int, int]] = {}  # relative path -> bytes (-1: missing), time of change
        self._same: dict[str, str] = {}
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def add(self, name: object, where: str) -> str:
        """The name, checked."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(
                f"image must be a path, got {reprlib.repr(name)} in {where}. Give it relative to the image folder."
            )
        if name not in self.stats:
            # Checked by text and after following links: neither may lead out.
            resolved = Path(os.path.realpath(self.root / name))
            if os.path.isabs(name) or ".." in Path(name).parts or not resolved.is_relative_to(self.root):
                raise UserError(
                    f"image must stay inside the image folder, got {name!r} in {where}. Move the file into the folder."
                )
            try:
                facts = resolved.stat()
                self.stats[name] = (facts.st_size, facts.st_mtime_ns)
            except OSError:
                self.stats[name] = (-1, 0)  # reported by name when pictures are checked, where it may be skipped
        return name

    def unite(self) -> None:
        """Find equal files; only files of equal size are read."""
        by_size: dict[int, list[str]] = {}
        for name, (size, _) in self.stats.items():
            by_size.setdefault(size, []).append(name)
        for size, names in by_size.items():
            seen: dict[str, str] = {}
            for name in names:
                if len(names) == 1 or size <= 0:
                    continue
                try:
                    with (self.root / name).open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError:
                    continue  # an unreadable file equals no other; opening it will say why
                self._same[name] = seen.setdefault(content, name)

    def key(self, name: str) -> str:
        """Names the pixels: equal files have equal keys, once ``unite`` has looked."""
        return self._same.get(name, name)

    def picture(self, name: str) -> Picture:
        """The picture, opened on demand."""
        return Picture(key=self.key(name), open=partial(open_picture, self.root / name))

    def size(self, name: str) -> tuple[int, int] | None:
        """Width and height of the upright picture in pixels, from its header; None if it has none."""
        if name not in self._sizes:
            try:
                with Image.open(self.root / name) as image:
                    turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
                    self._sizes[name] = (image.height, image.width) if turned else (image.width, image.height)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                self._sizes[name] = None  # opening it will say why
        return self._sizes[name]
