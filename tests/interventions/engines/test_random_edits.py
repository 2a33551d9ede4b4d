"""``incremental`` equals ``full`` on random edits: any mask at any site, cuts and holds, in any order."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from interventions.engines.edits import OTHER, Cell, Cut, Edit, Hold, Write
from interventions.engines.engine import prepare_base, run_cells
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.sites import all_sites
from tests.conftest import make_examples, tiny_config
from tests.interventions.engines.engine_runs import KINDS, RELATIVE, close, differs, mask_for, other_pictures, real, run


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
def test_incremental_equals_full_on_random_plans(
    models: dict[tuple[bool, str], Llava], grouped: bool, attn: str
) -> None:
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


def test_incremental_equals_full_in_bfloat16(llava: Llava) -> None:
    half = load(tiny_config(grouped=True), seed=0, dtype=torch.bfloat16, validate=False)
    for seed in range(5):
        inputs, other, readout, cells = random_plan(seed, half)
        base = prepare_base(half, inputs, other, readout=readout)
        for got, wanted in zip(run(half, base, cells), run(half, base, cells, "full"), strict=True):
            assert got.dtype == torch.float32
            close(got, wanted, 4e-2)  # bfloat16 keeps 8 bits, over three layers
