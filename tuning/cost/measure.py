"""Time and memory of one training step of a plan. ``tuning.cost.flops`` counts its operations."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from models.llava import Llava
from tasks.errors import UserError
from tuning.cost.flops import Flops, Shape, closed_form, count_flops
from tuning.data.labels import IGNORED
from tuning.plan.apply import trained_parameters
from tuning.plan.resolve import Resolved
from tuning.training.loss import loss_of, loss_positions

ClockName = Literal["wall", "cpu"]
_WIDE = 4  # bytes of a float32


@dataclass(frozen=True)
class Memory:
    """Memory of a step in bytes: all weights, gradients, AdamW's two moments, and activations for the backward pass."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Cost:
    """The measured cost of a step; ``flops`` is None if nothing was run, ``closed_form`` is computed from the sizes.

    ``seconds`` lists the timed steps, optimizer included; ``tokens`` is the number of positions in a step. On a
    CPU ``peak_memory`` is not measured but the sum over ``memory``, in bytes.
    """

    trainable: int
    flops: Flops | None
    closed_form: Flops
    seconds: tuple[float, ...]
    tokens: int
    memory: Memory
    peak_memory: int
    peak_is_measured: bool

    @property
    def step_seconds(self) -> float:
        """Seconds of the median step."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``cost.json``."""
        return {
            "trainable": self.trainable,
            "flops_forward": None if self.flops is None else self.flops.forward,
            "flops_backward": None if self.flops is None else self.flops.backward,
            "closed_form_forward": self.closed_form.forward,
            "closed_form_backward": self.closed_form.backward,
            "step_seconds_median": self.step_seconds if self.seconds else None,
            "step_seconds": list(self.seconds),
            "tokens_per_second": self.tokens / self.step_seconds if self.seconds else None,
            "bytes_weights": self.memory.weights,
            "bytes_gradients": self.memory.gradients,
            "bytes_optimizer": self.memory.optimizer,
            "bytes_activations": self.memory.activations,
            "peak_memory": self.peak_memory,
            "peak_memory_is_measured": self.peak_is_measured,
        }


def synthetic_batch(llava: Llava, *, rows: int, text_tokens: int, seed: int = 0) -> dict[str, Any]:
    """A random batch that costs as much as real data: a picture and ``text_tokens`` words per row, half labelled."""
    generator = torch.Generator().manual_seed(seed)
    image = llava.image_token_id
    vocabulary = int(llava.config.text_config.vocab_size)
    words = torch.randint(3, min(vocabulary, 30000), (rows, text_tokens), generator=generator)
    words = words.masked_fill(words == image, 3)
    half = text_tokens // 2
    ids = torch.cat([words[:, :half], torch.full((rows, llava.n_image_tokens), image), words[:, half:]], dim=1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -(text_tokens - half) :] = words[:, half:]
    side = llava.image_size
    pixels = torch.randn(rows, 3, side, side, generator=generator)
    batch = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.arange(ids.shape[1]).expand(rows, -1).contiguous(),
        "pixel_values": pixels,
    }
    moved: dict[str, Any] = {name: tensor.to(llava.device) for name, tensor in batch.items()}
    moved["pixel_values"] = moved["pixel_values"].to(llava.dtype)
    moved["use_cache"] = False
    return moved


def batch_shape(llava: Llava, batch: dict[str, Any]) -> Shape:
    """The size of a batch."""
    ids: Tensor = batch["input_ids"]
    pixels = batch.get("pixel_values")
    labelled = int(loss_positions(batch["labels"]).sum())
    return Shape(ids.shape[0], ids.shape[1], 0 if pixels is None else int(pixels.shape[0]), labelled)


