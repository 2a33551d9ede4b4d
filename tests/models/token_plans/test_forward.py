"""Generation under a token plan equals a full forward with dense masks, token by token."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from interventions import ablated, knocked_out
from models.adapter import cache_argument
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.token_plans.cost import Sizes, cache_bytes, decode, prefill
from models.token_plans.forward import PlannedBatch, PlannedCache, planned
from models.token_plans.plan import TokenPlan, parse_token_plan
from models.token_plans.selection import random_scores
from tasks.errors import UserError
from tests.conftest import make_examples, tiny_config
from tests.models.token_plans import oracle

N_LAYERS = 5
N_NEW = 20
PLANS = (
    "leave@2", "enter@1", "freeze:1-2", "hide:0+3", "1-2:hide", "1-2:freeze", "keep:0.5@1:attention",
    "keep:0.5@2:random@3", "keep:0.3@0:uniform", "keep:0.75@1:attention+keep:0.25@3:attention", "freeze:0-1+leave@3",
    "freeze:2+keep:0.5@2:attention",
)  # fmt: skip


@pytest.fixture(scope="module", params=["grouped-sdpa", "grouped-eager", "plain-sdpa", "plain-eager"])
def llava(request: pytest.FixtureRequest) -> Llava:
    """Five layers, with and without grouped queries, by both kernels."""
    kind, attention = request.param.split("-")
    config = tiny_config(grouped=kind == "grouped")
    config.text_config.num_hidden_layers = N_LAYERS
    return load(config, seed=3, attn=attention)


def batch(llava: Llava, n: int) -> Inputs:
    """Prompts of unequal lengths; of four, one has two pictures and one has none."""
    return prepare(llava, make_examples(n, n_pictures=(1,) if n == 1 else (1, 2, 0, 1)))


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal to 1e-5 of the largest number."""
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("text", PLANS)
def test_prefill_and_twenty_tokens_equal_the_dense_oracle(text: str, n: int, llava: Llava) -> None:
    inputs, plan = batch(llava, n), parse_token_plan(text, N_LAYERS)
    with torch.inference_mode():
        first, tokens = oracle.generate(llava, plan, inputs, N_NEW)
    eos = llava.tokenizer.eos_token_id
    assert not bool((tokens == eos).any()), "the oracle goes on after the end of a text"
    assert equal(llava.logits(inputs, token_plan=text), first)
    assert equal(llava.logits(inputs.laid_out("left", answers=False), token_plan=text), first)
    assert torch.equal(llava.generate_tokens(inputs, N_NEW, token_plan=text), tokens)
    assert torch.equal(llava.generate_tokens(inputs, 5, token_plan=text, use_cache=False), tokens[:, :5])


PIECES = st.sampled_from(["freeze", "hide"])


@st.composite
def plans(draw: st.DrawFn) -> str:
    """A valid plan of any states in the layers, with up to two stages."""
    states = draw(st.lists(st.sampled_from(["compute", "freeze", "hide"]), min_size=N_LAYERS, max_size=N_LAYERS))
    if "compute" not in states:
        states[draw(st.integers(0, N_LAYERS - 1))] = "compute"
    pieces = [f"{state}:{layer}" for layer, state in enumerate(states) if state != "compute"]
    possible = [layer for layer, state in enumerate(states) if state != "hide"]
    chosen = sorted(draw(st.lists(st.sampled_from(possible), max_size=2, unique=True)))
    shares = sorted(draw(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.8]), min_size=2, max_size=2, unique=True)))
    for layer, share in zip(chosen, reversed(shares), strict=False):
        pieces.append(f"keep:{share}@{layer}:{draw(st.sampled_from(['attention', 'uniform', 'random@1']))}")
    return "+".join(pieces) or "all"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=plans())
def test_any_plan_equals_the_dense_oracle(text: str, llava: Llava) -> None:
    inputs, plan = batch(llava, 4), parse_token_plan(text, N_LAYERS)
    with torch.inference_mode():
        first, tokens = oracle.generate(llava, plan, inputs, 3)
    assert equal(llava.logits(inputs, token_plan=text), first)
    assert torch.equal(llava.generate_tokens(inputs, 3, token_plan=text), tokens)


