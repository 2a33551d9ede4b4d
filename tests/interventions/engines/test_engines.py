"""Both engines: laws of patching, cutting and holding, and that cells compute no more than they can change."""

import pytest
import torch
from torch import Tensor, nn

from interventions.engines.base_runs import plain_logits
from interventions.engines.chunks import plan_chunks
from interventions.engines.edits import OTHER, Cell, Cut, Hold, Write
from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from models.cached_blocks import additive
from models.inputs import prepare
from models.llava import Llava
from models.sites import Site, all_sites
from models.tokens import token_mask
from tests.conftest import make_examples
from tests.interventions.engines.engine_runs import (
    ENGINES,
    KINDS,
    close,
    differs,
    last_columns,
    mask_for,
    other_pictures,
    pair,
    real,
    run,
)

# Laws


@pytest.mark.parametrize(("grouped", "attn"), KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_patching_a_run_into_itself_changes_nothing_at_every_site(
    models: dict[tuple[bool, str], Llava], grouped: bool, attn: str, engine: EngineName
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
    models: dict[tuple[bool, str], Llava], engine: EngineName, padding_side: str
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
    models: dict[tuple[bool, str], Llava], engine: EngineName, padding_side: str
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
def test_cutting_nothing_changes_nothing(models: dict[tuple[bool, str], Llava], engine: EngineName) -> None:
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
    models: dict[tuple[bool, str], Llava], engine: EngineName, padding_side: str
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
    models: dict[tuple[bool, str], Llava], engine: EngineName
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
    models: dict[tuple[bool, str], Llava], engine: EngineName
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
def test_a_write_at_resid_mid_reaches_the_sum_behind_the_mlp(llava: Llava, engine: EngineName) -> None:
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
def test_writes_at_one_place_act_in_their_order(llava: Llava, engine: EngineName) -> None:
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


def test_what_is_read_is_a_tensor_like_any_other(llava: Llava) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    cells = [Cell(()), Cell((Write(Site("language_model", 1, "z"), real(inputs), OTHER),))]
    for engine in ENGINES:
        assert run_cells(llava, base, [], lambda logits: logits, engine=engine) == []
        for got in [*run(llava, base, cells, engine), base.logits]:
            assert not got.is_inference()
            (got.clone().requires_grad_() ** 2).sum().backward()


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
    monkeypatch.setattr("interventions.engines.chunks._MOST_SCORES", 1)
    assert [chunk.cells for chunk in plan_chunks(llava, base.prefix, cells, None)] == [(1,), (3,), (2,), (0,)]
    for alone, got in zip(run(llava, base, cells), together, strict=True):
        close(alone, got)