def estimate_memory(
    llava: Llava, resolved: Resolved, shape: Shape, *, checkpointing: bool = False, bf16: bool = False
) -> Memory:
    """The estimated memory of a step; the estimate for activations is within a third of the measured value.

    ``bf16``: frozen weights and activations are bfloat16; trained weights are float32 in any case.
    """
    wide = _WIDE if not bf16 else 2
    own = llava.model.get_parameter(next(iter(dict(llava.model.named_parameters())))).element_size()
    frozen = resolved.total - sum(group.trained for group in resolved.groups)
    trained = resolved.trained
    if resolved.plan.method == "lisa":
        share = resolved.plan.lisa.active / len(resolved.layers)
        blocks = sum(group.trained for group in resolved.groups if group.name.startswith("block "))
        trained = round(trained - blocks * (1 - share))
    # In bfloat16 the products keep a copy of each trained weight for the backward pass.
    weights = frozen * (2 if bf16 else own) + resolved.trained * (_WIDE + 2 * bf16)
    text: Any = llava.config.text_config
    rows = shape.batch * shape.positions
    d, inner = llava.d_model, int(text.intermediate_size)
    # Kept per block: both norms in float32 and their outputs, q, k, v, the heads' output, four in the feed-forward
    block = rows * (4 * d * _WIDE + 6 * d * wide + 4 * inner * wide)
    reached = llava.n_layers - resolved.first_block
    kept = reached * rows * d * wide + block * bool(reached) if checkpointing else reached * block
    head = shape.labelled * int(text.vocab_size) * _WIDE  # the loss keeps its log-probabilities
    return Memory(weights, trained * _WIDE, 2 * trained * _WIDE, int(kept + head))


def count_activations(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result of ``run``, and the bytes, without weights, that autograd stores for the backward pass.

    With checkpointing a block keeps only its input, which is not counted: see ``Cost.peak_memory``.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not (tensor._is_view() and isinstance(tensor._base, nn.Parameter)):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that keeps its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return result, sum(storages.values())


def measure_step(
    llava: Llava,
    resolved: Resolved,
    batch: dict[str, Any],
    *,
    repeats: int = 5,
    warmup: int = 2,
    checkpointing: bool = False,
    bf16: bool = False,
    count: bool = True,
    clock: ClockName = "wall",
) -> Cost:
    """The cost of ``repeats`` timed steps (forward, backward, AdamW) on one batch; the weights do not change.

    The plan must be applied, with gradient checkpointing if ``checkpointing``. ``batch`` holds the model's arguments,
    labels included. ``count`` takes two more passes to count operations and kept activations. The clock ``"cpu"``
    measures the processor time of this process, for a shared machine. Raises ``UserError`` if nothing trains.
    """
    trained = trained_parameters(llava)
    if not trained:
        raise UserError("plan must train something to be measured, got nothing. Apply it first.")
    device = llava.device
    model = llava.model
    shape, token_plan = batch_shape(llava, batch), resolved.plan.token_plan
    form = closed_form(llava, resolved, shape, checkpointing=checkpointing)
    # A step with learning rate 0 costs the same.
    optimizer: Optimizer = AdamW(trained.values(), lr=0.0, weight_decay=0.0, fused=True)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
    kept = 0
    seconds: list[float] = []
    training = model.training
    model.train()
    on_gpu = device.type == "cuda"
    try:
        with autocast:
            flops = count_flops(llava, batch, token_plan=token_plan) if count else form
            model.train()
            if count:
                # Keeping the loss would keep its activations during the steps below.
                kept = count_activations(lambda: loss_of(llava, batch, token_plan=token_plan))[1]
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        for index in range(warmup + repeats):
            began = _now(device, clock)
            with autocast:
                loss = loss_of(llava, batch, token_plan=token_plan)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if index >= warmup:
                seconds.append(_now(device, clock) - began)
        moments = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for key, value in state.items()
            if isinstance(value, Tensor) and key != "step"
        )
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
    gradients = sum(p.numel() * p.element_size() for p in trained.values())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = Memory(weights, gradients, moments or 2 * gradients, kept)
    peak = int(torch.cuda.max_memory_allocated(device)) if on_gpu else memory.total
    return Cost(
        sum(p.numel() for p in trained.values()),
        flops,
        form,
        tuple(seconds),
        shape.batch * shape.positions,
        memory,
        peak,
        on_gpu,
    )


def _now(device: torch.device, clock: ClockName) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() if clock == "wall" else time.process_time()
