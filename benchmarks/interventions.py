"""Cost of interventions against full forwards, TransformerLens and nnsight: ``python -m benchmarks.interventions``.

Three questions: (a) one cell of each kind of sweep with engine ``incremental``, against one plain forward of the same
pair, without base runs; (b) a whole map (image, question and last position patched at every layer, and three knockouts
at every layer) with base runs, against the same loop with engine ``full``, TransformerLens and nnsight; (c) the whole
image patched at every layer, base runs included, against one plain forward, for models of full size:
``python -m benchmarks.interventions --questions c --models random:llava-1.5-7b --dtype bfloat16``.

All sides of (b) give the same logits; the record contains the largest difference. The loops of other libraries follow
their usual use: the clean run is cached once at the needed sites, then each cell is one forward with hooks
(TransformerLens) or in a trace (nnsight).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig

from benchmarks.random_inputs import Size, llava_config, noise_examples
from benchmarks.record import DTYPES, Row, Run, compare, machine, model_facts, options, peak_memory, write_rows
from interventions.engines.base_runs import Base, plain_logits
from interventions.engines.edits import Cell, Cut, Write
from interventions.engines.engine import prepare_base, run_cells
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.other_libraries import to_nnsight, to_transformer_lens
from tasks.example import Example
from tasks.scenes.pairs import make_pair

WINDOW = 5  # layers of a knockout in the map
WINDOWS = (1, 5, 9)
FLOWS = ("image->last", "image->question", "question->last")


@dataclass(frozen=True, eq=False)
class Job:
    """Cells that change the run ``inputs``; their values come from the run ``other``."""

    name: str
    inputs: Inputs
    other: Inputs | None
    cells: tuple[Cell, ...]


def small_config(*, tiny: bool = False) -> LlavaConfig:
    """16 layers and 576 image tokens at the width of a small language model; ``tiny`` is for tests of the benchmark."""
    if tiny:
        return llava_config(Size(48, 96, 3, 6, 2), Size(32, 64, 2, 4), side=4, patch=7)
    return llava_config(Size(576, 1536, 16, 9, 3), Size(192, 768, 6, 4), side=24)


def pairs_of(llava: Llava, n: int = 1) -> tuple[list[Example], list[Example]]:
    """``n`` clean and corrupt examples, with one question a pair: scenes for trained models, noise for random ones."""
    if llava.id.startswith("random"):
        drawn = list(noise_examples(2 * n, llava.image_size))
        clean, others = drawn[::2], drawn[1::2]
        questions = [(one.question, one.answer) for one in clean]
        asked = zip(others, questions, strict=True)
        return clean, [Example(other.id, other.pictures, *words, other.group) for other, words in asked]
    pairs = [make_pair(number, "colour", size=llava.image_size) for number in range(n)]
    return [pair.clean for pair in pairs], [pair.corrupt for pair in pairs]


def readout(inputs: Inputs) -> Tensor:
    """The last position of each example's prompt."""
    return torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout], device=inputs.input_ids.device)


def job(llava: Llava, name: str, plan: InterventionPlan, pairs: int = 1) -> Job:
    """The cells of a plan on some pairs in one batch."""
    clean, corrupt = pairs_of(llava, pairs)
    batch = prepare(llava, clean)
    runs = choose_runs(plan, batch, pair=prepare(llava, corrupt))
    cells = build_edits(plan.cells(llava), llava, runs.inputs, clean, DatasetStatistics(plan))
    return Job(name, runs.inputs, runs.other, tuple(cells))


def single_sweeps(llava: Llava) -> Iterator[Job]:
    """One sweep of each kind, for `measure_cells`."""
    height, width = llava.grid
    for tokens in ("image", "question", "last", f"patch({height // 2},{width // 2})"):
        plan = InterventionPlan("patch", sites=("resid_pre",), tokens=(tokens,))
        yield job(llava, f"patch {tokens}, resid_pre", plan)
    yield job(llava, "patch last, z, each head", InterventionPlan("patch", sites=("z",), tokens=("last",), heads="all"))
    for window in WINDOWS:
        for flow in FLOWS:
            plan = InterventionPlan("knockout", tokens=(flow,), window=window)
            yield job(llava, f"knockout {flow}, window {window}", plan)


def whole_map(llava: Llava) -> tuple[Job, Job]:
    """The map: patches, which change the corrupt run, and knockouts, which change the clean run."""
    patches = InterventionPlan("patch", sites=("resid_pre",), tokens=("image", "question", "last"))
    knockouts = InterventionPlan("knockout", tokens=FLOWS, window=WINDOW)
    return job(llava, "patches", patches), job(llava, "knockouts", knockouts)


def run_ours(llava: Llava, work: Job, engine: str, base: Base | None = None) -> list[Tensor]:
    """Logits at the last position, one for each cell."""
    which: Any = engine
    if base is None:
        base = prepare_base(llava, work.inputs, work.other, readout=readout(work.inputs), engine=which)
    return run_cells(llava, base, work.cells, lambda logits: logits[:, 0].clone(), engine=which)


