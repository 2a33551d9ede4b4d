"""``patch-sweep``: the command line of the patch sweep. It parses, calls ``run_patch_sweep``, and prints."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from records import cli_arguments as arguments
from records.settings import ModelOptions
from records.terminal import RunByDefault, progress_bar, refuse, table_console, with_config
from tasks.errors import UserError, user_errors

COMMAND = "patch-sweep"
_REPEATABLE = frozenset({"site", "tokens", "source", "target", "metric", "noise_seed"})
# Options that only some operations take: option -> (name in the operation's own options, the operations).
_OWN = {
    "direction": ("direction", ("patch", "attribute")),
    "ablation": ("kind", ("ablate",)),
    "hidden": ("visible", ("skip",)),
    "steer-file": ("", ("steer",)),
    "steer-name": ("direction", ("steer",)),
    "alpha": ("alpha", ("steer",)),
    "unit": ("unit", ("steer",)),
    "donor": ("donor", ("transplant",)),
    "with-head": ("head", ("transplant",)),
    "with-projector": ("projector", ("transplant",)),
}
Op = Literal["patch", "ablate", "knockout", "skip", "steer", "attribute", "transplant"]

app = typer.Typer(cls=RunByDefault, add_completion=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)

_WHAT, _WHERE, _HOW, _RUN = arguments.INPUT, "Where to intervene", "What to do there", arguments.RUN


@app.command(cls=with_config(COMMAND, _REPEATABLE))
def run(
    model: arguments.Model = "smol",
    revision: arguments.Revision = None,
    data: Annotated[
        str,
        typer.Option(
            help="`scenes`, or a JSONL or Parquet file with the columns clean, corrupt (pictures), question, answer, "
            "foil.",
            rich_help_panel=_WHAT,
        ),
    ] = "scenes",
    images: arguments.Images = None,
    pair: Annotated[
        str,
        typer.Option(
            help="What differs between the scenes of a pair: `kind`, `colour`, `place` or `drawing`.",
            rich_help_panel=_WHAT,
        ),
    ] = "colour",
    split: Annotated[
        str | None, typer.Option(help="Where scenes come from. [default: test]", rich_help_panel=_WHAT)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="At most so many pairs. [default: 100 for scenes, else all]", rich_help_panel=_WHAT),
    ] = None,
    corruption: Annotated[
        Literal["pair", "blank", "noise"],
        typer.Option(
            help="The corrupt run: the pair's other picture, a blank one, or noise on the image embeddings.",
            rich_help_panel=_WHAT,
        ),
    ] = "pair",
    noise_scale: Annotated[
        float | None,
        typer.Option(
            help="Of the noise, in standard deviations of the embeddings. [default: 3]", rich_help_panel=_WHAT
        ),
    ] = None,
    noise_seed: Annotated[
        list[int] | None,
        typer.Option(help="A draw of the noise; repeatable, results are means. [default: 0]", rich_help_panel=_WHAT),
    ] = None,
    op: Annotated[Op, typer.Option(help="The operation.", rich_help_panel=_HOW)] = "patch",
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Activation to change: `resid_pre`, `z`, `vision:resid_post`, `projector:out`; repeatable. "
            "[default: resid_pre; for ablate attn_out and mlp_out; for steer resid_post]",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="As `0-31` or `3,5,9`. [default: all]", rich_help_panel=_WHERE)
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Layers changed together: an odd number around each layer, `up-to`, `onward`, or `together`. "
            "[default: 1; 5 for knockout, onward for skip, up-to for transplant]",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            help="Group of positions: `image`, `object`, `question`, `last`, `text`, `all`, `answer`, `patch(2,3)`, "
            "`image-object`, or `patches` for each patch; for knockouts `image->last`; repeatable. "
            "[default: image, question, last]",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", help="Of knockouts: what is no longer seen; repeatable.", rich_help_panel=_WHERE),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--to", help="Of knockouts: who no longer sees it; repeatable.", rich_help_panel=_WHERE),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="For q, k, v, z and knockouts: `all` for each on its own, `0,3-5`, or `0+3` together.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    direction: Annotated[
        Literal["denoise", "noise"] | None,
        typer.Option(
            help="patch, attribute: clean into the corrupt run, or corrupt into the clean. [default: denoise]",
            rich_help_panel=_HOW,
        ),
    ] = None,
    ablation: Annotated[
        Literal["zero", "mean", "resample"] | None,
        typer.Option(help="ablate: what takes the place. [default: mean]", rich_help_panel=_HOW),
    ] = None,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="skip: nothing sees the skipped positions there.", rich_help_panel=_HOW)
    ] = False,
    steer_file: Annotated[
        Path | None, typer.Option(help="steer: a safetensors file of directions.", rich_help_panel=_HOW)
    ] = None,
    steer_name: Annotated[
        str | None, typer.Option(help="steer: which of them. [default: direction]", rich_help_panel=_HOW)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="steer: how far, below 0 for away. [default: 1]", rich_help_panel=_HOW)
    ] = None,
    unit: Annotated[
        Literal["norm", "absolute"] | None,
        typer.Option(help="steer: in mean norms of the activation, or as it is. [default: norm]", rich_help_panel=_HOW),
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(help="transplant: the checkpoint that layers come from. [default: smol]", rich_help_panel=_HOW),
    ] = None,
    with_head: Annotated[
        bool, typer.Option("--with-head", help="transplant: the head comes along.", rich_help_panel=_HOW)
    ] = False,
    with_projector: Annotated[
        bool, typer.Option("--with-projector", help="transplant: the projector comes along.", rich_help_panel=_HOW)
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="`logit_difference`, `log_prob`, `probability`, `kl`, `accuracy`; repeatable. "
            "[default: logit_difference, accuracy]",
            rich_help_panel=_HOW,
        ),
    ] = None,
    engine: Annotated[
        Literal["incremental", "full"],
        typer.Option(
            help="`incremental` computes what can change; `full` whole forwards; same numbers.", rich_help_panel=_RUN
        ),
    ] = "incremental",
    preprocess: arguments.Preprocess = "pad",
    seed: Annotated[int, typer.Option(help="Of scenes and resampling.", rich_help_panel=_RUN)] = 0,
    batch_size: Annotated[int, typer.Option(help="Pairs that run together.", rich_help_panel=_RUN)] = 8,
    device: arguments.Device = "cpu",
    dtype: arguments.Dtype = None,
    attn: arguments.Attn = "sdpa",
    out: Annotated[
        Path | None, typer.Option(help="The run directory. [default: runs/OP-MODEL-DATA]", rich_help_panel=_RUN)
    ] = None,
    overwrite: arguments.Overwrite = False,
    dry_run: arguments.DryRun = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file whose keys are the names of these options (`source` and `target` for `--from` and `--to`); "
            "the command line wins.",
            rich_help_panel=_RUN,
        ),
    ] = None,
) -> None:
    """Show, layer by layer, which activations of a LLaVA-1.5 model its answer depends on.

    Every intervention is run on every pair of a clean and a corrupt example. Every value comes with an interval over
    pairs, and with a p-value that is adjusted for all cells. A run that was killed goes on where it stopped when it is
    started again.

    **Examples**

    `patch-sweep` - clean into corrupt scenes of the embedded model: image, question and last position at every layer

    `patch-sweep --op knockout --from image --to last --window 9 --metric accuracy`

    `patch-sweep --site z --heads all --tokens last --limit 50`

    `patch-sweep --model smol-stage1 --op transplant --donor smol`

    `patch-sweep --data pairs.jsonl --images photos --tokens patches --layers 0,10,20`

    `patch-sweep show runs/patch-smol-scenes` - print a run's table again

    `patch-sweep report runs/patch-smol-scenes` - one web page to explore it
    """
    own = {
        "direction": direction, "ablation": ablation, "hidden": hidden or None, "steer-file": steer_file,
        "steer-name": steer_name, "alpha": alpha, "unit": unit, "donor": donor, "with-head": with_head or None,
        "with-projector": with_projector or None,
    }  # fmt: skip
    try:
        from interventions.config import PairOptions, PatchConfig, build_plan  # imports torch, which --help need not

        plan = build_plan(
            op, sites=site or (), layers=layers, window=window, tokens=tokens or (), flows=(source or (), target or ()),
            heads=heads, metrics=metric or (), engine=engine, options=_own_options(op, own, seed),
            corruption=_corruption(corruption, noise_scale, noise_seed),
        )  # fmt: skip
        settings = PatchConfig(
            plan=plan,
            model=ModelOptions(model, revision, device, dtype, attn),
            pairs=PairOptions(data, images, pair, split, limit, preprocess),
            directions=steer_file,
            seed=seed,
            batch_size=batch_size,
            out=out,
            overwrite=overwrite,
            dry_run=dry_run,
        )
        _sweep(settings, sys.argv)
    except UserError as error:
        refuse(COMMAND, error)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A run directory that patch-sweep wrote.", metavar="RUN")],
) -> None:
    """Print the table of a finished run again, and where its figures are."""
    from figures import draw_run
    from interventions.config import RUN
    from records.tables import read_results

    try:
        results = read_results(folder, RUN)
        with user_errors(OSError):
            drawn = draw_run(folder)
    except UserError as error:
        refuse(COMMAND, error)
    _print(results, [paths.png for paths in drawn], folder)


arguments.add_report(app, COMMAND)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``patch-sweep``."""
    app(args=None if arguments is None else list(arguments), prog_name=COMMAND)


