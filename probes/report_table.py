"""The summary of a sweep: peak layer, onset layer and transfer score of each target."""

import pandas as pd
from rich.markup import escape
from rich.table import Table
from rich.text import Text

ONSET_SHARE = 0.9  # share of the peak's gain over chance; near the plateau, but robust to noise at the peak


def onset_row(curve: pd.DataFrame) -> "pd.Series | None":
    """The first site with 90 % of the peak's gain over chance and a lower bound above chance; None if there is none.

    Args:
        curve: Cross-validated rows of one target, part and name, in the order of the forward pass.
    """
    peak_gain = float((curve["score"] - curve["chance"]).max())
    reached = (curve["lower"] > curve["chance"]) & (curve["score"] - curve["chance"] >= ONSET_SHARE * peak_gain)
    return curve[reached].iloc[0] if reached.any() else None


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each target, part and activation: peak with interval and selectivity, onset, transfer score.

    The peak is that of the cross-validated score over all layers of the activation, or over the projector's stages;
    ``transfer`` is the transfer score at the same site.
    """
    rows = []
    validated = results[results["split"] == "cv"]
    for target in dict.fromkeys(validated["target"]):
        of_target = validated[validated["target"] == target]
        for key in dict.fromkeys(zip(of_target["part"], _curve_names(of_target), strict=True)):
            curve = of_target[(of_target["part"] == key[0]) & (_curve_names(of_target) == key[1])]
            peak = curve.loc[curve["score"].idxmax()]
            onset = onset_row(curve)
            moved = results[
                (results["split"] != "cv") & (results["target"] == target) & (results["site"] == peak["site"])
            ]
            same = ("score", "lower", "upper", "chance", "selectivity", "random_init", "q")
            rows.append(
                {
                    "target": target,
                    "part": key[0],
                    "name": key[1],
                    "peak": _place(peak),
                    **{column: peak[column] for column in same},
                    "onset": "-" if onset is None else _place(onset),
                    "transfer": float(moved["score"].iloc[0]) if len(moved) else float("nan"),
                    "transfer_chance": float(moved["chance"].iloc[0]) if len(moved) else float("nan"),
                    "metric": peak["metric"],
                    "n": int(peak["n"]),
                }
            )
    return pd.DataFrame(rows)


def render_summary(results: pd.DataFrame) -> Table:
    """The summary as a table for the terminal."""
    summary = summarise(results)
    splits = [split for split in dict.fromkeys(results["split"]) if split != "cv"]
    metrics = ", ".join(dict.fromkeys(str(metric).replace("_", " ") for metric in summary["metric"]))
    table = Table(
        title=escape(f"What probes read from {results['model'].iloc[0]} ({metrics})"),
        caption=(
            "peak: layer (from 0) with the best cross-validated score, and its 95 % interval; selec.: score minus "
            f"control task; onset: first layer with {ONSET_SHARE:.0%} of the peak's gain over chance, interval above it"
        ),
        title_justify="left",
        caption_justify="left",
    )
    for header in ("target", "part", "activation"):
        table.add_column(header, no_wrap=True)
    for header in ("peak", "score", "95 %", "chance", "selec.", "rand. init", "onset", *splits[:1]):
        table.add_column(header, justify="right", no_wrap=True)
    previous = None
    for row in summary.to_dict("records"):
        if previous is not None and row["target"] != previous:
            table.add_section()
        cells: list[str | Text] = [
            Text(str(row["target"]) if row["target"] != previous else ""),  # the user's column name is not markup
            str(row["part"]).replace("_", " "),
            str(row["name"]),
            str(row["peak"]),
            f"{row['score']:.2f}",
            f"{row['lower']:.2f}-{row['upper']:.2f}",
            f"{row['chance']:.2f}",
            _number(row["selectivity"]),
            _number(row["random_init"]),
            str(row["onset"]),
        ]
        table.add_row(*cells, *([_number(row["transfer"])] if splits else []))
        previous = row["target"]
    return table


def _curve_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """The name of each row's curve: the activation's name, or ``stages`` in the projector."""
    return rows["name"].where(rows["part"] != "projector", "stages")


def _place(row: "pd.Series") -> str:
    """The layer's number, or the name of a site outside the blocks."""
    return str(row["name"]) if pd.isna(row["layer"]) else str(int(row["layer"]))


def _number(value: object) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"  # type: ignore[call-overload]
