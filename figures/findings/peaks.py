"""The peak, the onset and the transfer score of each curve of a probe sweep, from its saved table."""

import numpy as np
import numpy.typing as npt
import pandas as pd

NAN = float("nan")

ONSET_SHARE = 0.9  # share of the peak's gain over chance; near the plateau, but robust to noise at the peak
SIGNIFICANT = 0.05  # threshold of p_max, the p-value adjusted for the choice among all sites
NONE = "none"
_TAIL = 0.025  # of the draws on each side of the range of a place


def onset_row(curve: pd.DataFrame) -> "pd.Series | None":
    """The first significant site with 90 % of the peak's corrected gain over chance; None if there is none.

    Args:
        curve: Cross-validated rows of one target, part and name, in the order of the forward pass.
    """
    gain = curve["score"] - curve["chance"]
    peak = curve.iloc[_best(curve)]
    peak_gain = float((peak["score"] if pd.isna(peak["best_score"]) else peak["best_score"]) - peak["chance"])
    reached = (curve["p_max"] < SIGNIFICANT) & (gain > 0) & (gain >= ONSET_SHARE * peak_gain)
    return curve[reached].iloc[0] if reached.any() else None


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each target, part and activation: peak with interval and selectivity, onset, transfer score.

    The peak is that of the cross-validated score over all layers of the activation, or over the projector's stages. Its
    ``score``, ``lower`` and ``upper`` are corrected for the choice of the best; ``peak_first`` to ``peak_last`` is the
    95 % range of its place; ``p_max`` is adjusted for the choice among all sites of the target. If the peak
    is not significant, ``peak`` is "none" and these are empty. ``transfer`` is the transfer score at the same site.
    """
    results = _with_selection(results)
    rows = []
    validated = results[results["split"] == "cv"]
    for target in dict.fromkeys(validated["target"]):
        of_target = validated[validated["target"] == target]
        for key in dict.fromkeys(zip(of_target["part"], curve_names(of_target), strict=True)):
            curve = of_target[(of_target["part"] == key[0]) & (curve_names(of_target) == key[1])]
            rows.append({"target": target, "part": key[0], "name": key[1], **_peak(curve, results)})
    return pd.DataFrame(rows)


def _best(curve: pd.DataFrame) -> int:
    """The row with the highest score, as a number from 0."""
    return int(curve["score"].to_numpy(dtype=float, na_value=-float("inf")).argmax())


def _peak(curve: pd.DataFrame, results: pd.DataFrame) -> dict[str, object]:
    first = last = _best(curve)
    peak = curve.iloc[first]
    moved = results[
        (results["split"] != "cv") & (results["target"] == peak["target"]) & (results["site"] == peak["site"])
    ]
    row: dict[str, object] = {
        "peak": NONE, "peak_first": "", "peak_last": "", "score": NAN, "lower": NAN, "upper": NAN,
        "chance": peak["chance"], "selectivity": NAN, "random_init": NAN, "p_max": peak["p_max"],
        "onset": NONE, "transfer": NAN, "transfer_chance": NAN, "metric": peak["metric"], "n": int(peak["n"]),
    }  # fmt: skip
    single = curve["p_max"].isna().all()  # pixels are one site outside the family, so nothing was chosen
    if not single and not peak["p_max"] < SIGNIFICANT:
        return row
    is_drawn = curve["best_share"].notna().all()
    onset = None if single else onset_row(curve)
    ends = ("score", "lower", "upper") if pd.isna(peak["best_score"]) else ("best_score", "best_lower", "best_upper")
    if is_drawn:
        first, last = location_range(curve["best_share"].to_numpy(dtype=float))
    row |= {
        "peak": _place(peak), "peak_first": _place(curve.iloc[first]), "peak_last": _place(curve.iloc[last]),
        "score": peak[ends[0]], "lower": peak[ends[1]], "upper": peak[ends[2]], "selectivity": peak["selectivity"],
        "random_init": peak["random_init"], "onset": "-" if single else NONE if onset is None else _place(onset),
    }  # fmt: skip
    if len(moved):
        row |= {"transfer": float(moved["score"].iloc[0]), "transfer_chance": float(moved["chance"].iloc[0])}
    return row


def _with_selection(results: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns of ``probes.evaluation.selection``; tables from before them are tested by ``q``."""
    if "p_max" in results:
        return results
    return results.assign(p_max=results["q"], best_share=NAN, best_score=NAN, best_lower=NAN, best_upper=NAN)


def location_range(shares: npt.NDArray[np.float64]) -> tuple[int, int]:
    """The first and the last cell of the range that holds the best one in 95 % of the draws; cells are in order.

    Example:
        >>> location_range(np.array([0.01, 0.3, 0.69, 0.0]))
        (1, 2)
    """
    below = np.cumsum(shares)
    above = below[-1] * (1 - _TAIL)
    return int(np.argmax(below > _TAIL * below[-1])), int(np.argmax(below >= above - 1e-9))


def curve_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """The name of each row's curve: the activation's name, or ``stages`` in the projector."""
    return rows["name"].where(rows["part"] != "projector", "stages")


def _place(row: "pd.Series") -> str:
    """The layer's number, or the name of a site outside the blocks."""
    return str(row["name"]) if pd.isna(row["layer"]) else str(int(row["layer"]))
