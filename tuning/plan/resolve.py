"""Resolve a layer plan on a model: which parameters train, in groups by learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from models.llava import Llava
from models.sites import Site
from models.token_plans.plan import parse_token_plan
from tasks.errors import UserError
from tasks.html import rows_html
from tuning.plan.connector import is_linear
from tuning.plan.layers import layer_spec, select_layers
from tuning.plan.plan import COMPONENTS, METHODS, LayerPlan

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Group:
    """Parameters of one part of the model: ``count`` weights, of which ``trained`` train."""

    name: str
    """``block 6``, ``projector``, ``vision block 3``, ``vision embeddings``, ..."""
    names: tuple[str, ...]
    """The parameters' names in ``llava.model.named_parameters()``."""
    count: int
    trained: int


@dataclass(frozen=True)
class Resolved:
    """A plan on a model: which parameters train, and the lowest block that needs gradients."""

    plan: LayerPlan
    layers: tuple[int, ...]
    """Blocks of the language model that train."""
    parameters: tuple[str, ...]
    """Names of the parameters that train in full; with ``lisa``, those that may train."""
    lora_modules: tuple[str, ...]
    """Names of the linear maps with LoRA factors."""
    groups: tuple[Group, ...]
    n_layers: int
    lora_count: int
    """Number of weights in all LoRA factors."""
    first_block: int
    """The lowest block with gradients; ``n_layers`` if there is none."""
    first_vision: int | None
    """The lowest block of the vision tower with gradients; None if there is none."""
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of weights, without LoRA factors."""
        return sum(group.count for group in self.groups)

    @property
    def trained(self) -> int:
        """Number of weights that train; under ``lisa``, that may train."""
        return sum(group.trained for group in self.groups) + self.lora_count

    @property
    def below_blocks(self) -> bool:
        """True if a part below the first block trains."""
        return any(part.partition(":")[0] in ("projector", "vision", "embeddings") for part in self.plan.train)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``plan.json``."""
        return {
            "plan": self.plan.to_dict(),
            "layers": list(self.layers),
            "trainable": self.trained,
            "total": self.total,
            "share": self.trained / self.total,
            "parameters": list(self.parameters),
            "lora_modules": list(self.lora_modules),
            "first_block_with_gradients": self.first_block,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Layers, counts and shares as text."""
        lines = [f"{word:<11}{text}" for word, text in _headings(self).items()]
        for part, (count, trained) in _trained_by_part(self).items():
            lines.append(f"{part:<13}{trained:>14,} of {count:>14,} train ({trained / max(count, 1):.1%})")
        if self.lora_count:
            lines.append(f"{'LoRA factors':<13}{self.lora_count:>14,}")
        lines.append(f"{'in all':<13}{self.trained:>14,} of {self.total:>14,} train ({self.trained / self.total:.2%})")
        return "\n".join([*lines, _depth(self), *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """``summary`` as an HTML table, for notebooks."""
        rows = [
            (part, f"{trained:,}", f"{count:,}", f"{trained / max(count, 1):.1%}")
            for part, (count, trained) in _trained_by_part(self).items()
        ]
        if self.lora_count:
            rows.append(("LoRA factors", f"{self.lora_count:,}", "", ""))
        rows.append(("in all", f"{self.trained:,}", f"{self.total:,}", f"{self.trained / self.total:.2%}"))
        return rows_html(
            ("part", "train", "of", "share"),
            rows,
            title="; ".join(f"{word} {text}" for word, text in _headings(self).items()),
            caption=". ".join((_depth(self), *self.notes)),
            right=(False, True, True, True),
        )


def resolve(plan: LayerPlan, llava: Llava) -> Resolved:
    """The parameters of ``plan`` on ``llava``.

    Raises:
        UserError: If a layer, part or method does not exist, a part is repeated or not in the model, LoRA has no
            block or is combined with embeddings or head, or nothing would train.

    Example:
        >>> from models.loading.load import load
        >>> llava = load("random:tiny")
        >>> resolved = resolve(LayerPlan("1", ()), llava)
        >>> resolved.layers, resolved.first_block
        ((1,), 1)
    """
    if plan.method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {plan.method!r}. Pick one of them.")
    plan = replace(plan, token_plan=parse_token_plan(plan.token_plan, llava.n_layers).text)
    layers = select_layers(plan.layers, llava.n_layers)
    parts = _parts(llava)
    wanted, notes = _components(plan.train, llava, parts)
    if plan.method != "full" and not layers:
        raise UserError(f"method {plan.method} must have layers, got none. Name some, or use --method full.")
    tied = llava.model.get_input_embeddings().weight is llava.model.get_output_embeddings().weight
    if tied and "embeddings" in wanted:
        notes.append("embeddings and lm_head are one tensor in this model: training one trains both")
    if plan.method == "lora" and wanted & {"embeddings", "lm_head"}:
        raise UserError(
            "lora must leave embeddings and lm_head out, got them in train. PEFT's format stores factors and complete "
            "modules; use --method full to train them."
        )
    if plan.method == "lisa" and plan.lisa.active > len(layers):
        raise UserError(
            f"lisa must have at most {len(layers)} active blocks, the plan's layers, got {plan.lisa.active}."
        )
    blocks = {f"block {layer}" for layer in layers}
    trained = wanted | (blocks if plan.method != "lora" else set())
    groups = tuple(Group(name, names, count, count if name in trained else 0) for name, (names, count) in parts.items())
    modules, factors = _lora_modules(llava, layers, plan.lora.rank) if plan.method == "lora" else ((), 0)
    parameters = tuple(name for group in groups if group.trained for name in group.names)
    if not parameters and not modules:
        raise UserError(
            f"plan must train something, got layers {plan.layers!r} and train {','.join(plan.train) or 'nothing'!r}. "
            f"Name layers, or one of {', '.join(COMPONENTS)}."
        )
    vision = [index for index in range(llava.n_vision_layers) if f"vision block {index}" in wanted]
    first_vision = min(vision, default=None)
    below = first_vision is not None or bool(wanted & {"projector", "embeddings"})
    first_block = 0 if below else min(layers, default=llava.n_layers)
    return Resolved(
        plan, layers, parameters, modules, groups, llava.n_layers, factors, first_block, first_vision, tuple(notes)
    )


def lisa_layers(resolved: Resolved, step: int, seed: int) -> tuple[int, ...]:
    """The blocks that train at optimizer step ``step`` (from 0), a function of step and seed."""
    lisa = resolved.plan.lisa
    drawn = np.random.default_rng([seed, step // lisa.every]).choice(
        len(resolved.layers), size=lisa.active, replace=False
    )
    return tuple(sorted(resolved.layers[int(i)] for i in drawn))


def block_parameters(resolved: Resolved, layer: int) -> tuple[str, ...]:
    """Names of the parameters of one block of the language model."""
    return next(group.names for group in resolved.groups if group.name == f"block {layer}")


def _parts(llava: Llava) -> dict[str, tuple[tuple[str, ...], int]]:
    """All parameters of the model by part, in the order of the forward pass."""
    names = {id(parameter): name for name, parameter in llava.model.named_parameters()}
    counts = {name: parameter.numel() for name, parameter in llava.model.named_parameters()}
    left = set(counts)
    parts: dict[str, tuple[tuple[str, ...], int]] = {}

    def take(part: str, module: nn.Module, *, unless: str | None = None) -> None:
        found = [names[id(parameter)] for parameter in module.parameters()]
        own = tuple(name for name in found if name in left and not (unless and unless in name))
        left.difference_update(own)
        if own:
            parts[part] = own, sum(counts[name] for name in own)

    used = llava.vision_layer
    for index, block in enumerate(llava.vision_blocks):
        take(f"vision block {index}" if index < used else f"vision unused block {index}", block)
    take("vision embeddings", llava.vision_tower, unless="post_layernorm")  # LLaVA reads the tower before this norm
    take("vision unused norm", llava.vision_tower)
    if is_linear(llava):  # linear_2 stays the identity
        take("projector", llava.projector, unless="linear_2")
        take("projector identity", llava.projector)
    else:
        take("projector", llava.projector)
    take("embeddings", llava.model.get_input_embeddings())
    for index, block in enumerate(llava.blocks):
        take(f"block {index}", block)
    take("final_norm", llava.module_at(Site("language_model", None, "final_norm")))
    take("lm_head", llava.model.get_output_embeddings())
    assert not left, f"every parameter must belong to a part, got {min(left)}"
    return parts


def _components(
    train: Sequence[str], llava: Llava, parts: Mapping[str, tuple[tuple[str, ...], int]]
) -> tuple[set[str], list[str]]:
    """The parts that ``train`` names, and notes about them."""
    kinds = [text.partition(":")[0] for text in train]
    wanted = set(kinds) - {"vision"}
    notes: list[str] = []
    used = llava.vision_layer
    if len(set(kinds)) < len(kinds):
        raise UserError(f"train must name each component once, got {','.join(train)}. Leave the repetition out.")
    for text, kind in zip(train, kinds, strict=True):
        start = text.partition(":")[2]
        if kind not in COMPONENTS or (start and kind != "vision") or (":" in text and not start.isdecimal()):
            raise UserError(
                f"train must be some of {', '.join(COMPONENTS)} (or vision:20), got {text!r}. "
                "Blocks of the language model are named with --layers."
            )
        if kind != "vision":
            continue
        first = int(start or 0)
        if first >= used:
            raise UserError(
                f"vision must start at a block in [0, {used}), got {first}. LLaVA uses the output of block {used - 1} "
                "of the tower, not the blocks after it."
            )
        wanted |= {f"vision block {index}" for index in range(first, used)}
        if first == 0:
            wanted.add("vision embeddings")
        if used < llava.n_vision_layers:
            notes.append(f"vision tower: {llava.n_vision_layers - used} last block(s) are never used and do not train")
    if "lm_head" in wanted and "lm_head" not in parts:  # tied to the embeddings
        wanted = wanted - {"lm_head"} | {"embeddings"}
    missing = wanted - set(parts)
    if missing:
        raise UserError(f"train must match parameters of the model, got none for {min(missing)!r}.")
    return wanted, notes


def _lora_modules(llava: Llava, layers: Sequence[int], rank: int) -> tuple[tuple[str, ...], int]:
    """Full names of the linear maps of ``layers``, and the number of weights in their factors.

    PEFT's ``layers_to_transform`` would also match layers of the vision tower.
    """
    names = {id(module): name for name, module in llava.model.named_modules()}
    found: list[str] = []
    count = 0
    for layer in layers:
        for child, module in llava.blocks[layer].named_modules():
            if isinstance(module, nn.Linear) and child.rsplit(".", 1)[-1] in LINEARS:
                found.append(names[id(module)])
                count += rank * (module.in_features + module.out_features)
    if not found:
        raise UserError(f"lora must match linear maps, got none in layers {list(layers)}. Use --method full.")
    return tuple(found), count


def _headings(resolved: Resolved) -> dict[str, str]:
    plan, layers = resolved.plan, layer_spec(resolved.layers, resolved.n_layers)
    lora, lisa = plan.lora, plan.lisa
    n_maps = len(resolved.lora_modules)
    detail = {
        "full": "",
        "lora": f", rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout} on {n_maps} linear maps",
        "lisa": f", {lisa.active} blocks at a time, drawn every {lisa.every} steps",
    }[plan.method]
    return {
        "plan": plan.label,
        "method": plan.method + detail,
        "layers": f"{layers} ({len(resolved.layers)} of {resolved.n_layers})",
    }


def _trained_by_part(resolved: Resolved) -> dict[str, tuple[int, int]]:
    """Number of weights, and of those that train, by part of the model."""
    merged: dict[str, tuple[int, int]] = {}
    for group in resolved.groups:
        part = "blocks" if group.name.startswith("block ") else group.name
        part = "vision tower" if group.name.startswith("vision") else part
        count, trained = merged.get(part, (0, 0))
        merged[part] = count + group.count, trained + group.trained
    return merged


def _depth(resolved: Resolved) -> str:
    if resolved.first_vision is not None:
        where = f"at block {resolved.first_vision} of the vision tower"
    elif resolved.below_blocks:
        where = "below the blocks"
    else:
        where = f"at block {resolved.first_block}" if resolved.first_block < resolved.n_layers else "above the blocks"
    return f"gradients stop {where}"
