"""Options and subcommands that several commands have, with one help text each."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from records.manifest import write_atomically
from records.settings import DtypeName
from records.terminal import refuse
from tasks.errors import UserError, user_errors

INPUT, RUN = "The model and the data", "The run"  # panels of --help

Model = Annotated[
    str,
    typer.Option(
        help="`smol`, `smol-stage1`, a checkpoint folder, a Hugging Face id, `random:llava-1.5-7b`, or `random:tiny`.",
        rich_help_panel=INPUT,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hugging Face id.", rich_help_panel=INPUT)
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="The folder that picture paths in the file are relative to. [default: the file's own folder]",
        rich_help_panel=INPUT,
    ),
]
Preprocess = Annotated[
    Literal["pad", "hf"],
    typer.Option(
        help="`pad` to a square as LLaVA-1.5 was trained, or crop as Hugging Face's processor.", rich_help_panel=INPUT
    ),
]
Device = Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`.", rich_help_panel=RUN)]
Dtype = Annotated[
    DtypeName | None,
    typer.Option(help="Of the model. [default: float32 on a CPU, else the checkpoint's]", rich_help_panel=RUN),
]
Attn = Annotated[Literal["sdpa", "eager"], typer.Option(help="Attention implementation.", rich_help_panel=RUN)]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the run in the directory instead of resuming it.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print size and time, and stop.", rich_help_panel=RUN)
]


def add_report(app: typer.Typer, command: str) -> None:
    """Gives ``app`` the subcommand ``report``.

    Args:
        app: The command line.
        command: Its name, for messages.
    """

    @app.command()
    def report(
        folders: Annotated[list[Path], typer.Argument(help="Finished runs, of other commands too.", metavar="RUN...")],
        out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    ) -> None:
        """Write one HTML page about runs, to be explored in a browser: it opens from disk and needs no network."""
        from figures.report import build_report

        try:
            with user_errors(ValueError, OSError):
                page = build_report(folders)
                out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(out, page.html.encode())
        except UserError as error:
            refuse(command, error)
        typer.echo(f"report: {out} ({page.size / 1e6:.1f} MB)")
        if page.left_out:
            typer.echo(f"{page.left_out} of {page.shown + page.left_out} examples left out, to keep it small")
