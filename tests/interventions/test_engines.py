"""Both engines: laws of patching, cutting and holding; resume equals full on random plans; nothing is left behind."""

import inspect
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from interventions.base import Base, plain_logits
from interventions.chunks import plan_chunks
from interventions.edits import OTHER, Cell, Cut, Edit, Hold, Write
from interventions.engine import Engine, prepare_base, run_cells
from models.inputs import Inputs, prepare
from models.llava import Llava, load
from models.recording import CaptureError
from models.resume import additive
from models.sites import Site, all_sites
from models.tokens import token_mask
from tasks.example import Example
from tests.conftest import make_examples, noise_picture, tiny_config

ENGINES: tuple[Engine, ...] = ("full", "resume")
# float32 in another order of summation; logits are of order 0.1 to 1, so this is the relative error that counts
RELATIVE = 1e-5


@pytest.fixture(scope="session")
def models(llava: Llava, llava_plain: Llava) -> dict[tuple[bool, str], Llava]:
    """By (grouped queries, attention)."""
    eager = {g: load(tiny_config(grouped=g), seed=0 if g else 1, attn="eager", validate=False) for g in (True, False)}
    return {
        (True, "sdpa"): llava,
        (False, "sdpa"): llava_plain,
        (True, "eager"): eager[True],
        (False, "eager"): eager[False],
    }


KINDS = [(grouped, attn) for grouped in (True, False) for attn in ("sdpa", "eager")]


def other_pictures(examples: Sequence[Example]) -> list[Example]:
    """The same examples with other pictures."""
    return [
        replace(e, pictures=tuple(noise_picture(900 + 10 * i + p) for p in range(len(e.pictures))))
        for i, e in enumerate(examples)
    ]


def last_columns(inputs: Inputs) -> Tensor:
    return torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])


def pair(
    llava: Llava, n: int = 3, *, n_pictures: Sequence[int] = (1, 2), padding_side: str = "right"
) -> tuple[Inputs, Inputs]:
    examples = make_examples(n, n_pictures=n_pictures)
    return (
        prepare(llava, examples, padding_side=padding_side),  # type: ignore[arg-type]
        prepare(llava, other_pictures(examples), padding_side=padding_side),  # type: ignore[arg-type]
    )


def run(llava: Llava, base: Base, cells: Sequence[Cell], engine: Engine = "resume") -> list[Tensor]:
    return run_cells(llava, base, cells, lambda logits: logits, engine=engine)


def close(got: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    assert_close(got, expected, rtol=0, atol=relative * float(expected.abs().max()))


def differs(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).abs().max()) > 100 * RELATIVE * float(expected.abs().max())


def real(inputs: Inputs) -> Tensor:
    return inputs.attention_mask.bool()


def mask_for(llava: Llava, inputs: Inputs, site: Site) -> Tensor:
    """Everything that can be written at a site."""
    if site.part == "language_model":
        return real(inputs)
    assert inputs.pixel_values is not None
    tokens = llava.n_image_tokens + (site.part == "vision_tower")
    return torch.ones(len(inputs.pixel_values), tokens, dtype=torch.bool)


# Laws


