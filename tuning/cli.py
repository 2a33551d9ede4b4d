"""``layerwise-finetune``: the command line of tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from records.command import Show, Subcommand, Terminal, run_command
from tuning.compare.config import TABLE, CompareConfig
from tuning.config import TuningConfig
from tuning.mix.config import DATA as MIX
from tuning.mix.config import MixConfig

ABOUT = """Train exactly the layers of LLaVA-1.5 that a plan names, and report what that costs.

Trained weights are float32; --dtype bfloat16 keeps frozen weights and products in bfloat16. The run directory opens in
plain transformers; plan.json and cost.json are beside the weights. The same command resumes a run that was killed.

Examples:
  layerwise-finetune --layers 6-15 --dry-run       what a run trains, and what it takes
  layerwise-finetune --layers 6-15 --train projector --steps 300 --lr 2e-4 --out runs/band
  layerwise-finetune --stage 1 --data blip_laion_cc_sbu_558k.json --images pictures --dtype bfloat16 --device cuda
  layerwise-finetune --stage 1 --connector linear --steps 240 --eval-data scenes
  layerwise-finetune --layers auto:runs/smol --train none --method lora --merge
  layerwise-finetune compare --out runs/compare    plans side by side
  layerwise-finetune mix --part llava=llava.json   one training file from several
  layerwise-finetune show runs/band                print a finished run or comparison again
  layerwise-finetune report runs/compare           write one web page to explore it
  accelerate launch --num_processes 2 -m tuning.cli --layers 6-15 --out runs/band
                                                   on several devices"""
ABOUT_COMPARE = """Train several plans from the same start on the same data in the same order; write table and figures.

A comparison that was killed resumes when it is started again. Plans and seeds can be added; table and figures hold all
that is finished in the folder. Tuned models are deleted once they are scored, unless --keep-weights is given. On
several GPUs, start one process per GPU with the same --out, each with its own --device: they share the plans.

Examples:
  layerwise-finetune compare --reference smol --seeds 0,1,2     all plans on scenes
  layerwise-finetune compare --model runs/stage1 --data mix.json --images dir --eval-data pope.jsonl"""

ABOUT_MIX = """Write one training file from several in random order, and print its composition.

A part is a file, how much of it, and the format prompt that ends its first questions. The parts of LLaVA-1.5's 665K
have their format by name; the table at the end has what is in the mix, and what its parts have in common.

Examples:
  layerwise-finetune mix --part llava=llava_instruct_158k.json,prefix=coco/train2017 \\
      --part gqa=gqa.jsonl,share=0.5,prefix=gqa/images --part mine=rows.jsonl,format=short --images pictures
  layerwise-finetune --data runs/mix/mix.json --images pictures --layers 6-16"""


def _run(config: TuningConfig, terminal: Terminal) -> Any:
    from tuning.run import run_tuning  # torch and transformers take seconds, and --help needs neither

    return run_tuning(config, **terminal._asdict())


def _compare(config: CompareConfig, terminal: Terminal) -> Any:
    from tuning.compare.compare import run_compare

    return run_compare(config, **terminal._asdict())


def _mix(config: MixConfig, terminal: Terminal) -> Any:
    from tuning.mix.mix import run_mix

    return run_mix(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    folder: Path = options.folder
    if (folder / TABLE).is_file():
        from tuning.compare.compare import finished_compare

        return finished_compare(folder)
    if (folder / MIX).is_file():
        from tuning.mix.mix import finished_mix

        return finished_mix(folder)
    from tuning.run import finished_tuning

    return finished_tuning(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``layerwise-finetune``."""
    run_command(
        "layerwise-finetune",
        (
            Subcommand("run", TuningConfig, _run, "Train the layers that a plan names."),
            Subcommand("compare", CompareConfig, _compare, ABOUT_COMPARE),
            Subcommand("mix", MixConfig, _mix, ABOUT_MIX),
            Subcommand("show", Show, _show),
        ),
        arguments,
        about=ABOUT,
    )


if __name__ == "__main__":
    main()
