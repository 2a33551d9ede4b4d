"""What capture costs, against transformers, nnsight and TransformerLens: ``python -m benchmarks.capture``.

Three questions, one run: (a) all image tokens at all layers against a plain forward of the same positions; (b) eight
questions about one picture against eight forwards; (c) peak memory from 500 to 5,000 examples. Sides take turns in one
process (memory: one process each) and are quoted as ratios of medians. Writes a dated record to ``benchmarks/records``.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from models.bridges import to_nnsight, to_transformer_lens
from models.capture import capture, capture_examples
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.sites import Site
from tasks.example import Example, Picture

RECORDS = Path(__file__).parent / "records"
QUESTIONS = 8
BATCH = 8
METHODS = ("capture", "transformers", "nnsight", "transformer_lens")
Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measurement; times in seconds, memory in MiB."""

    question: str
    side: str
    median: float
    low: float
    high: float
    repeats: int
    ratio: float
    against: str


class NoiseExamples(Sequence[Example]):
    """``n`` examples with pictures of seeded noise that are made when they are opened; 8 questions a picture or one."""

    def __init__(self, n: int, size: int, questions: int = 1) -> None:
        self._n, self._size, self._questions = n, size, questions

    def __len__(self) -> int:
        """The number of examples."""
        return self._n

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        if not 0 <= index < self._n:
            raise IndexError(index)
        seed = index // self._questions

        def paint() -> Image.Image:
            shape = (self._size, self._size, 3)
            return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

        question = f"Is there anything red in part {index % self._questions} of the picture?"
        return Example(str(index), (Picture(f"noise-{seed}", paint),), question, "no", f"g{seed}")


def small_config(*, tiny: bool = False) -> LlavaConfig:
    """A stack whose matrix products, not its bookkeeping, take the time; ``tiny`` for the memory of many examples."""
    vision = CLIPVisionConfig(
        image_size=28 if tiny else 168,
        patch_size=14,
        hidden_size=32 if tiny else 256,
        intermediate_size=64 if tiny else 1024,
        num_hidden_layers=2 if tiny else 6,
        num_attention_heads=4,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=2048,
        hidden_size=64 if tiny else 768,
        intermediate_size=128 if tiny else 2048,
        num_hidden_layers=2 if tiny else 12,
        num_attention_heads=4 if tiny else 12,
        num_key_value_heads=2 if tiny else 4,
        max_position_embeddings=1024,
    )
    tokens = 4 if tiny else 144
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=2047, image_seq_length=tokens)


def peers(llava: Llava) -> dict[str, Callable[[Inputs], list[Tensor]]]:
    """How each library is asked for ``resid_post`` of every layer at every position of a batch."""
    traced, bridge = to_nnsight(llava), to_transformer_lens(llava)
    run_with_cache: Any = bridge.run_with_cache  # its types allow no filter beside other arguments
    names = [str(site) for site in last_sites(llava)]

    def transformers(inputs: Inputs) -> list[Tensor]:
        out = llava.model(**inputs.model_kwargs(), output_hidden_states=True, use_cache=False)
        return list(out.hidden_states[1:])

    def nnsight(inputs: Inputs) -> list[Tensor]:
        blocks: Any = traced.model.language_model.layers
        with traced.trace(**inputs.model_kwargs(), use_cache=False):
            values = list().save()  # type: ignore[attr-defined]  # noqa: C408
            for block in blocks:
                values.append(block.output)
        return [value[0] if isinstance(value, tuple) else value for value in values]

    def transformer_lens(inputs: Inputs) -> list[Tensor]:
        kwargs = inputs.model_kwargs()
        ids = kwargs.pop("input_ids")
        kwargs.pop("position_ids")
        _, cache = run_with_cache(ids, names_filter=lambda name: name in names, **kwargs)
        return [cache[name] for name in names]

    return {"transformers": transformers, "nnsight": nnsight, "transformer_lens": transformer_lens}


def last_sites(llava: Llava) -> list[Site]:
    """``resid_post`` of every layer of the language model."""
    return [Site("language_model", layer, "resid_post") for layer in range(llava.n_layers)]


