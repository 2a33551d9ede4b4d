"""What a run found, in a few sentences and one short table: the first section of its part of the page."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from figures.effects import METRICS, fraction_name, of_earlier_version, token_title
from figures.findings import peaks
from figures.findings.largest_effects import summarise as largest_effects
from figures.layer_axis import PARTS, main_name
from figures.plans.plan_marks import CONDITIONS
from figures.report.tables import table_section

Json = dict[str, Any]
Row = Mapping[Hashable, Any]
TITLE = "What was found"
_MOST = 6  # sentences
_KEPT = 0.95  # share of the reference's score that counts as kept


def probe_finding(results: pd.DataFrame) -> Json:
    """The peak of each target: sentences for the language model, and the table of all curves."""
    summary = peaks.summarise(results)
    lines, blocks = [], main_name(results[results["part"].isin(PARTS)])
    for target in dict.fromkeys(summary["target"]):
        rows = [row for row in summary.to_dict("records") if row["target"] == target]
        of_model = [row for row in rows if row["part"] == "language_model" and row["name"] != "final_norm"]
        of_blocks = [row for row in of_model if row["name"] == blocks]
        shown = max(of_blocks or of_model or rows, key=lambda row: -1.0 if pd.isna(row["score"]) else row["score"])
        lines.append(_peak_line(shown))
    columns = {
        "target": "target", "part": "part", "name": "activation", "peak": "peak layer", "range": "95 % range of it",
        "score": "score", "interval": "95 %", "chance": "chance", "selectivity": "selectivity",
        "random_init": "random model", "onset": "onset layer", "transfer": "transfer score", "p_max": "p, corrected",
    }  # fmt: skip
    spans = [
        "" if row["peak_first"] == row["peak_last"] else f"{row['peak_first']} to {row['peak_last']}"
        for row in summary.to_dict("records")
    ]
    metrics = ", ".join(dict.fromkeys(str(metric).replace("_", " ") for metric in summary["metric"]))
    intervals = [_ends(row["lower"], row["upper"]).strip() for row in summary.to_dict("records")]
    words = summary.assign(range=spans, interval=intervals, part=summary["part"].str.replace("_", " "))[list(columns)]
    caption = (
        f"Score: {metrics}, cross-validated. Peak: the best layer of each curve; its score and 95 % interval are "
        f"corrected for the choice of the layer. Onset: the first significant layer with {peaks.ONSET_SHARE:.0%} of "
        f"the peak's gain over chance. None: no layer is significant at {peaks.SIGNIFICANT:.0%}, corrected for the "
        f"choice among all{of_earlier_version(results)}."
    )
    return _section(words.rename(columns=columns), caption, lines)


def patch_finding(results: pd.DataFrame) -> Json:
    """The largest effect of each token group: a sentence for each, and the table."""
    summary, effect = largest_effects(results), fraction_name(results)
    first = results.iloc[0]
    shown = summary[summary["metric"] == first["metric"]]
    lines = [_effect_line(row, str(first["op"]), effect) for row in shown.to_dict("records")]
    columns = {
        "part": "part", "name": "activation", "tokens": "tokens", "metric": "metric", "layer": "layer", "head": "head",
        "place": "place", "effect": effect, "effect_lower": "lower", "effect_upper": "upper", "value": "value",
        "clean": "clean", "corrupt": "corrupt", "n": "pairs", "n_significant": "significant cells", "n_cells": "cells",
        "p_max": "p, corrected",
    }  # fmt: skip
    words = summary.assign(
        part=summary["part"].str.replace("_", " "), tokens=[token_title(str(text)) for text in summary["tokens"]],
        layer=[_layer(row) for row in summary.to_dict("records")],
    )[list(columns)]  # fmt: skip
    caption = (
        f"The cell with the largest effect of each token group; the {effect} and its 95 % interval over pairs are "
        "corrected for the choice of the cell and for its being named. Layer none: no cell is significant at 5 %, "
        f"corrected for the choice among all cells{of_earlier_version(results)}."
    )
    return _section(words.rename(columns=columns), caption, lines)


def compare_finding(table: pd.DataFrame) -> Json:
    """How much of full tuning's score each plan keeps under the first condition."""
    condition = str(table["condition"].iloc[0])
    rows = table[(table["family"] == "all") & (table["condition"] == condition)]
    where = CONDITIONS.get(condition, condition)
    lines = []
    reference = rows[rows["plan"] == "full"]
    if len(reference):
        lines.append(f"Full tuning scores {reference['score'].iloc[0]:.3f} on {where}.")
    others = rows[~rows["plan"].isin(["full", "start"]) & ~rows["plan"].str.startswith("reference")]
    ordered = others[others["retention"].notna()].sort_values("retention", ascending=False)
    for row in ordered.head(_MOST - 1).to_dict("records"):
        cost = row.get("flops_ratio")
        price = "" if cost is None or pd.isna(cost) else f", at {cost:.2f} of the operations of a step"
        lines.append(f"{row['plan']} keeps {row['retention']:.2f}{_ends(row['lower'], row['upper'])} of that{price}.")
    columns = {
        "plan": "plan", "layers": "layers", "score": "score", "retention": "retention", "lower": "lower",
        "upper": "upper", "flops_ratio": "operations", "step_time_ratio": "step time", "trainable": "trainable",
        "n": "n", "seeds": "seeds",
    }  # fmt: skip
    words = rows[[name for name in columns if name in rows]].sort_values("retention", ascending=False)
    caption = (
        f"Scored on {where}. Retention: score divided by that of full tuning, with its 95 % interval. Operations and "
        "step time are relative to full tuning."
    )
    return _section(words.rename(columns=columns), caption, lines)


