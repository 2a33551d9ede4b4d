"""The layers and parts that each tuning plan trains."""

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from figures.layer_axis import layers_of
from figures.panels import open_panels, stride
from figures.style import Width, figure_of, plan_colour

BEFORE = ("vision", "projector", "embeddings")
AFTER = ("final_norm", "lm_head")
GAP = 0.6  # between the blocks and the other parts, in boxes
STEPS = {"two": 1.0, "one": 2.6}  # distance between two other parts, in boxes: room for their names
_EMPTY = "#B4B4B4"
_HATCHES = {"lora": "/////", "lisa": "....."}
METHODS = {"full": "all weights train", "lora": "low-rank factors train (LoRA)", "lisa": "a few at a time train (LISA)"}


class PlanRow(NamedTuple):
    """What a plan trains."""

    plan: str
    blocks: set[int]
    """Blocks of the language model, from 0."""
    parts: set[str]
    """Other parts, such as ``projector``."""
    method: str
    """``full``, ``lora`` or ``lisa``."""


def plan_rows(table: pd.DataFrame, n_layers: int | None = None) -> tuple[int, list[PlanRow]]:
    """The number of blocks, and what each plan of the table trains. Arguments: see ``draw_plan_diagram``.

    Raises:
        ValueError: If no plan has layers.
    """
    plans = table.drop_duplicates("plan").set_index("plan")
    plans = plans[plans["layers"].notna() & (plans["layers"].astype(str) != "")]
    if plans.empty:
        raise ValueError(
            "table must contain at least one plan with layers, got none. Run layerwise-finetune compare first."
        )
    n_layers = n_layers or 1 + max((max(_blocks(ranges, 0), default=-1) for ranges in plans["layers"]), default=-1)
    rows = []
    for plan, row in plans.iterrows():
        blocks = set() if plan == "start" else _blocks(row["layers"], n_layers)
        parts = set() if plan == "start" else _parts(row["train"])
        method = "full" if pd.isna(row["method"]) or row["method"] == "" else str(row["method"])
        rows.append(PlanRow(str(plan), blocks, parts, method))
    return n_layers, rows


def draw_plan_diagram(
    table: pd.DataFrame,
    *,
    n_layers: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    width: Width = "two",
    legend: bool = True,
) -> Axes:
    """The parts that each plan trains, one row for each plan: blocks of the language model by number, then other parts.

    Filled: all weights train; striped: low-rank factors train; dotted: a few blocks at a time; empty: frozen. Blocks
    count from 0, in the order of the forward pass.

    - ``table``: One or more rows for each plan, with the columns ``plan, layers, train, method``, such as
      ``compare.csv``. ``layers`` holds numbers and ranges (``3,6-9``), ``all`` or ``none``; plans that lack it are left
      out. ``train`` lists the other parts with commas.
    - ``n_layers``: Blocks of the language model; by default one more than the largest number in the table.

    The other arguments are described in ``figures.panels``.

    Example:
        >>> from figures import draw_plan_diagram, example_table
        >>> [text.get_text() for text in draw_plan_diagram(example_table("plan_diagram_smol")).get_yticklabels()][-2:]
        ['full', 'start']
    """
    n_layers, rows = plan_rows(table, n_layers)
    step = STEPS[width]
    left = len(BEFORE) * step + GAP
    right = left + n_layers + GAP
    places: list[tuple[float, str | int]] = [(i * step, part) for i, part in enumerate(BEFORE)]
    places += [(left + layer, layer) for layer in range(n_layers)]
    places += [(right + i * step, part) for i, part in enumerate(AFTER)]
    methods: list[str] = []
    with open_panels(
        ax, ["all plans"], width=width, columns=1, heights=0.21 * len(rows) + 0.75, extra=0.4, title=title
    ) as opened:
        panel = opened.axes[0]
        for place, row in enumerate(reversed(rows)):
            for x, name in places:
                is_part = isinstance(name, str)
                trains, how = (name in row.parts, "full") if is_part else (name in row.blocks, row.method)
                _box(panel, x, place, trains, how, plan_colour(row.plan))
                methods += [how] if trains and how not in methods else []
        every = stride(panel, [str(n_layers - 1)], right + len(AFTER) * step)
        shown = [(x, name) for x, name in places if isinstance(name, str) or name % every == 0]
        panel.set_xticks([x + 0.43 for x, _ in shown], [str(name).replace("_", " ") for _, name in shown])
        for text in panel.get_xticklabels():
            if not text.get_text().isdigit():
                text.set(rotation=50, horizontalalignment="right", rotation_mode="anchor")
        panel.set_xlabel("part; block of the language model, from 0")
        panel.tick_params(length=0)
        panel.set_yticks(range(len(rows)), [row.plan for row in rows][::-1])
        panel.set_xlim(-0.3, right + len(AFTER) * step + 0.2)
        panel.set_ylim(-0.7, len(rows) - 0.3)
        if legend:
            keys = [
                Patch(facecolor="#8C8C8C" if how == "full" else "none", edgecolor="#555555", hatch=_HATCHES.get(how),
                      linewidth=0.7, label=METHODS.get(how, how))
                for how in methods
            ]  # fmt: skip
            keys.append(Patch(facecolor="none", edgecolor=_EMPTY, linewidth=0.7, label="frozen"))
            if opened.own:
                columns = 4 if width == "two" else 1
                figure_of(panel).legend(handles=keys, loc="outside lower center", ncols=columns)
            else:
                panel.legend(handles=keys, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=6.5)
    return panel


def _blocks(layers: object, n_layers: int) -> set[int]:
    """The blocks that a plan trains."""
    if layers in ("none", "all"):
        return set(range(n_layers)) if layers == "all" else set()
    return set(layers_of(str(layers)))


def _parts(train: object) -> set[str]:
    return {part.partition(":")[0] for part in ("" if pd.isna(train) else str(train)).split(",")}  # type: ignore[call-overload]


def _box(panel: Axes, x: float, place: int, trains: bool, how: str, colour: str) -> None:
    box = Rectangle(
        (x, place - 0.36), 0.86, 0.72, facecolor=colour if trains and how == "full" else "none",
        edgecolor=colour if trains else _EMPTY,
    )  # fmt: skip
    box.set(hatch=_HATCHES.get(how) if trains else None, linewidth=0.7)
    panel.add_patch(box)
