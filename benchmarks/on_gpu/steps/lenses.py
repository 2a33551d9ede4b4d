"""The tuned lens and the Jacobian lens of every layer: seconds and memory of making them."""

import gc
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.steps.interventions import forward_flops
from benchmarks.on_gpu.workplace import Workplace, synchronise
from benchmarks.random_inputs import noise_examples
from models.inputs import Inputs, prepare
from models.llava import Llava
from probes.lenses.jacobian import jacobian_sites, jacobians_of
from probes.lenses.tuned_training import TunedTrainer

_TUNED = ((10, 8), (5, 8), (5, 4), (3, 2), (2, 1))  # timed steps and images of a step, the most first
_PASSES = 12  # over the logits of a layer in float32: two softmaxes, their product, the gradient
_UPDATE = 10  # passes over a translator: clipping, decay, momentum
_TOGETHER = (16, 8, 4, 2, 1)  # vector-Jacobian products of one backward pass, the first that fits in memory
_LEAST = 64  # products from which the time of a whole prompt is extrapolated


def plan_tuned(place: Workplace, budget: float) -> Work | str:
    """As many steps and images as fit, after one step of warm-up."""
    llava = place.shape
    layers, d, vocab = llava.n_layers, llava.d_model, int(llava.config.text_config.vocab_size)
    fixed = 3.0 if place.small else place.model_seconds + 4.0
    for steps, images in ((2, 2),) if place.small else _TUNED:
        n = images * llava.n_image_tokens
        # For each layer the translator and the head, both forwards, and the gradients of both.
        flops = forward_flops(llava, images) + layers * 4.0 * n * d * (vocab + d) + 2.0 * n * d * vocab
        read = 4.0 * layers * (_PASSES * n * vocab + _UPDATE * d * d)
        flops, read = (steps + 1) * flops, (steps + 1) * read
        if fixed + place.speed.seconds(flops, read, dtype=place.number) <= budget:
            break
    settings = {"steps": steps, "images": images, "image_tokens": n, "translators": layers, "d_model": d}
    return Work(lambda: run_tuned(place, steps, images), settings, flops, read, fixed, place.number)


def run_tuned(place: Workplace, steps: int, images: int) -> Iterator[dict[str, Any]]:
    """Seconds and losses of the steps so far; every step trains the translators of all layers on one batch."""
    llava = place.llava()
    inputs = prepare(llava, noise_examples(images, llava.image_size)[:])
    trainer = TunedTrainer(llava, positions="image", steps=steps + 1)
    values = [part for translator in trainer.translators.values() for part in translator]
    result: dict[str, Any] = {
        "image_tokens": images * llava.n_image_tokens, "translators": len(trainer.translators),
        "d_model": llava.d_model, "optimizer": "sgd", "bytes_translators": sum(v.nbytes for v in values),
    }  # fmt: skip
    trainer.step(inputs)  # warm-up: the optimizer's state is made
    state = [v for found in trainer.optimizer.state.values() for v in found.values() if isinstance(v, torch.Tensor)]
    result |= {"bytes_optimizer": sum(v.nbytes for v in state), "bytes_gradients": result["bytes_translators"]}
    seconds, losses = list[float](), list[float]()
    for _ in range(steps):
        synchronise(place.device)
        began = time.perf_counter()
        losses.append(trainer.step(inputs))
        synchronise(place.device)
        seconds.append(time.perf_counter() - began)
        each = median(seconds)
        yield result | {
            "seconds_per_step": seconds, "median_seconds_per_step": each, "loss": losses,
            "tokens_per_second": result["image_tokens"] / each, "peak_memory": place.peak(),
        }  # fmt: skip


def plan_jacobian(place: Workplace, budget: float) -> Work | str:
    """As many output dimensions of one prompt as fit: one vector-Jacobian product each, at all layers at once."""
    llava = place.shape
    d, one = llava.d_model, forward_flops(llava, 1)
    fixed = 3.0 if place.small else place.model_seconds + 3.0
    for products in (d,) if place.small else (d, d // 4, d // 16, _LEAST):
        # Gradients of activations alone cost as much as a forward. Memory is tried, then one pass timed by itself.
        flops = one * (3 * _TOGETHER[0] + 2 * _TOGETHER[0] + products)
        if fixed + place.speed.seconds(flops, dtype=place.number) <= budget:
            break
    settings = {"prompts": 1, "products": products, "of": d, "layers": llava.n_layers - 1}
    return Work(lambda: run_jacobian(place, products), settings, flops=flops, fixed=fixed, dtype=place.number)


def run_jacobian(place: Workplace, products: int) -> Iterator[dict[str, Any]]:
    """Seconds of one backward pass, then of ``products`` vector-Jacobian products, and of a prompt and a layer."""
    llava = place.llava()
    inputs = prepare(llava, noise_examples(1, llava.image_size)[:])
    together = fitting(llava, inputs)
    place.free()
    one, _ = _timed(place, llava, inputs, together, together)
    layers, d = llava.n_layers - 1, llava.d_model
    result: dict[str, Any] = {
        "prompts": 1, "layers": layers, "of": d, "together": together, "image_tokens": llava.n_image_tokens,
        "positions": inputs.n_positions, "seconds_forward_and_one_pass": one, "peak_memory": place.peak(),
    }  # fmt: skip
    yield result
    seconds, finite = _timed(place, llava, inputs, products, together)
    each = (seconds - one) / max(products - together, 1)  # without the forward
    prompt = seconds if products == d else one + each * (d - together)
    yield result | {
        "products": products, "seconds": seconds, "seconds_per_product": each, "finite": finite,
        "seconds_per_prompt": prompt, "prompt_is_extrapolated": products < d, "seconds_per_layer": prompt / layers,
        "peak_memory": place.peak(),
    }  # fmt: skip


def fitting(llava: Llava, inputs: Inputs) -> int:
    """The largest number of products in one backward pass that has memory."""
    for together in _TOGETHER:
        try:
            jacobians_of(
                llava, inputs, jacobian_sites(llava.n_layers, None), sources="image", together=together, rows=together
            )
            return together
        except torch.cuda.OutOfMemoryError:
            pass
        gc.collect()
        torch.cuda.empty_cache()
    raise RuntimeError("one prompt's graph must fit on the device, got out of memory.")


def _timed(place: Workplace, llava: Llava, inputs: Inputs, rows: int, together: int) -> tuple[float, bool]:
    """Seconds of ``rows`` products with their forward, and whether all values are finite."""
    synchronise(place.device)
    began = time.perf_counter()
    found = jacobians_of(
        llava, inputs, jacobian_sites(llava.n_layers, None), sources="image", together=together, rows=rows
    )
    synchronise(place.device)
    seconds = time.perf_counter() - began
    assert found is not None
    return seconds, all(bool(matrix.isfinite().all()) for matrix in found.values())


TUNED = Step(
    "tuned-lens", "steps of the translators of all layers of the tuned lens, d 4,096: seconds and memory", 0.2,
    plan_tuned, uses_model=True,
)  # fmt: skip
JACOBIAN = Step(
    "jacobian-lens", "Jacobians of all layers of one prompt: seconds for a product, a layer and a prompt; memory", 0.25,
    plan_jacobian, uses_model=True,
)  # fmt: skip
