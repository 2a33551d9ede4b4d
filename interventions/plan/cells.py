"""One intervention by name: the key columns of the result table.

``spec.sites``, ``spec.layers`` and ``spec.heads`` parse the columns, so a row of a saved table can be run again.
"""

import sys
from dataclasses import asdict, dataclass, fields

from interventions.plan.options import Op
from models.layer_ranges import parse_layers
from models.llava import Llava
from models.sites import Part, Site


@dataclass(frozen=True)
class CellSpec:
    """One intervention, named by the key columns of the result table.

    Args:
        op: The operation.
        site: TransformerLens name at ``layer``; ``pattern`` for knockouts, ``resid_post`` for skipped layers;
            ``weights`` for transplants.
        layer: Layer that names the window: its centre before clipping, the last layer of ``"up-to"``, the first of
            ``"onward"`` and ``"together"``; None outside the blocks.
        window: The changed layers, such as ``"3"``, ``"0-4"`` or ``"1,4-11"``; empty outside the blocks.
        tokens: Token group; for knockouts ``source->target``, the direction in which information flows: queries at the
            target do not attend to keys at the source. Empty for transplants.
        head: Heads that are changed together, such as ``"3"`` or ``"0+3"``; None for all.

    Example:
        >>> spec = CellSpec("patch", "blocks.4.attn.hook_z", 4, "3-5", "last", head="0+3")
        >>> spec.layers, spec.heads, str(spec.sites[0])
        ((3, 4, 5), (0, 3), 'blocks.3.attn.hook_z')
    """

    op: Op
    site: str
    layer: int | None
    window: str
    tokens: str
    head: str | None = None

    @property
    def part(self) -> Part:
        """The part of the model that is changed."""
        return "language_model" if self.op == "transplant" else Site.parse(self.site).part

    @property
    def name(self) -> str:
        """Name of the site without its layer: ``resid_pre``, ``z``, ``pattern``, ``weights``, ..."""
        return self.site if self.op == "transplant" else Site.parse(self.site).name

    @property
    def layers(self) -> tuple[int, ...]:
        """The changed layers; empty outside the blocks."""
        return parse_layers(self.window, sys.maxsize) if self.window else ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site in each changed layer."""
        site = Site.parse(self.site)
        return tuple(Site(site.part, layer, site.name) for layer in self.layers) or (site,)

    @property
    def heads(self) -> tuple[int, ...] | None:
        """The changed heads; None for all."""
        return None if self.head is None else tuple(int(head) for head in self.head.split("+"))

    def row(self) -> dict[str, str | int | None]:
        """The key columns."""
        return asdict(self)


KEYS = tuple(field.name for field in fields(CellSpec))


def count_heads(site: Site, llava: Llava) -> int:
    """Number of heads at a site: query heads for q, z and pattern; key and value heads for k and v."""
    if site.part == "vision_tower":
        return llava.n_vision_heads
    return llava.n_kv_heads if site.name in ("k", "v") else llava.n_heads
