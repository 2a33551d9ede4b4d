"""Layer ranges such as ``0-3,7``: ``parse_layers`` reads them, ``format_layers`` writes them.

Indices count from 0 and both ends of a range are included. Heads use the same notation.
"""

import re
import sys
from collections.abc import Iterable

from tasks.errors import UserError

LayerRange = str | int | Iterable[int]  # a type for arguments: "10-20", 12 or [3, 5, 9]


def parse_layers(
    layers: LayerRange, n: int, *, what: str = "layer", where: str = "", forms: str = "like 0-31 or 3,5,9"
) -> tuple[int, ...]:
    """The indices in ``layers``, in ascending order.

    Args:
        layers: Text such as ``"0-3,7"``, one index, or several.
        n: The number of layers; every index must be in [0, n).
        what: The noun in error messages: ``"layer"`` or ``"head"``.
        where: The owner of the layers in error messages, such as ``"the language model of smol"``.
        forms: The allowed forms of the text, for error messages.

    Raises:
        UserError: If the text has another form, a range descends, an index is repeated or not in [0, n).

    Example:
        >>> parse_layers("0-3,7", n=32)
        (0, 1, 2, 3, 7)
    """
    ranges: list[tuple[int, int]] = []
    if isinstance(layers, str):
        for piece in layers.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
            if not match:
                raise UserError(f"{what}s must be {forms}, got {layers!r}. Both ends of a range are included.")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise UserError(f"{what}s must ascend within a range, got {layers!r}. Write {last}-{first}.")
            ranges.append((first, last))
    else:
        ranges = [(index, index) for index in ([layers] if isinstance(layers, int) else layers)]
    for index in (index for ends in ranges for index in ends):
        if not 0 <= index < n:
            place = f" for {where}" if where else ""
            raise UserError(f"{what} must be in [0, {n}){place}, got {index}. {what.capitalize()}s count from 0.")
    found = [index for first, last in ranges for index in range(first, last + 1)]
    if len(set(found)) < len(found):
        raise UserError(f"{what}s must be named once each, got {layers!r}. Leave out the repetition.")
    return tuple(sorted(found))


def format_layers(layers: Iterable[int]) -> str:
    """The shortest text that ``parse_layers`` reads as ``layers``; empty for no layers.

    Example:
        >>> format_layers([1, 4, 5, 6])
        '1,4-6'
    """
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def layer_text(layers: LayerRange | None) -> str | None:
    """Layers as text; None and text are returned unchanged.

    Example:
        >>> layer_text([3, 4, 5])
        '3-5'
    """
    return layers if layers is None or isinstance(layers, str) else format_layers(parse_layers(layers, sys.maxsize))
