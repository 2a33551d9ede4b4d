"""The cost of a training step of each layer plan relative to full tuning: time, operations, memory.

    python -m benchmarks.tuning_cost --model random:llava-1.5-7b --device cuda   # real size, bfloat16, one GPU
    python -m benchmarks.tuning_cost --model wider --clock cpu                   # d_model 2,048, 8 layers, float32
    python -m benchmarks.tuning_cost --model wide --clock cpu                    # d_model 1,024
    python -m benchmarks.tuning_cost --model tiny                                # seconds; checks the script

All plans take turns in one process on one batch of noise (a picture and ``--text-tokens`` words per row): forward,
backward, AdamW. On a GPU the batch is the largest for which full tuning has memory without checkpointing. Weights,
gradients and moments are in bfloat16 and take half as much memory as ``layerwise-finetune --dtype bfloat16``;
``--precision mixed`` measures the latter. Step time includes the optimizer, the closed form does not.
"""

import argparse
import gc
import statistics
import sys
import time
from typing import Any

import pandas as pd
import torch

from benchmarks.random_inputs import Size, llava_config
from benchmarks.record import command, heading, machine, options, table, write_record
from figures import draw_cost_ratios, save_figure
from models.llava import Llava
from models.loading.load import load
from tuning.cost.flops import closed_form
from tuning.cost.measure import Cost, batch_shape, measure_step, synthetic_batch
from tuning.cost.timing import measure_plans
from tuning.plan.apply import applied
from tuning.plan.layers import anchor_band, layer_spec
from tuning.plan.plan import WHOLE, LayerPlan, Lora
from tuning.plan.resolve import Resolved, resolve

# name -> language model, vision tower, patches per side
SIZES = {
    "tiny": (Size(64, 128, 4, 4), Size(32, 64, 3, 4), 3),
    "wide": (Size(1024, 2816, 8, 16), Size(128, 256, 3, 4), 12),
    "wider": (Size(2048, 5632, 8, 16), Size(128, 256, 3, 4), 12),
}


def build(name: str, device: str, dtype: torch.dtype, attn: str) -> Llava:
    """A random model of one of ``SIZES``, or the model that ``load`` returns for the name."""
    if name not in SIZES:
        return load(name, device=device, dtype=dtype, validate=False, attn="sdpa" if attn == "sdpa" else "eager")
    text, vision, side = SIZES[name]
    config = llava_config(text, vision, side=side, pad_token_id=None)
    return load(config, device=device, dtype=dtype, validate=False)