def _own_options(op: Op, given: dict[str, Any], seed: int) -> dict[str, Any]:
    """The operation's own options; one that belongs to another operation is refused."""
    found: dict[str, Any] = {"seed": seed} if op == "ablate" else {}
    for option, value in given.items():
        name, ops = _OWN[option]
        if value is None:
            continue
        if op not in ops:
            raise UserError(f"{option} must go with op {' or '.join(ops)}, got it with {op!r}. Leave it out.")
        if name:
            found[name] = value is not True if name == "visible" else value
    return found


def _corruption(kind: Literal["pair", "blank", "noise"], scale: float | None, seeds: Sequence[int] | None) -> Any:
    from interventions.plan.options import Corruption

    if kind != "noise" and (scale is not None or seeds):
        raise UserError(
            f"noise-scale and noise-seed must go with corruption noise, got one with {kind!r}. Leave it out."
        )
    with user_errors(ValueError):
        return Corruption(kind, 3.0 if scale is None else scale, tuple(seeds or (0,)))


def _sweep(settings: Any, command: Sequence[str]) -> None:
    from interventions.sweep import PatchEstimate, run_patch_sweep

    is_main = os.environ.get("RANK", "0") == "0"

    def on_note(line: str) -> None:
        if is_main:
            typer.echo(line)

    with progress_bar(is_main=is_main) as on_progress:
        outcome = run_patch_sweep(settings, command=command, on_progress=on_progress, on_note=on_note)
    if outcome is None or not is_main:
        return
    if isinstance(outcome, PatchEstimate):
        typer.echo(str(outcome))
        return
    _print(outcome.results, [paths.png for paths in outcome.figures], outcome.folder)


def _print(results: Any, figures: Sequence[Path], folder: Path) -> None:
    from interventions.report_table import render_summary

    table_console().print(render_summary(results))
    for line in _errors(folder):
        typer.echo(line)
    typer.echo(f"table:  {folder / 'results.csv'}")
    for path in figures:
        typer.echo(f"figure: {path}")


def _errors(folder: Path) -> list[str]:
    """How far attribution is from exact patching, where it was compared."""
    import pandas as pd

    from interventions.config import ERROR_TABLE

    if not (folder / ERROR_TABLE).is_file():
        return []
    return [
        f"against exact patching, {row['metric'].replace('_', ' ')}: correlation {row['correlation']:.2f}, mean error "
        f"{row['relative_error']:.0%} of the mean exact change (n = {row['n']})"
        for row in pd.read_csv(folder / ERROR_TABLE).to_dict("records")
    ]


if __name__ == "__main__":
    main()
