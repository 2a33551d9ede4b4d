"""The tables at the end of ``lens-sweep`` and ``lens-sweep train``, from the saved results."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

_METRIC = "hit@5"


def render_summary(results: pd.DataFrame) -> Table:
    """One row for each lens and split: the layer at which it names the object most often, with the controls there."""
    table = Table(
        title=escape(f"{results['model'].iloc[0]}: words that lenses read at the object's patches ({_METRIC})"),
        caption=(
            "layer: the one with the highest score, so the score is a little too high; inside: share of the patches in "
            "the box where one of the lens's five best words is the object's, with its 95 % interval over groups; "
            "other: another example's words; frequency: words of like frequency; random: a randomly initialised model"
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
    for lens in dict.fromkeys(scored["lens"]):
        for split in dict.fromkeys(scored["split"]):
            rows = scored[(scored["lens"] == lens) & (scored["split"] == split)]
            named = rows[(rows["words"] == "object") & (rows["place"] == "inside")]
            if named.empty:
                continue
            best = named.iloc[int(named["score"].to_numpy(dtype=float).argmax())]
            at = rows[rows["site"] == best["site"]].set_index(["words", "place"])["score"]
            table.add_row(
                escape(str(lens)), escape(str(split)),
                "input" if best["name"] == "resid_pre" else str(int(best["layer"])), f"{best['score']:.3f}",
                "-" if pd.isna(best["lower"]) else f"{best['lower']:.3f}..{best['upper']:.3f}",
                *(
                    _number(at.get(key, float("nan")))
                    for key in (
                        ("object", "outside"), ("other", "inside"), ("frequency", "inside"), ("random_init", "inside"),
                    )
                ),
                str(int(best["n"])),
            )  # fmt: skip
    return table


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
