"""Names of activations: a ``Site`` is a (part, layer, name), written as in TransformerLens 4.

``Site.parse`` reads a full name, ``parse_sites`` the shorthand of the command line. Layers count from 0.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

from models.layer_ranges import LayerRange, layer_text, parse_layers
from tasks.errors import UserError

Part = Literal["vision_tower", "projector", "language_model"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order of the forward pass

# Name -> (TransformerLens name, meaning), in the order of the computation. TransformerLens has no hook point for the
# vision tower's resid_mid (its ln2.hook_in has the same value) and the projector's linear_1 and act.
_BLOCK = {
    "resid_pre": ("hook_resid_pre", "residual stream before the block"),
    "q": ("attn.hook_q", "queries of each head"),
    "k": ("attn.hook_k", "keys of each head"),
    "v": ("attn.hook_v", "values of each head"),
    "pattern": ("attn.hook_pattern", "attention weights of each head"),
    "z": ("attn.hook_z", "values of each head, weighted by its attention"),
    "attn_out": ("hook_attn_out", "output of the attention"),
    "resid_mid": ("hook_resid_mid", "residual stream between attention and MLP"),
    "mlp_out": ("hook_mlp_out", "output of the MLP"),
    "resid_post": ("hook_resid_post", "residual stream after the block"),
}
_STACK: dict[Part, str] = {"vision_tower": "vision_encoder.encoder_layers", "language_model": "blocks"}
_SINGLE: dict[Part, dict[str, tuple[str, str]]] = {
    "vision_tower": {},
    "projector": {
        "in": ("vision_projector.hook_in", "input of the projector"),
        "linear_1": ("vision_projector.linear_1", "output of the first linear map"),
        "act": ("vision_projector.act", "output of the activation function"),
        "out": ("vision_projector.hook_out", "image tokens as input of the language model"),
    },
    "language_model": {"final_norm": ("ln_final.hook_out", "residual stream after the last block and the final norm")},
}
_ALIASES: dict[str, Part] = {"vision": "vision_tower", "language": "language_model", **{part: part for part in PARTS}}


@runtime_checkable
class Stack(Protocol):
    """The name of a model and its numbers of blocks; ``Llava`` has them."""

    @property
    def id(self) -> str:
        """The name of the model."""

    @property
    def n_layers(self) -> int:
        """The number of blocks of the language model."""

    @property
    def n_vision_layers(self) -> int:
        """The number of blocks of the vision tower."""


@dataclass(frozen=True)
class Site:
    """The place of an activation in a model.

    Args:
        part: ``"vision_tower"``, ``"projector"`` or ``"language_model"``.
        layer: The block, counted from 0; None outside the blocks.
        name: ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn_out``, ``mlp_out``, ``q``, ``k``, ``v``, ``z`` or
            ``pattern`` in a block; ``in``, ``linear_1``, ``act``, ``out`` in the projector; ``final_norm`` after the
            language model's last block.

    Example:
        >>> str(Site("language_model", 12, "z"))
        'blocks.12.attn.hook_z'
        >>> Site.parse("vision_projector.hook_out").part
        'projector'
    """

    part: Part
    layer: int | None
    name: str

    def __post_init__(self) -> None:
        """Check the values."""
        known = _SINGLE.get(self.part, {}) if self.layer is None else (_BLOCK if self.part in _STACK else {})
        if self.name not in known or (self.layer is not None and self.layer < 0):
            raise UserError(
                f"site must be one that a LLaVA has, got part {self.part!r}, layer {self.layer}, name {self.name!r}. "
                f"{_vocabulary()}"
            )

    def __str__(self) -> str:
        """The TransformerLens name."""
        if self.layer is None:
            return _SINGLE[self.part][self.name][0]
        return f"{_STACK[self.part]}.{self.layer}.{_BLOCK[self.name][0]}"

    def _repr_html_(self) -> str:
        """For notebooks: the name, the place, and the meaning."""
        where = _part_name(self.part) + ("" if self.layer is None else f", block {self.layer}")
        _, meaning = (_SINGLE[self.part] if self.layer is None else _BLOCK)[self.name]
        return f"<code>{escape(str(self))}</code> {escape(where)}: {escape(meaning)}"

    def __lt__(self, other: "Site") -> bool:
        """Whether this site precedes the other in the forward pass."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, int, int]:
        names = list(_SINGLE[self.part] if self.layer is None else _BLOCK)
        return PARTS.index(self.part), sys.maxsize if self.layer is None else self.layer, names.index(self.name)

    @staticmethod
    def parse(text: str) -> "Site":
        """The site with the TransformerLens name ``text``.

        Raises:
            UserError: If no site has this name.
        """
        match = re.fullmatch(r"(.+)\.(\d+)\.(.+)", text)
        for part in PARTS:
            inside = match if match and match[1] == _STACK.get(part) else None
            for name, (written, _) in (_BLOCK if inside else _SINGLE[part]).items():
                if written == (inside[3] if inside else text):
                    return Site(part, int(inside[2]) if inside else None, name)
        raise UserError(f"site must be a TransformerLens name, got {text!r}. {_vocabulary()}")


