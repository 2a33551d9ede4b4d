"""The pictures of a table: files in one folder, or embedded bytes. Equal files count as one picture."""

import base64
import binascii
import hashlib
import os
import reprlib
from collections import Counter
from functools import partial
from pathlib import Path

from tasks.errors import UserError
from tasks.example import Picture
from tasks.files import not_regular, real_path
from tasks.pictures import open_picture, picture_size
from tasks.readers.media import EMBEDDED

_DATA = "data:"  # begins a picture that is written as text


class PictureFolder:
    """The pictures in one folder, by relative path, and pictures that rows hold themselves.

    Args:
        root: The folder.
        follow_links: Whether links inside the folder may lead out of it.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        if "\0" in str(root):
            raise UserError(f"images must be a folder, got {str(root)!r}. Check the path.")
        self.root = real_path(root)
        self.follow_links = follow_links
        self.stats: dict[str, tuple[int, int]] = {}  # relative path -> bytes (-1: no file), time of change
        self._keys: dict[str, str] = {}  # relative path -> the first path with equal bytes
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._parents: dict[str, bool] = {}  # relative folder -> whether it is inside the root and no link

    def read(self, value: object, where: str) -> Picture:
        """The picture of a value: a path, ``data:image/...;base64,...``, bytes, or ``{"bytes": ..., "path": ...}``.

        Args:
            value: As it stands in the row.
            where: The row in messages.

        Raises:
            UserError: If it is none of these, or a path that leaves the folder.
        """
        if isinstance(value, dict):  # as the Hub and ``datasets`` write pictures into Parquet
            content = value.get("bytes")
            value = value.get("path") if content is None else content
        if isinstance(value, bytes):
            return _embedded(value)
        return self.picture(self.add(value, where))

    def add(self, name: object, where: str) -> str:
        """Check a path or a picture written as text, and return it; a path relative to the folder.

        Raises:
            UserError: If it is neither, or leaves the folder.
        """
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(
                f"image must be a path, got {reprlib.repr(name)} in {where}. Give it relative to the image folder."
            )
        if name.startswith(_DATA):
            _decoded(name, where)
            return name
        if name in self.stats:
            return name
        if "://" in name[:12]:
            raise UserError(f"image must be a file, got the address {name!r} in {where}. Download it first.")
        if os.path.isabs(name):
            inside = os.path.relpath(name, self.root)
            if inside.startswith(".."):
                raise UserError(
                    f"image must stay inside the image folder, got {name!r} in {where}, an absolute path that is not "
                    f"in {str(self.root)!r}. Give it relative to the folder, or name another one with --images."
                )
            name = inside
        if ".." in Path(name).parts:
            raise UserError(
                f"image must stay inside the image folder, got {name!r} in {where}. Move the file into the folder."
            )
        path = self._resolved(name)
        if path is None:
            raise UserError(
                f"image must stay inside the image folder, got {name!r} in {where}, a link that leads out of it. "
                "Add --follow-links to follow links."
            )
        try:
            stat = os.stat(path)
            regular = not_regular(path) is None
            self.stats[name] = (stat.st_size, stat.st_mtime_ns) if regular else (-1, 0)
        except (OSError, ValueError):  # ValueError: a name that no file system can hold
            self.stats[name] = (-1, 0)  # ``check_pictures`` reports it
        return name

    def _resolved(self, name: str) -> str | None:
        """The path of a file; None if links lead out of the folder and are not followed."""
        path = os.path.join(self.root, name)
        if self.follow_links:
            return path
        parent = os.path.dirname(name)
        if parent not in self._parents:  # most files share a few folders, and resolving one takes many system calls
            self._parents[parent] = os.path.realpath(self.root / parent) == os.path.normpath(self.root / parent)
        if self._parents[parent] and not os.path.islink(path):
            return path
        return path if real_path(path).is_relative_to(self.root) else None

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
        """The picture of a path or a text that ``add`` returned, opened on demand."""
        if name.startswith(_DATA):
            return _embedded(_decoded(name, "the row"))
        name = os.path.relpath(name, self.root) if os.path.isabs(name) else name
        return Picture(key=self.key(name), open=partial(open_picture, self.root / name))

    def is_missing(self, picture: Picture) -> bool:
        """True if there is no regular file under the picture's path."""
        return self.stats.get(picture.key, (0, 0))[0] < 0

    def size(self, picture: Picture | str) -> tuple[int, int] | None:
        """Width and height of the upright picture in pixels, from its header; None if it cannot be read."""
        picture = self.picture(picture) if isinstance(picture, str) else picture
        if picture.key not in self._sizes:
            assert isinstance(picture.open, partial)  # made by this class
            try:
                self._sizes[picture.key] = picture_size(*picture.open.args)
            except UserError:
                self._sizes[picture.key] = None  # opening the picture raises the error
        return self._sizes[picture.key]


def _embedded(content: bytes) -> Picture:
    name = f"{EMBEDDED} {hashlib.sha256(content).hexdigest()[:16]}"
    return Picture(key=name, open=partial(open_picture, content, name))


def _decoded(text: str, where: str) -> bytes:
    """The bytes of a picture written as ``data:image/png;base64,...``."""
    head, comma, body = text.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not begin with data:image/...;base64,")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError(
            f"image must be a path or base64 data, got {text[:30]!r}... in {where} ({error}). Write it again."
        ) from error
