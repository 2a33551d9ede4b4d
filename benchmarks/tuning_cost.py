"""What a training step of each layer plan costs relative to full tuning: time, operations, memory.

    python -m benchmarks.tuning_cost --model random:llava-1.5-7b --device cuda   # real size, bfloat16, one GPU
    python -m benchmarks.tuning_cost --model wider --clock cpu                   # d_model 2,048, 8 layers, float32
    python -m benchmarks.tuning_cost --model wide --clock cpu                    # d_model 1,024
    python -m benchmarks.tuning_cost --model tiny                                # seconds; shows that the script runs

All plans run in one process, in turn, on one batch of noise (a picture and ``--text-tokens`` words a row): forward,
backward, AdamW. The batch is the largest that full tuning fits without checkpointing. On a GPU weights, gradients and
moments are in bfloat16, which takes half the memory of what ``layerwise-finetune --bf16`` trains: ``--precision mixed``
measures that. Step time includes the optimizer, the closed form does not.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from models.llava import Llava
from models.loading.load import load
from tuning.cost.flops import band_ratio, closed_form
from tuning.cost.measure import Cost, batch_shape, measure_step, synthetic_batch
from tuning.cost.timing import measure_plans
from tuning.plan.apply import applied
from tuning.plan.layers import anchor_band, layer_spec
from tuning.plan.plan import WHOLE, LayerPlan, Lora
from tuning.plan.resolve import Resolved, resolve

# name -> (d_model, inner, blocks, heads, patches a side, d_vision, vision blocks)
SIZES = {
    "tiny": (64, 128, 4, 4, 3, 32, 3),
    "wide": (1024, 2816, 8, 16, 12, 128, 3),
    "wider": (2048, 5632, 8, 16, 12, 128, 3),
}
TARGETS = {"6-16": 0.75, "6-16 + projector": 0.82}  # of step time, at the size of LLaVA-7B


def build(name: str, device: str, dtype: torch.dtype, attn: str) -> Llava:
    """The model of a size of this file, or one that ``models.loading.load.load`` knows."""
    if name not in SIZES:
        return load(name, device=device, dtype=dtype, validate=False, attn="sdpa" if attn == "sdpa" else "eager")
    d, inner, blocks, heads, side, d_vision, vision_blocks = SIZES[name]
    vision = CLIPVisionConfig(
        image_size=14 * side,
        patch_size=14,
        hidden_size=d_vision,
        intermediate_size=2 * d_vision,
        num_hidden_layers=vision_blocks,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        vocab_size=2048,
        hidden_size=d,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=None,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=2000, image_seq_length=side * side)
    return load(config, device=device, dtype=dtype, validate=False)


def build_plans(llava: Llava) -> dict[str, Resolved]:
    """The plans of the table; the band is 6-16 of 32, or the same share of another depth."""
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
    if importlib.util.find_spec("peft") is None:
        print("peft is not installed: no LoRA", file=sys.stderr)
        del plans["LoRA + projector"]
    return {name: resolve(plan, llava) for name, plan in plans.items()}


def largest_batch(llava: Llava, full: Resolved, text_tokens: int, limit: int, *, mixed: bool) -> int:
    """The largest batch of 1, 2, 3, 4, 6, 8, 12, ... rows that full tuning fits on the GPU, at most ``limit``."""
    fits = 0
    for rows in (n for k in range(12) for n in ((2**k, 3 * 2 ** (k - 1)) if k else (1,))):
        if rows > limit:
            break
        try:
            with applied(llava, full, low_precision=mixed):
                batch = synthetic_batch(llava, rows=rows, text_tokens=text_tokens)
                measure_step(llava, full, batch, repeats=1, warmup=1, count=False, bf16=mixed)
            # The optimizer's memory comes on top in the first step of each turn: leave a little.
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
    """One row a plan, with ratios to full tuning."""
    full = costs["full"]
    rows = []
    for name, cost in costs.items():
        resolved = plans[name]
        assert cost.flops is not None
        assert full.flops is not None
        quartiles = statistics.quantiles(cost.seconds, n=4) if len(cost.seconds) > 1 else [cost.seconds[0]] * 3
        rows.append(
            {
                "plan": name,
                "layers": layer_spec(resolved.layers, llava.n_layers),
                "checkpointing": checkpointing,
                "flops_ratio": cost.flops.total / full.flops.total,
                "closed_form_ratio": cost.closed_form.total / full.closed_form.total,
                "closed_form_over_counted": cost.closed_form.total / cost.flops.total,
                "blocks_alone_ratio": None
                if resolved.plan.method == "lora"
                else band_ratio(
                    llava.n_layers, resolved.layers, below=resolved.below_blocks, checkpointing=checkpointing
                ),
                "step_time_ratio": cost.step_seconds / full.step_seconds,
                "time_low": quartiles[0] / full.step_seconds,
                "time_high": quartiles[2] / full.step_seconds,
                "peak_memory_ratio": cost.peak_memory / full.peak_memory,
                **cost.to_dict(),
            }
        )
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    on_gpu = options.device.startswith("cuda")
    mixed = options.precision == "mixed"
    dtype = torch.bfloat16 if on_gpu and not mixed else torch.float32
    began = time.perf_counter()
    llava = build(options.model, options.device, dtype, options.attn)
    print(f"built in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    plans = build_plans(llava)
    limit = options.batch or 64
    rows = (
        largest_batch(llava, plans["full"], options.text_tokens, limit, mixed=mixed) if on_gpu else options.batch or 2
    )
    batch = synthetic_batch(llava, rows=rows, text_tokens=options.text_tokens)
    measured: list[dict[str, Any]] = []

    def report(turn: int, name: str, cost: Cost) -> None:
        elapsed = time.perf_counter() - began
        print(f"round {turn}, {name}: {cost.step_seconds:.3f} s a step ({elapsed:.0f} s in all)", file=sys.stderr)

    for checkpointing in (False, True) if options.checkpointing == "both" else (options.checkpointing == "on",):
        costs = measure_plans(
            llava,
            plans,
            batch,
            rounds=options.rounds,
            repeats=options.repeats,
            checkpointing=checkpointing,
            bf16=mixed,
            clock=options.clock,
            on_turn=report,
        )
        measured += describe_costs(llava, plans, costs, checkpointing=checkpointing)
    shape = batch_shape(llava, batch)
    form = closed_form(llava, plans["full"], shape)
    fastest = next(row for row in measured if row["plan"] == "full")
    return {
        "model": options.model,
        "n_layers": llava.n_layers,
        "d_model": llava.d_model,
        "parameters": sum(p.numel() for p in llava.model.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "dtype": "mixed" if mixed else str(dtype).removeprefix("torch."),
        "attention": options.attn,
        "optimizer": "AdamW (torch, fused), moments in the trained weights' type, lr 0",
        "batch": rows,
        "positions": shape.positions,
        "image_tokens": llava.n_image_tokens,
        "text_tokens": options.text_tokens,
        "loss_positions": shape.learned,
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "repeats": options.repeats,
        "tflops_full": form.total / fastest["step_seconds_median"] / 1e12,
        "plans": measured,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.tuning_cost", *sys.argv[1:]]),
        "seconds_in_all": time.perf_counter() - began,
    }


def commit() -> str:
    """The commit that was timed, or "uncommitted"."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "uncommitted"


