"""The folder of the pictures of a table: paths must stay inside it, and equal files count as one picture."""

import hashlib
import os
import reprlib
from collections import Counter
from functools import partial
from pathlib import Path

from tasks.errors import UserError
from tasks.example import Picture
from tasks.pictures import not_regular, open_picture, picture_size


class PictureFolder:
    """The pictures in one folder, by relative path."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.stats: dict[str, tuple[int, int]] = {}  # relative path -> bytes (-1: no file), time of change
        self._keys: dict[str, str] = {}  # relative path -> the first path with equal bytes
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def add(self, name: object, where: str) -> str:
        """Check a relative path and return it."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(
                f"image must be a path, got {reprlib.repr(name)} in {where}. Give it relative to the image folder."
            )
        if name not in self.stats:
            resolved = Path(os.path.realpath(self.root / name))  # follows links, which must not leave the folder either
            if os.path.isabs(name) or ".." in Path(name).parts or not resolved.is_relative_to(self.root):
                raise UserError(
                    f"image must stay inside the image folder, got {name!r} in {where}. Move the file into the folder."
                )
            try:
                stat = resolved.stat()
                regular = not_regular(resolved) is None
                self.stats[name] = (stat.st_size, stat.st_mtime_ns) if regular else (-1, 0)
            except (OSError, ValueError):  # ValueError: a name that no file system can hold
                self.stats[name] = (-1, 0)  # ``check_pictures`` reports it
        return name

    def find_equal_files(self) -> None:
        """Give equal files equal keys; only files of equal size are read."""
        sizes = Counter(size for size, _ in self.stats.values())
        first: dict[str, str] = {}
        for name, (size, _) in self.stats.items():
            if size <= 0 or sizes[size] == 1:
                continue
            try:
                with (self.root / name).open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:  # opening the picture raises the error
                continue
            self._keys[name] = first.setdefault(content, name)

    def key(self, name: str) -> str:
        """The key of the picture; equal files have equal keys after ``find_equal_files``."""
        return self._keys.get(name, name)

    def picture(self, name: str) -> Picture:
        """The picture, opened on demand."""
        return Picture(key=self.key(name), open=partial(open_picture, self.root / name))

    def size(self, name: str) -> tuple[int, int] | None:
        """Width and height of the upright picture in pixels, from its header; None if it cannot be read."""
        if name not in self._sizes:
            try:
                self._sizes[name] = picture_size(self.root / name)
            except UserError:
                self._sizes[name] = None  # opening the picture raises the error
        return self._sizes[name]
