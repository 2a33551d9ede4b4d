"""``transfer-sweep``: the command line of transfer between captions and pictures."""

from collections.abc import Sequence
from typing import Any

from probes.transfer.config import TransferConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Show at which text layers the image tokens of a LLaVA-1.5 model are understood.

Probes are fitted on the tokens of captions at one layer and read on the image tokens of another, and the reverse, on
activations that capture-activations has stored. An example's caption and picture are always in the same fold. Every
pair of layers has an interval, a p-value and a control with shuffled pairs. The same command resumes a run that was
killed, at the source layer where it stopped.

Examples:
  transfer-sweep --activations runs/activations-smol-scenes
  transfer-sweep --activations runs/activations-photos --labels mine.csv --target animal --layers 0-31
  transfer-sweep --activations runs/activations-smol-scenes --standardise source --probe ridge
  transfer-sweep show runs/transfer-activations-smol-scenes     print a run's table again
  transfer-sweep report runs/transfer-activations-smol-scenes   write one web page to explore it
  transfer-sweep --version"""


def _run(config: TransferConfig, terminal: Terminal) -> Any:
    from probes.transfer.sweep import run_transfer  # torch takes seconds, which --help must not

    return run_transfer(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from probes.transfer.sweep import finished_transfer

    return finished_transfer(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``transfer-sweep``."""
    subcommands = (Subcommand("run", TransferConfig, _run), Subcommand("show", Show, _show))
    run_command("transfer-sweep", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
