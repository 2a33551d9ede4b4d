"""Token plans on a random model: measured time of prefill, decoding and training steps beside the closed form.

    python -m benchmarks.token_plans                                  # d_model 1,024, 16 layers, 576 image tokens
    python -m benchmarks.token_plans --training                       # steps of full tuning and the band, with plans
    python -m benchmarks.token_plans --model random:llava-1.5-7b --dtype bfloat16 --plans leave@16,6-16:hide --repeats 2
    python -m benchmarks.token_plans --model tiny --repeats 1         # seconds; checks the script

All plans take turns in one process. A ratio is the median over rounds of a plan's time divided by that of ``all``
in the same round. The closed form counts the blocks of the language model; measured prefill is the language model's.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.random_inputs import Size, llava_config, noise_examples
from benchmarks.record import command, heading, machine, model_facts, options, table, write_record
from interventions.token_plans.timing import measure
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.precision import fast_bfloat16
from models.token_plans.cost import Sizes, cache_bytes, decode, prefill
from models.token_plans.plan import parse_token_plan, parse_token_plans
from tuning.cost.measure import synthetic_batch
from tuning.cost.timing import measure_plans
from tuning.plan.layers import anchor_band, layer_spec
from tuning.plan.plan import WHOLE, LayerPlan
from tuning.plan.resolve import resolve

# name -> language model, vision tower, patches per side
SIZES = {
    "tiny": (Size(64, 128, 4, 4), Size(32, 64, 3, 4), 3),
    "wide": (Size(1024, 2816, 16, 16), Size(128, 256, 3, 4), 24),
}


def build(name: str, device: str, dtype: torch.dtype) -> Llava:
    """A random model of one of ``SIZES``, or the model that ``load`` returns for the name."""
    if name not in SIZES:
        return load(name, device=device, dtype=dtype, validate=False)
    text, vision, side = SIZES[name]
    return load(llava_config(text, vision, side=side, pad_token_id=None), device=device, dtype=dtype, validate=False)


def default_plans(n_layers: int) -> str:
    """Plans of every kind, at a half and a quarter of the depth, and the band of 6-16 of 32."""
    half, quarter = n_layers // 2, n_layers // 4
    band = layer_spec(anchor_band(n_layers), n_layers)
    return (
        f"leave@{half},freeze:{half}-{n_layers - 1},enter@{quarter},keep:0.5@{quarter}:attention,"
        f"keep:0.5@{quarter}:random@0,{band}:hide,{band}:freeze"
    )


def inference(llava: Llava, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each plan: closed form and measurement, relative to ``all``."""
    n = llava.n_layers
    plans = (parse_token_plan("all", n), *parse_token_plans(given.plans or default_plans(n), n))
    inputs = prepare(llava, list(noise_examples(given.batch, llava.image_size)))
    sizes, n_image = Sizes.of(llava), llava.n_image_tokens
    n_text = inputs.layout[0].prompt_stop - n_image
    times = measure(llava, plans, inputs, rounds=given.repeats, new_tokens=given.new_tokens)
    full = times[times["plan"] == "all"].set_index("round")
    rows = []
    for plan in plans:
        own = times[times["plan"] == plan.text].set_index("round")
        ratio = {name: float((own[name] / full[name]).median()) for name in ("first_token", "prefill", "decode")}
        form = [function(sizes, plan, n_image, n_text) for function in (prefill, decode)]
        whole = [function(sizes, plans[0], n_image, n_text) for function in (prefill, decode)]
        rows.append(
            {
                "plan": plan.text, "n_text": n_text, "prefill_closed": form[0] / whole[0],
                "prefill_measured": ratio["prefill"], "prefill_seconds": float(own["prefill"].median()),
                "first_token_measured": ratio["first_token"], "first_token_seconds": float(own["first_token"].median()),
                "decode_closed": form[1] / whole[1], "decode_measured": ratio["decode"],
                "decode_seconds": float(own["decode"].median()),
                "cache_closed": cache_bytes(sizes, plan, n_image, n_text, itemsize=llava.dtype.itemsize) * given.batch,
                "cache_measured": int(own["cache_bytes"].median()),
                "peak_memory": None if own["peak_memory"].isna().all() else float(own["peak_memory"].median()),
            }
        )  # fmt: skip
    return rows


