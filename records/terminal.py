"""What the commands have in common at the terminal: a default command, a configuration file, progress, and refusals."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from records.progress import OnProgress, ProgressBars
from records.settings import read_yaml
from tasks.errors import UserError

_OWN_FLAGS = ("--install-completion", "--show-completion")
_NARROWEST = 120  # columns of a table when the output is no terminal


class RunByDefault(TyperGroup):
    """``COMMAND --model smol`` means ``COMMAND run --model smol``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts ``run`` before arguments that name no command."""
        if not args or (args[0] not in self.commands and args[0] not in _OWN_FLAGS):
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


def with_config(command: str, repeatable: frozenset[str]) -> type[TyperCommand]:
    """A command that takes the settings of ``--config`` as defaults, so that the command line wins over them.

    Args:
        command: Its name, for messages.
        repeatable: Options that may be given more than once; a file may give one value or a list.
    """

    class WithConfig(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            path = _config_path(args)
            if path is not None:
                options = {str(parameter.name) for parameter in self.params} - {"config", "help"}
                try:
                    settings = read_yaml(path, options, command)
                except UserError as error:
                    refuse(command, error)
                for name in repeatable & settings.keys():
                    if not isinstance(settings[name], list):
                        settings[name] = [settings[name]]
                ctx.default_map = settings
            return list(super().parse_args(ctx, args))

    return WithConfig


def _config_path(args: Sequence[str]) -> Path | None:
    """What follows the last ``--config``; None where nothing does, which the parser will say."""
    found = None
    for position, argument in enumerate(args):
        if argument == "--config" and position + 1 < len(args):
            found = Path(args[position + 1])
        elif argument.startswith("--config="):
            found = Path(argument.removeprefix("--config="))
    return found


@contextmanager
def progress_bar(*, is_main: bool = True) -> Iterator[OnProgress]:
    """Progress bars, for commands that are not converted yet."""
    with closing(ProgressBars(is_main=is_main)) as bars:
        if not bars.shown:
            from transformers.utils import logging

            logging.disable_progress_bar()
        yield bars


def table_console() -> Console:
    """Where a table goes: stdout, wide enough for it also where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(_NARROWEST, console.width))


def refuse(command: str, error: UserError) -> NoReturn:
    """Prints the sentence on one line and ends with status 2."""
    typer.echo(f"{command}: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(2) from error
