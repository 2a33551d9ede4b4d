"""The tables at the end of ``lens-sweep`` and ``lens-sweep train``, from the saved results."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from figures.findings.peaks import NONE, SIGNIFICANT, location_range
from probes.lenses.table import BEST

_METRIC = "hit@5"


def render_summary(results: pd.DataFrame) -> Table:
    """One row for each lens and split: the layer at which it names the object most often, if that is shown at all."""
    table = Table(
        title=escape(f"{results['model'].iloc[0]}: words that lenses read at the object's patches ({_METRIC})"),
        caption=(
            "layer: the best one, in brackets the 95 % range of its place; none: at the layer with the largest share "
            f"the object's words are not found more often than those of every control ({SIGNIFICANT:.0%}, corrected "
            "for the choice among all layers; p_max in results.csv has every layer); not tested: no control, or a "
            "table of an earlier version; inside: share of the patches in the "
            "box where one of the lens's five best words is the object's, corrected for the choice, with its 95 % "
            "interval over groups; other: another example's words; frequency: words of like frequency; random: a "
            "randomly initialised model"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for header in ("lens", "split"):
        table.add_column(header, no_wrap=True)
    for header in ("layer", "inside", "95 %", "outside", "other", "frequency", "random", "patches"):
        table.add_column(header, justify="right", no_wrap=True)
    scored = results[results["metric"] == _METRIC]
    scored = scored.assign(**{name: float("nan") for name in BEST if name not in scored})
    for lens in dict.fromkeys(scored["lens"]):
        for split in dict.fromkeys(scored["split"]):
            rows = scored[(scored["lens"] == lens) & (scored["split"] == split)]
            named = rows[(rows["words"] == "object") & (rows["place"] == "inside")]
            if not named.empty:
                table.add_row(escape(str(lens)), escape(str(split)), *_best(named, rows))
    return table


def _best(named: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """The cells about the best layer of one lens and split."""
    at = int(named["score"].to_numpy(dtype=float).argmax())
    best = named.iloc[at]
    if not best["p_max"] < SIGNIFICANT:
        return ["not tested" if pd.isna(best["p_max"]) else NONE, *["-"] * 6, str(int(best["n"]))]
    first, last = location_range(named["best_share"].to_numpy(dtype=float))
    place = _layer(best)
    if first != last:
        place += f" ({_layer(named.iloc[first])}-{_layer(named.iloc[last])})"
    beside = rows[rows["site"] == best["site"]].set_index(["words", "place"])["score"]
    keys = (("object", "outside"), ("other", "inside"), ("frequency", "inside"), ("random_init", "inside"))
    return [
        place, _number(best["best_score"]), f"{best['best_lower']:.3f}..{best['best_upper']:.3f}",
        *(_number(beside.get(key, float("nan"))) for key in keys), str(int(best["n"])),
    ]  # fmt: skip


def render_training(results: pd.DataFrame) -> Table:
    """KL from the final distribution by layer, of the logit lens and of the lens that was made."""
    first = results.iloc[0]
    if "kl" not in results:
        table = Table(title=escape(f"{first['model']}: index of text activations"), box=box.SIMPLE_HEAD)
        for header in ("layer", "tokens", "words", "mean cosine of two tokens"):
            table.add_column(header, justify="right")
        for row in results.to_dict("records"):
            table.add_row(_layer(row), str(row["n_tokens"]), str(row["n_words"]), _number(row["mean_cosine"]))
        return table
    table = Table(
        title=escape(
            f"{first['model']}: {first['lens']} against the logit lens, KL from the final distribution (nats)"
        ),
        caption="change: lens minus logit lens on held-out examples, with its paired 95 % interval over groups",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("positions")
    for header in ("layer", "logit", "lens", "change", "95 %", "n"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in results.to_dict("records"):
        table.add_row(
            str(row["positions"]), _layer(row), _number(row["kl_logit"]), _number(row["kl"]),
            _number(row["difference"]),
            "-" if pd.isna(row["lower"]) else f"{row['lower']:.3f}..{row['upper']:.3f}", str(row["n"]),
        )  # fmt: skip
    return table


def _layer(row: "Mapping[Any, Any] | pd.Series[Any]") -> str:
    return "input" if row["name"] == "resid_pre" else str(row["layer"])


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.3f}"