@pytest.mark.parametrize("n", [1, 4])
def test_all_equals_transformers_token_for_token_also_by_the_packed_forward(n: int, llava: Llava) -> None:
    inputs = batch(llava, n)
    prompts = inputs.laid_out("left", answers=False)
    kwargs = {key: value for key, value in prompts.model_kwargs().items() if key != "position_ids"}
    eos = llava.tokenizer.eos_token_id
    options = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": eos, "eos_token_id": eos}
    wanted = llava.model.generate(**kwargs, **options)[:, prompts.n_positions :]
    assert torch.equal(llava.generate_tokens(inputs, N_NEW, token_plan="all"), wanted)
    everything = TokenPlan("all", ("compute",) * N_LAYERS)
    cache = PlannedCache(llava.config.text_config)
    with torch.inference_mode(), planned(llava, everything, PlannedBatch.of(prompts)):
        found = llava.model.generate(**kwargs, **options, **cache_argument(cache))[:, prompts.n_positions :]
    assert torch.equal(found, wanted)


def test_a_batch_gives_what_its_examples_give_alone(llava: Llava) -> None:
    examples = make_examples(4)
    for text in ("keep:0.5@1:random@0", "keep:0.5@1:attention", "1-2:hide"):
        together = llava.logits(prepare(llava, examples), token_plan=text)
        alone = torch.cat([llava.logits(prepare(llava, [example]), token_plan=text) for example in examples])
        assert equal(together, alone)


def test_hidden_tokens_are_neither_computed_nor_held(llava: Llava) -> None:
    inputs = batch(llava, 1)
    n_image = int(PlannedBatch.of(inputs).image.sum())
    n_text = inputs.n_positions - n_image
    rows: dict[str, list[int]] = {"q": [], "k": [], "mlp": []}
    handles = [
        module.register_forward_hook(lambda m, args, output, name=name: rows[name].append(output.shape[1]))
        for block in llava.blocks
        for name, module in (("q", block.self_attn.q_proj), ("k", block.self_attn.k_proj), ("mlp", block.mlp))
    ]
    prompts = inputs.laid_out("left", answers=False)
    cache = PlannedCache(llava.config.text_config)
    try:
        with torch.inference_mode(), planned(llava, parse_token_plan("freeze:1+leave@3", 5), PlannedBatch.of(prompts)):
            llava.model(**prompts.model_kwargs(), use_cache=True, **cache_argument(cache))
    finally:
        for handle in handles:
            handle.remove()
    both = n_text + n_image
    assert rows["q"] == rows["mlp"] == [both, n_text, both, n_text, n_text]
    assert rows["k"] == [both, n_image, n_text, both, n_text, n_text]
    assert [layer.keys.shape[2] for layer in cache.layers] == [both, both, both, n_text, n_text]
    width = llava.n_kv_heads * llava.config.text_config.head_dim
    assert cache.n_bytes == (3 * both + 2 * n_text) * 2 * width * 4


def test_random_choice_depends_on_the_row_alone_and_is_uniform() -> None:
    from models.token_plans.plan import Keep

    stage = Keep(0.5, 0, "random", 1)
    image = torch.zeros(2, 30, dtype=torch.bool)
    image[0, 3:13] = image[1, 15:25] = True
    first = random_scores(stage, ["a", "a"], image)
    assert torch.equal(first[0, 3:13], first[1, 15:25])
    assert not torch.equal(random_scores(stage, ["b", "a"], image)[0, 3:13], first[0, 3:13])
    assert not torch.equal(random_scores(Keep(0.5, 0, "random", 2), ["a", "a"], image), first)
    many = torch.stack([random_scores(stage, [str(i)], image[:1])[0, 3:13] for i in range(2000)])
    assert abs(float(many.mean()) - 0.5) < 0.01
    assert float((many.argmax(1).bincount(minlength=10) / 2000 - 0.1).abs().max()) < 0.03


def test_bad_runs_end_in_one_sentence(llava: Llava) -> None:
    blind = prepare(llava, make_examples(1, n_pictures=(0,)))
    with pytest.raises(UserError, match="prompt must have image tokens under the token plan 'leave@1', got none"):
        llava.generate(blind, token_plan="leave@1")
    inputs = batch(llava, 1)
    plan = parse_token_plan("leave@1", 5)
    refused = pytest.raises(UserError, match="cache must be a PlannedCache")
    with torch.inference_mode(), planned(llava, plan, PlannedBatch.of(inputs)), refused:
        llava.model.generate(**inputs.model_kwargs(), max_new_tokens=2)