def inference_finding(table: pd.DataFrame) -> Json:
    """The cheapest token plan that keeps the full model's accuracy, and the table by plan."""
    splits = list(dict.fromkeys(table["split"]))
    split = "all" if "all" in splits else splits[0]
    rows = table[(table["split"] == split) & table["kept"].notna()]
    lines = []
    kept = rows[(rows["plan"] != "all") & (rows["kept"] >= _KEPT)].sort_values("prefill_ratio")
    if kept.empty:
        lines.append(
            f"No token plan keeps {_KEPT:.0%} of the full model's accuracy (questions: {split}; point estimate)."
        )
    for row in kept.head(1).to_dict("records"):
        lines.append(
            f"The cheapest plan that keeps {_KEPT:.0%} of the full model's accuracy is {row['plan']}: it keeps "
            f"{row['kept']:.2f}{_ends(row['kept_lower'], row['kept_upper'])} at {row['prefill_ratio']:.2f} of the "
            "operations of prefill. It is the best of several by this estimate, whose interval does not allow for the "
            "choice."
        )
    columns = {
        "plan": "plan", "accuracy": "accuracy", "kept": "kept", "kept_lower": "lower", "kept_upper": "upper",
        "prefill_ratio": "operations of prefill", "prefill_time_ratio": "time of prefill", "cache_ratio": "cache",
        "decode_ratio": "operations of a new token", "n": "n",
    }  # fmt: skip
    words = rows[[name for name in columns if name in rows]].sort_values("prefill_ratio")
    caption = (
        f"Questions: {split}. Kept: accuracy divided by that of the full model, with its 95 % interval. Costs are "
        "relative to the full model."
    )
    return _section(words.rename(columns=columns), caption, lines)


def _section(words: pd.DataFrame, caption: str, lines: Sequence[str]) -> Json:
    section = table_section(words.reset_index(drop=True), title=TITLE, source="the table below")
    left = len(lines) - _MOST
    more = [f"{left} more are in the table."] if left > 0 else []
    return {**section, "caption": caption, "lines": [*lines[:_MOST], *more], "short": True}


def _peak_line(row: Row) -> str:
    part = str(row["part"]).replace("_", " ")
    if row["peak"] == peaks.NONE:
        return f"{row['target']}: no layer of the {part} is significantly above chance."
    where = f"layer {row['peak']}" if str(row["peak"]).isdigit() else str(row["peak"]).replace("_", " ")
    span = "" if row["peak_first"] == row["peak_last"] else f" (95 % range {row['peak_first']} to {row['peak_last']})"
    score = f"{str(row['metric']).replace('_', ' ')} {row['score']:.2f}{_ends(row['lower'], row['upper'])}"
    onset = "" if row["onset"] in ("-", peaks.NONE) else f", onset at layer {row['onset']}"
    return f"{row['target']}: best read in the {part} at {where}{span}: {score}, chance {row['chance']:.2f}{onset}."


def _effect_line(row: Row, op: str, effect: str) -> str:
    tokens = token_title(str(row["tokens"])) or "all positions"
    metric = METRICS.get(str(row["metric"]), str(row["metric"])).split(" (")[0]
    if not row["found"]:
        return f"{tokens}: no cell of {row['name']} is significant, corrected for the choice among all cells."
    head = "" if _missing(row["head"]) or row["head"] == "" else f", head {row['head']}"
    place = f", {row['place']}" if row["place"] else ""
    layer = "" if _missing(row["layer"]) else f" at layer {int(row['layer'])}"
    if _missing(row["effect"]):  # the fraction is undefined, or only smaller effects are significant
        levels = f"{metric} {row['value']:.2f}, clean run {row['clean']:.2f}, corrupt run {row['corrupt']:.2f}"
        return f"{tokens}: {op} of {row['name']} is significant{layer}{head}{place}: {levels}."
    size = f"{effect} of the {metric} {row['effect']:.2f}{_ends(row['effect_lower'], row['effect_upper'])}"
    return f"{tokens}: {op} of {row['name']} has its largest effect{layer}{head}{place}: {size}."


def _layer(row: Row) -> str:
    if not row["found"]:
        return peaks.NONE
    return "-" if _missing(row["layer"]) else str(int(row["layer"]))


def _ends(lower: Any, upper: Any) -> str:
    return "" if _missing(lower) or _missing(upper) else f" [{lower:.2f}, {upper:.2f}]"


def _missing(value: Any) -> bool:
    """True for None and NaN."""
    return bool(pd.isna(value))
