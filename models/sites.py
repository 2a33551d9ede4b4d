"""Names of activations: a ``Site`` is a (part, layer, name), written exactly as TransformerLens 4 writes it.

``Site.parse("blocks.12.hook_resid_post")`` reads a full name, ``parse_sites(["resid_post"], "0-31", llava)`` the
shorthand of the command line, ``all_sites(llava)`` lists what a model has. Layers count from 0.
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

# In the order in which a block computes them. TransformerLens has no hook point for the vision tower's resid_mid (it
# caches the same value as ln2.hook_in) nor for the projector's linear_1 and act; those names follow its pattern.
_BLOCK = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_STACK: dict[Part, str] = {"vision_tower": "vision_encoder.encoder_layers", "language_model": "blocks"}
_SINGLE: dict[Part, dict[str, str]] = {
    "vision_tower": {},
    "projector": {
        "in": "vision_projector.hook_in",
        "linear_1": "vision_projector.linear_1",
        "act": "vision_projector.act",
        "out": "vision_projector.hook_out",
    },
    "language_model": {"final_norm": "ln_final.hook_out"},
}
_MEANING = {
    "resid_pre": "residual stream entering the block",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream leaving the block",
    "attn_out": "output of attention",
    "mlp_out": "output of the MLP",
    "q": "queries of each head",
    "k": "keys of each head",
    "v": "values of each head",
    "pattern": "attention weights of each head",
    "z": "values of each head, mixed by its attention weights",
    "in": "input of the projector",
    "linear_1": "after the first linear map",
    "act": "after the activation function",
    "out": "image tokens as the language model gets them",
    "final_norm": "residual stream after the last block and the final norm",
}
_ALIASES: dict[str, Part] = {
    "vision": "vision_tower",
    "vision_tower": "vision_tower",
    "projector": "projector",
    "language": "language_model",
    "language_model": "language_model",
}


@runtime_checkable
class Stack(Protocol):
    """The facts about a model that naming its sites needs; ``Llava`` has them."""

    @property
    def id(self) -> str:
        """The name it was loaded by."""

    @property
    def n_layers(self) -> int:
        """Blocks of the language model."""

    @property
    def n_vision_layers(self) -> int:
        """Blocks of the vision tower."""


@dataclass(frozen=True)
class Site:
    """The name of an activation.

    Args:
        part: ``"vision_tower"``, ``"projector"`` or ``"language_model"``.
        layer: The block, counted from 0; None outside the blocks.
        name: ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn_out``, ``mlp_out``, ``q``, ``k``, ``v``, ``z`` or
            ``pattern`` in a block; ``in``, ``linear_1``, ``act``, ``out`` in the projector; ``final_norm`` after the
            language model's last block.

    Example:
        >>> Site.parse("blocks.12.hook_resid_post")
        Site(part='language_model', layer=12, name='resid_post')
    """

    part: Part
    layer: int | None
    name: str

    def __post_init__(self) -> None:
        """Check the name."""
        known = _SINGLE.get(self.part, {}) if self.layer is None else (_BLOCK if self.part in _STACK else {})
        if self.name not in known or (self.layer is not None and self.layer < 0):
            raise UserError(
                f"site must be one that a LLaVA has, got part {self.part!r}, layer {self.layer}, name {self.name!r}. "
                f"{_vocabulary()}"
            )

    def __str__(self) -> str:
        """The TransformerLens name."""
        if self.layer is None:
            return _SINGLE[self.part][self.name]
        return f"{_STACK[self.part]}.{self.layer}.{_BLOCK[self.name]}"

    def _repr_html_(self) -> str:
        """For notebooks: the name, where it is, and what its activation is."""
        where = _spoken(self.part) + ("" if self.layer is None else f", block {self.layer}")
        return f"<code>{escape(str(self))}</code> {escape(where)}: {escape(_MEANING[self.name])}"

    def __lt__(self, other: "Site") -> bool:
        """Whether the forward pass comes to this site first."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, int, int]:
        names = list(_SINGLE[self.part] if self.layer is None else _BLOCK)
        return PARTS.index(self.part), sys.maxsize if self.layer is None else self.layer, names.index(self.name)

    @staticmethod
    def parse(text: str) -> "Site":
        """The site with the TransformerLens name ``text``.

        Raises:
            UserError: If no site is written so.
        """
        for part, names in _SINGLE.items():
            for name, written in names.items():
                if text == written:
                    return Site(part, None, name)
        for part, stack in _STACK.items():
            match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", text)
            if match:
                for name, written in _BLOCK.items():
                    if match[2] == written:
                        return Site(part, int(match[1]), name)
        raise UserError(f"site must be a TransformerLens name, got {text!r}. {_vocabulary()}")


