"""``layerwise-finetune``: the command line of tuning. It parses, calls one function, and prints."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from records.cli_arguments import add_report
from records.terminal import RunByDefault, progress_bar, refuse
from tasks.errors import UserError
from tuning.cli_options import COMMAND, DATA, HOW, MODEL, PLAN, RUN, parts_of
from tuning.compare.cli import compare

app = typer.Typer(cls=RunByDefault, add_completion=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def run(
    model: Annotated[
        str,
        typer.Option(help="`smol-stage1`, `smol`, a checkpoint folder or a Hugging Face id.", rich_help_panel=MODEL),
    ] = "smol-stage1",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Blocks of the language model: `all`, `none`, `6-16`, `3,5,9`, `every:4`, `first:8`, `last:8`, "
            "`middle:0.33`, `random:8@0`, `auto:RUN`. [default: all in stage 2, none in stage 1]",
            rich_help_panel=PLAN,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="Other parts, comma-separated: `projector`, `vision` or `vision:20` (the tower from block 20 on), "
            "`embeddings`, `final_norm`, `lm_head`; `none`. [default: projector; where --layers is left out, what the "
            "stage trains, which in stage 2 is all but the tower]",
            rich_help_panel=PLAN,
        ),
    ] = None,
    method: Annotated[
        Literal["full", "lora", "lisa"],
        typer.Option(help="Full weights of the blocks, LoRA on them, or a few drawn anew.", rich_help_panel=PLAN),
    ] = "full",
    lora_rank: Annotated[int, typer.Option(help="Width of LoRA's factors.", rich_help_panel=PLAN)] = 128,
    lora_alpha: Annotated[int, typer.Option(help="LoRA's scale times its rank.", rich_help_panel=PLAN)] = 256,
    lora_dropout: Annotated[float, typer.Option(help="On the factors' input.", rich_help_panel=PLAN)] = 0.05,
    lisa_active: Annotated[int, typer.Option(help="Blocks that train at once.", rich_help_panel=PLAN)] = 2,
    lisa_every: Annotated[int, typer.Option(help="Steps until others are drawn.", rich_help_panel=PLAN)] = 20,
    stage: Annotated[
        int,
        typer.Option(
            help="LLaVA's recipe: 1 (projector, plain prompts, LR 1e-3) or 2 (vicuna_v1, LR 2e-5, by modality).",
            rich_help_panel=HOW,
        ),
    ] = 2,
    connector: Annotated[
        Literal["keep", "linear", "mlp"],
        typer.Option(
            help="The model's own connector, or a fresh one: one linear map (LLaVA), or two with GELU (LLaVA-1.5).",
            rich_help_panel=MODEL,
        ),
    ] = "keep",
    data: Annotated[
        str,
        typer.Option(
            help="`scenes`, a JSON file in LLaVA's layout (any size), or a JSONL or Parquet file of questions.",
            rich_help_panel=DATA,
        ),
    ] = "scenes",
    images: Annotated[
        Path | None, typer.Option(help="The folder that picture paths start from.", rich_help_panel=DATA)
    ] = None,
    scenes: Annotated[int, typer.Option(help="How many scenes, where data are scenes.", rich_help_panel=DATA)] = 4000,
    format_prompts: Annotated[
        bool,
        typer.Option(
            help="Whether scene questions say how to answer (`Answer the question using a single word or phrase.`).",
            rich_help_panel=DATA,
        ),
    ] = True,
    apart: Annotated[
        bool,
        typer.Option(
            "--apart/--in-turn",
            help="Questions about one scene hidden from each other, or one after the other.",
            rich_help_panel=DATA,
        ),
    ] = True,
    limit: Annotated[int | None, typer.Option(help="The first so many samples.", rich_help_panel=DATA)] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="`scenes` or a file to score on the way.", rich_help_panel=DATA)
    ] = None,
    eval_limit: Annotated[int, typer.Option(help="Samples scored, at most.", rich_help_panel=DATA)] = 64,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Go on without samples that cannot be trained on; they are counted and listed in skipped.csv.",
            rich_help_panel=DATA,
        ),
    ] = False,
    max_length: Annotated[
        int, typer.Option(help="Tokens of the longest sample, image tokens included.", rich_help_panel=DATA)
    ] = 2048,
    on_long: Annotated[
        Literal["cut", "refuse"], typer.Option(help="What becomes of longer ones.", rich_help_panel=DATA)
    ] = "cut",
    epochs: Annotated[float, typer.Option(help="Passes over the data.", rich_help_panel=HOW)] = 1.0,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps in all, instead of epochs.", rich_help_panel=HOW)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples that a process runs together.", rich_help_panel=HOW)] = 8,
    grad_accum: Annotated[int, typer.Option(help="Batches for one optimizer step.", rich_help_panel=HOW)] = 1,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. [default: the stage's; 2e-4 for LoRA]", rich_help_panel=HOW),
    ] = None,
    projector_lr: Annotated[
        float | None,
        typer.Option(help="Of projector and vision tower. [default: the stage's]", rich_help_panel=HOW),
    ] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps before the peak.", rich_help_panel=HOW)] = 0.03,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="bfloat16; what trains is kept in float32.", rich_help_panel=HOW)
    ] = False,
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
    keep_prefix: Annotated[
        bool,
        typer.Option(
            "--keep-prefix", help="Over several epochs keep the frozen prefix's output on disk.", rich_help_panel=HOW
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order of data, LoRA and LISA.", rich_help_panel=RUN)] = 0,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`.", rich_help_panel=RUN)] = "cpu",
    workers: Annotated[
        int, typer.Option(help="Processes that open and prepare pictures ahead.", rich_help_panel=RUN)
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0 for none.", rich_help_panel=RUN)] = 100,
    keep: Annotated[int, typer.Option(help="Checkpoints that stay.", rich_help_panel=RUN)] = 1,
    log_every: Annotated[int, typer.Option(help="Steps between lines of the log.", rich_help_panel=RUN)] = 10,
    eval_every: Annotated[
        int, typer.Option(help="Steps between evaluations; 0 for one at the end.", rich_help_panel=RUN)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The output folder. [default: runs/MODEL-PLAN]", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="A checkpoint to go on from, or `last`.", rich_help_panel=RUN),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge LoRA into the weights before saving.", rich_help_panel=RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, counts, memory and compute, and stop.", rich_help_panel=RUN),
    ] = False,
) -> None:
    """Train exactly the layers of LLaVA-1.5 that a plan names, and say what that cost.

    The output folder opens in plain transformers; `plan.json` and `cost.json` stand beside the weights.

    **Examples**

    `layerwise-finetune --layers 6-15 --dry-run` - what a run would train, and what it would take

    `layerwise-finetune --layers 6-15 --train projector --steps 300 --lr 2e-4 --out runs/band`

    `layerwise-finetune --stage 1 --data blip_laion_cc_sbu_558k.json --images pictures --bf16 --device cuda`

    `layerwise-finetune --stage 1 --connector linear --steps 240 --eval-data scenes` - LLaVA's connector, captions

    `layerwise-finetune --layers auto:runs/smol --train none --method lora --merge`

    `layerwise-finetune compare --out runs/compare` - plans side by side

    `layerwise-finetune report runs/compare` - one web page to explore them

    `accelerate launch --num_processes 2 -m tuning.cli --layers 6-15 --out runs/band` - on several devices
    """
    from tuning.config import LORA_LR, RECIPES, Optimisation, RunOptions, TuningConfig, TuningData
    from tuning.cost.estimate import Estimate
    from tuning.plan.plan import LayerPlan, Lisa, Lora
    from tuning.run import run_tuning  # torch and transformers take seconds, and --help needs neither

    is_main = os.environ.get("RANK", "0") == "0"
    try:
        if stage not in RECIPES:
            raise UserError(f"stage must be 1 or 2, got {stage}. See layerwise-finetune --help.")
        recipe = RECIPES[stage]
        plan = LayerPlan(
            recipe.plan.layers if layers is None else layers,
            parts_of(train)
            if train is not None
            else ("projector",)
            if layers is not None or method == "lora"
            else recipe.plan.train,
            method,
            Lora(lora_rank, lora_alpha, lora_dropout),
            Lisa(lisa_active, lisa_every),
        )
        config = TuningConfig(
            model=model,
            plan=plan,
            data=TuningData(
                data, images, scenes, format_prompts, apart, limit, eval_data, eval_limit, skip_bad, on_long
            ),
            optimisation=Optimisation(
                epochs=epochs,
                steps=steps,
                batch_size=batch_size,
                grad_accum=grad_accum,
                lr=lr if lr is not None else LORA_LR if method == "lora" else recipe.lr,
                projector_lr=recipe.projector_lr if projector_lr is None else projector_lr,
                warmup=warmup,
                seed=seed,
            ),
            options=RunOptions(
                device=device,
                bf16=bf16,
                gradient_checkpointing=gradient_checkpointing,
                compile=compiled,
                keep_prefix=keep_prefix,
                by_modality=recipe.by_modality,
                save_every=save_every,
                keep=keep,
                log_every=log_every,
                eval_every=eval_every,
                workers=workers,
            ),
            stage=1 if stage == 1 else 2,
            connector=connector,
            max_length=max_length,
            out=out,
            merge=merge,
            resume=resume,
        )
        with progress_bar(is_main=is_main) as on_progress:
            outcome = run_tuning(
                config,
                dry_run=dry_run,
                command=sys.argv,
                on_note=typer.echo if is_main else lambda line: None,
                on_progress=on_progress,
            )
    except UserError as error:
        refuse(COMMAND, error)
    if not is_main:
        return
    if isinstance(outcome, Estimate):
        typer.echo(str(outcome))
        return
    typer.echo(outcome.estimate.resolved.summary())
    typer.echo(f"steps:  {outcome.trained.steps}")
    typer.echo(f"model:  {outcome.folder}")
    typer.echo(f"cost:   {outcome.folder / 'cost.json'}")


app.command()(compare)
add_report(app, COMMAND)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``layerwise-finetune``."""
    app(args=None if arguments is None else list(arguments), prog_name=COMMAND)


if __name__ == "__main__":
    main()
