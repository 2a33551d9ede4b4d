"""The one exception type for invalid input, and how values of the user's data appear in text.

Raise ``UserError`` for anything that a user can correct. A command prints its message and exits with status 2.
"""

import errno
import io
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 399  # characters of a message: one sentence that fits a few lines of a terminal
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the user's share, for one file
_WORD = 160  # characters without a space in it; a path is shorter
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control characters, invisible marks, half surrogate pairs, line separators
_JOINERS = "\u200c\u200d"  # invisible marks that words of some languages and emoji need


class UserError(ValueError):
    """Invalid input. The message says which argument, what it must be, what it was, and what to do.

    Control characters are escaped and long values are cut in the middle, whatever the message quotes.

    Example:
        >>> raise UserError("layers must be in [0, 4), got 7.")
        Traceback (most recent call last):
        tasks.errors.UserError: layers must be in [0, 4), got 7.
    """

    def __init__(self, message: str) -> None:
        short = re.sub(rf"\S{{{_WORD},}}", lambda found: cut(found[0], _WORD), str(message))
        super().__init__(cut(printable(short, keep="\n"), _LONGEST))


@contextmanager
def user_errors(*errors: type[Exception]) -> Iterator[None]:
    """Re-raise ``errors`` from a library as ``UserError`` with the same message on one line.

    Args:
        errors: Exception types that mean invalid input inside the block, for example ``OSError`` around a write.
    """
    try:
        yield
    except UserError:
        raise
    except errors as error:
        raise UserError(one_line(error)) from error


def is_full(error: Exception) -> bool:
    """True for an error of a disk, or of a share of it, that has no room; safetensors raises its own kind of error.

    Example:
        >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError(errno.ENAMETOOLONG, "too long"))
        (True, False)
    """
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or any(f"(os error {full})" in str(error) for full in _FULL)


def one_line(error: Exception) -> str:
    """The message of ``error`` on one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str, keep: str = "") -> str:
    r"""The text with control characters, escapes and half surrogate pairs as ``\x1b`` or ``\ud83d``.

    Everything from the user's data that is printed, drawn or written into a report passes through here.

    Args:
        text: Any text.
        keep: Control characters to leave as they are.

    Example:
        >>> printable("red\x1b[0m")
        'red\\x1b[0m'
    """
    if text.isascii() and text.isprintable():
        return text
    kept = keep + _JOINERS
    return "".join(
        one if one in kept or unicodedata.category(one) not in _HIDDEN else one.encode("unicode_escape").decode("ascii")
        for one in text
    )


def print_any_text() -> None:
    r"""Let ``sys.stdout`` and ``sys.stderr`` write characters that their encoding lacks as ``\u989c``.

    Every program that prints text from the user's data calls this first; the work is done before most of it is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams, and those of some tests, take any text
            stream.reconfigure(errors="backslashreplace")


def cut(text: str, longest: int) -> str:
    """The text, its middle replaced by ``...`` if it is longer than ``longest`` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 3) // 2
    return f"{text[:head]}...{text[len(text) - (longest - 3 - head) :]}"


def shown(value: object, longest: int = 80) -> str:
    """A value for a message as Python writes it, cut."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of too many digits, values nested too deeply
        text = f"a {type(value).__name__}"
    return cut(printable(text), longest)


def shown_text(text: str, longest: int = 80) -> str:
    """A text for a message without quotes, printable and cut."""
    return cut(printable(text), longest)
