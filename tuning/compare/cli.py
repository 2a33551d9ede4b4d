"""``layerwise-finetune compare``: the options of a comparison, and what it prints."""

from pathlib import Path
from typing import Annotated

import typer

from records.terminal import progress_bar, refuse, table_console
from tasks.errors import UserError
from tuning.cli_options import COMMAND, DATA, HOW, MODEL, PLAN, RUN, parts_of


def compare(
    model: Annotated[str, typer.Option(help="Where every plan starts.", rich_help_panel=MODEL)] = "smol-stage1",
    reference: Annotated[
        str | None,
        typer.Option(help="A tuned model to score beside the plans, for example `smol`.", rich_help_panel=MODEL),
    ] = None,
    plans: Annotated[
        str | None,
        typer.Option(
            help="Names of the plans to run, comma-separated. [default: all of start, full, middle band, complement, "
            "first, last, evenly spread, random layers, LoRA everywhere, LoRA on the band, projector only]",
            rich_help_panel=PLAN,
        ),
    ] = None,
    band: Annotated[
        str | None,
        typer.Option(help="The middle band as a layer spec. [default: 6-16 of 32, scaled]", rich_help_panel=PLAN),
    ] = None,
    train: Annotated[
        str, typer.Option(help="Other parts that train beside the layers of every partial plan.", rich_help_panel=PLAN)
    ] = "projector",
    lora_rank: Annotated[int, typer.Option(help="Width of LoRA's factors.", rich_help_panel=PLAN)] = 32,
    seeds: Annotated[str, typer.Option(help="Comma-separated.", rich_help_panel=RUN)] = "0",
    data: Annotated[
        str,
        typer.Option(
            help="What all plans train on: `scenes`, a JSON file in LLaVA's layout (any size), or a JSONL or Parquet "
            "file of questions.",
            rich_help_panel=DATA,
        ),
    ] = "scenes",
    images: Annotated[
        Path | None, typer.Option(help="The folder that picture paths of files start from.", rich_help_panel=DATA)
    ] = None,
    scenes: Annotated[int, typer.Option(help="Scenes trained on, where data are scenes.", rich_help_panel=DATA)] = 4000,
    limit: Annotated[int | None, typer.Option(help="The first so many samples.", rich_help_panel=DATA)] = None,
    eval_data: Annotated[
        str,
        typer.Option(
            help="What is scored, comma-separated: `scenes` (seen and unseen drawings, caption in words), and files of "
            "questions with short answers, each a condition with the file's name.",
            rich_help_panel=DATA,
        ),
    ] = "scenes",
    score_scenes: Annotated[int, typer.Option(help="Scenes scored, of each kind.", rich_help_panel=DATA)] = 100,
    eval_limit: Annotated[
        int | None, typer.Option(help="Samples scored of each file, at most. [default: all]", rich_help_panel=DATA)
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Go on without samples that cannot be used; skipped-train.csv and skipped-FILE.csv list them.",
            rich_help_panel=DATA,
        ),
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", rich_help_panel=HOW)] = None,
    batch_size: Annotated[int, typer.Option(help="Samples that run together.", rich_help_panel=HOW)] = 8,
    grad_accum: Annotated[int, typer.Option(help="Batches for one optimizer step.", rich_help_panel=HOW)] = 1,
    lr: Annotated[float, typer.Option(help="Of full weights.", rich_help_panel=HOW)] = 2e-5,
    lora_lr: Annotated[float, typer.Option(help="Of LoRA's factors.", rich_help_panel=HOW)] = 2e-4,
    projector_lr: Annotated[float, typer.Option(help="Of the projector.", rich_help_panel=HOW)] = 2e-5,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.", rich_help_panel=HOW)] = False,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Recompute blocks to save memory.", rich_help_panel=HOW),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the blocks with torch.compile, but for LoRA; pays where a run takes many minutes.",
            rich_help_panel=HOW,
        ),
    ] = False,
    timing_rounds: Annotated[
        int,
        typer.Option(
            help="Rounds in which steps of plans that were not timed before take turns with that of full; 0 for none.",
            rich_help_panel=RUN,
        ),
    ] = 3,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.", rich_help_panel=RUN)] = "cpu",
    workers: Annotated[
        int, typer.Option(help="Processes that open and prepare pictures ahead while plans train.", rich_help_panel=RUN)
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=RUN)] = 50,
    keep_weights: Annotated[
        bool,
        typer.Option(
            "--keep-weights",
            help="Keep each tuned model that this call finishes in its run's folder, as a single run writes it. "
            "[default: it is scored and forgotten]",
            rich_help_panel=RUN,
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder of the comparison.", rich_help_panel=RUN)] = Path(
        "runs/compare"
    ),
) -> None:
    """Train several plans from the same start on the same data in the same order, and write one table and figures.

    A comparison that was killed goes on where it stopped when it is started again: finished plans are not run again.
    Plans and seeds can be added; table and figures hold all that is finished in the folder.

    Tuned models are deleted once they are scored, unless `--keep-weights` is given.

    On several GPUs, start one process for each with the same `--out`, each with its own `--device` (`cuda:0`, `cuda:1`,
    ...): they share the plans. `accelerate launch` is refused.

    **Examples**

    `layerwise-finetune compare --reference smol --seeds 0,1,2` - all plans on scenes

    `layerwise-finetune compare --model runs/stage1 --data mix.json --images dir --eval-data pope.jsonl` - your own data
    """
    from tuning.compare.compare import run_compare
    from tuning.compare.config import CompareConfig, CompareData
    from tuning.config import Optimisation, RunOptions

    try:
        config = CompareConfig(
            model=model,
            reference=reference,
            plans=tuple(part.strip() for part in plans.split(",")) if plans else (),
            band=band,
            train=parts_of(train),
            lora_rank=lora_rank,
            seeds=tuple(_seed(text) for text in seeds.split(",")),
            data=CompareData(data, images, scenes, limit, parts_of(eval_data), score_scenes, eval_limit, skip_bad),
            optimisation=Optimisation(
                steps=steps, batch_size=batch_size, grad_accum=grad_accum, lr=lr, projector_lr=projector_lr
            ),
            lora_lr=lora_lr,
            options=RunOptions(
                device=device,
                bf16=bf16,
                gradient_checkpointing=gradient_checkpointing,
                compile=compiled,
                save_every=save_every,
                workers=workers,
            ),
            timing_rounds=timing_rounds,
            keep_weights=keep_weights,
            out=out,
        )
        with progress_bar() as on_progress:
            outcome = run_compare(config, on_note=typer.echo, on_progress=on_progress)
    except UserError as error:
        refuse(COMMAND, error)
    from tuning.compare.report_table import render_table

    table_console().print(render_table(outcome.table))
    typer.echo(f"table:   {out / 'compare.csv'}")
    for name in outcome.figures:
        typer.echo(f"figure:  {name}")


def _seed(text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"seeds must be whole numbers from 0, got {text!r}. Separate them by commas.")
    return int(text)
