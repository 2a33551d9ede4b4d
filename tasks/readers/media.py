"""Which values of a row are pictures, and what is not read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from tasks.errors import shown_text
from tasks.example import Picture

PICTURES = ("image", "images")  # the keys that are read
_SHOWN = 5  # keys in a sentence
EMBEDDED = "embedded picture"  # the first words of an embedded picture's name
_NAMES = {
    "image", "images", "img", "imgs", "image_path", "image_paths", "image_file", "image_url", "img_path", "picture",
    "pictures", "photo", "photos", "video", "videos", "video_path", "audio", "audios", "audio_path", "sound",
}  # fmt: skip
_ENDINGS = {
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".npy",
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".ply", ".pcd",
}  # fmt: skip


def given_pictures(value: object) -> list[object]:
    """The pictures in a value: those of a list, or the value itself; null, NaN, ``""`` and empty structs are none."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if not _is_absent(one)] if len(values) <= 1 else list(values)


def picture_name(value: object) -> str:
    """The path of a picture as a row names it; empty if the row only holds its bytes."""
    if isinstance(value, dict):
        value = value.get("path")
    return value if isinstance(value, str) and not value.startswith("data:") else ""


def unread_media(row: Mapping[str, object], read: Iterable[str], names: Iterable[str] = ()) -> str | None:
    """The first key of ``row`` that holds a picture, video or sound but is not among ``read``; None if there is none.

    Args:
        row: The values by key.
        read: The keys that are read.
        names: The paths of the pictures that are read; another key may repeat their file names, and give the
            one of an embedded picture, or a web address that leads to one.
    """
    known = {PurePosixPath(name).name for name in names}
    is_embedded = any(name.startswith(EMBEDDED) for name in known)
    for key, value in row.items():
        if key in read:
            continue
        for one in value if isinstance(value, list) else [value]:
            if _is_absent(one) or (isinstance(one, str) and PurePosixPath(one).name in known):
                continue
            if known and isinstance(one, str) and one.startswith(("http://", "https://")):
                continue
            if is_embedded and one is value and isinstance(one, str) and not one.startswith("data:"):
                continue  # the picture's file name
            # Beside a picture that is read, a text such as "temple" in the column photo is a label.
            kinds = (dict, bytes, Picture) if known else (str, dict, bytes, Picture)
            named = key.lower().replace("-", "_") in _NAMES and isinstance(one, kinds)
            if named or _is_medium(one):
                return key
    return None


def describe_unread(unread: Sequence[tuple[str, int]]) -> str:
    """The keys of a file that are not read, each with its number of rows, in one line; empty if all are.

    Example:
        >>> describe_unread([("height", 12), ("source", 3)])
        'not read: height (12), source (3)'
    """
    keys = ", ".join(f"{shown_text(key, 40)} ({n:,})" for key, n in unread[:_SHOWN])
    more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    return f"not read: {keys}{more}" if unread else ""


def _is_absent(value: object) -> bool:
    if isinstance(value, dict):
        return all(one is None for one in value.values())
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _is_medium(value: object) -> bool:
    if isinstance(value, Picture):
        return True
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes)
    if not isinstance(value, str):
        return False
    is_path = len(value) < 1000 and not any(mark in value for mark in " \n")
    written = value.startswith(("data:image/", "data:video/", "data:audio/"))
    return written or (is_path and PurePosixPath(value).suffix.lower() in _ENDINGS)
