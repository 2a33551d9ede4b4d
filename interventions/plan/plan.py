"""A set of interventions as plain data, and the cells that it expands to.

plan = InterventionPlan("patch", sites=("resid_pre",), tokens=("image", "question", "last"))
plan.cells(llava)  # 3 x n_layers CellSpecs; interventions.operations.build_edits makes the edits of each
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from interventions.engines.edits import HEAD_SITES
from interventions.engines.names import EngineName, check_engine
from interventions.plan.cells import CellSpec, count_heads
from interventions.plan.groups import PATCHES, is_pictured, parse_group
from interventions.plan.options import (
    CIDER,
    FLOW,
    METRICS,
    OPERATIONS,
    OPS,
    Corruption,
    Metric,
    Op,
    Options,
    PatchOptions,
    WindowKind,
    check_among,
    check_window,
)
from models.layer_ranges import format_layers, parse_layers
from models.llava import Llava
from models.sites import Part, Site, parse_sites
from tasks.errors import UserError


@dataclass(frozen=True)
class InterventionPlan:
    """A set of interventions: one cell for each combination of site, window, token group and head.

    Args:
        op: The operation.
        sites: As ``parse_sites`` reads them; none for knockout, skip and transplant, which act on entire blocks.
        layers: Layers such as ``"0-31"`` or ``"3,5,9"``, with one window for each; None for all.
        window: The layers that a cell changes. An odd number: so many layers centred on each layer, clipped at the ends
            of the stack; ``"up-to"``: layer 0 to each layer; ``"onward"``: each layer to the last; ``"together"``: all
            layers in one cell.
        tokens: Groups as in ``interventions.plan.groups``, one cell each; ``"patches"`` for each patch of the first
            picture; ``source->target`` for knockouts; none for transplants.
        heads: For q, k, v, z and knockouts: ``"all"`` for one cell each, ``"0,3-5"`` for one cell each of these,
            ``"0+3"`` for two together; None for all together.
        options: Options of the operation; None for its defaults.
        corruption: How the corrupt run is made.
        metrics: Metrics of the logits.
        engine: Engine that runs the cells.

    Example:
        >>> plan = InterventionPlan("knockout", tokens=("image->last",), window=5)
        >>> plan.options
        NoOptions()
    """

    op: Op
    sites: tuple[str, ...] = ()
    layers: str | None = None
    window: int | WindowKind = 1
    tokens: tuple[str, ...] = ()
    heads: str | None = None
    options: Options | None = None
    corruption: Corruption = field(default_factory=Corruption)
    metrics: tuple[Metric, ...] = ("logit_difference",)
    engine: EngineName = "incremental"

    def __post_init__(self) -> None:
        """Check the values."""
        check_among("op", self.op, OPS)
        kind = OPERATIONS[self.op].options
        if self.options is None:
            object.__setattr__(self, "options", kind())
        if type(self.options) is not kind:
            raise UserError(
                f"options must be {kind.__name__} for op {self.op!r}, got {type(self.options).__name__}. "
                "Each operation has its own."
            )
        check_engine(self.engine)
        for name in ("sites", "tokens", "metrics"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise UserError(f"{name} must be a list of names, got {value!r}. One name is a list too.")
        for name in ("layers", "heads"):
            if not isinstance(getattr(self, name), str | None):
                raise UserError(f"{name} must be text such as '0-3,7', got {getattr(self, name)!r}. Quote it.")
        if not isinstance(self.corruption, Corruption):
            raise UserError(f"corruption must be a Corruption, got {self.corruption!r}. Pass Corruption('blank').")
        self._check_metrics()
        self._check_window()
        self._check_tokens()
        self._check_heads()

    def cells(self, llava: Llava) -> list[CellSpec]:
        """Every intervention of the plan on ``llava``, in the order site, tokens, head, layer."""
        specs: dict[CellSpec, None] = {}
        for name in self._names(llava):
            centres = [site.layer for site in name.sites]
            for tokens in self._groups(llava):
                for head in self._heads(name, llava):
                    for layer, window in self._windows(centres, name.n_layers):
                        site = "weights" if self.op == "transplant" else str(Site(name.part, layer, name.name))
                        specs[CellSpec(self.op, site, layer, window, tokens, head)] = None
        return list(specs)

    def _check_metrics(self) -> None:
        if not self.metrics:
            raise UserError(f"metrics must contain at least one of {', '.join(METRICS)}, got none.")
        for metric in self.metrics:
            check_among("metric", metric, METRICS)
        if CIDER in self.metrics:
            self._check_cider()
        if self.op == "attribute" and "accuracy" in self.metrics:
            raise UserError("metric must have a gradient for op 'attribute', got 'accuracy'. Use logit_difference.")
        if self.op == "attribute" and "kl" in self.metrics and self.options == PatchOptions("noise"):
            raise UserError("metric must not be kl for op 'attribute' with direction 'noise'. Its gradient is 0 there.")

    def _check_cider(self) -> None:
        """Captions are generated, so there are no logits for another metric, no gradient and no fixed noise."""
        if len(self.metrics) > 1:
            raise UserError(
                f"metric cider must be the only metric, got {', '.join(self.metrics)}. Run the others alone."
            )
        if self.op in ("attribute", "transplant"):
            raise UserError(f"metric cider must go with op patch, ablate, knockout, skip or steer, got {self.op!r}.")
        if self.corruption.kind == "noise":
            raise UserError("corruption must be pair or blank for metric cider, got 'noise'.")

    def _check_window(self) -> None:
        check_window(self.window)
        if self.op == "attribute" and self.window != 1:
            raise UserError(
                f"window must be 1 for op 'attribute', got {self.window!r}. With several layers, a change that flows "
                "from one to the next would count twice."
            )

    def _check_tokens(self) -> None:
        if self.op == "transplant":
            if self.corruption != Corruption():
                raise UserError(
                    f"corruption must not be given for op 'transplant', got {self.corruption.kind!r}. The recipient's "
                    "own run serves as the corrupt run."
                )
            if self.tokens:
                raise UserError(f"tokens must not be given for op 'transplant', got {self.tokens}.")
            return
        if not self.tokens:
            flow = f", as in image{FLOW}question" if self.op == "knockout" else ", as in image"
            raise UserError(f"tokens must be given for op {self.op!r}{flow}, got none.")
        for text in self.tokens:
            ends = text.split(FLOW)
            if len(ends) != (2 if self.op == "knockout" else 1):
                raise UserError(
                    f"tokens must be {'source->target' if self.op == 'knockout' else 'one group'} for op {self.op!r}, "
                    f"got {text!r}. Only knockouts take two groups."
                )
            for end in ends:
                if end != PATCHES:
                    parse_group(end)

    def _check_heads(self) -> None:
        if self.heads is None:
            return
        if not OPERATIONS[self.op].by_head:
            raise UserError(f"heads must not be given for op {self.op!r}, got {self.heads!r}.")
        if not re.fullmatch(r"all|\d+([-+,]\d+)*", self.heads):
            raise UserError(f"heads must be like all, 0,3-5 or 0+3, got {self.heads!r}. Heads count from 0.")

    def _names(self, llava: Llava) -> list["_Named"]:
        """The sites of the plan, grouped by part and name."""
        fixed = OPERATIONS[self.op].whole_blocks
        if fixed is not None and self.sites:
            raise UserError(f"sites must not be given for op {self.op!r}, got {self.sites}. It acts on entire blocks.")
        if fixed is None and not self.sites:
            raise UserError(f"sites must be given for op {self.op!r}, got none. For example resid_pre.")
        grouped: dict[tuple[Part, str], list[Site]] = {}
        for site in parse_sites((fixed,) if fixed else self.sites, self.layers, llava):
            grouped.setdefault((site.part, site.name), []).append(site)
        for part, name in grouped:
            if fixed is None and name == "pattern":
                raise UserError(
                    f"site must not be 'pattern' for op {self.op!r}. Op 'knockout' removes attention edges."
                )
            if self.op == "steer" and name in HEAD_SITES:
                raise UserError(f"site must be as wide as its stream for op 'steer', got {name!r}. Use resid_post.")
            if self.heads is not None and fixed is None and name not in HEAD_SITES:
                raise UserError(f"heads must go with q, k, v or z, got {self.heads!r} with {name!r}. Leave them out.")
            early = part == "vision_tower" or (part == "projector" and name != "out")
            if isinstance(self.options, PatchOptions) and self.corruption.kind == "noise" and early:
                raise UserError(
                    f"site must not come before the noise on the projector's output, got {name!r} of the "
                    f"{part.replace('_', ' ')}. Use projector:out, a site of the language model, or corruption 'blank'."
                )
            for text in self.tokens if part != "language_model" else ():
                if text != PATCHES and not is_pictured(text):
                    raise UserError(
                        f"tokens must be image tokens or 'all' at a site of the {part.replace('_', ' ')}, got {text!r} "
                        f"at {name!r}. Use image, object, patch(r,c), box(...) or patches."
                    )
        counts = {"language_model": llava.n_layers, "vision_tower": llava.n_vision_layers, "projector": 0}
        return [_Named(part, name, tuple(sites), counts[part]) for (part, name), sites in grouped.items()]

    def _windows(self, centres: list[int | None], n_layers: int) -> list[tuple[int | None, str]]:
        """The layer that names each window, and the window's layers as text in the table."""
        layers = [layer for layer in centres if layer is not None]
        if not layers:
            return [(None, "")]
        if self.window == "together":
            return [(layers[0], format_layers(layers))]
        if self.window == "up-to":
            return [(layer, format_layers(range(layer + 1))) for layer in layers]
        if self.window == "onward":
            return [(layer, format_layers(range(layer, n_layers))) for layer in layers]
        half = int(self.window) // 2
        return [(at, format_layers(range(max(0, at - half), min(n_layers, at + half + 1)))) for at in layers]

    def _groups(self, llava: Llava) -> list[str]:
        """The groups, with ``patches`` replaced by one group per patch."""
        if self.op == "transplant":
            return [""]
        height, width = llava.grid
        every = [f"patch({row},{column})" for row in range(height) for column in range(width)]
        found: list[str] = []
        for text in self.tokens:
            source, arrow, target = text.rpartition(FLOW)  # source and arrow are empty if the text is not a flow
            for start in every if source == PATCHES else [source]:
                found += [f"{start}{arrow}{end}" for end in (every if target == PATCHES else [target])]
        return found

    def _heads(self, name: "_Named", llava: Llava) -> list[str | None]:
        """The sets of heads that are changed together."""
        if self.heads is None:
            return [None]
        n_heads = count_heads(name.sites[0], llava)
        if self.heads == "all":
            return [str(head) for head in range(n_heads)]
        found: list[str | None] = []
        for piece in self.heads.split(","):
            heads = parse_layers(
                piece.replace("+", ","), n_heads, what="head", where=f"{name.name!r} of {llava.id}",
                forms="like all, 0,3-5 or 0+3",
            )  # fmt: skip
            if "+" in piece:
                found.append("+".join(map(str, heads)) if "-" in piece else piece)
            else:
                found += map(str, heads)
        return found


class _Named(NamedTuple):
    part: Part
    name: str
    sites: tuple[Site, ...]
    n_layers: int