def all_sites(model: Stack) -> list[Site]:
    """Every site of ``model``, in the order of the forward pass.

    Example:
        >>> from models import load
        >>> str(all_sites(load("random:tiny"))[0])
        'vision_encoder.encoder_layers.0.hook_resid_pre'
    """
    sites: list[Site] = []
    for part in PARTS:
        if part in _STACK:
            sites += [Site(part, layer, name) for layer in range(_n_layers(part, model)) for name in _BLOCK]
        sites += [Site(part, None, name) for name in _SINGLE[part]]
    return sites


def depth(site: Site, model: Stack) -> float:
    """The depth of a site in its part: 0 is the part's input, 1 its output.

    Example:
        >>> from models import load
        >>> depth(Site("language_model", 1, "resid_post"), load("random:tiny"))
        0.5
    """
    if site.part == "projector":
        names = list(_SINGLE["projector"])
        return names.index(site.name) / (len(names) - 1)
    if site.layer is None:
        return 1.0
    within = {"resid_pre": 0.0, "resid_post": 1.0}.get(site.name, 0.5)
    return (site.layer + within) / _n_layers(site.part, model)


def check_site(site: Site, model: Stack) -> None:
    """Raise ``UserError`` if ``model`` has no such layer."""
    if site.layer is not None and site.layer >= (n := _n_layers(site.part, model)):
        raise UserError(
            f"layer must be in [0, {n}) for the {_part_name(site.part)} of {model.id}, got {site.layer} in "
            f"{str(site)!r}. Layers count from 0; resid_post of layer {n - 1} is the last block's output."
        )


def parse_sites(specs: Sequence[str], layers: str | None, model: Stack) -> list[Site]:
    """The sites that texts name, without repetitions, in the order of the forward pass.

    Args:
        specs: Full names (``blocks.3.attn.hook_z``) or shorthand: ``resid_post`` (language model), also with a part
            (``vision:resid_post``, ``projector:out``, ``vision:all``) and with layers (``vision:resid_post@0-3``).
        layers: The blocks of shorthand without ``@``: ``"0-31"``, ``"3,5,9"``, or None for all. It applies to the
            language model, or to the vision tower if every such shorthand is of the vision side.
        model: The model.

    Raises:
        UserError: If a spec or layer does not exist, or ``layers`` applies to no spec.

    Example:
        >>> from models import load
        >>> [str(site) for site in parse_sites(["projector:out", "z"], "2", load("random:tiny"))]
        ['vision_projector.hook_out', 'blocks.2.attn.hook_z']
    """
    if not specs:
        raise UserError(f"site must be given at least once, got none. {_vocabulary()}")
    shorthand = [_shorthand(spec) for spec in specs]
    open_parts = {s.part for s in shorthand if not isinstance(s, Site) and s.layers is None and _BLOCK.keys() & s.names}
    narrowed: Part = "language_model" if "language_model" in open_parts or not open_parts else "vision_tower"
    if layers is not None and narrowed not in open_parts:
        raise UserError(
            f"layers must go with a site that is named without its layer, got {layers!r} with {', '.join(specs)}. "
            "Leave it out, or name a site such as resid_post."
        )
    found: set[Site] = set()
    for item in shorthand:
        if isinstance(item, Site):
            found.add(item)
            continue
        n, where = _n_layers(item.part, model), f"the {_part_name(item.part)} of {model.id}"
        text = item.layers if item.layers is not None else (layers if item.part == narrowed else None)
        numbers = range(n) if text is None else parse_layers(text, n, where=where)
        for name in item.names:
            found.update(Site(item.part, i, name) for i in ([None] if name in _SINGLE[item.part] else numbers))
    for site in found:
        check_site(site, model)
    return sorted(found)