def build_plans(llava: Llava, *, more: bool = False) -> dict[str, Resolved]:
    """The plans of the table; the band is 6-16 of 32, or the same share of another depth.

    ``more`` adds LoRA on the band alone, and the band under a token plan that hides image tokens elsewhere.
    """
    band = anchor_band(llava.n_layers)
    spec = layer_spec(band, llava.n_layers)
    size = len(band)
    stride = max(1, llava.n_layers // 8)
    plans = {
        "full": LayerPlan("all", WHOLE),
        spec: LayerPlan(spec, ()),
        f"{spec} + projector": LayerPlan(spec, ("projector",)),
        f"every:{stride}": LayerPlan(f"every:{stride}", ()),
        f"last:{size}": LayerPlan(f"last:{size}", ()),
        "LoRA + projector": LayerPlan("all", ("projector",), "lora", Lora(128 if llava.d_model > 512 else 4, 256)),
        "projector only": LayerPlan("none", ("projector",)),
    }
    if more:
        plans |= {
            f"LoRA {spec} + projector": LayerPlan(spec, ("projector",), "lora", plans["LoRA + projector"].lora),
            f"{spec} + projector, {spec}:hide": LayerPlan(spec, ("projector",), token_plan=f"{spec}:hide"),
        }
    return {name: resolve(plan, llava) for name, plan in plans.items()}


def largest_batch(llava: Llava, full: Resolved, text_tokens: int, limit: int, *, mixed: bool) -> int:
    """The largest batch of 1, 2, 3, 4, 6, 8, 12, ... rows that fits on the GPU under full tuning, at most ``limit``."""
    fits = 0
    for rows in (n for k in range(12) for n in ((2**k, 3 * 2 ** (k - 1)) if k else (1,))):
        if rows > limit:
            break
        try:
            with applied(llava, full, low_precision=mixed):
                batch = synthetic_batch(llava, rows=rows, text_tokens=text_tokens)
                measure_step(llava, full, batch, repeats=1, warmup=1, count=False, bf16=mixed)
            # Leave room for the optimizer's memory, which is allocated in the first step of each turn.
            if torch.cuda.max_memory_allocated() > 0.94 * torch.cuda.get_device_properties(0).total_memory:
                break
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        fits = rows
        print(f"full tuning fits {rows} rows, {torch.cuda.max_memory_allocated() / 1e9:.0f} GB", file=sys.stderr)
    if not fits:
        raise SystemExit("full tuning must fit one row on the GPU, got out of memory. Use a larger GPU.")
    return fits


def describe_costs(
    llava: Llava, plans: dict[str, Resolved], costs: dict[str, Cost], *, checkpointing: bool
) -> list[dict[str, Any]]:
    """One row for each plan, with ratios to full tuning."""
    full = costs["full"]
    rows = []
    for name, cost in costs.items():
        assert cost.flops is not None
        assert full.flops is not None
        quartiles = statistics.quantiles(cost.seconds, n=4) if len(cost.seconds) > 1 else [cost.seconds[0]] * 3
        row = {
            "plan": name,
            "layers": layer_spec(plans[name].layers, llava.n_layers),
            "checkpointing": checkpointing,
            "flops_ratio": cost.flops.total / full.flops.total,
            "closed_form_ratio": cost.closed_form.total / full.closed_form.total,
            "closed_form_over_counted": cost.closed_form.total / cost.flops.total,
            "step_time_ratio": cost.step_seconds / full.step_seconds,
            "time_low": quartiles[0] / full.step_seconds,
            "time_high": quartiles[2] / full.step_seconds,
            "peak_memory_ratio": cost.peak_memory / full.peak_memory,
        }
        rows.append(row | cost.to_dict())
    return rows


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    on_gpu = given.device.startswith("cuda")
    mixed = given.precision == "mixed"
    dtype = torch.bfloat16 if on_gpu and not mixed else torch.float32
    began = time.perf_counter()
    llava = build(given.model, given.device, dtype, given.attn)
    print(f"built in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    plans = build_plans(llava)
    limit = given.batch or 64
    rows = largest_batch(llava, plans["full"], given.text_tokens, limit, mixed=mixed) if on_gpu else given.batch or 2
    batch = synthetic_batch(llava, rows=rows, text_tokens=given.text_tokens)
    measured: list[dict[str, Any]] = []

    def report(turn: int, name: str, cost: Cost) -> None:
        elapsed = time.perf_counter() - began
        print(f"round {turn}, {name}: {cost.step_seconds:.3f} s a step ({elapsed:.0f} s in all)", file=sys.stderr)

    for checkpointing in (False, True) if given.checkpointing == "both" else (given.checkpointing == "on",):
        costs = measure_plans(
            llava, plans, batch, rounds=given.rounds, repeats=given.repeats, checkpointing=checkpointing, bf16=mixed,
            clock=given.clock, on_turn=report,
        )  # fmt: skip
        measured += describe_costs(llava, plans, costs, checkpointing=checkpointing)
    shape = batch_shape(llava, batch)
    fastest = next(row for row in measured if row["plan"] == "full")
    return {
        "n_layers": llava.n_layers,
        "d_model": llava.d_model,
        "parameters": sum(p.numel() for p in llava.model.parameters()),
        "dtype": "mixed" if mixed else str(dtype).removeprefix("torch."),
        "attention": given.attn,
        "optimizer": "AdamW (torch, fused), moments in the trained weights' type, lr 0",
        **shape._asdict(),
        "image_tokens": llava.n_image_tokens,
        "text_tokens": given.text_tokens,
        "clock": given.clock,
        "rounds": given.rounds,
        "repeats": given.repeats,
        "tflops_full": closed_form(llava, plans["full"], shape).total / fastest["step_seconds_median"] / 1e12,
        "seconds_in_all": time.perf_counter() - began,
        "plans": measured,
    }


def describe(record: dict[str, Any]) -> list[str]:
    """The table of plans in Markdown."""
    header = ("plan", "checkpointing", "trainable (M)", "step (s)", "step / full", "FLOPs / full", "closed form",
              "closed / counted", "peak memory (GB)")  # fmt: skip
    cells = (
        (row["plan"], "on" if row["checkpointing"] else "off", f"{row['trainable'] / 1e6:,.1f}",
         *(f"{row[key]:.3f}" for key in ("step_seconds_median", "step_time_ratio", "flops_ratio", "closed_form_ratio")),
         f"{row['closed_form_over_counted']:.4f}", f"{row['peak_memory'] / 1e9:.2f}")
        for row in record["plans"]
    )  # fmt: skip
    kind = "the allocator's peak" if record["plans"][0]["peak_memory_is_measured"] else "the sum of what is held"
    return [*table(header, cells), "", f"Peak memory is {kind}. Step time includes the optimizer, operations do not."]


def main() -> None:
    """Run the benchmark, write and print the record and its figure."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--model", default="tiny", help=f"{', '.join(SIZES)}, or a name that load() takes")
    parser.add_argument("--attn", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument(
        "--precision", choices=["plain", "mixed"], default="plain",
        help="mixed: as layerwise-finetune --dtype bfloat16; plain: one type, bfloat16 on a GPU, float32 elsewhere",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=None, help="rows; on a GPU the largest number that is tried")
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of --repeats timed steps")
    parser.add_argument("--checkpointing", choices=["both", "on", "off"], default="both")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu only with one thread")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads or given.clock == "cpu":
        torch.set_num_threads(given.threads or 1)
    record: dict[str, Any] = {"model": given.model, "command": command(), **machine(given.device)}
    if "not_run" in record:
        lines = ["", f"Not yet run: {record['not_run']}"]
    else:
        record |= run(given)
        lines = describe(record)
    facts = {key: value for key, value in record.items() if key not in ("plans", "command")}
    size = given.model.rstrip("/").rsplit("/", 1)[-1]
    name = f"tuning-cost-{size}-{given.device.partition(':')[0]}"
    text = "\n".join([*heading("Cost of tuning plans", facts), *lines])
    stem = write_record(given.out, name, record, text)
    if "plans" in record:
        save_figure(draw_cost_ratios(pd.DataFrame(record["plans"])), stem)


if __name__ == "__main__":
    main()