def describe(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    head = f"# Cost of tuning plans, {record['model']} on {record['device']}\n\n"
    if "not_run" in record:
        return f"{head}Not yet run: {record['not_run']}\n"
    lines = [
        f"{head}{record['n_layers']} blocks of width {record['d_model']}, {record['parameters'] / 1e9:.2f} billion "
        f"parameters, {record['dtype']}, {record['attention']} attention; batch {record['batch']} x "
        f"{record['positions']} positions ({record['image_tokens']} image tokens); {record['clock']} time, median of "
        f"{record['rounds'] * record['repeats']} steps; full tuning runs at {record['tflops_full']:.3g} TFLOP/s.\n",
        "| plan | checkpointing | trainable | step (s) | step / full | FLOPs / full | closed form | closed / counted | "
        "peak memory (GB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["plans"]:
        lines.append(
            f"| {row['plan']} | {'on' if row['checkpointing'] else 'off'} | {row['trainable'] / 1e6:,.1f} M | "
            f"{row['step_seconds_median']:.3f} | {row['step_time_ratio']:.3f} | {row['flops_ratio']:.3f} | "
            f"{row['closed_form_ratio']:.3f} | {row['closed_form_over_counted']:.4f} | {row['peak_memory'] / 1e9:.2f} |"
        )
    kind = "the allocator's peak" if record["plans"][0]["peak_memory_is_measured"] else "the sum of what is held"
    lines.append(f"\nPeak memory is {kind}. Step time includes the optimizer, operations do not.")
    for name, target in TARGETS.items():
        found = [row for row in record["plans"] if row["plan"] == name and not row["checkpointing"]]
        if found and record["model"].startswith("random:"):
            ratio = found[0]["step_time_ratio"]
            met = "met" if ratio <= target else "missed"
            lines.append(
                f"Target for {name}: at most {target} of full tuning's step time; measured {ratio:.3f}, {met}."
            )
    return "\n".join(lines) + "\n"


def draw(record: dict[str, Any], stem: Path) -> None:
    """The record's figure; on a machine without the drawing libraries ``--redraw`` makes it elsewhere."""
    if any(importlib.util.find_spec(name) is None for name in ("pandas", "matplotlib", "seaborn")):
        print("pandas, matplotlib or seaborn is missing here: draw with --redraw RECORD.json", file=sys.stderr)
        return
    import pandas as pd

    from figures.plans.cost_ratios import draw_cost_ratios
    from figures.style import save_figure

    save_figure(draw_cost_ratios(pd.DataFrame(record["plans"])), stem)


def main() -> None:
    """Measure, print, and write the dated record and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="tiny", help=f"{', '.join(SIZES)}, or a name that models.loading.load.load knows"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attn", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument(
        "--precision", choices=["plain", "mixed"], default="plain",
        help="mixed: as layerwise-finetune --bf16 trains; plain: one type, bfloat16 on a GPU, float32 elsewhere",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=None, help="rows; on a GPU the most that is tried")
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps in each round")
    parser.add_argument("--checkpointing", choices=["both", "on", "off"], default="both")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu only with one thread")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records")
    parser.add_argument("--redraw", type=Path, default=None, help="only draw the figure of a record made elsewhere")
    options = parser.parse_args()
    if options.redraw is not None:
        draw(json.loads(options.redraw.read_text()), options.redraw.with_suffix(""))
        return
    if options.threads or options.clock == "cpu":
        torch.set_num_threads(options.threads or 1)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        record: dict[str, Any] = {"model": options.model, "device": "cuda", "not_run": "no CUDA device at hand."}
    else:
        record = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    size = options.model.replace(":", "-").rstrip("/").rsplit("/", 1)[-1]
    stem = options.out / f"{time.strftime('%Y-%m-%d')}-tuning-cost-{size}-{options.device.partition(':')[0]}"
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_name(f"{stem.name}.md").write_text(describe(record))
    if "plans" in record:
        draw(record, stem)
    print(describe(record))


if __name__ == "__main__":
    main()
