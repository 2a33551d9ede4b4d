"""``capture-activations``: the command line of the activation data set."""

from collections.abc import Sequence
from typing import Any

from probes.activations.config import CaptureConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Store a LLaVA-1.5 model's activations once, to read them many times.

A run directory holds the activations of every example at the chosen sites, for several token groups, of the question
about the picture, about its caption as text, or both. probe-sweep --activations and transfer-sweep read them without
another forward pass; open_activations opens them in Python. The same command resumes a run that was killed.

Examples:
  capture-activations                                the embedded model on the embedded scenes
  capture-activations --condition both --limit 300 --tokens image --tokens caption --tokens last
  capture-activations --data photos.jsonl --images photos --site resid_post --layers 0-31 --store-dtype float16
  capture-activations --tokens image --pool none --layers 12     every image token, with its patch
  capture-activations show runs/activations-smol-scenes          print what is stored
  capture-activations --version
  accelerate launch --num_processes 2 -m probes.activations.cli --model smol
                                                     share the capture between processes"""


def _run(config: CaptureConfig, terminal: Terminal) -> Any:
    from probes.activations.capture_run import run_capture  # torch takes seconds, which --help must not

    return run_capture(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from probes.activations.capture_run import finished_capture

    return finished_capture(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``capture-activations``."""
    subcommands = (Subcommand("run", CaptureConfig, _run), Subcommand("show", Show, _show))
    run_command("capture-activations", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