@pytest.mark.parametrize(("grouped", "attn"), KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_patching_a_run_into_itself_changes_nothing_at_every_site(
    models: dict[tuple[bool, str], Llava], grouped: bool, attn: str, engine: Engine
) -> None:
    llava = models[grouped, attn]
    inputs, other = pair(llava, 2)
    sites = [site for site in all_sites(llava) if site.name != "pattern"]
    cells = [Cell((Write(site, mask_for(llava, inputs, site), OTHER),)) for site in sites]
    itself = prepare_base(llava, inputs, inputs, readout=last_columns(inputs))
    for site, got in zip(sites, run(llava, itself, cells, engine), strict=True):
        assert not differs(got, itself.logits), site
        close(got, itself.logits)
    # The same writes from another run do change something, save behind what the projector reads.
    between = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    unread = llava.n_vision_layers - 1
    for site, got in zip(sites, run(llava, between, cells, engine), strict=True):
        silent = site.part == "vision_tower" and site.layer == unread and site.name != "resid_pre"
        assert differs(got, between.logits) != silent, site


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_patching_every_position_of_the_residual_stream_gives_the_other_runs_logits(
    models: dict[tuple[bool, str], Llava], engine: Engine, padding_side: str
) -> None:
    for llava in models.values():
        inputs, other = pair(llava, padding_side=padding_side)
        base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
        theirs = plain_logits(llava, other, last_columns(other))
        assert differs(base.logits, theirs)
        sites = [
            Site("language_model", layer, name)
            for layer in range(llava.n_layers)
            for name in ("resid_pre", "resid_mid", "resid_post")
        ]
        sites += [Site("language_model", None, "final_norm"), Site("projector", None, "out")]
        sites += [Site("vision_tower", layer, "resid_pre") for layer in range(llava.n_vision_layers)]
        cells = [Cell((Write(site, mask_for(llava, inputs, site), OTHER),)) for site in sites]
        for got in run(llava, base, cells, engine):
            close(got, theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_patching_every_image_token_at_the_first_layer_gives_the_other_runs_logits(
    models: dict[tuple[bool, str], Llava], engine: Engine, padding_side: str
) -> None:
    for llava in models.values():
        inputs, other = pair(llava, padding_side=padding_side)
        image = token_mask(inputs, "image", llava)
        base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
        cells = [
            Cell((Write(Site("language_model", layer, "resid_pre"), image, OTHER),)) for layer in range(llava.n_layers)
        ]
        found = run(llava, base, cells, engine)
        theirs = plain_logits(llava, other, last_columns(other))
        close(found[0], theirs)
        assert all(differs(got, theirs) for got in found[1:])  # later, the question has seen the first picture


def test_base_logits_are_those_of_a_plain_forward(models: dict[tuple[bool, str], Llava]) -> None:
    for llava in models.values():
        inputs, other = pair(llava, 3, n_pictures=(1, 2, 0), padding_side="left")
        readout = torch.cat([last_columns(inputs), last_columns(inputs) - 3, torch.full((3, 1), -1)], 1)
        base = prepare_base(llava, inputs, other, readout=readout)
        with torch.inference_mode():
            plain = llava.model(**inputs.model_kwargs()).logits
        for row in range(3):
            close(base.logits[row, :2], plain[row, readout[row, :2]])
        assert float(base.logits[:, 2].abs().max()) == 0
        close(prepare_base(llava, inputs, readout=readout, engine="full").logits, base.logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_cutting_nothing_changes_nothing(models: dict[tuple[bool, str], Llava], engine: Engine) -> None:
    for llava in models.values():
        inputs, _ = pair(llava, padding_side="left")
        base = prepare_base(llava, inputs, readout=last_columns(inputs))
        every, none, image = real(inputs), torch.zeros_like(real(inputs)), token_mask(inputs, "image", llava)
        last = token_mask(inputs, "last", llava)
        cells = [
            Cell(()),
            Cell((Cut(0, none, every), Cut(1, every, none))),
            Cell((Cut(1, image, last),)),  # the future is not seen anyway: a cut must not open it
            Cell((Cut(1, last, last, (0, 1)),)),  # the edge to itself stays
            Cell((Hold(1, none),)),
        ]
        for got in run(llava, base, cells, engine):
            close(got, base.logits)
        assert differs(run(llava, base, [Cell((Cut(1, last, every),))], engine)[0], base.logits)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_cutting_everything_into_the_last_position_equals_a_mask_built_by_hand(
    models: dict[tuple[bool, str], Llava], engine: Engine, padding_side: str
) -> None:
    for llava in models.values():
        inputs, _ = pair(llava, padding_side=padding_side)
        last, readout = token_mask(inputs, "last", llava), last_columns(inputs)
        base = prepare_base(llava, inputs, readout=readout)
        cell = Cell(tuple(Cut(layer, last, real(inputs)) for layer in range(llava.n_layers)))
        got = run(llava, base, [cell], engine)[0]
        n = inputs.n_positions
        allowed = real(inputs)[:, None, None, :] & torch.ones(n, n, dtype=torch.bool).tril()
        for row in range(len(inputs)):
            allowed[row, :, int(readout[row, 0])] = False
        allowed |= torch.eye(n, dtype=torch.bool)
        with torch.inference_mode():
            kwargs = {**inputs.model_kwargs(), "attention_mask": additive(allowed, torch.float32)}
            scores = llava.model(**kwargs).logits
        by_hand = scores[torch.arange(len(inputs)), readout[:, 0]][:, None]
        close(got, by_hand)
        assert differs(got, base.logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_cutting_a_heads_edges_leaves_the_other_heads_outputs(
    models: dict[tuple[bool, str], Llava], engine: Engine
) -> None:
    """All heads one by one in one cell are all heads at once; one head alone is less."""
    for llava in models.values():
        inputs, _ = pair(llava)
        last, image = token_mask(inputs, "last", llava), token_mask(inputs, "image", llava)
        base = prepare_base(llava, inputs, readout=last_columns(inputs))
        cells = [
            Cell((Cut(1, last, image),)),
            Cell(tuple(Cut(1, last, image, (head,)) for head in range(llava.n_heads))),
            Cell((Cut(1, last, image, (2,)),)),
        ]
        whole, by_head, one = run(llava, base, cells, engine)
        close(by_head, whole)
        assert differs(one, whole)
        assert differs(one, base.logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_holding_image_tokens_in_all_layers_equals_freezing_their_embeddings_by_hand(
    models: dict[tuple[bool, str], Llava], engine: Engine
) -> None:
    for llava in models.values():
        inputs, _ = pair(llava, padding_side="left")
        image = token_mask(inputs, "image", llava)
        base = prepare_base(llava, inputs, readout=last_columns(inputs))
        cell = Cell(tuple(Hold(layer, image) for layer in range(llava.n_layers)))
        got = run(llava, base, [cell], engine)[0]

        embeddings: list[Tensor] = []

        def freeze(
            module: nn.Module,
            args: tuple[Tensor, ...],
            image: Tensor = image,
            embeddings: list[Tensor] = embeddings,
        ) -> tuple[Tensor, ...]:
            if not embeddings:
                embeddings.append(args[0])
            return (torch.where(image[..., None], embeddings[0], args[0]), *args[1:])

        handles = [block.register_forward_pre_hook(freeze) for block in llava.blocks]
        with torch.inference_mode():
            scores = llava.model(**inputs.model_kwargs()).logits
        for handle in handles:
            handle.remove()
        by_hand = scores[torch.arange(len(inputs)), last_columns(inputs)[:, 0]][:, None]
        close(got, by_hand)
        assert differs(got, base.logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_write_at_resid_mid_reaches_the_sum_behind_the_mlp(llava: Llava, engine: Engine) -> None:
    """Writing zero at resid_mid and at mlp_out leaves nothing of the stream."""
    inputs, _ = pair(llava)
    last, zero = token_mask(inputs, "last", llava), torch.zeros(())
    base = prepare_base(llava, inputs, readout=last_columns(inputs))
    top = llava.n_layers - 1
    by_parts = Cell(
        (
            Write(Site("language_model", top, "mlp_out"), last, zero),
            Write(Site("language_model", top, "resid_mid"), last, zero),
        )
    )
    got = run(llava, base, [by_parts], engine)[0]
    assert float(got.abs().max()) == 0  # a norm without bias, a head without bias
    assert differs(got, base.logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_writes_at_one_place_act_in_their_order(llava: Llava, engine: Engine) -> None:
    inputs, other = pair(llava)
    image, generator = token_mask(inputs, "image", llava), torch.Generator().manual_seed(0)
    last = token_mask(inputs, "last", llava)
    value = torch.randn(llava.d_model, generator=generator)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    below, above = Site("language_model", 0, "resid_post"), Site("language_model", 1, "resid_pre")
    cells = [
        Cell((Write(below, image, value),)),
        Cell((Write(below, image, OTHER), Write(below, image, value))),
        Cell((Write(above, image, value), Write(below, image, OTHER))),  # what stands higher comes later
        Cell((Write(below, image, value / 2, add=True), Write(below, image, OTHER), Write(above, image, value))),
        Cell((Hold(0, image), Write(below, image, value))),
        Cell((Write(above, image, value / 2), Write(above, image, value / 2, add=True))),
    ]
    found = run(llava, base, cells, engine)
    for got in found[1:]:
        close(got, found[0])
    assert differs(found[0], base.logits)
    added = run(llava, base, [Cell((Write(above, last, value, add=True),))], engine)[0]
    assert differs(added, run(llava, base, [Cell((Write(above, last, value),))], engine)[0])


def test_the_other_runs_value_is_that_of_each_placeholder(llava: Llava) -> None:
    """One picture that two prompts share has a partner of its own in each."""
    examples = make_examples(2, n_questions=2)
    assert examples[0].pictures == examples[1].pictures
    inputs, other = prepare(llava, examples), prepare(llava, other_pictures(examples))
    assert inputs.pixel_values is not None
    assert len(inputs.pixel_values) == 1
    site = Site("vision_tower", 0, "resid_pre")
    cell = Cell((Write(site, mask_for(llava, inputs, site), OTHER),))
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    theirs = plain_logits(llava, other, last_columns(other))
    for engine in ENGINES:
        close(run(llava, base, [cell], engine)[0], theirs)


# Random plans


def random_mask(rng: random.Random, allowed: Tensor, image: Tensor) -> Tensor:
    """A random, not empty part of what is allowed."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    kind = rng.choice(["all", "image", "prefix", "random", "one", "row"])
    mask = allowed.clone()
    if kind == "image":
        mask = allowed & image
    elif kind == "prefix":
        mask[:, rng.randrange(1, allowed.shape[1]) :] = False
    elif kind == "random":
        mask &= torch.rand(allowed.shape, generator=generator) < 0.3
    elif kind == "one":
        row, column = rng.choice(allowed.nonzero().tolist())
        mask = torch.zeros_like(allowed)
        mask[row, column] = True
    elif kind == "row":
        kept = rng.randrange(len(mask))
        mask[[row for row in range(len(mask)) if row != kept]] = False
    return mask if bool(mask.any()) else allowed


def random_edit(rng: random.Random, llava: Llava, inputs: Inputs, shared: Tensor) -> Edit:
    """A random edit; the other run's values are taken at positions that both batches have."""
    image = inputs.input_ids == llava.image_token_id
    kind = rng.choice(["write"] * 4 + ["cut"] * 2 + ["hold"])
    layer = rng.randrange(llava.n_layers)
    if kind == "hold":
        return Hold(layer, random_mask(rng, real(inputs), image))
    if kind == "cut":
        heads = None if rng.random() < 0.5 else tuple(rng.sample(range(llava.n_heads), 2))
        queries, keys = (random_mask(rng, real(inputs), image) for _ in range(2))
        return Cut(layer, queries, keys, heads)
    parts = ["language_model"] * 4 + (["vision_tower", "projector"] if inputs.pixel_values is not None else [])
    part = rng.choice(parts)
    site = rng.choice([s for s in all_sites(llava) if s.part == part and s.name != "pattern"])
    others = rng.random() < 0.5
    allowed = mask_for(llava, inputs, site)
    if part == "language_model" and others:
        allowed = shared
    mask = random_mask(rng, allowed, image if part == "language_model" else allowed)
    by_head = site.name in ("q", "k", "v", "z")
    own = llava.n_kv_heads if part == "language_model" and site.name in ("k", "v") else llava.n_heads
    n_heads = own if part == "language_model" else llava.n_vision_heads
    heads = tuple(rng.sample(range(n_heads), rng.randint(1, n_heads))) if by_head and rng.random() < 0.5 else None
    add = rng.random() < 0.3
    if others:
        return Write(site, mask, OTHER, heads, add)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    if by_head:
        axes: tuple[int, ...] = (n_heads, 8)
    elif part == "language_model" or (part == "projector" and site.name != "in"):
        axes = (llava.d_model,)
    else:
        axes = (llava.n_vision_heads * 8,)
    leading = rng.choice([(), (1, 1), (mask.shape[0], 1), (1, mask.shape[1]), tuple(mask.shape)])
    return Write(site, mask, torch.randn(*leading, *axes, generator=generator), heads, add)


def random_plan(seed: int, llava: Llava) -> tuple[Inputs, Inputs, Tensor, list[Cell]]:
    rng = random.Random(seed)
    examples = make_examples(rng.randint(1, 3), n_pictures=rng.choice([(1,), (1, 2), (2, 0, 1)]))
    partners = other_pictures(examples)
    if rng.random() < 0.4:
        partners = [replace(e, question=e.question.replace("cat", rng.choice(["dog", "umbrella"]))) for e in partners]
    if rng.random() < 0.3:  # a pair that differs in some rows only
        partners[0] = examples[0]
    side = rng.choice(["left", "right"])
    inputs = prepare(llava, examples, padding_side=side)  # type: ignore[arg-type]
    other = prepare(llava, partners, padding_side=side)  # type: ignore[arg-type]
    shared = torch.zeros_like(real(inputs))
    n = min(inputs.n_positions, other.n_positions)
    agree = real(other)[:, :n] & (inputs.position_ids[:, :n] == other.position_ids[:, :n])
    shared[:, :n] = real(inputs)[:, :n] & agree
    if not bool(shared.any()):  # left padding of another length: nothing stands at the same place
        other, shared = inputs, real(inputs)
    columns = [[rng.randrange(*layout.real), layout.real.stop - 1, -1] for layout in inputs.layout]
    readout = torch.tensor([row if i == 0 else rng.sample(row, 3) for i, row in enumerate(columns)])
    cells = [
        Cell(tuple(random_edit(rng, llava, inputs, shared) for _ in range(rng.choice([1, 1, 2, 3, 5]))))
        for _ in range(5)
    ]
    return inputs, other, readout, cells


@pytest.mark.parametrize(("grouped", "attn"), KINDS)
def test_resume_equals_full_on_random_plans(models: dict[tuple[bool, str], Llava], grouped: bool, attn: str) -> None:
    llava = models[grouped, attn]
    changed = 0
    for seed in range(15):
        inputs, other, readout, cells = random_plan(1000 * KINDS.index((grouped, attn)) + seed, llava)
        base = prepare_base(llava, inputs, other, readout=readout)
        expected = run(llava, base, cells, "full")
        at_once = (None, 1, 2, None)[seed % 4]
        found = run_cells(llava, base, cells, lambda logits: logits, cells_at_once=at_once)
        for number, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            error = float((got - wanted).abs().max() / wanted.abs().max())
            assert error < RELATIVE, f"plan {seed}, cell {number}: {error:.1e} with {cells[number]}"
            changed += differs(wanted, base.logits)
    assert changed > 45  # of 75 cells: most plans do something


def test_resume_equals_full_in_bfloat16(llava: Llava) -> None:
    half = load(tiny_config(grouped=True), seed=0, dtype=torch.bfloat16, validate=False)
    for seed in range(5):
        inputs, other, readout, cells = random_plan(seed, half)
        base = prepare_base(half, inputs, other, readout=readout)
        for got, wanted in zip(run(half, base, cells), run(half, base, cells, "full"), strict=True):
            assert got.dtype == torch.float32
            close(got, wanted, 4e-2)  # bfloat16 keeps 8 bits, over three layers


# Cost


def test_cells_compute_no_more_than_they_can_change(llava: Llava) -> None:
    """Queries that each block computes: the question under a patched picture, one position under a cut, none below."""
    inputs, other = pair(llava, 1, n_pictures=(1,))
    image, last = token_mask(inputs, "image", llava), token_mask(inputs, "last", llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    question = int(last.int().argmax()) + 1 - inputs.layout[0].images[0].stop
    assert question > 1
    computed: dict[int, int] = {}

    def count(module: nn.Module, args: tuple[Tensor, ...], output: object, layer: int) -> None:
        computed[layer] = computed.get(layer, 0) + args[0].shape[1]

    def counts(*cells: Cell) -> list[int]:
        computed.clear()
        handles = [
            block.register_forward_hook(lambda m, a, o, layer=layer: count(m, a, o, layer))
            for layer, block in enumerate(llava.blocks)
        ]
        run(llava, base, cells)
        for handle in handles:
            handle.remove()
        return [computed.get(layer, 0) for layer in range(llava.n_layers)]

    def patch(layer: int, name: str = "resid_pre") -> Cell:
        return Cell((Write(Site("language_model", layer, name), image, OTHER),))

    assert counts(patch(0)) == [0, 0, 0]  # everything is then the other run's
    assert counts(
        Cell((Write(Site("projector", None, "out"), mask_for(llava, inputs, Site("projector", None, "out")), OTHER),))
    ) == [0, 0, 0]
    assert counts(patch(1)) == [0, question, 1]  # the last block computes the readout alone
    assert counts(patch(0, "resid_mid")) == [0, question, 1]
    assert counts(patch(0, "resid_post")) == [0, question, 1]
    assert counts(Cell((patch(1).edits[0], patch(2).edits[0]))) == [0, question, 1]
    assert counts(patch(1), patch(2), patch(0)) == [0, question, 2]
    assert counts(Cell((Cut(1, last, image),))) == [0, 1, 1]
    assert counts(Cell((Cut(1, last, image, (0,)), Cut(2, last, image)))) == [0, 1, 1]
    # One position of the other run, which both heads' cells take from, and one of each cell.
    heads = [Cell((Write(Site("language_model", 2, "z"), last, OTHER, (head,)),)) for head in (1, 4)]
    assert counts(*heads) == [0, 0, 1 + 2]
    assert counts(Cell(tuple(Hold(layer, image) for layer in range(3)))) == [0, question, 1]
    assert counts(Cell((Write(Site("language_model", 2, "resid_post"), last, OTHER),))) == [0, 0, 0]


def test_cells_at_once_bounds_a_chunk_and_large_cells_go_alone(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    assert base.prefix is not None
    every = real(inputs)
    cells = [Cell((Write(Site("language_model", layer, "mlp_out"), every, OTHER),)) for layer in (2, 0, 1, 0)]
    assert [chunk.cells for chunk in plan_chunks(llava, base.prefix, cells, 3)] == [(1, 3, 2), (0,)]
    assert [chunk.cells for chunk in plan_chunks(llava, base.prefix, cells, None)] == [(1, 3, 2, 0)]
    together = run(llava, base, cells)
    monkeypatch.setattr("interventions.chunks._MOST_SCORES", 1)
    assert [chunk.cells for chunk in plan_chunks(llava, base.prefix, cells, None)] == [(1,), (3,), (2,), (0,)]
    for alone, got in zip(run(llava, base, cells), together, strict=True):
        close(alone, got)


# Restoration and errors


def hooks(llava: Llava) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules())


@pytest.mark.parametrize("engine", ENGINES)
def test_no_hook_is_left_behind_after_an_exception(
    llava: Llava, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    every = real(inputs)
    cell = Cell(
        (
            *(Write(Site("language_model", 1, n), every, OTHER) for n in ("resid_mid", "q", "k", "z", "mlp_out")),
            Write(Site("language_model", 0, "v"), every, torch.zeros(8)),
            Cut(1, every, every),
            Hold(2, every),
        )
    )
    expected = run(llava, base, [cell], engine)[0]
    before, during = hooks(llava), list[int]()

    def fail(*args: object, **kwargs: object) -> Tensor:
        during.append(hooks(llava))
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(llava.blocks[1].mlp, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            run(llava, base, [cell], engine)
    assert during[-1] > before
    assert hooks(llava) == before
    close(run(llava, base, [cell], engine)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_site_that_does_not_fire_is_named(llava: Llava, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    cell = Cell((Write(Site("language_model", 1, "mlp_out"), real(inputs), torch.zeros(())),))
    monkeypatch.setattr(llava.blocks[1], "forward", lambda hidden_states, **kwargs: hidden_states)
    with pytest.raises(CaptureError, match=r"site 'blocks\.1\.hook_mlp_out' must fire"):
        run(llava, base, [cell], engine)


def test_what_is_read_is_a_tensor_like_any_other(llava: Llava) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    cells = [Cell(()), Cell((Write(Site("language_model", 1, "z"), real(inputs), OTHER),))]
    for engine in ENGINES:
        assert run_cells(llava, base, [], lambda logits: logits, engine=engine) == []
        for got in [*run(llava, base, cells, engine), base.logits]:
            assert not got.is_inference()
            (got.clone().requires_grad_() ** 2).sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_run_is_refused_before_any_forward(
    llava: Llava, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, other = pair(llava, 2)
    every, none = real(inputs), torch.zeros_like(real(inputs))
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    alone = prepare_base(llava, inputs, readout=last_columns(inputs))
    shorter = prepare(llava, [replace(e, question="Is it?") for e in make_examples(2, n_pictures=(1, 2))])
    moved = prepare(llava, make_examples(2, n_pictures=(1, 2)), padding_side="left")
    fewer = prepare(llava, make_examples(2, n_pictures=(1,)))
    z, post = Site("language_model", 1, "z"), Site("language_model", 1, "resid_post")
    tower = Site("vision_tower", 0, "z")
    refused: list[tuple[Base, Edit, str]] = [
        (base, Write(post, none, OTHER), "mask at 'blocks.1.hook_resid_post' must hold at least one position"),
        (base, Write(post, every[:, 1:], OTHER), "must be boolean of shape"),
        (base, Write(post, torch.ones_like(every), OTHER), "must not hold padding"),
        (base, Write(Site("language_model", 1, "pattern"), every, OTHER), "must not be a pattern"),
        (base, Write(Site("language_model", 3, "z"), every, OTHER), r"layer must be in \[0, 3\)"),
        (base, Write(z, every, OTHER, (6,)), r"heads must be in \[0, 6\) and not empty"),
        (base, Write(Site("language_model", 1, "k"), every, OTHER, (2,)), r"heads must be in \[0, 2\)"),
        (base, Write(z, every, OTHER, ()), "not empty"),
        (base, Write(post, every, OTHER, (0,)), "Only q, k, v and z have heads"),
        (base, Write(z, every, torch.zeros(48)), r"value at 'blocks.1.attn.hook_z' must broadcast to \(2, \d+, 6, 8\)"),
        (alone, Write(post, every, OTHER), "other must be given"),
        (alone, Write(tower, mask_for(llava, inputs, tower), OTHER), "other must be given"),
        (base, Write(tower, every, OTHER), "must be boolean of shape"),
        (base, Cut(3, every, every), r"layer of a Cut must be in \[0, 3\)"),
        (base, Cut(1, every[:1], every[:1]), "mask of a Cut must be boolean"),
        (base, Cut(1, every, every, (6,)), r"heads must be in \[0, 6\)"),
        (base, Hold(-1, every), "layer of a Hold must be in"),
        (replace(base, other=shorter), Write(post, every, OTHER), "other must have the same position at column"),
        (replace(base, other=moved), Write(post, every, OTHER), "other must have the same position at column"),
        (replace(base, other=fewer), Write(tower, mask_for(llava, inputs, tower), OTHER), "as many pictures"),
    ]
    started: list[object] = []
    handles = [llava.model.register_forward_pre_hook(lambda m, a: started.append(m))]
    handles += [block.register_forward_pre_hook(lambda m, a: started.append(m)) for block in llava.blocks]
    fine = Cell((Write(post, every, torch.zeros(())),))
    for which, edit, text in refused:
        with pytest.raises(ValueError, match=text):
            run(llava, which, [fine, Cell((edit,))], engine)
    assert not started
    run(llava, base, [fine], engine)
    assert started
    for handle in handles:
        handle.remove()


def test_bad_options_and_readouts_are_refused(llava: Llava) -> None:
    inputs, other = pair(llava, 2)
    last = last_columns(inputs)
    base = prepare_base(llava, inputs, other, readout=last, engine="full")
    with pytest.raises(ValueError, match="engine must be 'full' for a base prepared for it"):
        run(llava, base, [Cell(())])
    assert len(run(llava, base, [Cell(())], "full")) == 1
    with pytest.raises(ValueError, match="engine must be 'resume' or 'full', got 'fast'"):
        inspect.unwrap(run_cells)(llava, base, [], lambda x: x, engine="fast")
    with pytest.raises(ValueError, match="engine must be 'resume' or 'full', got 'fast'"):
        inspect.unwrap(prepare_base)(llava, inputs, readout=last, engine="fast")
    with pytest.raises(ValueError, match="cells_at_once must be at least 1"):
        run_cells(llava, base, [], lambda x: x, engine="full", cells_at_once=0)
    for readout, text in [
        (last[:1], "one row for each of 2 examples"),
        (torch.full((2, 1), -1), "at least one position"),
        (last + 100, "readout must be in"),
        (torch.full((2, 1), inputs.n_positions - 1), "readout must be at real tokens"),
    ]:
        with pytest.raises(ValueError, match=text):
            prepare_base(llava, inputs, other, readout=readout)
    with pytest.raises(ValueError, match="other must have 2 examples, got 1"):
        prepare_base(llava, inputs, other.select([0]), readout=last)
