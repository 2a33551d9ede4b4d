"""One intervention by name: the key columns of the result table, and what they mean.

``spec.sites``, ``spec.layers`` and ``spec.heads`` read the columns back, so a row of a saved table can be run again.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from interventions.plan.options import Op
from models.llava import Llava
from models.sites import Part, Site


@dataclass(frozen=True)
class CellSpec:
    """One intervention, named by the key columns of the result table.

    Args:
        op: The operation.
        site: The TransformerLens name, at ``layer``; ``pattern`` for knockouts, ``resid_post`` for skipped layers;
            ``weights`` for transplants.
        layer: The layer that the window belongs to: its centre before clipping, the last one of ``"up-to"``, the first
            one of ``"onward"`` and ``"together"``; None outside the blocks.
        window: The layers really changed, such as ``"3"``, ``"0-4"`` or ``"1,4-11"``; empty outside the blocks.
        tokens: The group; for knockouts ``source->target``, the way that information flows: queries of the target stop
            looking at keys of the source. Empty for transplants.
        head: The heads that are changed together, such as ``"3"`` or ``"0+3"``; None for all.
    """

    op: Op
    site: str
    layer: int | None
    window: str
    tokens: str
    head: str | None = None

    @property
    def part(self) -> Part:
        """The part of the stack that is changed."""
        return "language_model" if self.op == "transplant" else Site.parse(self.site).part

    @property
    def name(self) -> str:
        """What is changed, without its layer: ``resid_pre``, ``z``, ``pattern``, ``weights``, ..."""
        return self.site if self.op == "transplant" else Site.parse(self.site).name

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that is changed; empty outside the blocks."""
        found: list[int] = []
        for piece in self.window.split(",") if self.window else []:
            first, _, last = piece.partition("-")
            found += range(int(first), int(last or first) + 1)
        return tuple(found)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site in every layer that is changed."""
        site = Site.parse(self.site)
        return tuple(Site(site.part, layer, site.name) for layer in self.layers) or (site,)

    @property
    def heads(self) -> tuple[int, ...] | None:
        """The heads that are changed; None for all."""
        return None if self.head is None else tuple(int(head) for head in self.head.split("+"))

    def row(self) -> dict[str, str | int | None]:
        """The key columns."""
        return asdict(self)


def count_heads(site: Site, llava: Llava) -> int:
    """How many heads a site has: q, z and pattern those of queries; k and v their own, fewer under grouped queries."""
    if site.part == "vision_tower":
        return llava.n_vision_heads
    return llava.n_kv_heads if site.name in ("k", "v") else llava.n_heads


def spell_layers(layers: Iterable[int]) -> str:
    """Layers as the table writes them: ``[1, 4, 5, 6]`` -> ``"1,4-6"``."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
