"""Draw the gallery again from its saved tables: ``python -m figures.redraw``.

The name of a table starts with its kind of figure, as in ``knockout_smol.csv``. A map over patches is drawn on
``<name>_picture.png``, if there is one. To add a figure, copy the ``results.csv`` of a run (or the ``compare.csv`` of a
comparison) into the folder under such a name.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
from figures.read_run import GALLERY, read_picture, read_saved
from figures.style import Panels, Width, figure_of, save_figure
from tasks.errors import print_any_text

# start of a table's name -> the function of this package that draws it
KINDS = {
    "score_by_layer": "draw_score_by_layer",
    "token_map": "draw_token_map",
    "token_plans": "draw_token_plans",
    "lenses": "draw_lenses",
    "head_map": "draw_head_map",
    "patch_grid": "draw_patch_map",
    "probe_map": "draw_probe_map",
    "knockout": "draw_curves",
    "skip": "draw_curves",
    "transplant": "draw_curves",
    "cost_retention": "draw_cost_retention",
    "plan_diagram": "draw_plan_diagram",
    "retention": "draw_retention",
    "accuracy_by_family": "draw_accuracy",
    "cost_ratios": "draw_cost_ratios",
    "learning_curve": "draw_learning_curve",
    "geometry": "draw_geometry",
    "layer_map": "draw_layer_map",
    "transfer": "draw_transfer",
}
_ON_PICTURE = ("patch_grid", "probe_map")


def draw_table(path: Path, *, width: Width = "two") -> Panels:
    """Draw a saved table in the kind of figure that its name starts with; ``ValueError`` if there is none."""
    kind = next((kind for kind in KINDS if path.stem == kind or path.stem.startswith(f"{kind}_")), None)
    if kind is None:
        raise ValueError(f"table must be named after one of {', '.join(KINDS)}, got {path.name!r}. Rename it.")
    table = read_saved(path)
    options: dict[str, Any] = {"width": width}
    if kind in _ON_PICTURE:
        options["picture"] = read_picture(path.with_name(f"{path.stem}_picture.png"))
    drawn: Panels = getattr(figures, KINDS[kind])(table, **options)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    print_any_text()
    parser = argparse.ArgumentParser(
        prog="python -m figures.redraw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="tables to draw, without .csv (default: all)")
    parser.add_argument("--gallery", type=Path, default=GALLERY, help="folder of the tables (default: the gallery)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the figures (default: beside the tables)")
    parser.add_argument("--width", choices=["one", "two"], default="two", help="columns of a page (default: two)")
    options = parser.parse_args(arguments)

    import matplotlib.pyplot as plt

    names = options.names or sorted(path.stem for path in options.gallery.glob("*.csv"))
    try:
        for name in names:
            drawn = draw_table(options.gallery / f"{name}.csv", width=options.width)
            for path in save_figure(drawn, (options.out or options.gallery) / name):
                print(path)
            plt.close(figure_of(drawn))
    except (ValueError, OSError) as error:
        print(f"python -m figures.redraw: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
