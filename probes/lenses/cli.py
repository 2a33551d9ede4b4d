"""``lens-sweep``: the command line of lenses."""

from collections.abc import Sequence
from typing import Any

from probes.lenses.config import LensConfig, TrainConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Show which words lenses read at a LLaVA-1.5 model's image tokens, layer by layer.

Each lens ranks the words of the object in focus at the patches inside its box and outside of it, beside controls. The
same command resumes a run that was killed.

Examples:
  lens-sweep                                        the logit lens on the embedded model and scenes
  lens-sweep --lens logit --lens latent --limit 20 --layers 0,5,10,15,20,25,29
  lens-sweep train --positions text --out runs/tuned-text
  lens-sweep --lens tuned:runs/tuned-text --lens logit
  lens-sweep --data photos.jsonl --images photos --target animal --model llava-hf/llava-1.5-7b-hf --device cuda
  lens-sweep show runs/lens-smol-scenes             print a run's table again
  lens-sweep report runs/lens-smol-scenes           write one web page to explore it
  lens-sweep --version"""
ABOUT_TRAIN = """Make a lens: train a tuned lens, average Jacobians, or index a text.

The run directory of a tuned or latent lens is the lens; a Jacobian lens is the file lens.pt in it. Tuned and Jacobian
lenses are compared with the logit lens on held-out examples.

Examples:
  lens-sweep train --kind tuned --positions image --steps 250
  lens-sweep train --kind jacobian --limit 8
  lens-sweep train --kind latent --corpus sentences.txt"""


def _run(config: LensConfig, terminal: Terminal) -> Any:
    from probes.lenses.sweep import run_lens_sweep  # torch takes seconds, which --help must not

    return run_lens_sweep(config, **terminal._asdict())


def _train(config: TrainConfig, terminal: Terminal) -> Any:
    from probes.lenses.training_run import run_lens_training

    return run_lens_training(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from probes.lenses.sweep import finished_lens_sweep
    from probes.lenses.training_run import finished_lens_training, is_training

    return (finished_lens_training if is_training(options.folder) else finished_lens_sweep)(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``lens-sweep``."""
    subcommands = (
        Subcommand("run", LensConfig, _run), Subcommand("train", TrainConfig, _train, ABOUT_TRAIN),
        Subcommand("show", Show, _show),
    )  # fmt: skip
    run_command("lens-sweep", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
