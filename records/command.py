"""The command line of a command, made from dataclasses: sub-commands, ``--config``, errors, Ctrl-C and output.

    def main(arguments: Sequence[str] | None = None) -> None:
        run_command("probe-sweep", (Subcommand("run", SweepConfig, _run), Subcommand("show", Show, _show)), arguments,
                    about="What the command does, with examples.")

    def _run(config: SweepConfig, terminal: Terminal) -> FinishedRun | Estimate | None:
        from probes.sweep import run_sweep  # torch takes seconds to import, and --help does not need it

        return run_sweep(config, **terminal._asdict())  # the result is printed

The first sub-command is the default. ``report`` and ``--version`` are added to every command. Invalid input is one line
on stderr and exit status 2; Ctrl-C is one line and 130.
"""

import contextlib
import difflib
import errno
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Union

import tyro
from tyro import conf

from records.options import Option, check_texts, options_of
from records.progress import OnProgress, ProgressBars
from tasks.errors import UserError, one_line, print_any_text, printable, user_errors
from tasks.readers.parse import decode_text, parse_yaml

# Errors of a path or a disk, which a user can correct wherever they occur.
_OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
    errno.EMFILE,
)  # fmt: skip
_NARROWEST = 160  # columns of a table if the output is not a terminal


class Terminal(NamedTuple):
    """The arguments that a command passes to its run."""

    command: tuple[str, ...]
    """The command line, for the manifest."""
    on_progress: OnProgress
    """Shows progress on rank 0 of a terminal."""
    on_note: Callable[[str], None]
    """Prints a line on rank 0."""


class Subcommand(NamedTuple):
    """A sub-command: a dataclass of options, and the function that takes it."""

    name: str
    options: type
    run: Callable[[Any, Terminal], Any]
    """Its result is printed: a ``FinishedRun`` as its table and files, other values with ``str``, None not at all."""
    about: str = ""
    """One sentence for ``--help``; the first line of the dataclass's docstring if empty."""


@dataclass(frozen=True)
class Show:
    """Print the table of a finished run and the paths of its figures."""

    folder: Annotated[conf.Positional[Path], conf.arg(metavar="RUN")]
    """A run directory of this command."""


@dataclass(frozen=True)
class Report:
    """Write one HTML page about runs. It opens from disk and needs no network."""

    folders: Annotated[conf.Positional[tuple[Path, ...]], conf.arg(metavar="RUN...", help_behavior_hint="")]
    """Finished runs of any command."""
    out: Path = Path("report.html")
    """The file to write."""


def run_command(
    name: str, subcommands: Sequence[Subcommand], arguments: Sequence[str] | None = None, *, about: str
) -> None:
    """Parse the command line, run the sub-command, and print its result.

    The first sub-command is the default; ``arguments`` None takes the command line of the process. ``about`` is the
    text above the options of ``--help``: what the command does, and examples.

    Raises:
        SystemExit: With status 2 for invalid input, 130 after Ctrl-C, and 0 after ``--help``.
    """
    print_any_text()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = (*subcommands, Subcommand("report", Report, _report))
    is_main = os.environ.get("RANK", "0") == "0"
    os.environ["MPLBACKEND"] = "agg"  # commands write files; another environment's backend may not exist here
    with contextlib.closing(ProgressBars(is_main=is_main)) as bars:
        try:
            if arguments[:1] == ["--version"]:
                from importlib.metadata import version

                print(f"{name} {version('laccolith')}")
                return
            subcommand, options = _parse(name, known, arguments, about)
            if not (bars.shown or isinstance(options, Show | Report)):
                from transformers.utils import logging

                logging.disable_progress_bar()  # bars of other libraries
            terminal = Terminal((name, *arguments), bars, bars.note if is_main else lambda line: None)
            result = subcommand.run(options, terminal)
            bars.close()
            if result is not None and is_main:
                _print(result)
        except UserError as error:
            bars.close()
            _refuse(name, error)
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE:
                raise
            bars.close()
            _refuse(name, UserError(f"files must be readable and writable, got {one_line(error)}."))
        except KeyboardInterrupt as interrupt:
            bars.close()
            advice = str(interrupt) or "Start the same command again to go on where it stopped."
            print(f"{name}: interrupted. {advice}", file=sys.stderr)
            raise SystemExit(130) from interrupt


