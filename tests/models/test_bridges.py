"""Bridges: TransformerLens' cache and nnsight's trace hold what capture finds; weights shared, the model untouched."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.bridges import to_nnsight, to_transformer_lens, twin
from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.sites import Site, all_sites
from tests.conftest import make_examples

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32, values of order 1 to 10, eager against sdpa


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.filterwarnings("ignore")  # the libraries' own warnings, at import and at boot
def test_every_site_equals_transformer_lens_cache(llava: Llava, llava_plain: Llava, grouped: bool) -> None:
    model = llava if grouped else llava_plain
    inputs = prepare(model, make_examples(1))
    assert inputs.pixel_values is not None
    before = str(model.model)
    bridge = to_transformer_lens(model)
    with torch.inference_mode():
        logits, cache = bridge.run_with_cache(inputs.input_ids, pixel_values=inputs.pixel_values)
        assert_close(logits, model.model(**inputs.model_kwargs()).logits, **TOLERANCE)
    ours = capture(model, inputs, all_sites(model), tokens="all")
    checked = 0
    for site in all_sites(model):
        name = str(site)
        if site.part == "vision_tower" and site.name == "resid_mid":
            name = name.replace("hook_resid_mid", "ln2.hook_in")  # the value has no name of its own there
        if site.part == "projector" and site.name in ("linear_1", "act"):
            assert name not in cache  # what TransformerLens does not offer
            continue
        theirs = cache[name].transpose(1, 2) if site.name == "pattern" else cache[name]
        assert_close(ours[site], theirs, msg=lambda m, name=name: f"{name}: {m}", **TOLERANCE)
        checked += 1
    assert checked == 10 * (model.n_layers + model.n_vision_layers) + 3
    ours_at = {p.data_ptr() for p in model.model.parameters()}
    assert {p.data_ptr() for p in bridge.original_model.parameters() if p.requires_grad} >= ours_at  # no copy
    assert str(model.model) == before  # no modules of the library in our model
    assert model.model.config._attn_implementation == "sdpa"


def _paths(site: Site) -> tuple[str, str]:
    """Where nnsight finds a site, and on which side."""
    if site.part == "projector":
        inner = {
            "in": ("", "input"),
            "linear_1": (".linear_1", "output"),
            "act": (".act", "output"),
            "out": ("", "output"),
        }
        return f"multi_modal_projector{inner[site.name][0]}", inner[site.name][1]
    if site.layer is None:
        return "language_model.norm", "output"
    language = site.part == "language_model"
    block = f"{'language_model' if language else 'vision_tower.encoder'}.layers.{site.layer}"
    return {
        "resid_pre": (block, "input"),
        "q": (f"{block}.self_attn.q_proj", "output"),
        "k": (f"{block}.self_attn.k_proj", "output"),
        "v": (f"{block}.self_attn.v_proj", "output"),
        "z": (f"{block}.self_attn.{'o_proj' if language else 'out_proj'}", "input"),
        "attn_out": (f"{block}.self_attn", "output"),
        "resid_mid": (f"{block}.{'post_attention_layernorm' if language else 'layer_norm2'}", "input"),
        "mlp_out": (f"{block}.mlp", "output"),
        "resid_post": (block, "output"),
    }[site.name][0:2]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_every_site_equals_nnsights_trace(llava: Llava, llava_plain: Llava, grouped: bool) -> None:
    model = llava if grouped else llava_plain
    inputs = prepare(model, make_examples(1))
    traced = to_nnsight(model)
    # nnsight wants values in the order of the forward pass; patterns have no module, its sdpa path never makes them
    sites = [site for site in all_sites(model) if site.name != "pattern"]
    order = {"in": 0, "linear_1": 1, "act": 2, "out": 3}
    sites.sort(key=lambda s: order.get(s.name, 0) if s.part == "projector" else 0)  # stable: keeps the rest
    sites.sort()
    ours = capture(model, inputs, sites, tokens="all")
    wanted = [(traced.get(f"model.{path}"), side) for path, side in map(_paths, sites)]
    saved: list[Tensor] = []
    with torch.inference_mode(), traced.trace(**inputs.model_kwargs()):
        values = list().save()  # noqa: C408 - nnsight traces the call
        for module, side in wanted:
            values.append(module.input if side == "input" else module.output)
    saved = list(values)
    assert len(saved) == len(sites)
    for site, value in zip(sites, saved, strict=True):
        theirs = value[0] if isinstance(value, tuple) else value
        if site.name in ("q", "k", "v", "z"):
            theirs = theirs.unflatten(-1, (-1, 8))
        assert_close(ours[site], theirs, msg=lambda m, site=site: f"{site}: {m}", **TOLERANCE)


def test_a_twin_shares_every_tensor_and_no_module(llava: Llava) -> None:
    other = twin(llava)
    assert [t.data_ptr() for t in other.state_dict().values()] == [
        t.data_ptr() for t in llava.model.state_dict().values()
    ]
    assert not {id(m) for m in other.modules()} & {id(m) for m in llava.model.modules()}
