"""Other people's libraries, on the same weights, give the same numbers: TransformerLens with its hooks, nnsight traces.

Positions and masks of the peers' side are found here from token ids, not taken from our cells, so that a group, a layer
or a head that is off by one shows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.cells import CellSpec
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.other_libraries import to_nnsight, to_transformer_lens
from tasks.example import Example
from tasks.scenes.pairs import make_pair
from tests.conftest import make_examples, noise_picture

ENGINES: tuple[EngineName, ...] = ("incremental", "full")
FLOWS = ("image->last", "image->question", "question->last")
# float32; eager attention there, sdpa here, summed in another order
RELATIVE = 2e-5


class Positions(NamedTuple):
    """Columns of the prompt, the same in every row."""

    image: list[int]
    question: list[int]
    last: list[int]
    single: list[int]

    def of(self, name: str) -> list[int]:
        return self.single if name.startswith(("patch", "pos")) else list(getattr(self, name))


class Pair(NamedTuple):
    """A clean and a corrupt batch without padding, and where its groups are."""

    clean: Inputs
    corrupt: Inputs
    examples: list[Example]
    at: Positions


def tiny_pair(llava: Llava) -> Pair:
    """Two examples with one question, so that there is no padding: the peers' loops see no mask."""
    question = make_examples(3)[2].question
    clean = [replace(e, question=question) for e in make_examples(2)]
    corrupt = [replace(e, pictures=(noise_picture(300 + i),)) for i, e in enumerate(clean)]
    return as_pair(llava, clean, corrupt, question)


def as_pair(llava: Llava, clean: list[Example], corrupt: list[Example], question: str) -> Pair:
    batch = prepare(llava, clean)
    assert bool(batch.attention_mask.all())
    ids = batch.input_ids[0].tolist()
    image = [column for column, token in enumerate(ids) if token == llava.image_token_id]
    return Pair(
        batch,
        prepare(llava, corrupt),
        clean,
        Positions(image, asked(llava, batch), [len(ids) - 1], [image[llava.grid[1]]]),
    )


def asked(llava: Llava, inputs: Inputs) -> list[int]:
    """The columns of the question: what is between the picture and the assistant's turn, without the line break."""
    tokenizer: Any = llava.tokenizer
    ids = inputs.input_ids[0].tolist()
    start = max(column for column, token in enumerate(ids) if token == llava.image_token_id) + 1
    texts = [tokenizer.decode(ids[start:stop]) for stop in range(start, len(ids) + 1)]
    stop = start + next(n for n, text in enumerate(texts) if text.rstrip().endswith("?"))
    first = next(n for n in range(start, stop) if tokenizer.decode(ids[start : n + 1]).strip())
    return list(range(first, stop))


def ours(
    llava: Llava, plan: InterventionPlan, pair: Pair, engine: EngineName
) -> tuple[list[CellSpec], list[Tensor], Tensor]:
    """The cells, their logits at the last position, and those of the unchanged run."""
    runs = choose_runs(plan, pair.clean, pair=pair.corrupt)
    specs = plan.cells(llava)
    cells = build_edits(specs, llava, runs.inputs, pair.examples, DatasetStatistics(plan))
    readout = torch.full((len(pair.clean), 1), pair.clean.n_positions - 1)
    base = prepare_base(llava, runs.inputs, runs.other, readout=readout, engine=engine)
    found = run_cells(llava, base, cells, lambda logits: logits[:, 0].clone(), engine=engine)
    return specs, found, base.logits[:, 0]


PATCHES = {
    "residual": InterventionPlan("patch", sites=("resid_pre",), tokens=("image", "last", "patch(1,0)")),
    "attention output": InterventionPlan(
        "patch", sites=("attn_out",), tokens=("image", "question", "last", "patch(1,0)")
    ),
    "each head": InterventionPlan("patch", sites=("z",), tokens=("image", "last"), heads="all"),
}
KNOCKOUTS = {
    "one layer": InterventionPlan("knockout", tokens=(*FLOWS, "patch(1,0)->last")),
    "a window": InterventionPlan("knockout", tokens=FLOWS, window=3),
    "some heads": InterventionPlan("knockout", tokens=("image->last",), heads="1,0+2"),
}