def product_speeds(llava: Llava, rows: Sequence[int]) -> dict[str, str]:
    """The speed of the product of an MLP with each number of rows: layers that hide image tokens have few rows."""
    sizes, draw = Sizes.of(llava), partial(torch.randn, device=llava.device, dtype=llava.dtype)
    weight = draw(sizes.d_mlp, sizes.d_model)
    found = {}
    for n in rows:
        values, seconds = draw(n, sizes.d_model), []
        with fast_bfloat16():  # in which the model runs too
            for _ in range(20):
                start = time.perf_counter()
                float(torch.nn.functional.linear(values, weight)[0, 0])  # reading a value waits for the device
                seconds.append(time.perf_counter() - start)
        found[f"product of {n} rows"] = f"{2 * n * weight.numel() / np.median(seconds) / 1e9:.0f} GFLOP/s"
    return found


def training(llava: Llava, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each layer plan, without and with the band as a token plan: step time relative to full tuning."""
    band = layer_spec(anchor_band(llava.n_layers), llava.n_layers)
    plans = {
        f"{name}, {text}": resolve(LayerPlan(layers, train, token_plan=text), llava)
        for text in ("all", f"{band}:hide", f"{band}:freeze")
        for name, layers, train in (("full", "all", WHOLE), (f"{band} + projector", band, ("projector",)))
    }
    batch = synthetic_batch(llava, rows=given.batch, text_tokens=64)
    costs = measure_plans(llava, plans, batch, rounds=given.repeats, repeats=1, warmup=2, clock=given.clock)
    first = np.array(costs["full, all"].seconds)
    return [
        {
            "plan": name, "closed": cost.closed_form.total / costs["full, all"].closed_form.total,
            "counted": cost.flops.total / costs["full, all"].flops.total,
            "measured": float(np.median(np.array(cost.seconds) / first)), "seconds": float(np.median(cost.seconds)),
        }
        for name, cost in costs.items() if cost.flops is not None and costs["full, all"].flops is not None
    ]  # fmt: skip


def describe(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown; numbers have three decimals."""
    shown = pd.DataFrame(rows).dropna(axis="columns", how="all")
    cells = shown.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    return table([str(name).replace("_", " ") for name in shown], cells.to_numpy().tolist())


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options(__doc__, repeats=5)
    parser.add_argument("--model", default="wide", help=f"{', '.join(SIZES)}, or a name that load() takes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--plans", default=None, help="token plans, separated by commas; all is added")
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--new-tokens", type=int, default=4, help="timed decoding steps")
    parser.add_argument("--training", action="store_true", help="time training steps instead of inference")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of training; cpu needs one thread")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads or given.clock == "cpu":
        torch.set_num_threads(given.threads or 1)
    facts: dict[str, Any] = machine(given.device)
    record: dict[str, Any] = {"command": command(), "machine": facts}
    if "not_run" in facts:
        lines = ["", f"Not yet run: {facts['not_run']}"]
    else:
        llava = build(given.model, given.device, getattr(torch, given.dtype))
        facts |= model_facts(llava, batch=given.batch) | {"attention": llava.attention}
        record["rows"] = training(llava, given) if given.training else inference(llava, given)
        if not given.training:
            n_text = record["rows"][0]["n_text"]
            facts |= product_speeds(llava, [given.batch * n_text, given.batch * (n_text + llava.n_image_tokens)])
        lines = describe(record["rows"])
    kind = "training" if given.training else "inference"
    name = f"token-plans-{kind}-{given.model.rsplit('/', 1)[-1]}-{given.device.partition(':')[0]}"
    if given.batch > 1:
        name += f"-batch-{given.batch}"
    write_record(given.out, name, record, "\n".join([*heading(f"Token plans in {kind}", facts), *lines]))


if __name__ == "__main__":
    main()