def take_turns(question: str, sides: dict[str, Run], against: str, repeats: int) -> list[Row]:
    """Every side ``repeats`` times in turn, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    device = torch.accelerator.is_available()
    for round_ in range(repeats + 1):
        for name, run in sides.items():
            if device:
                torch.accelerator.synchronize()
            start = time.perf_counter()
            run()
            if device:
                torch.accelerator.synchronize()
            if round_:
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times[against])
    return [
        Row(question, name, statistics.median(ts), min(ts), max(ts), repeats, statistics.median(ts) / base, against)
        for name, ts in times.items()
    ]


def measure_time(llava: Llava, repeats: int) -> Iterator[Row]:
    """Questions (a) and (b)."""
    sites, libraries = last_sites(llava), peers(llava)
    alone = prepare(llava, NoiseExamples(BATCH, llava.image_size)[:])
    asked = prepare(llava, NoiseExamples(QUESTIONS, llava.image_size, QUESTIONS)[:])
    stop = max(span.stop for layout in alone.layout for span in layout.images)
    positions = {name: alone.model_kwargs()[name][:, :stop] for name in ("input_ids", "attention_mask", "position_ids")}
    same = {**positions, "pixel_values": alone.pixel_values}
    with torch.inference_mode():
        sides: dict[str, Run] = {
            "plain forward of the same positions": lambda: llava.model.model(**same, use_cache=False),
            "capture, mean": lambda: capture(llava, alone, sites, tokens="image", pool="mean"),
            "capture, every token": lambda: capture(llava, alone, sites, tokens="image"),
            **{name: lambda run=run: run(alone) for name, run in libraries.items()},  # type: ignore[misc]
        }
        yield from take_turns("a: image tokens, all layers", sides, "plain forward of the same positions", repeats)
        each = [prepare(llava, [example]) for example in NoiseExamples(QUESTIONS, llava.image_size, QUESTIONS)]
        sides = {
            "eight forwards": lambda: [llava.model(**one.model_kwargs(), use_cache=False) for one in each],
            "eight forwards in one batch": lambda: llava.model(**asked.model_kwargs(), use_cache=False),
            "capture, mean": lambda: capture(llava, asked, sites, tokens="image", pool="mean"),
            **{name: lambda run=run: run(asked) for name, run in libraries.items()},  # type: ignore[misc]
        }
        yield from take_turns("b: eight questions a picture", sides, "eight forwards", repeats)


def run_many(method: str, n: int) -> float:
    """The peak memory of this process, in MiB, after ``n`` examples."""
    llava = load(small_config(tiny=True))
    examples = NoiseExamples(n, llava.image_size)
    if method == "capture":
        for _ in capture_examples(llava, examples, last_sites(llava), tokens="image", batch_size=BATCH):
            pass
    else:
        run = peers(llava)[method]
        with torch.inference_mode():
            for start in range(0, n, BATCH):
                inputs = prepare(llava, examples[start : start + BATCH])
                image = (inputs.input_ids == llava.image_token_id)[..., None]
                _ = [(value * image).sum(1) / image.sum(1) for value in run(inputs)]
    return peak_memory()


def peak_memory() -> float:
    """The most that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: its peak is handed down from the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def measure_memory(sizes: tuple[int, int], methods: Sequence[str]) -> Iterator[Row]:
    """Question (c): each method and size in a process of its own."""
    for method in methods:
        peaks = {}
        for n in sizes:
            command = [sys.executable, "-m", "benchmarks.capture", "--child", method, str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[n] = float(done.stdout.strip().splitlines()[-1])
            question, against = f"c: peak memory, {n} examples", f"{sizes[0]} examples"
            yield Row(question, method, peaks[n], peaks[n], peaks[n], 1, peaks[n] / peaks[sizes[0]], against)


def machine(llava: Llava) -> dict[str, object]:
    """What a time depends on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if llava.device.type == "cuda" else llava.device.type,
        "dtype": str(llava.dtype).removeprefix("torch."),
        "model": llava.id,
        "layers": llava.n_layers,
        "d_model": llava.d_model,
        "image_tokens": llava.n_image_tokens,
        "batch": BATCH,
        "commit": commit.stdout.strip() or None,
        "load_average": os.getloadavg()[0],
        **{name: version(name) for name in ("torch", "transformers", "nnsight", "transformer-lens")},
    }


def write_record(rows: list[Row], facts: dict[str, object], command: str) -> Path:
    """JSON and Markdown, named by the day and the model; the Markdown's path."""
    RECORDS.mkdir(exist_ok=True)
    name = str(facts["model"]).replace("/", "-").replace(":", "-").split("@")[0]
    path = RECORDS / f"capture-{datetime.now(UTC):%Y-%m-%d}-{name}-{facts['device']}".replace(" ", "-")
    content = {"command": command, "machine": facts, "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    lines = [f"# Capture, {datetime.now(UTC):%Y-%m-%d}", "", f"`{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [
        "",
        "| question | side | median | lowest | highest | n | ratio | to |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.question} | {r.side} | {r.median:.4g} | {r.low:.4g} | {r.high:.4g} | {r.repeats} | {r.ratio:.3f} "
        f"| {r.against} |"
        for r in rows
    ]
    lines += ["", "Times in seconds, memory in MiB. Ratios are of medians; sides took turns in one process."]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return path.with_suffix(".md")


def main() -> None:
    """Runs the benchmark and prints the record."""
    parser = argparse.ArgumentParser(description="What capture costs.")
    parser.add_argument("--model", default=None, help="a name that load() takes; default: a random model of 12 layers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs=2, default=(500, 5000), help="examples, for memory")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(run_many(options.child[0], int(options.child[1])))
        return
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    llava = load(options.model or small_config(), device=options.device, dtype=dtype)
    rows = list(measure_time(llava, options.repeats))
    if not options.no_memory:
        rows += measure_memory((options.sizes[0], options.sizes[1]), METHODS)
    command = " ".join(["python -m benchmarks.capture", *sys.argv[1:]])
    print(write_record(rows, machine(llava), command).read_text())


if __name__ == "__main__":
    main()
