"""The results of ``inference-cost``: price and quality of every plan, one row for each plan and split."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from models.token_plans.cost import CONVENTIONS, Sizes, cache_bytes, decode, prefill
from models.token_plans.plan import TokenPlan
from records.intervals import Intervals, mean_intervals, paired_share_intervals, ratio_intervals, share_intervals

INTERVAL = "95% over groups of questions about one picture; kept, difference: paired with all"
COLUMNS = (
    "model", "plan", "split", "compute", "freeze", "hide", "kept_tokens",
    "prefill_ratio", "prefill_ratio_text", "prefill_ratio_image", "prefill_flops", "decode_ratio", "decode_flops",
    "cache_ratio", "cache_bytes",
    "first_token", "first_token_ratio", "prefill_time", "prefill_time_ratio", "decode_time", "decode_time_ratio",
    "cache_measured", "peak_memory", "peak_memory_ratio",
    "accuracy", "accuracy_lower", "accuracy_upper", "kept", "kept_lower", "kept_upper",
    "difference", "difference_lower", "difference_upper", "agreement", "agreement_lower", "agreement_upper",
    "log_prob", "log_prob_difference", "log_prob_difference_lower", "log_prob_difference_upper",
    "kl", "kl_lower", "kl_upper", "n", "n_groups", "interval",
)  # fmt: skip


def tabulate(
    answers: pd.DataFrame, times: pd.DataFrame, plans: Sequence[TokenPlan], sizes: Sizes, *, model: str, itemsize: int
) -> pd.DataFrame:
    """The table of results; ``docs/results.md`` describes its columns.

    Args:
        answers: The rows of ``quality.score_batch`` for all questions.
        times: The rows of ``timing.measure``; may be empty.
        plans: The plans, ``all`` first.
        sizes: The language model's sizes.
        model: Its name.
        itemsize: Bytes of a number in the cache.
    """
    splits = list(dict.fromkeys(answers["split"]))
    parts: list[tuple[str, pd.DataFrame]] = [(split, answers[answers["split"] == split]) for split in splits]
    if len(splits) > 1:
        parts.insert(0, ("all", answers))
    rows = []
    for split, part in parts:
        full = part[part["plan"] == plans[0].text].reset_index(drop=True)
        for plan in plans:
            own = part[part["plan"] == plan.text].reset_index(drop=True)
            rows.append(
                {
                    "model": model, "plan": plan.text, "split": split,
                    **{state: plan.layers(state) for state in ("compute", "freeze", "hide")},
                    "kept_tokens": min([stage.share for stage in plan.stages], default=1.0),
                    **_costs(own, plan, plans[0], sizes, itemsize), **_times(times, plan, plans[0]),
                    **_quality(own, full), "interval": INTERVAL,
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _costs(own: pd.DataFrame, plan: TokenPlan, full: TokenPlan, sizes: Sizes, itemsize: int) -> dict[str, float]:
    """Closed forms, as means over the questions; ratios are those of the sums."""
    prompts = list(Counter(zip(own["n_image"].tolist(), own["n_text"].tolist(), strict=True)).items())

    def total(function: Any, of: TokenPlan, **options: Any) -> float:
        return float(sum(n * function(sizes, of, image, text, **options) for (image, text), n in prompts))

    found = {}
    for name, convention in zip(("_image", "_text", ""), CONVENTIONS, strict=True):
        cost, whole = (total(prefill, of, convention=convention) for of in (plan, full))
        found[f"prefill_ratio{name}"] = cost / whole if whole else np.nan
    found["prefill_flops"] = 2 * total(prefill, plan) / len(own)
    found["decode_flops"] = 2 * total(decode, plan) / len(own)
    found["decode_ratio"] = total(decode, plan) / total(decode, full)
    found["cache_bytes"] = total(cache_bytes, plan, itemsize=itemsize) / len(own)
    found["cache_ratio"] = total(cache_bytes, plan, itemsize=itemsize) / total(cache_bytes, full, itemsize=itemsize)
    return found


def _times(times: pd.DataFrame, plan: TokenPlan, full: TokenPlan) -> dict[str, float]:
    """Medians over rounds; ratios are medians of the ratios within a round."""
    if times.empty:
        return {}
    own, whole = (times[times["plan"] == of.text].set_index("round") for of in (plan, full))
    found = {}
    for column, name in (
        ("first_token", "first_token"), ("prefill", "prefill_time"), ("decode", "decode_time"),
        ("peak_memory", "peak_memory"),
    ):  # fmt: skip
        values, base = own[column].astype(float), whole[column].astype(float)
        found[name] = float(values.median())
        found[f"{name}_ratio"] = float((values / base).median())
    found["cache_measured"] = float(own["cache_bytes"].median())
    return found


def _quality(own: pd.DataFrame, full: pd.DataFrame) -> dict[str, float]:
    """Scores with intervals over groups, paired with the full model."""
    groups = own["group"].astype("category").cat.codes.to_numpy()
    n = int(groups.max()) + 1

    def sums(values: Any) -> np.ndarray:
        return np.bincount(groups, weights=np.asarray(values, dtype=float), minlength=n)[None]

    asked = sums(np.ones(len(own)))
    right, base = sums(own["right"]), sums(full["right"])
    found = _named("accuracy", own["right"].mean(), share_intervals(right, asked))
    same = own["plan"].equals(full["plan"])
    ratio = float(right.sum() / base.sum()) if base.sum() else np.nan
    is_right_or_wrong = {*own["right"], *full["right"]} <= {0, 1}
    kept, difference = (None, None) if same else _paired(right, base, asked, is_right_or_wrong=is_right_or_wrong)
    found |= _named("kept", ratio, kept)
    found |= _named("difference", float((right - base).sum() / asked.sum()), difference)
    change = own["log_prob"].to_numpy(dtype=float) - full["log_prob"].to_numpy(dtype=float)
    found |= _named("log_prob_difference", change.mean(), None if same else ratio_intervals(sums(change), asked))
    found |= _named("agreement", own["agrees"].mean(), None if same else share_intervals(sums(own["agrees"]), asked))
    found |= _named("kl", own["kl"].mean(), None if same else mean_intervals(sums(own["kl"]) / asked).within(0.0))
    found |= {"log_prob": float(own["log_prob"].mean()), "n": len(own), "n_groups": n}
    return found


def _paired(
    right: np.ndarray, base: np.ndarray, asked: np.ndarray, *, is_right_or_wrong: bool
) -> tuple[Intervals, Intervals]:
    """The intervals of the ratio and of the difference of two plans' scores, from the sums of each group."""
    if is_right_or_wrong:
        ratio, difference = (paired_share_intervals(right, base, asked[0], ratio=ratio) for ratio in (True, False))
        return ratio, difference
    return ratio_intervals(right, base).within(0.0), ratio_intervals(right - base, asked)


def _named(name: str, value: float, interval: Intervals | None) -> dict[str, float]:
    lower, upper = (np.nan, np.nan) if interval is None else (float(end.item()) for end in interval)
    return {name: float(value), f"{name}_lower": lower, f"{name}_upper": upper}
