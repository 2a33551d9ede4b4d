"""Attention over a picture beside what cutting its edges does: ``draw_attention(attention, effects, picture)``."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from figures.attention.saved import SavedAttention
from figures.effect_colours import colour_bar
from figures.effects import METRICS, fraction_name, token_title
from figures.panels import draw_level, open_panels
from figures.patch_map import show_picture
from figures.read_run import Picture
from figures.style import COLOURS, SEQUENTIAL, Panels, Width

_COVER = 0.62  # opacity of the attention over the picture
_HEIGHT = 2.1  # inches


def draw_attention(
    attention: SavedAttention,
    effects: pd.DataFrame,
    picture: Picture | None = None,
    *,
    flow: int = 0,
    metric: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Attention of two heads over one picture, and attention against the effect of the cut for every layer and head.

    Left: the head with the most attention to the patches whose edges the knockout cuts. Middle: the head whose cut
    changes the metric most. Right: one point for each layer and head, these two in the colours of their titles;
    attention is the sum over the patches, a mean over the positions of the target. One pair, so there is no interval.
    Attention alone does not say what is used: compare the heads on the right.

    - ``attention``: One pair of ``read_attention``.
    - ``effects``: Its cells, from ``edge_effects``, with ``layer``, ``head``, ``metric`` and ``effect``.
    - ``picture``: ``H W 3``; None for a blank one.
    - ``flow``: Which of the knockouts of ``attention``, from 0.
    - ``metric``: The metric; by default the table's first.

    The other arguments are described in ``figures.panels``.

    Raises:
        ValueError: If no cell has a defined effect.

    Example:
        >>> import numpy as np
        >>> from figures.attention.saved import Flow
        >>> weights = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 2, 1))[..., :4].astype(np.float32)
        >>> edges = Flow("image->last", positions=(0,), patches=(0, 1, 2, 3))
        >>> saved = SavedAttention(0, "scene", weights, (0, 1), ("0", "1"), (9,), (":",), (edges,), (2, 2))
        >>> cells = pd.DataFrame({"layer": [0, 0, 1, 1], "head": ["0", "1"] * 2, "metric": "kl", "model": "smol",
        ...                       "effect": [0.1, 0.0, 0.5, 0.0], "unchanged": "clean"})
        >>> draw_attention(saved, cells)[1].get_title().splitlines()[1]
        'layer 1, head 0'
    """
    edges = attention.flows[flow]
    metric = str(effects["metric"].iloc[0]) if metric is None and len(effects) else metric
    rows = effects[(effects["metric"] == metric) & effects["effect"].notna()]
    rows = rows[rows["layer"].isin(attention.layers) & rows["head"].isin(attention.heads)]
    if rows.empty:
        raise ValueError(f"effects must contain a cell of {metric!r} with a defined effect, got none.")
    summed = attention.summed(edges)
    at = [attention.layers.index(int(layer)) for layer in rows["layer"]]
    of = [attention.heads.index(str(head)) for head in rows["head"]]
    weights, effect = summed[at, of], rows["effect"].to_numpy(dtype=float)
    most, strongest = int(weights.argmax()), int(np.abs(effect).argmax())
    chosen = [("most attention", most, "transfer"), ("largest effect of the cut", strongest, "score")]
    with open_panels(
        axes, [*(name for name, _, _ in chosen), "all heads"], width=width, columns=3 if width == "two" else 1,
        heights=_HEIGHT, extra=0.45, title=title,
        default_title=f"Attention {token_title(edges.tokens)} and what cutting it does, {attention.id}",
    ) as opened:  # fmt: skip
        maps = [attention.values[at[i], of[i]][list(edges.positions)].mean(0) for _, i, _ in chosen]
        norm = Normalize(0.0, max(float(one.max()) for one in maps) or 1.0)
        for panel, (name, i, colour), values in zip(opened.axes, chosen, maps, strict=False):
            extent = show_picture(panel, attention.shape, picture)
            shown = values.reshape(attention.shape)
            alpha = 1.0 if picture is None else _COVER
            panel.imshow(shown, cmap=SEQUENTIAL, norm=norm, alpha=alpha, extent=extent)
            head = f"layer {rows['layer'].iloc[i]}, head {rows['head'].iloc[i]}"
            panel.set_title(f"{name}\n{head}", fontsize=7.5, color=COLOURS[colour])
        last = opened.axes[2]
        last.plot(weights, effect, linestyle="", marker="o", markersize=2.4, color=COLOURS["muted"], alpha=0.6)
        for _, i, colour in chosen:
            last.plot(
                weights[i], effect[i], linestyle="", marker="o", markersize=5, color=COLOURS[colour], gid="chosen"
            )
        draw_level(last, 0.0, "chance")
        last.set_xlabel("attention to the cut patches")
        last.set_ylabel(f"{fraction_name(rows)} of\n{METRICS.get(str(metric), str(metric)).split(' (')[0]}")
        last.set_title(_rank_correlation(weights, effect), fontsize=7.5)
        if legend:
            alpha = 1.0 if picture is None else _COVER
            colour_bar(opened.axes[:2], ScalarMappable(norm, SEQUENTIAL), "attention weight", alpha=alpha)
    return opened.axes


def _rank_correlation(weights: npt.NDArray[np.float64], effect: npt.NDArray[np.float64]) -> str:
    """The number of heads, and the rank correlation (Spearman's) of attention and size of the effect over them."""
    size = np.abs(effect)
    if len(size) < 3 or np.ptp(size) == 0 or np.ptp(weights) == 0:
        return f"{len(size)} heads"
    correlation = float(pd.Series(weights).rank().corr(pd.Series(size).rank()))
    return f"{len(size)} heads, rank correlation {correlation:.2f}"
