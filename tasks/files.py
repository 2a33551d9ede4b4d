"""Files and folders that users or data name: a name may be longer than a file system allows, or that of a named pipe.

Only regular files are opened, because opening a named pipe waits for ever.
"""

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def not_regular(path: str | Path) -> str | None:
    """What a path leads to if it is no regular file, such as ``"a named pipe"``; None for a file.

    Raises:
        OSError: If nothing is there.
    """
    mode = os.stat(path).st_mode
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def check_regular(path: str | Path) -> None:
    """Check that a path leads to a regular file.

    Raises:
        OSError: If it does not, or nothing is there.
    """
    if (kind := not_regular(path)) is not None:
        raise OSError(f"it is {kind}, not a file")


def read_file(path: str | Path) -> bytes:
    r"""The bytes of a regular file.

    Raises:
        OSError: If it is no regular file, is missing or cannot be read.

    Example:
        >>> _ = Path("words.txt").write_text("a")
        >>> read_file("words.txt")
        b'a'
    """
    check_regular(path)
    return Path(path).read_bytes()


def real_path(path: str | Path) -> Path:
    """The path without links. Before Python 3.13, ``Path.resolve`` raises ``RuntimeError`` for a link to itself.

    Example:
        >>> Path("loop").symlink_to("loop")
        >>> real_path("loop").name
        'loop'
    """
    return Path(os.path.realpath(path))


def is_file(path: Path) -> bool:
    """True if there is a file. Before Python 3.14, ``Path.is_file`` raises ``OSError`` for names that are too long.

    Example:
        >>> is_file(Path("x" * 5000))
        False
    """
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """True if there is a folder. Before Python 3.14, ``Path.is_dir`` raises ``OSError`` for names that are too long.

    Example:
        >>> is_folder(Path("x" * 5000)), is_folder(Path("."))
        (False, True)
    """
    return os.path.isdir(path)


def expanded(name: str | Path) -> Path:
    """The path with ``~`` replaced by the home folder; unchanged if there is no such user.

    Example:
        >>> expanded("~no such user/runs").parts
        ('~no such user', 'runs')
    """
    return Path(os.path.expanduser(name))
