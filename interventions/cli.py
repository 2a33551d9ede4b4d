"""``patch-sweep``: the command line of the patch sweep."""

from collections.abc import Sequence
from typing import Any

from interventions.config import PatchConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Show, layer by layer, which activations of a LLaVA-1.5 model its answer depends on.

Every intervention is run on every pair of a clean and a corrupt example. Every value has an interval over pairs, and a
p-value that is adjusted for all cells. The same command resumes a run that was killed.

Examples:
  patch-sweep                          clean into corrupt scenes of the embedded model: image, question and last
                                       position at every layer
  patch-sweep --op knockout --from image --to last --window 9 --metric accuracy
  patch-sweep --site z --heads all --tokens last --limit 50
  patch-sweep --model smol-stage1 --op transplant --donor smol
  patch-sweep --data pairs.jsonl --images photos --tokens patches --layers 0,10,20
  patch-sweep show runs/patch-smol-scenes     print a run's table again
  patch-sweep report runs/patch-smol-scenes   write one web page to explore it
  patch-sweep --version"""


def _run(config: PatchConfig, terminal: Terminal) -> Any:
    from interventions.sweep import run_patch_sweep  # torch and transformers take seconds, and --help needs neither

    return run_patch_sweep(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from interventions.sweep import finished_patch_sweep

    return finished_patch_sweep(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``patch-sweep``."""
    subcommands = (Subcommand("run", PatchConfig, _run), Subcommand("show", Show, _show))
    run_command("patch-sweep", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