def transformer_lens_loop(llava: Llava) -> Callable[[Job], list[Tensor]]:
    """``run_ours`` with TransformerLens: ``run_with_cache`` once, then ``run_with_hooks`` for each cell."""
    bridge: Any = to_transformer_lens(llava)

    def put(mask: Tensor, heads: tuple[int, ...] | None, theirs: Tensor, value: Tensor, hook: Any) -> Tensor:
        where = mask.reshape(*mask.shape, *[1] * (value.dim() - 2))
        if heads is not None:
            chosen = torch.zeros(value.shape[-2], 1, dtype=torch.bool, device=value.device)
            chosen[list(heads)] = True
            where = where & chosen
        return torch.where(where, theirs, value)

    def cut(edges: Tensor, scores: Tensor, hook: Any) -> Tensor:
        return scores.masked_fill(edges[:, None], torch.finfo(scores.dtype).min)

    def loop(work: Job) -> list[Tensor]:
        names = {str(edit.site) for cell in work.cells for edit in cell.edits if isinstance(edit, Write)}
        cache: Any = {}
        if work.other is not None:
            _, cache = bridge.run_with_cache(
                work.other.input_ids, pixel_values=work.other.pixel_values, names_filter=lambda name: name in names
            )
        found = []
        for cell in work.cells:
            hooks: list[Any] = []
            for edit in cell.edits:
                if isinstance(edit, Write):
                    name = str(edit.site)
                    hooks.append((name, partial(put, edit.mask, edit.heads, cache[name])))
                elif isinstance(edit, Cut):
                    name = f"blocks.{edit.layer}.attn.hook_attn_scores"
                    hooks.append((name, partial(cut, _edges(edit))))
            logits = bridge.run_with_hooks(
                work.inputs.input_ids, pixel_values=work.inputs.pixel_values, fwd_hooks=hooks, logits_to_keep=1
            )
            found.append(logits[:, -1].float())
        return found

    return loop


def nnsight_loop(llava: Llava) -> Callable[[Job], list[Tensor]]:
    """``run_ours`` with nnsight: one trace that saves activations, then one for each cell that writes them."""
    traced: Any = to_nnsight(llava)
    blocks: Any = traced.model.language_model.layers

    def loop(work: Job) -> list[Tensor]:
        sites = sorted({edit.site for cell in work.cells for edit in cell.edits if isinstance(edit, Write)})
        kept: dict[Any, Tensor] = {}
        if work.other is not None:
            with traced.trace(**work.other.model_kwargs(), use_cache=False, logits_to_keep=1):
                values = list().save()  # type: ignore[attr-defined]  # noqa: C408
                for site in sites:
                    block = blocks[site.layer]
                    values.append(block.self_attn.o_proj.input if site.name == "z" else block.input)
            kept = dict(zip(sites, values, strict=True))
        return [_traced_cell(traced, blocks, work.inputs, cell, kept, llava) for cell in work.cells]

    return loop


def _traced_cell(traced: Any, blocks: Any, inputs: Inputs, cell: Cell, kept: dict[Any, Tensor], llava: Llava) -> Tensor:
    """One forward in a trace, with the edits of a cell."""
    writes = [edit for edit in cell.edits if isinstance(edit, Write)]
    masks = {edit.layer: _additive(inputs, edit, llava.dtype) for edit in cell.edits if isinstance(edit, Cut)}
    d_head = llava.d_model // int(llava.config.text_config.num_attention_heads)
    with traced.trace(**inputs.model_kwargs(), use_cache=False, logits_to_keep=1):
        for layer, mask in masks.items():
            given = blocks[layer].inputs
            blocks[layer].inputs = (given[0], {**given[1], "attention_mask": mask})
        for edit in writes:
            columns = edit.mask[0].nonzero()[:, 0]
            if edit.site.name == "z":
                for head in edit.heads or ():
                    part = slice(head * d_head, (head + 1) * d_head)
                    blocks[edit.site.layer].self_attn.o_proj.input[:, columns, part] = kept[edit.site][:, columns, part]
            else:
                blocks[edit.site.layer].input[:, columns] = kept[edit.site][:, columns]
        logits = traced.output.logits.save()
    return logits[:, -1].float()  # type: ignore[no-any-return]


def _edges(cut: Cut) -> Tensor:
    """The attention edges that a cut removes, ``example query key``; a position always attends to itself."""
    edges = cut.queries[:, :, None] & cut.keys[:, None, :]
    return edges & ~torch.eye(edges.shape[1], dtype=torch.bool, device=edges.device)


