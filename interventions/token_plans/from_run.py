"""Choose a token plan from a skip or knockout sweep: ``auto:RUN``."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from figures.effects import with_effect
from tasks.checksums import check_whole
from tasks.errors import UserError
from tasks.readers.parse import parse_json

ALLOWED = 0.05  # share of the metric that may be lost, by the upper end of its interval
_COLUMNS = {"op", "layer", "tokens", "metric", "unchanged", "recovered", "recovered_lower", "recovered_upper", "n"}


class ChosenPlan(NamedTuple):
    """A token plan as text, and a sentence with its evidence."""

    text: str
    evidence: str


def plan_from_run(folder: Path, n_layers: int) -> ChosenPlan:
    """The cheapest plan of which the run shows that it loses at most 5 % of the metric.

    Layer K is the first one from which on every cell of the run loses less than 5 %, by the upper end of its 95 %
    interval. A skip run that hides the skipped tokens, and a knockout of edges from the image, give ``leave@K``; a skip
    run in which they stay visible gives ``freeze:K-L``, which is what it tested.

    Raises:
        UserError: If the folder is no such run, the model has another depth, or no layer meets the rule.
    """
    check_whole(folder / "results.csv", advice="Start the same patch-sweep again: it is made anew.")
    try:
        table = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""])
        manifest = parse_json((folder / "manifest.json").read_bytes())
        settings = manifest["settings"]
        hidden = bool(settings.get("hidden"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"auto must name a finished run of patch-sweep, got {str(folder)!r} ({error}). Check the path."
        ) from error
    if not set(table.columns) >= _COLUMNS or table.empty or str(table["op"].iloc[0]) not in ("skip", "knockout"):
        raise UserError(f"auto must name a run of patch-sweep with op skip or knockout, got {str(folder)!r}.")
    op = str(table["op"].iloc[0])
    rows = with_effect(table[table["layer"].notna()])
    rows = rows[rows["tokens"].astype(str).str.split("->").str[0] == "image"]
    rows = rows[rows["metric"] == ("logit_difference" if "logit_difference" in set(rows["metric"]) else "accuracy")]
    if rows.empty:
        raise UserError(f"auto must name a run on image tokens with the metric logit_difference, got {str(folder)!r}.")
    last = int(rows["layer"].max())
    if last != n_layers - 1:
        raise UserError(
            f"auto must name a run on a model of {n_layers} layers, got layers up to {last} in {str(folder)!r}."
        )
    worst = rows.groupby(rows["layer"].astype(int))["effect_upper"].max()
    meets = [layer for layer in worst.index if bool((worst[worst.index >= layer] < ALLOWED).all())]
    first = min(meets, default=None)
    if not first:
        raise UserError(
            f"auto must find a layer above 0 from which on less than {ALLOWED:.0%} is lost, got "
            f"{'none' if first is None else 'layer 0'} in {str(folder)!r}. Name a plan yourself, or use more pairs."
        )
    cell = rows[rows["layer"] == first].sort_values("effect_upper").iloc[-1]
    text = f"freeze:{first}-{last}" if op == "skip" and not hidden else f"leave@{first}"
    evidence = (
        f"{text} from {folder}: in every {op} of image tokens from layer {first} on, the lost share of the "
        f"{str(cell['metric']).replace('_', ' ')} stays below {ALLOWED:.0%}; at layer {first} it is "
        f"{cell['effect']:.3f} [{cell['effect_lower']:.3f}, {cell['effect_upper']:.3f}], n = {int(cell['n'])}"
    )
    return ChosenPlan(text, evidence)
