"""Floating-point operations of a training step, computed in closed form from the model's sizes or counted in a step.

Each part of the model costs one unit forward, one for the gradient of its input if anything below it trains, and one
for the gradient of its weights if they train. ``closed_form`` sums over all parts, ``band_ratio`` over blocks only.
transformers' ``total_flos`` ignores both gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models.llava import Llava
from models.sites import Site
from models.token_plans.cost import Sizes, attention_choice
from models.token_plans.plan import parse_token_plan
from tuning.plan.resolve import LINEARS, Resolved
from tuning.training.loss import loss_of

# The backward pass of fused attention recomputes the scores: five products for two in the forward pass.
_BACKWARD_OF_ATTENTION = {"eager": 2.0, "sdpa": 2.5}


class Shape(NamedTuple):
    """The size of a batch: ``batch`` rows of ``positions`` each, padding and image tokens included.

    ``labelled`` counts the positions of all rows whose next token is labelled; the head runs only there.
    """

    batch: int
    positions: int
    images: int
    labelled: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward and a backward pass (with recomputation); a multiply-add counts as two."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """FLOPs of both passes."""
        return self.forward + self.backward

    def __mul__(self, times: float) -> "Flops":
        """The FLOPs of ``times`` passes."""
        return Flops(self.forward * times, self.backward * times)


def band_ratio(n_layers: int, layers: Sequence[int], *, below: bool = False, checkpointing: bool = False) -> float:
    """Training time of ``layers`` relative to all layers, counting only blocks.

    (n + (n - a) + m) / 3n for m layers of which a is the lowest; the middle term is n if a part ``below`` the blocks
    trains, such as the projector. With checkpointing the blocks with a gradient run forward once more, out of 4n.
    """
    reached = n_layers if below else n_layers - min(layers, default=n_layers)
    units = n_layers + reached + len(layers) + (reached if checkpointing else 0)
    return units / ((4 if checkpointing else 3) * n_layers)


def closed_form(llava: Llava, resolved: Resolved, shape: Shape, *, checkpointing: bool = False) -> Flops:
    """FLOPs of one forward and backward pass under the plan, computed from the model's sizes.

    They include the matrix products of the vision tower (its unused last block too), the projector, the blocks with
    their attention, and the head at labelled tokens. Under ``lisa`` all blocks of the plan count as trained. The
    model need not have LoRA factors. ``checkpointing``: blocks with a gradient run again in the backward pass.
    """
    return _Count(llava, resolved, shape, checkpointing).run()


class _Count:
    """A walk along the forward pass that tracks whether the activations require a gradient."""

    def __init__(self, llava: Llava, resolved: Resolved, shape: Shape, checkpointing: bool) -> None:
        self.forward = self.backward = 0.0
        self._llava, self._shape, self._again = llava, shape, checkpointing
        self._plan = resolved.plan
        self._trained = set(resolved.parameters)
        self._lora, self._rank = set(resolved.lora_modules), resolved.plan.lora.rank
        self._names = {id(module): name for name, module in llava.model.named_modules()}
        attention = str(llava.model.config._attn_implementation)
        self._attention_backward = _BACKWARD_OF_ATTENTION.get(attention, 2.5)
        self._last = 0.0  # operations of the last product, which recomputation leaves out

    def run(self) -> Flops:
        llava, shape = self._llava, self._shape
        image_grad = self._tower() if shape.images else False
        if shape.images:
            tokens = shape.images * llava.n_image_tokens
            image_grad = self._chain(_linears(llava.projector), tokens, image_grad)
        embeddings: Any = llava.model.get_input_embeddings()
        grad = self._language_blocks(self._trains(embeddings), image_grad)
        final = llava.module_at(Site("language_model", None, "final_norm"))
        grad = grad or self._trains(final)
        head: Any = llava.model.get_output_embeddings()
        # A head tied to the embeddings has the embeddings' name.
        trains = self._trains(head) or (head.weight is embeddings.weight and self._trains(embeddings))
        self._product(2.0 * shape.labelled * head.weight.numel(), grad, trains)
        return Flops(self.forward, self.backward)

    def _language_blocks(self, text_grad: bool, image_grad: bool) -> bool:
        """Count the language model's blocks under the token plan; True if the last output requires a gradient.

        Text and image tokens meet in the layers that compute both. The mean number of image tokens in a row counts.
        """
        llava, shape = self._llava, self._shape
        plan = parse_token_plan(self._plan.token_plan, llava.n_layers)
        image = shape.images * llava.n_image_tokens / shape.batch
        text = shape.positions - image
        for layer, (block, state) in enumerate(zip(llava.blocks, plan.states, strict=True)):
            kept = plan.kept(layer, round(image))
            stage = plan.stage_at(layer)
            if stage is not None and stage.rule == "attention" and image:
                asked = text + (plan.kept(layer - 1, round(image)) if layer else image)
                self.forward += 2.0 * shape.batch * attention_choice(Sizes.of(llava), asked)
            is_computed = state == "compute" and kept > 0
            computed = text + (kept if is_computed else 0)
            frozen = kept if state == "freeze" else 0
            entering = text_grad or (image_grad and is_computed)
            leaving = self._block(
                block, shape.batch * computed, shape.batch, computed + frozen, entering, frozen=shape.batch * frozen,
                frozen_grad=image_grad,
            )  # fmt: skip
            text_grad, image_grad = leaving, leaving if is_computed else image_grad
        return text_grad

    def _tower(self) -> bool:
        """Count the vision tower; True if its features require a gradient."""
        llava, images = self._llava, self._shape.images
        tower = llava.vision_tower
        tokens = int(llava.grid[0] * llava.grid[1]) + 1
        grad = False
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                grad = self._product(2.0 * images * (tokens - 1) * module.weight.numel(), grad, self._trains(module))
        inside = {id(m) for block in llava.vision_blocks for m in block.modules()}
        outside = [m for m in tower.modules() if id(m) not in inside and list(m.parameters(recurse=False))]
        grad = grad or any(self._trains(module) for module in outside)
        used = llava.vision_layer
        features = grad
        for layer, block in enumerate(llava.vision_blocks):
            # No gradient enters blocks above the layer that is read.
            grad = self._block(block, images * tokens, images, tokens, grad and layer < used)
            if layer + 1 == used:
                features = grad
        return features

    def _block(
        self,
        block: nn.Module,
        rows: int | float,
        batch: int,
        positions: int | float,
        grad: bool,
        *,
        frozen: int | float = 0,
        frozen_grad: bool = False,
    ) -> bool:
        """Count a block for ``rows`` tokens of ``batch`` rows that attend to ``positions`` keys each.

        ``frozen`` of the keys belong to tokens that only give keys and values.
        """
        before = self.forward
        entering = grad
        norms = [m for m in block.children() if not any(True for _ in m.children())]  # the two norms are leaves
        attention, feed = (m for m in block.children() if any(True for _ in m.children()))
        inner = entering or self._trains(norms[0])
        products = _linears(attention)
        maps = {name.rsplit(".", 1)[-1]: module for name, module in products}
        out = maps.pop("o_proj", None) or maps.pop("out_proj")
        projected = [self._linear(module, rows, inner) for module in maps.values()]
        heads = int(attention.head_dim) * int(out.in_features // int(attention.head_dim))  # type: ignore[arg-type]
        kept = [
            self._linear(maps[name], frozen, frozen_grad or self._trains(norms[0]))
            for name in ("k_proj", "v_proj")
            if frozen
        ]
        projected += kept
        scores = 4.0 * rows * positions * heads
        self.forward += scores
        if any(projected):
            self.backward += self._attention_backward * scores
        middle = self._linear(out, rows, any(projected)) or entering
        inner = middle or self._trains(norms[1])
        *first, last = [module for _, module in _linears(feed)]
        opened = [self._linear(module, rows, inner) for module in first]
        leaving = self._linear(last, rows, any(opened)) or middle
        if self._again and leaving:
            # Recomputation stops at the last saved tensor, before the last product.
            self.backward += self.forward - before - self._last
        return leaving

    def _chain(self, linears: Sequence[tuple[str, nn.Linear]], rows: int | float, grad: bool) -> bool:
        for _, module in linears:
            grad = self._linear(module, rows, grad)
        return grad

    def _linear(self, module: nn.Linear, rows: int | float, grad: bool) -> bool:
        """Count one linear map with its LoRA factors; True if its output requires a gradient."""
        name = self._names[id(module)].removesuffix(".base_layer")  # PEFT's name of a map with LoRA factors
        weight, bias = f"{name}.weight" in self._trained, f"{name}.bias" in self._trained
        leaving = self._product(2.0 * rows * module.in_features * module.out_features, grad, weight) or bias
        if name in self._lora:
            self._product(2.0 * rows * module.in_features * self._rank, grad, True)
            leaving = self._product(2.0 * rows * self._rank * module.out_features, True, True)
        return leaving

    def _product(self, operations: float, grad: bool, trained: bool) -> bool:
        self.forward += operations
        self.backward += operations * (int(grad) + int(trained))
        self._last = operations
        return grad or trained

    def _trains(self, module: nn.Module) -> bool:
        name = self._names[id(module)]
        return any(f"{name}.{key}" in self._trained for key, _ in module.named_parameters())


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear maps of a module by name, in the order in which they run; maps with LoRA by their base's name."""
    found = []
    for name, child in module.named_modules():
        base = name.removesuffix(".base_layer")
        own = any(base == known or base.endswith(f".{known}") for known in (*LINEARS, "out_proj", "fc1", "fc2"))
        if isinstance(child, nn.Linear) and (own or base in ("linear_1", "linear_2")):
            found.append((base, child))
    return found


def count_flops(llava: Llava, batch: dict[str, Any], *, token_plan: str = "all") -> Flops:
    """Run one forward and backward pass on ``batch`` and count its operations; gradients are discarded."""

    def fused(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def fused_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    # The counter supports fused attention on GPUs only; on CPUs it counts it as 0.
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: fused,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: fused_backward,
    }
    model = llava.model
    training = model.training
    model.train()
    try:
        with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
            loss = loss_of(llava, batch, token_plan=token_plan)
            forward = float(counter.get_total_flops())
            if loss.requires_grad:
                loss.backward()
            total = float(counter.get_total_flops())
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
    return Flops(forward, total - forward)
