"""The error of what a user gave and what cannot be used: a command prints its one sentence and ends with status 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):  # noqa: N818 - says what the user hears, not what the code did
    """What the user gave cannot be used; the message is one sentence for the user, who needs no traceback."""


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turns ``errors``, raised while the user's input is read, into ``BadInput`` with the same message on one line."""
    try:
        yield
    except BadInput:
        raise
    except errors as error:
        raise BadInput(" ".join(str(error).split()) or type(error).__name__) from error