def edges(spec: CellSpec, at: Positions, n: int) -> Tensor:
    """What a knockout cuts, ``query key``."""
    source, target = spec.tokens.split("->")
    cut = torch.zeros(n, n, dtype=torch.bool)
    cut[torch.tensor(at.of(target))[:, None], torch.tensor(at.of(source))] = True
    return cut & ~torch.eye(n, dtype=torch.bool)


# TransformerLens


def lens_logits(bridge: Any, inputs: Inputs, hooks: list[Any]) -> Tensor:
    with torch.inference_mode():
        logits = bridge.run_with_hooks(inputs.input_ids, pixel_values=inputs.pixel_values, fwd_hooks=hooks)
    return logits[:, -1].clone()  # type: ignore[no-any-return]


def lens_patches(bridge: Any, pair: Pair, specs: list[CellSpec]) -> Iterator[Tensor]:
    """``run_with_cache`` on the clean run, then a hook that puts its values into the corrupt one."""
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(pair.clean.input_ids, pixel_values=pair.clean.pixel_values)

    def put(columns: list[int], head: int | None, value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        if head is None:
            value[:, columns] = cache[hook.name][:, columns]
        else:
            value[:, columns, head] = cache[hook.name][:, columns, head]
        return value

    for spec in specs:
        head = None if spec.head is None else int(spec.head)
        yield lens_logits(bridge, pair.corrupt, [(spec.site, partial(put, pair.at.of(spec.tokens), head))])


def lens_knockouts(bridge: Any, pair: Pair, specs: list[CellSpec]) -> Iterator[Tensor]:
    """The scores of the edges set to the least number, in front of the softmax."""

    def hide(cut: Tensor, heads: list[int], scores: Tensor, hook: Any) -> Tensor:
        scores = scores.clone()
        scores[:, heads] = scores[:, heads].masked_fill(cut, torch.finfo(scores.dtype).min)
        return scores

    n_heads = bridge.cfg.n_heads
    for spec in specs:
        heads = list(spec.heads or range(n_heads))
        change = partial(hide, edges(spec, pair.at, pair.clean.n_positions), heads)
        hooks = [(f"blocks.{layer}.attn.hook_attn_scores", change) for layer in spec.layers]
        yield lens_logits(bridge, pair.clean, hooks)


# nnsight


def nnsight_patches(traced: Any, pair: Pair, specs: list[CellSpec], d_head: int) -> Iterator[Tensor]:
    """A trace of the clean run that saves, then one of the corrupt run for each cell that writes."""
    blocks = traced.model.language_model.layers
    names = sorted({(spec.layers[0], ("resid_pre", "z", "attn_out").index(spec.name)) for spec in specs})
    with torch.inference_mode(), traced.trace(**pair.clean.model_kwargs(), use_cache=False):
        saved = list().save()  # type: ignore[attr-defined]  # noqa: C408
        for layer, stage in names:
            attention = blocks[layer].self_attn
            saved.append((blocks[layer].input, attention.o_proj.input, attention.o_proj.output)[stage])
    kept = {(layer, ("resid_pre", "z", "attn_out")[stage]): v for (layer, stage), v in zip(names, saved, strict=True)}
    for spec in specs:
        layer, columns = spec.layers[0], pair.at.of(spec.tokens)
        theirs = kept[layer, spec.name]
        part = slice(None) if spec.head is None else slice(int(spec.head) * d_head, (int(spec.head) + 1) * d_head)
        with torch.inference_mode(), traced.trace(**pair.corrupt.model_kwargs(), use_cache=False):
            if spec.name == "resid_pre":
                blocks[layer].input[:, columns] = theirs[:, columns]
            elif spec.name == "z":
                blocks[layer].self_attn.o_proj.input[:, columns, part] = theirs[:, columns, part]
            else:
                blocks[layer].self_attn.o_proj.output[:, columns] = theirs[:, columns]
            logits = traced.output.logits.save()
        yield logits[:, -1].clone()


def nnsight_knockouts(traced: Any, pair: Pair, specs: list[CellSpec], n_heads: int) -> Iterator[Tensor]:
    """Blocks are given a mask of their own, one for each head."""
    blocks = traced.model.language_model.layers
    n = pair.clean.n_positions
    for spec in specs:
        allowed = torch.ones(n, n, dtype=torch.bool).tril().repeat(1, n_heads, 1, 1)
        allowed[:, list(spec.heads or range(n_heads))] &= ~edges(spec, pair.at, n)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        with torch.inference_mode(), traced.trace(**pair.clean.model_kwargs(), use_cache=False):
            for layer in spec.layers:
                given = blocks[layer].inputs
                blocks[layer].inputs = (given[0], {**given[1], "attention_mask": mask})
            logits = traced.output.logits.save()
        yield logits[:, -1].clone()


def compare(
    llava: Llava,
    plan: InterventionPlan,
    pair: Pair,
    theirs: Callable[[list[CellSpec]], Iterator[Tensor]],
    least: float,
    engines: Sequence[EngineName] = ENGINES,
) -> None:
    """The engines equal the peer in every cell; at least a share of the cells change the run."""
    expected: list[Tensor] = []
    for engine in engines:
        specs, found, unchanged = ours(llava, plan, pair, engine)
        expected = expected or list(theirs(specs))
        scale = float(unchanged.abs().max())
        moved = [float((wanted - unchanged).abs().max()) > 50 * RELATIVE * scale for wanted in expected]
        assert sum(moved) >= least * len(specs), f"{sum(moved)} of {len(specs)} cells change anything"
        for spec, got, wanted in zip(specs, found, expected, strict=True):
            assert_close(got, wanted, rtol=0, atol=RELATIVE * scale, msg=partial("{}: {}".format, spec))


@pytest.fixture(params=[True, False], ids=["grouped", "plain"])
def tiny(request: pytest.FixtureRequest, llava: Llava, llava_plain: Llava) -> Llava:
    """With and without grouped queries."""
    return llava if request.param else llava_plain


@pytest.mark.filterwarnings("ignore")  # the library's own, at import and at boot
def test_patching_and_knockout_equal_transformer_lens(tiny: Llava) -> None:
    bridge, pair = to_transformer_lens(tiny), tiny_pair(tiny)
    for plan in PATCHES.values():
        compare(tiny, plan, pair, partial(lens_patches, bridge, pair), least=0.5)
    for plan in KNOCKOUTS.values():
        compare(tiny, plan, pair, partial(lens_knockouts, bridge, pair), least=0.5)
    # The trap: without pixel values its hooks run on a prompt that shows nothing, and no error says so.
    blind = bridge.run_with_hooks(pair.corrupt.input_ids, fwd_hooks=[])[:, -1]
    assert float((blind - lens_logits(bridge, pair.corrupt, [])).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore")  # the library's own, at import
def test_patching_and_knockout_equal_nnsight(tiny: Llava) -> None:
    traced, pair = to_nnsight(tiny), tiny_pair(tiny)
    d_head = tiny.d_model // tiny.n_heads
    for plan in PATCHES.values():
        compare(tiny, plan, pair, lambda specs: nnsight_patches(traced, pair, specs, d_head), least=0.5)
    for plan in KNOCKOUTS.values():
        compare(tiny, plan, pair, lambda specs: nnsight_knockouts(traced, pair, specs, tiny.n_heads), least=0.5)


@pytest.mark.filterwarnings("ignore")  # the library's own, at import and at boot
def test_on_smol_patching_and_knockout_equal_transformer_lens() -> None:
    smol = load("smol")
    scenes = make_pair(0, "colour", size=smol.image_size)
    pair = as_pair(smol, [scenes.clean], [scenes.corrupt], scenes.clean.question)
    bridge = to_transformer_lens(smol)
    patches = (
        InterventionPlan("patch", sites=("resid_pre",), tokens=("image",), layers="12,24"),
        InterventionPlan("patch", sites=("z",), tokens=("last",), layers="23", heads="0,8"),
    )
    for plan in patches:
        compare(smol, plan, pair, partial(lens_patches, bridge, pair), 0.5, ENGINES[:1])
    cut = InterventionPlan("knockout", tokens=("image->last",), layers="23", window=5)
    compare(smol, cut, pair, partial(lens_knockouts, bridge, pair), 1.0, ENGINES[:1])
