"""Names of the engines. The command line lists them, so this file imports no torch."""

from typing import Literal, get_args

from tasks.errors import UserError

EngineName = Literal["incremental", "full"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def check_engine(name: str) -> None:
    """Check that an engine has this name; raise ``UserError`` if not."""
    if name not in ENGINES:
        raise UserError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}. Both give the same numbers.")
