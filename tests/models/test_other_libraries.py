"""Bridges: TransformerLens' cache and nnsight's trace hold what capture finds; weights shared, the model untouched."""

import socket
import subprocess
import sys
from typing import Any

import huggingface_hub as hub
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoProcessor

from models import other_libraries
from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.other_libraries import to_nnsight, to_transformer_lens, twin
from models.sites import all_sites
from tests.conftest import make_examples, tiny_config
from tests.models.oracles import values_by_nnsight

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


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_every_site_equals_nnsights_trace(llava: Llava, llava_plain: Llava, grouped: bool) -> None:
    model = llava if grouped else llava_plain
    inputs = prepare(model, make_examples(1))
    sites = all_sites(model)
    ours = capture(model, inputs, sites, tokens="all")
    eager = load(tiny_config(grouped=grouped), seed=0 if grouped else 1, attn="eager", validate=False)
    theirs = values_by_nnsight(eager, to_nnsight(eager), inputs, sites)  # only eager attention makes patterns
    for site in sites:
        assert_close(ours[site], theirs[site], msg=lambda m, site=site: f"{site}: {m}", **TOLERANCE)


@pytest.mark.filterwarnings("ignore")  # the library's own, at import and at boot
def test_transformer_lens_boots_without_the_hub_and_without_pip(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    installed: list[object] = []
    asked: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: installed.append(a))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # not there
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda name, **_: asked.append(name) or _refuse())
    by_name = {"hf_model": twin(llava), "tokenizer": other_libraries._tokenizer(llava)}
    TransformerBridge.boot_transformers(llava.id, device="cpu", dtype=llava.dtype, **by_name)
    assert len(installed) == 1 and asked == [llava.id, llava.id]  # what it does by itself
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or _refuse())
    assert to_transformer_lens(llava).processor is llava.processor
    assert len(installed) == 1 and len(asked) == 2


def _refuse() -> None:
    raise OSError("not there")


def test_a_twin_shares_every_tensor_and_no_module(llava: Llava) -> None:
    other = twin(llava)
    assert [t.data_ptr() for t in other.state_dict().values()] == [
        t.data_ptr() for t in llava.model.state_dict().values()
    ]
    assert not {id(m) for m in other.modules()} & {id(m) for m in llava.model.modules()}
