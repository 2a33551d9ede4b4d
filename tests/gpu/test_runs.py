"""Capture and interventions on the device: equal to transformers' own values, alone and in a batch, by both engines."""

from typing import Any

import pytest
import torch
from torch import Tensor

from interventions.engines.edits import OTHER, Cell, Cut, Write
from interventions.engines.engine import prepare_base, run_cells
from models.adapter import Attention
from models.capture import capture
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.sites import Site, all_sites
from models.tokens import token_mask
from tests.conftest import make_examples
from tests.gpu.places import PLACES, Place, close, differs, model
from tests.interventions.engines.engine_runs import last_columns, mask_for, pair
from tests.models.oracles import language_by_transformers

ATTENTION: tuple[Attention, ...] = ("sdpa", "eager")


def resid(llava: Llava, name: str) -> list[Site]:
    return [Site("language_model", layer, name) for layer in range(llava.n_layers)]


def cell_logits(llava: Llava, pairs: tuple[Inputs, Inputs], cells: list[Cell], engine: Any) -> tuple[Tensor, Tensor]:
    """Logits of every cell, and of the unchanged run."""
    readout = last_columns(pairs[0]).to(llava.device)
    base = prepare_base(llava, *pairs, readout=readout, engine=engine)
    return torch.stack(run_cells(llava, base, cells, lambda logits: logits, engine=engine)), base.logits


@pytest.mark.parametrize("attn", ATTENTION)
@pytest.mark.parametrize("place", PLACES)
def test_capture_equals_hooks_of_a_plain_forward_at_every_site(place: Place, attn: Attention) -> None:
    llava = model(place, attn)
    inputs = prepare(llava, make_examples(3, n_pictures=(1, 2)))
    theirs = language_by_transformers(model(place, "eager"), inputs)
    sites = [site for site in theirs if site.name != "pattern"]
    ours = capture(llava, inputs, sites, tokens="all")
    for site in sites:
        for row, span in enumerate(layout.real for layout in inputs.layout):
            got = ours[site][row][ours.mask[site][row]]
            assert close(place, got, theirs[site][row, span.start : span.stop]), site


@pytest.mark.parametrize("place", PLACES)
def test_capture_in_the_vision_tower_equals_transformers_hidden_states(place: Place) -> None:
    llava = model(place)
    inputs = prepare(llava, make_examples(2))
    assert inputs.pixel_values is not None
    pixels = inputs.pixel_values.to(place.device, place.dtype)
    with torch.inference_mode():
        hidden = llava.vision_tower(pixels, output_hidden_states=True).hidden_states
    sites = [Site("vision_tower", layer, "resid_post") for layer in range(llava.vision_layer)]
    ours = capture(llava, inputs, sites, tokens="image")
    for site in sites:
        assert site.layer is not None
        assert close(place, ours[site], hidden[site.layer + 1][:, 1:]), site


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("place", PLACES)
def test_a_batch_gives_what_its_examples_give_alone(place: Place, padding_side: Any) -> None:
    llava = model(place)
    examples = make_examples(4, n_questions=2)
    sites = resid(llava, "resid_post")
    together = capture(llava, prepare(llava, examples, padding_side=padding_side), sites, tokens="last")
    logits = llava.logits(prepare(llava, examples, padding_side=padding_side))
    for row, example in enumerate(examples):
        inputs = prepare(llava, [example])
        alone = capture(llava, inputs, sites, tokens="last")
        assert all(close(place, together[site][row], alone[site][0]) for site in sites)
        assert close(place, logits[row], llava.logits(inputs)[0])
    assert differs(place, logits[0], logits[2])


@pytest.mark.parametrize("attn", ATTENTION)
@pytest.mark.parametrize("place", PLACES)
def test_a_patch_resumed_at_its_layer_equals_a_full_forward(place: Place, attn: Attention) -> None:
    llava = model(place, attn)
    examples = make_examples(3)
    pairs = pair(llava, 3, n_pictures=(1,))
    groups = [token_mask(pairs[0], name, llava, examples).to(place.device) for name in ("image", "question", "last")]
    cells = [Cell((Write(site, mask, OTHER),)) for site in resid(llava, "resid_pre") for mask in groups]
    cells += [Cell((Write(site, groups[2], OTHER, heads=(1,)),)) for site in resid(llava, "z")]
    resumed, base = cell_logits(llava, pairs, cells, "incremental")
    full, _ = cell_logits(llava, pairs, cells, "full")
    assert close(place, resumed, full)
    assert differs(place, full[0], base)  # the whole image, before the first layer


@pytest.mark.parametrize("place", PLACES)
def test_patching_a_run_into_itself_changes_nothing(place: Place) -> None:
    llava = model(place)
    inputs, _ = pair(llava, 2)
    sites = [site for site in all_sites(llava) if site.name in ("resid_pre", "z", "mlp_out", "out")]
    cells = [Cell((Write(site, mask_for(llava, inputs, site).to(place.device), OTHER),)) for site in sites]
    got, base = cell_logits(llava, (inputs, inputs), cells, "incremental")
    assert close(place, got, base.expand_as(got))


def knockouts(llava: Llava, inputs: Inputs) -> list[Cell]:
    """Image to last, and image to question, in every window of two layers."""
    examples = make_examples(len(inputs))
    image, last, question = (
        token_mask(inputs, name, llava, examples).to(llava.device) for name in ("image", "last", "question")
    )  # fmt: skip
    windows = [(layer, layer + 1) for layer in range(llava.n_layers - 1)]
    flows = [(window, queries) for window in windows for queries in (last, question)]
    return [Cell(tuple(Cut(layer, queries, image) for layer in window)) for window, queries in flows]


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize("place", PLACES)
def test_a_knockout_gives_one_result_under_eager_and_fused_attention(place: Place, engine: Any) -> None:
    found = []
    for attn in ATTENTION:
        llava = model(place, attn)
        pairs = pair(llava, 3, n_pictures=(1,))
        got, base = cell_logits(llava, pairs, knockouts(llava, pairs[0]), engine)
        assert got.shape[0] == 2 * (llava.n_layers - 1)
        found.append((got, base))
    (eager, base), (fused, _) = found
    assert close(place, fused, eager)
    assert max(float((one - base).abs().max()) for one in eager) > 1e-3 * float(base.abs().max())


@pytest.mark.parametrize("attn", ATTENTION)
@pytest.mark.parametrize("place", PLACES)
def test_a_knockout_resumed_at_its_layer_equals_a_full_forward(place: Place, attn: Attention) -> None:
    llava = model(place, attn)
    pairs = pair(llava, 3, n_pictures=(1,))
    cells = knockouts(llava, pairs[0])
    assert close(place, *(cell_logits(llava, pairs, cells, engine)[0] for engine in ("incremental", "full")))
