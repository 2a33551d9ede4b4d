"""Draw all figures of run directories from their saved tables: ``python -m figures RUN [RUN...]``. No model is loaded.

A run directory is what a command wrote with --out:
  probe-sweep                 score_by_layer; probe_map_TARGET if the run mapped examples
  patch-sweep                 token_map, head_map or patch_map; curves of knockouts, skipping and transplants
  layerwise-finetune compare  accuracy_by_family, retention, plans, cost_against_retention
  inference-cost              cost_against_score
  geometry-sweep              by_layer, layer_map
  transfer-sweep              transfer
  lens-sweep                  lenses: hit rates by layer
  layerwise-finetune          plan: the layers that train; learning_curve if the run was evaluated

Each figure is written as .svg and .png, and the paths are printed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import print_any_text, printable
from tasks.files import real_path

_EXAMPLES = """\
examples:
  python -m figures runs/smol                            into runs/smol/figures
  python -m figures runs/smol --width one --out paper    one column of a page (3.5 inches), into paper/
  python -m figures runs/a runs/b --out paper            into paper/a/ and paper/b/

In Python, every kind of figure is a function that draws into your Axes:
  from figures import draw_token_map
  draw_token_map(results, axes=ax)
See docs/figures.md.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 2 and a message on invalid input."""
    print_any_text()
    parser = argparse.ArgumentParser(
        prog="python -m figures", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory")
    parser.add_argument(
        "--width", choices=["one", "two"], default="two", help="columns of a page: 3.5 or 7.2 inches (default: two)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the figures (default: RUN/figures)")
    parser.add_argument(
        "--example", type=int, default=0, metavar="K", help="mapped example of a probe sweep, from 0 (default: 0)"
    )
    options = parser.parse_args(arguments)
    runs: list[Path] = options.runs
    names = [real_path(run).name for run in runs]
    if options.out is not None and len(set(names)) < len(names):
        parser.error(f"with --out, runs must have different names, got {', '.join(names)}. Draw them one by one.")

    os.environ["MPLBACKEND"] = "agg"  # importing fails on the name of a backend that does not exist here
    import matplotlib as mpl  # takes seconds, which --help does not need

    mpl.use("Agg")

    from figures.read_run import kind_of_run
    from figures.runs import draw_run

    try:
        for run in runs:
            kind_of_run(run)  # all are checked before any is drawn
        for run, name in zip(runs, names, strict=True):
            out = None if options.out is None else options.out / (name if len(runs) > 1 else "")
            for paths in draw_run(run, out=out, width=options.width, example=options.example):
                print(paths.svg)
                print(paths.png)
    except (ValueError, OSError) as error:  # RunError is a ValueError
        print(f"python -m figures: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
