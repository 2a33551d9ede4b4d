"""The cost of capture against transformers, nnsight and TransformerLens: ``python -m benchmarks.capture``.

Three questions: (a) all image tokens at all layers against a plain forward of the same positions; (b) eight questions
about one picture against eight forwards; (c) peak memory from 500 to 5,000 examples. The libraries take turns in one
process (memory: one process each). Ratios are of medians. The record is written to ``benchmarks/records``.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig

from benchmarks.random_inputs import Size, llava_config, noise_examples
from benchmarks.record import DTYPES, Row, Run, compare, machine, model_facts, options, peak_memory, write_rows
from models.capture import capture, capture_examples
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.other_libraries import to_nnsight, to_transformer_lens
from models.sites import Site

QUESTIONS = 8
BATCH = 8
METHODS = ("capture", "transformers", "nnsight", "transformer_lens")


def small_config(*, tiny: bool = False) -> LlavaConfig:
    """A model in which matrix products take most of the time; ``tiny`` is for memory with many examples."""
    if tiny:
        return llava_config(Size(64, 128, 2, 4, 2), Size(32, 64, 2, 4), side=2)
    return llava_config(Size(768, 2048, 12, 12, 4), Size(256, 1024, 6, 4), side=12)


LIBRARIES = METHODS[1:]


def peers(llava: Llava, libraries: Sequence[str] = LIBRARIES) -> dict[str, Callable[[Inputs], list[Tensor]]]:
    """For each library, a function that captures ``resid_post`` of every layer at every position of a batch."""
    traced = to_nnsight(llava) if "nnsight" in libraries else None
    bridge: Any = to_transformer_lens(llava) if "transformer_lens" in libraries else None
    names = [str(site) for site in last_sites(llava)]

    def transformers(inputs: Inputs) -> list[Tensor]:
        out = llava.model(**inputs.model_kwargs(), output_hidden_states=True, use_cache=False)
        return list(out.hidden_states[1:])

    def nnsight(inputs: Inputs) -> list[Tensor]:
        assert traced is not None
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
        _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in names, **kwargs)
        return [cache[name] for name in names]

    found = {"transformers": transformers, "nnsight": nnsight, "transformer_lens": transformer_lens}
    return {name: found[name] for name in libraries}


def last_sites(llava: Llava) -> list[Site]:
    """``resid_post`` of every layer of the language model."""
    return [Site("language_model", layer, "resid_post") for layer in range(llava.n_layers)]


def measure_time(llava: Llava, repeats: int, libraries: Sequence[str] = LIBRARIES) -> Iterator[Row]:
    """Time captures of one batch, and of eight questions about one picture (questions a and b)."""
    sites, others = last_sites(llava), peers(llava, libraries)
    alone = prepare(llava, noise_examples(BATCH, llava.image_size)[:])
    asked = prepare(llava, noise_examples(QUESTIONS, llava.image_size, QUESTIONS)[:])
    stop = max(span.stop for layout in alone.layout for span in layout.images)
    positions = {name: alone.model_kwargs()[name][:, :stop] for name in ("input_ids", "attention_mask", "position_ids")}
    same = {**positions, "pixel_values": alone.pixel_values}
    with torch.inference_mode():
        sides: dict[str, Run] = {
            "plain forward of the same positions": lambda: llava.model.model(**same, use_cache=False),
            "capture, mean": lambda: capture(llava, alone, sites, tokens="image", pool="mean"),
            "capture, every token": lambda: capture(llava, alone, sites, tokens="image"),
            **{name: lambda run=run: run(alone) for name, run in others.items()},  # type: ignore[misc]
        }
        yield from compare("a: image tokens, all layers", sides, "plain forward of the same positions", repeats)
        each = [prepare(llava, [example]) for example in noise_examples(QUESTIONS, llava.image_size, QUESTIONS)]
        sides = {
            "eight forwards": lambda: [llava.model(**one.model_kwargs(), use_cache=False) for one in each],
            "eight forwards in one batch": lambda: llava.model(**asked.model_kwargs(), use_cache=False),
            "capture, mean": lambda: capture(llava, asked, sites, tokens="image", pool="mean"),
            **{name: lambda run=run: run(asked) for name, run in others.items()},  # type: ignore[misc]
        }
        yield from compare("b: eight questions a picture", sides, "eight forwards", repeats)


def run_many(method: str, n: int) -> float:
    """The peak memory of this process, in MiB, after ``n`` examples."""
    llava = load(small_config(tiny=True))
    examples = noise_examples(n, llava.image_size)
    if method == "capture":
        for _ in capture_examples(llava, examples, last_sites(llava), tokens="image", batch_size=BATCH):
            pass
    else:
        run = peers(llava, (method,))[method]
        with torch.inference_mode():
            for start in range(0, n, BATCH):
                inputs = prepare(llava, examples[start : start + BATCH])
                image = (inputs.input_ids == llava.image_token_id)[..., None]
                _ = [(value * image).sum(1) / image.sum(1) for value in run(inputs)]
    return peak_memory()


def measure_memory(sizes: tuple[int, int], methods: Sequence[str]) -> Iterator[Row]:
    """Measure the peak memory of each method and number of examples, in one process each (question c)."""
    for method in methods:
        peaks = {}
        for n in sizes:
            line = [sys.executable, "-m", "benchmarks.capture", "--child", method, str(n)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            peaks[n] = float(done.stdout.strip().splitlines()[-1])
            question, against = f"c: peak memory, {n} examples", f"{sizes[0]} examples"
            yield Row(question, method, peaks[n], peaks[n], peaks[n], 1, peaks[n] / peaks[sizes[0]], against)


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options("The cost of capture.", repeats=7)
    parser.add_argument("--model", default=None, help="a name that load() takes; default: a random model of 12 layers")
    parser.add_argument("--sizes", type=int, nargs=2, default=(500, 5000), help="numbers of examples, for memory")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory measurement")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default=None, choices=DTYPES)
    given = parser.parse_args()
    if given.child:
        print(run_many(given.child[0], int(given.child[1])))
        return
    dtype = None if given.dtype is None else getattr(torch, given.dtype)
    llava = load(given.model or small_config(), device=given.device, dtype=dtype)
    rows = list(measure_time(llava, given.repeats))
    if not given.no_memory:
        rows += measure_memory((given.sizes[0], given.sizes[1]), METHODS)
    facts = machine(given.device) | model_facts(llava, batch=BATCH)
    name = f"capture-{str(facts['model']).split('@')[0]}-{facts['device']}"
    write_rows(given.out, name, "Capture", rows, facts)


if __name__ == "__main__":
    main()
