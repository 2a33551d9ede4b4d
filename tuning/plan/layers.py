"""Layer specs of a plan: ``select_layers("first:8", n_layers)``. Layers count from 0."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.layer_ranges import format_layers, parse_layers
from tasks.errors import UserError
from tuning.plan.choose_layers import choose_layers

SPECS = "all, none, 6-16, 3,5,9, every:4, first:8, last:8, middle:0.33, random:8@0, auto:RUN"


def select_layers(spec: str, n_layers: int) -> tuple[int, ...]:
    """The layers that ``spec`` names, in ascending order.

    Args:
        spec: ``all``; ``none``; layers and inclusive ranges (``3,5,9``, ``6-16``, ``0-3,28-31``); ``every:k`` (0, k,
            2k, ...); ``first:k``; ``last:k``; ``middle:f`` (the share f of all layers, centred); ``random:k@seed`` (k
            random layers); ``auto:RUN`` (``choose_layers`` on a run directory of probe-sweep or patch-sweep).
        n_layers: Number of layers.

    Raises:
        UserError: If the spec is none of these or names a layer that does not exist.

    Example:
        >>> select_layers("6-8,11", n_layers=12)
        (6, 7, 8, 11)
        >>> select_layers("middle:0.33", n_layers=12)
        (4, 5, 6, 7)
    """
    text = spec.strip()
    if text == "all":
        return tuple(range(n_layers))
    if text == "none":
        return ()
    kind, colon, value = text.partition(":")
    if not colon:
        return parse_layers(text, n_layers, forms=f"one of {SPECS}")
    if kind == "auto":
        return choose_layers(Path(value), n_layers).layers
    if kind == "middle":
        share = _number(value, spec)
        if not 0 < share <= 1:
            raise UserError(f"middle must be a share in (0, 1], got {value}. Write middle:0.33 for the middle third.")
        count = max(1, round(share * n_layers))
        start = (n_layers - count) // 2
        return tuple(range(start, start + count))
    if kind == "random":
        count_text, _, seed = value.partition("@")
        count = _count(count_text, n_layers, spec)
        if not seed.isdecimal():
            raise UserError(f"random must have a number of layers and a seed, got {spec!r}. Write random:8@0.")
        drawn = np.random.default_rng(int(seed)).choice(n_layers, size=count, replace=False)
        return tuple(sorted(int(layer) for layer in drawn))
    if kind in ("every", "first", "last"):
        k = _count(value, n_layers, spec)
        return tuple({"every": range(0, n_layers, k), "first": range(k), "last": range(n_layers - k, n_layers)}[kind])
    raise UserError(f"layers must be one of {SPECS}, got {spec!r}. Layers count from 0 and ranges are inclusive.")


def anchor_band(n_layers: int) -> tuple[int, ...]:
    """Layers 6-16 of 32 at the same relative depth.

    Source: Palacios et al. 2026, "Visual Instruction Tuning Aligns Modalities through Abstraction", arXiv 2606.03871.
    """
    first = round(6 * n_layers / 32)
    return tuple(range(first, max(first + 1, round(17 * n_layers / 32))))


def layer_spec(layers: Sequence[int], n_layers: int) -> str:
    """The shortest spec of ``layers``: ``all``, ``none``, or ranges such as ``0-3,7``."""
    return "none" if not layers else "all" if len(layers) == n_layers else format_layers(layers)


def _number(value: str, spec: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"layers must be one of {SPECS}, got {spec!r}. A number must follow the colon.") from None


def _count(value: str, n_layers: int, spec: str) -> int:
    number = _number(value, spec)
    if not 1 <= number <= n_layers or number != int(number):  # NaN and infinity are in no range
        raise UserError(f"{spec.partition(':')[0]} must count layers in [1, {n_layers}], got {value}. See {SPECS}.")
    return int(number)
