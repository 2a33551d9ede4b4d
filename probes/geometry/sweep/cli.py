"""``geometry-sweep``: the command line of the geometry of stored activations."""

from collections.abc import Sequence
from typing import Any

from probes.geometry.sweep.config import GeometryConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Show, layer by layer, the intrinsic dimension of stored activations and how near two representations of the
same examples are: image against caption, before against after tuning, model against model.

No model runs: capture the activations first. Every curve has intervals from subsamples and a control of shuffled pairs.
The same command resumes a run that was killed.

Examples:
  geometry-sweep --activations runs/smol-activations
  geometry-sweep --activations runs/after --against runs/before --tokens last --rank 8,16
  geometry-sweep --activations runs/smol-activations --random runs/random-activations --target kind
  geometry-sweep show runs/geometry-smol-activations     print a run's table again
  geometry-sweep report runs/geometry-smol-activations   write one web page to explore it
  geometry-sweep --version"""


def _run(config: GeometryConfig, terminal: Terminal) -> Any:
    from probes.geometry.sweep.run import run_geometry_sweep  # torch takes seconds, which --help must not

    return run_geometry_sweep(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from probes.geometry.sweep.run import finished_geometry_sweep

    return finished_geometry_sweep(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``geometry-sweep``."""
    subcommands = (Subcommand("run", GeometryConfig, _run), Subcommand("show", Show, _show))
    run_command("geometry-sweep", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
