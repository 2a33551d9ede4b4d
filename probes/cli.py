"""``probe-sweep``: the command line of the probe sweep."""

from collections.abc import Sequence
from typing import Any

from probes.config import SweepConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Show, layer by layer, what linear probes read from a LLaVA-1.5 model's activations.

Probes are fitted on frozen activations of the vision tower, the projector and the language model, and cross-validated
so that no picture is on both sides. Every score has an interval and controls. The same command resumes a run that was
killed.

Examples:
  probe-sweep                          the embedded model on the embedded scenes
  probe-sweep --target colour --layers 0-9 --limit 200 --out runs/colour
  probe-sweep --data photos.jsonl --images photos --target animal --folds 3
  probe-sweep --activations runs/activations-smol-scenes --labels mine.csv --target mood
                                       new labels for stored activations, without another forward pass
  probe-sweep show runs/colour         print a run's table again
  probe-sweep report runs/colour       write one web page to explore it
  probe-sweep --version
  accelerate launch --num_processes 2 -m probes.cli --model smol
                                       share the capture between processes"""


def _run(config: SweepConfig, terminal: Terminal) -> Any:
    from probes.sweep import run_sweep  # torch and transformers take seconds, and --help needs neither

    return run_sweep(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from probes.sweep import finished_sweep

    return finished_sweep(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``probe-sweep``."""
    run_command(
        "probe-sweep",
        (Subcommand("run", SweepConfig, _run), Subcommand("show", Show, _show)),
        arguments,
        about=ABOUT,
    )


if __name__ == "__main__":
    main()
