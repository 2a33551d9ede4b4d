"""Whether a path exists, for names from data and files of others: a name that no file system can hold does not."""

import os
from pathlib import Path


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