def _refuse(name: str, error: UserError) -> NoReturn:
    print(f"{name}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    raise SystemExit(2) from error


def _parse(
    command: str, subcommands: Sequence[Subcommand], arguments: Sequence[str], about: str
) -> tuple[Subcommand, Any]:
    """The chosen sub-command and its options."""
    default = subcommands[0]
    chosen = next((sub for sub in subcommands if arguments[:1] == [sub.name]), default)
    given = list(arguments[1:] if arguments[:1] == [chosen.name] else arguments)
    # tyro accepts no `--no-` flag as the first argument unless the sub-command is named. Help and completion scripts
    # cover all sub-commands if none is named.
    general = any(argument in ("-h", "--help") or argument.startswith("--tyro-") for argument in arguments)
    explicit = [] if general and arguments[:1] != [chosen.name] else [chosen.name]
    if chosen.options not in (Show, Report):
        options = {option.name: option for option in options_of(chosen.options())}
        known = [
            f"--{no}{option.name}" for option in options.values() for no in (("", "no-") if option.paired else ("",))
        ]
        for argument in given:
            spelt = argument.partition("=")[0].replace("_", "-")
            if spelt.startswith("--") and not spelt.startswith("--tyro-") and spelt not in ("--help", *known):
                raise UserError(_unknown(f"option must be one of {command}", argument, known))
        given = [*_tokens(given, options, command), *given]
    # A union of the sub-commands, from which tyro makes the parser, the help and the completion.
    union: Any = Union[tuple(_member(sub) for sub in subcommands)]  # noqa: UP007
    errors = io.StringIO()
    printed = io.TextIOWrapper(_HelpPage(), encoding=sys.stdout.encoding, errors="backslashreplace")
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(printed):
            parsed = tyro.cli(
                union,
                prog=command,
                description=f"{about}\n\n{_listed(subcommands)}",
                args=[*explicit, *given],
                default=default.options(),
                config=(conf.OmitArgPrefixes, conf.OmitSubcommandPrefixes, conf.CascadeSubcommandArgs),
            )
    except SystemExit as end:
        if not end.code:
            printed.seek(0)
            print(_plain_panels(printed.read()), end="")
            raise
        raise UserError(f"{_sentence(errors.getvalue())} See {command} --help.") from None
    check_texts(parsed)
    if hasattr(parsed, "check_given"):  # by names, because an option may be given its default value
        parsed.check_given(
            {
                argument.partition("=")[0].removeprefix("--").replace("_", "-")
                for argument in given
                if argument[:2] == "--"
            }
        )
    return chosen, parsed


def _listed(known: Sequence[Subcommand]) -> str:
    """The sub-commands with a sentence each, for ``--help``."""
    widest = max(len(sub.name) for sub in known)
    lines = [
        f"  {sub.name:<{widest}}  {_about(sub)}{' (the default)' if number == 0 else ''}"
        for number, sub in enumerate(known)
    ]
    return "\n".join(["Subcommands, each with its own --help:", *lines])


def _about(sub: Subcommand) -> str:
    return (sub.about or str(sub.options.__doc__)).partition("\n")[0]


def _member(sub: Subcommand) -> Any:
    """A sub-command as a member of the union."""
    default = {} if sub.options in (Show, Report) else {"default": sub.options()}
    return Annotated[
        sub.options,
        conf.subcommand(sub.name, description=sub.about or str(sub.options.__doc__).partition("\n")[0], **default),
    ]


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f"{what}, got {given!r}. " + (f"Did you mean {close[0]!r}?" if close else "See --help.")


class _HelpPage(io.BytesIO):
    """Text that tyro formats as in its help."""

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def _plain_panels(text: str) -> str:
    """Remove the line about the sub-command that tyro adds to every panel of the help, and an extra rule at the top."""
    note = r"[^\n]*\(source subcommand: [^\n]*\n"
    return re.sub(note, "", re.sub(rf"((?:╭[^\n]*| -+ *)\n){note}[^\n]*\n", r"\1", text))


def _sentence(box: str) -> str:
    """One sentence for tyro's error box: the text between its title and its first rule."""
    from rich.text import Text

    lines = [line.strip("│╭╮╰╯ ") for line in Text.from_ansi(box).plain.strip().splitlines()]
    # Without box characters the title is on a line of its own, with a rule below.
    below = itertools.dropwhile(lambda line: set(line) <= set("─-"), lines[1:])
    message = " ".join(itertools.takewhile(lambda line: not set(line) <= set("─-"), below)).rstrip(".") + "."
    if found := re.match(r"invalid choice '(.*)' for argument '--(\S+)'\. Expected one of \((.*)\)", message):
        choices = sorted(set(re.findall(r"'([^']*)'", found[3])) - {"None"})
        return f"{found[2]} must be one of {', '.join(choices)}, got {found[1]!r}."
    if found := re.match(r"Error parsing --(\S+):.*\b(int|float|INT|FLOAT)\b.*'(.*)'", message):
        return f"{found[1]} must be {'a whole number' if found[2].lower() == 'int' else 'a number'}, got {found[3]!r}."
    # For a value that a dataclass rejects, show the dataclass's message, without the field name that tyro adds.
    return re.sub(r"^Error parsing [\w.-]*\w: ", "", message) if not message.startswith("Error parsing --") else message


def _tokens(arguments: Sequence[str], options: Mapping[str, Option], command: str) -> list[str]:
    """The settings of the ``--config`` file as arguments, except for options on the command line."""
    path = None
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            path = Path(arguments[position + 1])
        elif argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
    if path is None:
        return []
    on_line = {
        argument.partition("=")[0].replace("_", "-").removeprefix("--").removeprefix("no-")
        for argument in arguments
        if argument.startswith("--")
    }
    tokens: list[str] = []
    for name, value in read_yaml(path, set(options) - {"config"}, command).items():
        if name in on_line or value is None:
            continue
        option, values = options[name], value if isinstance(value, list) else [value]
        if isinstance(option.value, bool) != isinstance(value, bool):
            must = "must be" if isinstance(option.value, bool) else "must not be"
            raise UserError(f"{name} {must} true or false, got {value!r} in {str(path)!r}.")
        if isinstance(value, bool):
            tokens += [f"--{name}"] if value else [f"--no-{name}"] if option.paired else []
        elif option.joined:
            tokens.append(f"--{name}={','.join(map(str, values))}")
        elif len(values) != 1 and not isinstance(option.value, tuple):
            raise UserError(f"{name} must be one value, got {value!r} in {str(path)!r}.")
        else:
            tokens += [f"--{name}={item}" for item in values]
    return tokens


def read_yaml(path: Path, options: set[str], command: str) -> dict[str, Any]:
    """The settings in a YAML file, by option name. Its keys must be among ``options``, with hyphens or underscores.

    Raises:
        UserError: If the file cannot be read, is not a mapping, or has an unknown or repeated key.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        loaded = parse_yaml(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"config must be a readable YAML file, got {str(path)!r} ({one_line(error)}).") from error
    if not isinstance(loaded, dict | None):
        raise UserError(
            f"config must be a mapping of options, got a {type(loaded).__name__} in {str(path)!r}. Write key: value."
        )
    settings: dict[str, Any] = {}
    for key, value in (loaded or {}).items():
        name = str(key).replace("_", "-")
        if name not in options:
            raise UserError(_unknown(f"config key must be an option of {command}", str(key), sorted(options)))
        if name in settings:
            raise UserError(f"config key must be given once, got {str(key)!r} twice in {str(path)!r}. Remove one.")
        settings[name] = value
    return settings


def _report(options: Report, terminal: Terminal) -> str:
    """Write the page; return the lines to print."""
    from figures.report import build_report
    from records.manifest import write_atomically

    with user_errors(OSError, ValueError):
        page = build_report(options.folders)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, page.html.encode())
    left_out = f"\n{page.left_out} of {page.shown + page.left_out} examples left out to keep it small"
    return f"report: {options.out} ({page.size / 1e6:.1f} MB){left_out if page.left_out else ''}"


def _print(result: Any) -> None:
    """Print a finished run as its notes, its table and its files, and anything else as text."""
    if isinstance(result, str):  # returns before the next import, which loads torch
        print(printable(result, keep="\n"))
        return
    from rich.console import Console

    from records.narrow import fit_width, printable_table
    from records.run import FinishedRun

    if not isinstance(result, FinishedRun):
        print(printable(str(result), keep="\n"))
        return

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(_NARROWEST, console.width))
    for note in result.notes:
        print(printable(note, keep="\n"))
    for part in fit_width(printable_table(result.summary), console.width):
        console.print(part)
    print(f"table:  {result.folder / result.table}")
    for figure in result.figures:
        print(f"figure: {figure}")
    if result.timings:
        print(f"time:   {result.timings}")
