"""The one exception type for invalid input.

Raise ``UserError`` for anything that a user can correct. A command prints its message and exits with status 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Invalid input. The message says which argument, what it must be, what it was, and what to do.

    Example:
        >>> raise UserError("layers must be in [0, 4), got 7.")
        Traceback (most recent call last):
        tasks.errors.UserError: layers must be in [0, 4), got 7.
    """


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


def one_line(error: Exception) -> str:
    """The message of ``error`` on one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
