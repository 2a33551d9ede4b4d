"""The cost of a run: estimated before it starts (``estimate_run``) and measured (``cost_of_run``)."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from models.llava import Llava
from records.open_model import load_seconds
from records.processes import matmul_speed
from records.timings import describe_estimate
from tuning.config import TuningConfig, is_bf16
from tuning.cost.flops import Flops, Shape, closed_form
from tuning.cost.measure import Cost, Memory, estimate_memory, measure_step
from tuning.data.samples import Samples, Survey
from tuning.plan.apply import set_checkpointing
from tuning.plan.plan import WHOLE, LayerPlan
from tuning.plan.resolve import Resolved, resolve
from tuning.scoring.answers import collator, model_inputs
from tuning.training.sharding import will_shard
from tuning.training.train import Trained

# Measured on smol and one CPU thread, 2026-11-29.
OVERHEAD = 1.5  # time of a step over that of its products in closed form
SURVEY_SECONDS = 2e-3  # of a sample that is read before the first step
WEIGHT_SECONDS = 1e-8  # of a weight that is saved
FULL = LayerPlan("all", WHOLE, name="full")


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run: ``flops`` per optimizer step, ``memory`` per process."""

    resolved: Resolved
    survey: Survey
    n_samples: int
    steps: int
    flops: Flops
    ratio: float
    memory: Memory
    stages: Mapping[str, float] | None = None
    """Seconds by stage, named as in the manifest's ``timings``; None outside a dry run."""

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run, within a factor of two on the machine of the calibration."""
        return None if self.stages is None else sum(self.stages.values())

    def __str__(self) -> str:
        """The estimate as lines of text."""
        gigabytes = {
            "weights": self.memory.weights,
            "gradients": self.memory.gradients,
            "optimizer": self.memory.optimizer,
            "activations (estimated)": self.memory.activations,
            "in all": self.memory.total,
        }
        as_if = ", as if all of its blocks trained at once" if self.resolved.plan.method == "lisa" else ""
        read = len(self.survey.lengths)
        data = self.survey.describe() + (f" (read from {self.n_samples:,})" if read < self.n_samples else "")
        return "\n".join(
            [
                self.resolved.summary(),
                f"data       {data}",
                f"steps      {self.steps:,}",
                f"compute    {self.flops.total / 1e12:.3g} TFLOP a step ({self.flops.forward / 1e12:.3g} forward), "
                f"{self.ratio:.2f} of full tuning{as_if}",
                *([] if self.stages is None else [f"time       {describe_estimate(self.stages)}; no step was run"]),
                "memory     " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in gigabytes.items()),
            ]
        )


def estimate_run(
    config: TuningConfig,
    llava: Llava,
    resolved: Resolved,
    samples: Samples,
    survey: Survey,
    world: int,
    *,
    n_samples: int,
    n_scored: int = 0,
    device: str,
) -> Estimate:
    """Steps, FLOPs and memory of a run, computed from plan and survey; ``world`` is the number of processes.

    A dry run surveys only some of the ``n_samples`` samples, and measures the speed of a matrix product on ``device``.
    ``n_scored`` is the number of samples of an evaluation.
    """
    o = config.optimisation
    per_step = o.batch_size * o.grad_accum * world
    usable = round(len(samples) * n_samples / len(survey.lengths))
    steps = o.steps or max(1, round(o.epochs * -(-usable // per_step)))
    length = int(samples.lengths.mean())
    learned = round(o.batch_size * float(survey.labelled[survey.kept].mean()))
    shape = Shape(o.batch_size, length, round(o.batch_size * float(samples.pictured.mean())), learned)
    checkpointing = config.run.gradient_checkpointing
    one = closed_form(llava, resolved, shape, checkpointing=checkpointing)
    full = closed_form(llava, resolve(FULL, llava), shape, checkpointing=checkpointing)
    flops = one * float(o.grad_accum)
    memory = estimate_memory(llava, resolved, shape, checkpointing=checkpointing, bf16=is_bf16(config.model))
    if will_shard():
        weights, gradients, optimizer = (size // world for size in (memory.weights, memory.gradients, memory.optimizer))
        memory = Memory(weights, gradients, optimizer, memory.activations)
    bf16 = is_bf16(config.model)
    stages = None
    if config.dry_run:
        second = 1 / matmul_speed(device, torch.bfloat16 if bf16 else torch.float32)  # of one operation
        n_evaluations = -(-steps // config.eval_every) if config.eval_every else 1
        forward = one.forward / o.batch_size  # of one sample
        stages = {
            "load and survey": load_seconds(llava) + SURVEY_SECONDS * n_samples,
            "first batch": OVERHEAD * one.total * second,
            "steps": OVERHEAD * steps * flops.total * second,
            "evaluations": OVERHEAD * n_evaluations * n_scored * forward * second,
            "saving": WEIGHT_SECONDS * sum(p.numel() for p in llava.model.parameters()),
        }
    return Estimate(resolved, survey, n_samples, steps, flops, one.total / full.total, memory, stages)


def measure_first(config: TuningConfig, llava: Llava, resolved: Resolved, samples: Samples, estimate: Estimate) -> Cost:
    """FLOPs and memory of the first batch; weights and random states do not change.

    With FSDP the full model and its gradients may not fit on one device, so nothing is run: the cost has the closed
    form and the estimated memory, and ``flops`` is None.
    """
    rows = config.optimisation.batch_size
    if will_shard():
        accum = float(config.optimisation.grad_accum)
        tokens = rows * int(samples.lengths.mean())
        one = estimate.flops * (1 / accum)
        return Cost(resolved.trained, None, one, (), tokens, estimate.memory, estimate.memory.total, False)
    items = [samples[index] for index in range(min(rows, len(samples)))]
    batch = collator(llava)(items)
    batch = {name: value for name, value in batch.items() if name not in ("owner", "sample")}
    checkpointing = config.run.gradient_checkpointing
    first = resolved.first_block if checkpointing else None
    set_checkpointing(llava, first, resolved.first_vision)
    low = torch.autocast(llava.device.type, dtype=torch.bfloat16) if is_bf16(config.model) else nullcontext()
    with torch.random.fork_rng(devices=[llava.device] if llava.device.type == "cuda" else []):
        with low:
            inputs = model_inputs(batch, llava)
        cost = measure_step(
            llava, resolved, inputs, repeats=0, warmup=0, checkpointing=checkpointing, bf16=is_bf16(config.model)
        )
    set_checkpointing(llava, None)
    if llava.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(llava.device)
    return cost


def cost_of_run(
    config: TuningConfig, measured: Cost, trained: Trained, estimate: Estimate, device: torch.device, world: int
) -> dict[str, Any]:
    """The content of ``cost.json``: FLOPs and time per optimizer step of one process, and peak memory in bytes."""
    on_gpu = device.type == "cuda"
    peak = int(torch.cuda.max_memory_allocated(device)) if on_gpu else measured.peak_memory
    accum = float(config.optimisation.grad_accum)
    described = replace(
        measured,
        flops=None if measured.flops is None else measured.flops * accum,
        closed_form=measured.closed_form * accum,
        seconds=trained.step_seconds,
        peak_memory=peak,
        peak_is_measured=on_gpu,
    ).to_dict()
    seconds = sum(trained.step_seconds)
    described["data_seconds_median"] = median(trained.data_seconds) if trained.data_seconds else None
    described["processes"] = world
    described["compiled"] = config.run.compile
    described["closed_form_ratio"] = estimate.ratio
    described["steps"] = trained.steps
    # step_seconds leaves out the first step of a process, but tokens includes it.
    share = len(trained.step_seconds) / max(1, len(trained.step_seconds) + 1)
    described["tokens_per_second"] = trained.tokens * share / seconds if seconds else None
    described["plan"] = estimate.resolved.plan.to_dict()
    return described