def all_sites(model: Stack) -> list[Site]:
    """Every site of ``model``, in the order of the forward pass.

    Example:
        >>> from models import load
        >>> [str(site) for site in all_sites(load("random:tiny"))][-2:]
        ['blocks.3.hook_resid_post', 'ln_final.hook_out']
    """
    sites: list[Site] = []
    for part in PARTS:
        if part in _STACK:
            sites += [Site(part, layer, name) for layer in range(_n_layers(part, model)) for name in _BLOCK]
        sites += [Site(part, None, name) for name in _SINGLE[part]]
    return sites


def depth(site: Site, model: Stack) -> float:
    """Depth of the site in its part: 0 is the input of the part, 1 its output.

    Example:
        >>> from models import load
        >>> depth(Site("language_model", 0, "resid_post"), load("random:tiny"))
        0.25
    """
    if site.part == "projector":
        names = list(_SINGLE["projector"])
        return names.index(site.name) / (len(names) - 1)
    if site.layer is None:
        return 1.0
    within = {"resid_pre": 0.0, "resid_post": 1.0}.get(site.name, 0.5)  # the middle of its block for all others
    return (site.layer + within) / _n_layers(site.part, model)


def check_site(site: Site, model: Stack) -> None:
    """Check that ``model`` has the site.

    Raises:
        UserError: If its layer is not there.
    """
    if site.layer is not None and site.layer >= (n := _n_layers(site.part, model)):
        raise UserError(
            f"layer must be in [0, {n}) for the {_spoken(site.part)} of {model.id}, got {site.layer} in {str(site)!r}. "
            f"Layers count from 0; resid_post of layer {n - 1} is the last block's output."
        )


def parse_sites(specs: Sequence[str], layers: str | None, model: Stack) -> list[Site]:
    """The sites that a command line asks for, without repetitions, in the order of the forward pass.

    Args:
        specs: Each a full name (``blocks.3.attn.hook_z``) or shorthand: ``resid_post`` (language model), with a part
            (``vision:resid_post``, ``projector:out``, ``vision:all``), with layers of its own
            (``vision:resid_post@0-3``).
        layers: Blocks that a shorthand without ``@`` means: ``"0-31"``, ``"3,5,9"``, or None for all. It applies to the
            language model, or to the vision tower if no other shorthand is given.
        model: Must have the sites.

    Raises:
        UserError: If a spec or a layer is not one that the model has, or ``layers`` applies to no spec.
    """
    if not specs:
        raise UserError(f"site must be given at least once, got none. {_vocabulary()}")
    shorthand = [_shorthand(spec) for spec in specs]
    open_parts = {s.part for s in shorthand if not isinstance(s, Site) and s.layers is None and s.in_blocks}
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
        text = item.layers if item.layers is not None else (layers if item.part == narrowed else None)
        for name in item.names:
            if name in _SINGLE[item.part]:
                found.add(Site(item.part, None, name))
            else:
                found.update(Site(item.part, layer, name) for layer in _layers(text, item.part, model))
    for site in found:
        check_site(site, model)
    return sorted(found)


def find_sites(
    sites: "str | Site | Sequence[str | Site]", model: Stack, layers: LayerRange | None = None
) -> list[Site]:
    """The sites that a function was given, as ``Site`` or text, in the order given.

    Args:
        sites: One or several: a ``Site``, its full name, or shorthand such as ``"resid_post"`` or ``"vision:z@0-3"``.
        model: Must have the sites.
        layers: The blocks that a shorthand without ``@`` means, such as ``"10-20"`` or 12; None means all.

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
        # checks that `layers` fits at least one of them
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

    @property
    def in_blocks(self) -> bool:
        return any(name in _BLOCK for name in self.names) and self.part in _STACK


def _shorthand(spec: str) -> Site | _Shorthand:
    """A full name as its site; shorthand taken apart."""
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
        raise UserError(f"site must be one that the {_spoken(part)} has, got {spec!r}. It has: {', '.join(known)}.")
    names = known if name == "all" else (name,)
    if at and not any(n in _BLOCK for n in names):
        raise UserError(f"site must not name layers outside the blocks, got {spec!r}. Leave out what follows the @.")
    return _Shorthand(part, names, layers if at else None)


def _layers(text: str | None, part: Part, model: Stack) -> Sequence[int]:
    """The layers that ``text`` names; None means all."""
    n = _n_layers(part, model)
    return range(n) if text is None else parse_layers(text, n, where=f"the {_spoken(part)} of {model.id}")


def _n_layers(part: Part, model: Stack) -> int:
    return model.n_vision_layers if part == "vision_tower" else model.n_layers


def _spoken(part: Part) -> str:
    return part.replace("_", " ")


def _vocabulary() -> str:
    return (
        f"In a block of the language model or the vision tower: {', '.join(_BLOCK)}; "
        f"in the projector: {', '.join(_SINGLE['projector'])}; after the last block: final_norm. "
        "Examples: resid_post, vision:resid_post, projector:out, blocks.12.hook_resid_post."
    )