def _additive(inputs: Inputs, cut: Cut, dtype: torch.dtype) -> Tensor:
    """A causal mask without the edges that a cut removes, for a batch without padding."""
    n = inputs.n_positions
    allowed = torch.ones(n, n, dtype=torch.bool, device=cut.keys.device).tril() & ~_edges(cut)
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def measure_cells(llava: Llava, repeats: int) -> Iterator[Row]:
    """Time one cell of each sweep with engine ``incremental``, against one plain forward (question a)."""
    for work in single_sweeps(llava):
        at, n = readout(work.inputs), len(work.cells)
        base = prepare_base(llava, work.inputs, work.other, readout=at)
        sides: dict[str, Run] = {
            "one plain forward": partial(plain_logits, llava, work.inputs, at),
            "base runs": partial(prepare_base, llava, work.inputs, work.other, readout=at),
            "incremental": partial(run_ours, llava, work, "incremental", base),
        }
        few = replace(work, cells=work.cells[:2])
        difference = _difference(run_ours(llava, few, "incremental"), run_ours(llava, few, "full"))
        *others, row = compare(f"a: {work.name}", sides, "one plain forward", repeats)
        yield from others
        seconds = {name: getattr(row, name) / n for name in ("median", "low", "high", "ratio")}
        yield replace(row, **seconds, side=f"incremental, one of {n} cells", difference=difference)


def measure_map(llava: Llava, repeats: int, peers: Sequence[str]) -> Iterator[Row]:
    """Time the whole map with each engine and library, base runs included (question b)."""
    jobs = whole_map(llava)
    loops: dict[str, Callable[[Job], list[Tensor]]] = {
        "incremental": lambda work: run_ours(llava, work, "incremental"),
        "full": lambda work: run_ours(llava, work, "full"),
        **{name: PEERS[name](llava) for name in peers},
    }
    few = [replace(work, cells=work.cells[:3]) for work in jobs]  # warm-up and comparison of logits
    logits = {name: [found for work in few for found in loop(work)] for name, loop in loops.items()}
    sides: dict[str, Run] = {name: lambda loop=loop: [loop(work) for work in jobs] for name, loop in loops.items()}  # type: ignore[misc]
    question = f"b: whole map of {sum(len(work.cells) for work in jobs)} cells, base runs included"
    for row in compare(question, sides, "incremental", repeats, warm_up=0):
        yield replace(row, difference=_difference(logits[row.side], logits["full"]))


def measure_image(llava: Llava, repeats: int, *, pairs: int = 1, peers: Sequence[str] = ()) -> Iterator[Row]:
    """Time the image patched at every layer against one plain forward, and measure peak memory (question c)."""
    work = job(llava, "whole image", InterventionPlan("patch", sites=("resid_pre",), tokens=("image",)), pairs)
    sides: dict[str, Run] = {
        "one plain forward": partial(plain_logits, llava, work.inputs, readout(work.inputs)),
        "incremental": partial(run_ours, llava, work, "incremental"),
        **{name: partial(PEERS[name](llava), work) for name in peers},
    }
    several = f" of {pairs} pairs" if pairs > 1 else ""
    question = (
        f"c: whole image{several}, {len(work.cells)} cells, {work.inputs.n_positions} positions, base runs included"
    )
    if llava.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(llava.device)
    yield from compare(question, sides, "one plain forward", repeats)
    peak = torch.cuda.max_memory_allocated() / 2**20 if llava.device.type == "cuda" else peak_memory()
    yield Row(question, "peak memory (MiB)", peak, peak, peak, 1, 1.0, "peak memory (MiB)")


def _difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


PEERS = {"transformer_lens": transformer_lens_loop, "nnsight": nnsight_loop}


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options("The cost of interventions.", repeats=5)
    parser.add_argument("--models", nargs="+", default=["random", "smol"], help="random: 16 layers, 576 image tokens")
    parser.add_argument("--small", action="store_true", help="only a tiny random model, to check the benchmark")
    parser.add_argument("--questions", nargs="+", default=["a", "b"], choices=["a", "b", "c"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--dtype", default=None, choices=DTYPES)
    given = parser.parse_args()
    dtype = None if given.dtype is None else getattr(torch, given.dtype)
    rows: list[Row] = []
    facts = machine(given.device)
    for name in ["random"] if given.small else given.models:
        source = small_config(tiny=given.small) if name == "random" else name
        llava = load(source, device=given.device, dtype=dtype)
        measures: dict[str, Callable[[], Iterator[Row]]] = {
            "a": partial(measure_cells, llava, given.repeats),
            "b": partial(measure_map, llava, given.repeats, given.peers),
            "c": partial(measure_image, llava, given.repeats),
        }
        with torch.inference_mode():
            rows += [replace(row, model=llava.id) for question in given.questions for row in measures[question]()]
        facts |= {f"{name}: {key}": value for key, value in model_facts(llava, batch=1).items() if key != "model"}
    write_rows(given.out, f"interventions-{facts['device']}", "Interventions", rows, facts)


if __name__ == "__main__":
    main()