def find_sites(
    sites: "str | Site | Sequence[str | Site]", model: Stack, layers: LayerRange | None = None
) -> list[Site]:
    """The given sites, in the order given.

    Args:
        sites: One or several: a ``Site``, its full name, or shorthand such as ``"resid_post"`` or ``"vision:z@0-3"``.
        model: The model.
        layers: The blocks of shorthand without ``@``, such as ``"10-20"`` or 12; None means all.

    Raises:
        UserError: If a site or layer does not exist, or ``layers`` is given and every site already names its layer.

    Example:
        >>> from models import load
        >>> [str(site) for site in find_sites("resid_post", load("random:tiny"), layers="0-1")]
        ['blocks.0.hook_resid_post', 'blocks.1.hook_resid_post']
    """
    given = [sites] if isinstance(sites, str | Site) else list(sites)
    text = layer_text(layers)
    if not given or not all(isinstance(site, Site) for site in given):
        # checks that ``layers`` applies to at least one of them
        parse_sites([str(site) for site in given], text, model)
    found: dict[Site, None] = {}
    for site in given:
        open_shorthand = isinstance(site, str) and "." not in site and "@" not in site
        found.update(dict.fromkeys(parse_sites([str(site)], text if open_shorthand else None, model)))
    return list(found)


class _Shorthand(NamedTuple):
    part: Part
    names: tuple[str, ...]
    layers: str | None


def _shorthand(spec: str) -> Site | _Shorthand:
    """The site of a full name, or the parts of shorthand."""
    if "." in spec:
        return Site.parse(spec)
    head, colon, rest = spec.partition(":")
    part_name, body = (head, rest) if colon else ("language_model", head)
    name, at, layers = body.partition("@")
    if part_name not in _ALIASES:
        raise UserError(f"site must start with vision:, projector: or language:, got {spec!r}. {_vocabulary()}")
    part = _ALIASES[part_name]
    known = (*(_BLOCK if part in _STACK else ()), *_SINGLE[part])
    if name != "all" and name not in known:
        raise UserError(f"site must be one that the {_part_name(part)} has, got {spec!r}. It has: {', '.join(known)}.")
    names = known if name == "all" else (name,)
    if at and not _BLOCK.keys() & names:
        raise UserError(f"site must not name layers outside the blocks, got {spec!r}. Leave out what follows the @.")
    return _Shorthand(part, names, layers if at else None)


def _n_layers(part: Part, model: Stack) -> int:
    return model.n_vision_layers if part == "vision_tower" else model.n_layers


def _part_name(part: Part) -> str:
    return part.replace("_", " ")


def _vocabulary() -> str:
    return (
        f"In a block of the language model or the vision tower: {', '.join(_BLOCK)}; "
        f"in the projector: {', '.join(_SINGLE['projector'])}; after the last block: final_norm. "
        "Examples: resid_post, vision:resid_post, projector:out, blocks.12.hook_resid_post."
    )
