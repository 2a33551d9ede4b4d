"""The table at the end of ``geometry-sweep``, from the saved findings."""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

_NAMES = {"gride": "ID", "overlap": "overlap", "mutual_knn": "mutual kNN", "cka_unbiased": "CKA",
          "imbalance_a_to_b": "imbalance a>b", "imbalance_b_to_a": "imbalance b>a"}  # fmt: skip


def render_summary(findings: pd.DataFrame) -> Table:
    """One row for each finding: the layer with its 95 % range, the value with its interval, control and verdict."""
    first = findings.iloc[0]
    models = " against ".join(dict.fromkeys([str(first["model_a"]), str(first["model_b"])]))
    table = Table(
        title=escape(f"{models}, {int(first['n'])} examples: where dimensions peak and what is nearest"),
        caption=(
            "layer: with the range that holds it in 95 % of the draws; value: with its 95 % interval over halves of "
            "the examples, widened for the choice of the layer; control: shuffled pairs; random: randomly initialised "
            "model; p: of the nearest of all layers against shuffled pairs"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for header in ("comparison", "finding", "measure"):
        table.add_column(header, overflow="fold")
    for header in ("layer", "range", "value", "95 %", "control", "random", "p", "shown"):
        table.add_column(header, justify="right", no_wrap=header != "shown")
    for row in findings.to_dict("records"):
        a, b = row["layer_a"], row["layer_b"]
        side = f" of {row['side']}" if row["side"] != "both" else ""
        layers = {str(int(layer)) for layer in (a, b) if pd.notna(layer)}
        both = pd.notna(a) and pd.notna(b) and len(layers) > 1
        table.add_row(
            escape(str(row["comparison"])),
            f"{row['finding']}{side}",
            _NAMES.get(str(row["measure"]), str(row["measure"])),
            f"{int(a)}, {int(b)}" if both else layers.pop(),
            f"{int(row['first'])}..{int(row['last'])}",
            _number(row["value"]),
            "" if pd.isna(row["lower"]) else f"{row['lower']:.2f}..{row['upper']:.2f}",
            _number(row["control"]),
            _number(row["random_init"]),
            _number(row["p"]),
            "yes" if row["shown"] else f"not shown: {row['reason']}",
        )
    return table


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"