def test_an_intervention_in_the_language_model_refuses_a_token_plan(llava: Llava) -> None:
    inputs = batch(llava, 1)
    refused = pytest.raises(UserError, match="must be 'all' while the language model is changed")
    with knocked_out(llava, layers="0-3"), ablated(llava, "projector:out", kind="zero"), refused:
        llava.logits(inputs, token_plan="leave@1")
    assert torch.equal(llava.logits(inputs), llava.logits(inputs, token_plan="all"))


@pytest.mark.parametrize("text", ["leave@2", "1-2:freeze", "keep:0.5@1:attention"])
def test_an_intervention_before_the_language_model_holds_under_a_token_plan(
    llava: Llava, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(llava, 1)
    plan = parse_token_plan(text, llava.n_layers)
    unchanged = llava.logits(inputs, token_plan=text)
    with ablated(llava, "projector:out", kind="zero"):
        found = llava.logits(inputs, token_plan=text)
        tokens = llava.generate_tokens(inputs, 1, token_plan=text)
    assert not torch.allclose(found, unchanged, atol=1e-3)
    torch.testing.assert_close(llava.logits(inputs, token_plan=text), unchanged)
    features = type(llava).image_features
    monkeypatch.setattr(type(llava), "image_features", lambda self, pixels: 0 * features(self, pixels))
    with torch.inference_mode():
        wanted, first = oracle.generate(llava, plan, inputs, 1)
    assert equal(found, wanted)
    assert torch.equal(tokens, first)


@pytest.mark.parametrize(
    "text", ["all", "leave@2", "1-2:freeze", "hide:0+3", "keep:0.5@1:attention+keep:0.25@3:uniform"]
)
def test_counted_products_agree_with_the_closed_form(text: str) -> None:
    config = tiny_config()
    config.text_config.num_hidden_layers = N_LAYERS
    wide = load(config, seed=3, attn="eager")  # the counter knows fused attention on GPUs only
    inputs = batch(wide, 1)
    plan, sizes = parse_token_plan(text, N_LAYERS), Sizes.of(wide)
    n_image = int(PlannedBatch.of(inputs).image.sum())
    n_text = inputs.n_positions - n_image
    embeddings = torch.zeros(1, inputs.n_positions, wide.d_model)
    everything = TokenPlan("all", plan.states, plan.stages)  # runs the packed forward for "all" too
    cache = PlannedCache(wide.config.text_config)
    with torch.inference_mode(), planned(wide, everything, PlannedBatch.of(inputs)):
        with FlopCounterMode(display=False) as counted:
            wide.language_model(inputs_embeds=embeddings, **cache_argument(cache))
        assert counted.get_total_flops() == pytest.approx(2 * prefill(sizes, plan, n_image, n_text), rel=0.01)
        with FlopCounterMode(display=False) as counted:
            wide.language_model(inputs_embeds=embeddings[:, :1], **cache_argument(cache))
        assert counted.get_total_flops() == pytest.approx(2 * decode(sizes, plan, n_image, n_text), rel=0.01)
    assert cache.n_bytes == cache_bytes(sizes, plan, n_image, n_text, itemsize=4) + 2 * sizes.d_key * 4 * N_LAYERS


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("text", ["1-2:hide", "1-2:freeze", "keep:0.5@1:attention", "freeze:0+leave@3"])
def test_gradients_equal_the_dense_oracle(text: str, checkpointing: bool, llava: Llava) -> None:
    inputs = prepare(llava, make_examples(3), answers=True)
    plan = parse_token_plan(text, N_LAYERS)
    labels = inputs.input_ids.clone()
    for row, layout in enumerate(inputs.layout):
        labels[row, : layout.prompt_stop] = -100
        labels[row, layout.real.stop :] = -100
    found = []
    for way in ("plan", "oracle"):
        model = llava.model
        model.zero_grad()
        if checkpointing and way == "plan":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        try:
            if way == "plan":
                with planned(llava, plan, PlannedBatch.of(inputs)):
                    logits = model(**inputs.model_kwargs(), use_cache=False).logits
            else:
                logits = model.lm_head(oracle.last_resid(llava, plan, inputs))
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
        finally:
            model.gradient_checkpointing_disable()
            model.eval()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((float(loss.detach()), grads))
        model.zero_grad()
    (loss, grads), (wanted_loss, wanted) = found
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    for name, gradient in grads.items():
        assert torch.allclose(gradient, wanted.get(name, torch.zeros_like(gradient)), rtol=1e-3, atol=1e-6), name
    assert {name for name, gradient in wanted.items() if bool(gradient.abs().max() > 1e-6)} <= set(grads)
