"""``probe-sweep``: the command line of the probe sweep. It parses, calls ``run_sweep``, and prints."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from probes.config import RUN, DataOptions, Pool, Probe, ProbeOptions, SiteOptions, SweepConfig, Tokens
from records import cli_arguments as arguments
from records.settings import DtypeName, ModelOptions
from records.terminal import RunByDefault, progress_bar, refuse, table_console, with_config
from tasks.errors import UserError

COMMAND = "probe-sweep"

app = typer.Typer(cls=RunByDefault, add_completion=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)

_WHAT, _WHERE, _READ, _RUN = arguments.INPUT, "Where to look", "What to read", arguments.RUN


@app.command(cls=with_config(COMMAND, frozenset({"site", "target"})))
def run(
    model: arguments.Model = "smol",
    revision: arguments.Revision = None,
    data: Annotated[
        str, typer.Option(help="`scenes`, or a JSONL or Parquet file of your own.", rich_help_panel=_WHAT)
    ] = "scenes",
    images: arguments.Images = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Examples to fit and cross-validate on. [default: test for scenes, else all]", rich_help_panel=_WHAT
        ),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            help="Examples only scored, never fitted on; `none` for none. [default: unseen for scenes, else none]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="At most so many examples to fit on. [default: 200 for scenes, else all]", rich_help_panel=_WHAT
        ),
    ] = None,
    transfer_limit: Annotated[
        int | None,
        typer.Option(
            help="At most so many examples to score only. [default: a third of limit for scenes, else all]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Go on without examples whose picture cannot be read; they are counted and listed in skipped.csv.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Activation to read: `resid_post`, `vision:resid_post`, `projector:out`, `blocks.12.hook_mlp_out`; "
            "repeatable. [default: resid_post of both towers, the projector's stages, the language model's input]",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers for sites named without one, as `0-31` or `3,5,9`. [default: all]", rich_help_panel=_WHERE
        ),
    ] = None,
    tokens: Annotated[
        Tokens,
        typer.Option(
            help="`auto` reads facts about one object on the patches of its box where there are boxes, other facts on "
            "all image tokens.",
            rich_help_panel=_WHERE,
        ),
    ] = "auto",
    pool: Annotated[
        Pool,
        typer.Option(
            help="How the tokens become one activation; `none` only with `--tokens last`.", rich_help_panel=_WHERE
        ),
    ] = "mean",
    preprocess: arguments.Preprocess = "pad",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Label to read; repeatable. [default for scenes: kind, category, colour, place, count]",
            rich_help_panel=_READ,
        ),
    ] = None,
    probe: Annotated[
        Probe,
        typer.Option(
            help="Which probe; `logistic` becomes ridge regression on continuous targets.", rich_help_panel=_READ
        ),
    ] = "logistic",
    folds: Annotated[
        int, typer.Option(help="Folds of the grouped, stratified cross-validation.", rich_help_panel=_READ)
    ] = 5,
    controls: Annotated[
        bool,
        typer.Option(
            help="Shuffled labels, a control task, raw pixels, and the same probes on a randomly initialised model.",
            rich_help_panel=_READ,
        ),
    ] = True,
    maps: Annotated[
        int | None,
        typer.Option(
            help="Examples on which every patch is read by itself, to be painted over the picture; 0 for none. "
            "[default: 12, or fewer where there are few examples]",
            rich_help_panel=_READ,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of scenes, folds, controls and resampling.", rich_help_panel=_RUN)] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows that run together.", rich_help_panel=_RUN)] = 16,
    device: arguments.Device = "cpu",
    dtype: arguments.Dtype = None,
    store_dtype: Annotated[
        DtypeName | None, typer.Option(help="Of the activations on disk. [default: the model's]", rich_help_panel=_RUN)
    ] = None,
    attn: arguments.Attn = "sdpa",
    out: Annotated[
        Path | None, typer.Option(help="The run directory. [default: runs/MODEL-DATA]", rich_help_panel=_RUN)
    ] = None,
    overwrite: arguments.Overwrite = False,
    dry_run: arguments.DryRun = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file whose keys are the names of these options; the command line wins.",
            rich_help_panel=_RUN,
        ),
    ] = None,
) -> None:
    """Show, layer by layer, what linear probes can read from a LLaVA-1.5 model's activations.

    Probes are fitted on frozen activations of the vision tower, the projector and the language model, and
    cross-validated so that no picture stands on both sides. Every score comes with an interval and with controls.
    A run that was killed goes on where it stopped when it is started again.

    **Examples**

    `probe-sweep` - the embedded model on the embedded scenes

    `probe-sweep --target colour --layers 0-9 --limit 200 --out runs/colour`

    `probe-sweep --data photos.jsonl --images photos --target animal --folds 3`

    `probe-sweep show runs/colour` - print a run's table again

    `probe-sweep report runs/colour` - one web page to explore it

    `accelerate launch --multi_gpu --num_processes 2 -m probes.cli --model smol` - share the capture (on CPUs too)
    """
    settings = SweepConfig(
        model=ModelOptions(model, revision, device, dtype, attn, preprocess),
        data=DataOptions(data, images, split, transfer, limit, transfer_limit, skip_bad),
        sites=SiteOptions(tuple(site or ()), layers, tokens, pool, store_dtype),
        probing=ProbeOptions(tuple(target or ()), probe, folds, controls, maps),
        seed=seed,
        batch_size=batch_size,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    try:
        _sweep(settings, sys.argv)
    except UserError as error:
        refuse(COMMAND, error)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A run directory that probe-sweep wrote.", metavar="RUN")],
) -> None:
    """Print the table of a finished run again, and where its figure is."""
    from figures import draw_run
    from probes.sweep import figure_paths
    from records.tables import read_results

    try:
        results = read_results(folder, RUN)
        paths = figure_paths(folder)
        if not paths.png.is_file():
            paths = draw_run(folder)[0]
    except UserError as error:
        refuse(COMMAND, error)
    _print(results, paths.png, folder)


arguments.add_report(app, COMMAND)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``probe-sweep``."""
    app(args=None if arguments is None else list(arguments), prog_name=COMMAND)


def _sweep(settings: SweepConfig, command: Sequence[str]) -> None:
    from probes.sweep import Estimate, run_sweep  # torch and transformers take seconds, and --help needs neither

    is_main = os.environ.get("RANK", "0") == "0"

    def on_note(line: str) -> None:
        if is_main:
            typer.echo(line)

    with progress_bar(is_main=is_main) as on_progress:
        outcome = run_sweep(settings, command=command, on_progress=on_progress, on_note=on_note)
    if outcome is None or not is_main:
        return
    if isinstance(outcome, Estimate):
        typer.echo(str(outcome))
        return
    if outcome.skipped:
        on_note(f"{outcome.skipped} examples left out, see {outcome.folder / 'skipped.csv'}")
    _print(outcome.results, outcome.figure.png, outcome.folder)


def _print(results: Any, figure: Path, folder: Path) -> None:
    from probes.report_table import render_summary

    table_console().print(render_summary(results))
    typer.echo(f"table:  {folder / 'results.csv'}")
    typer.echo(f"figure: {figure}")


if __name__ == "__main__":
    main()
