"""The value at every site by other people's code: transformers' own outputs and hooks, and an nnsight trace."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.inputs import Inputs
from models.llava import Llava
from models.sites import Part, Site


def _d_head(llava: Llava, part: Part) -> int:
    width = llava.tap(Site(part, 0, "q")).d_head
    assert width is not None
    return width


def language_by_transformers(llava: Llava, inputs: Inputs) -> dict[Site, Tensor]:
    """Every language-model site of a whole batch, ``batch pos ...``, from hooks and outputs of a plain forward."""
    seen: dict[Site, Tensor] = {}
    model, d_head = llava.model.model.language_model, _d_head(llava, "language_model")
    handles = []

    def keep(layer: int, name: str, value: Tensor, heads: bool = False) -> None:
        seen[Site("language_model", layer, name)] = value.unflatten(-1, (-1, d_head)) if heads else value

    for n, block in enumerate(model.layers):
        attention = block.self_attn
        handles += [
            attention.q_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "q", o, True)),
            attention.k_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "k", o, True)),
            attention.v_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "v", o, True)),
            attention.o_proj.register_forward_pre_hook(lambda m, a, n=n: keep(n, "z", a[0], True)),
            attention.o_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "attn_out", o)),
            block.post_attention_layernorm.register_forward_pre_hook(lambda m, a, n=n: keep(n, "resid_mid", a[0])),
            block.mlp.down_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "mlp_out", o)),
            block.register_forward_hook(lambda m, a, o, n=n: keep(n, "resid_post", o)),
        ]
    with torch.inference_mode():
        out = llava.model(**inputs.model_kwargs(), output_hidden_states=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    for n in range(llava.n_layers):
        keep(n, "resid_pre", out.hidden_states[n])
        keep(n, "pattern", out.attentions[n].transpose(1, 2))
    seen[Site("language_model", None, "final_norm")] = out.hidden_states[-1]
    return seen


def vision_by_transformers(llava: Llava, pixels: Tensor) -> dict[Site, Tensor]:
    """Every vision-tower and projector site, ``image token ...``."""
    seen: dict[Site, Tensor] = {}
    handles, d_head = [], _d_head(llava, "vision_tower")

    def keep(layer: int | None, name: str, value: Tensor, heads: bool = False) -> None:
        part = "projector" if layer is None else "vision_tower"
        seen[Site(part, layer, name)] = value.unflatten(-1, (-1, d_head)) if heads else value

    for n, block in enumerate(llava.model.model.vision_tower.encoder.layers):
        attention = block.self_attn
        handles += [
            attention.q_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "q", o, True)),
            attention.k_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "k", o, True)),
            attention.v_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "v", o, True)),
            attention.out_proj.register_forward_pre_hook(lambda m, a, n=n: keep(n, "z", a[0], True)),
            attention.out_proj.register_forward_hook(lambda m, a, o, n=n: keep(n, "attn_out", o)),
            block.layer_norm2.register_forward_pre_hook(lambda m, a, n=n: keep(n, "resid_mid", a[0])),
            block.mlp.fc2.register_forward_hook(lambda m, a, o, n=n: keep(n, "mlp_out", o)),
        ]
    projector = llava.model.model.multi_modal_projector
    with torch.inference_mode():
        out = llava.model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        handles += [
            projector.linear_1.register_forward_hook(lambda m, a, o: keep(None, "linear_1", o)),
            projector.linear_2.register_forward_pre_hook(lambda m, a: keep(None, "act", a[0])),
        ]
        keep(None, "in", out.hidden_states[-2][:, 1:])
        keep(None, "out", projector(out.hidden_states[-2][:, 1:]))
    for handle in handles:
        handle.remove()
    for n in range(llava.n_vision_layers):
        keep(n, "resid_pre", out.hidden_states[n])
        keep(n, "resid_post", out.hidden_states[n + 1])
        keep(n, "pattern", out.attentions[n].transpose(1, 2))
    return seen


def values_by_nnsight(llava: Llava, traced: Any, inputs: Inputs, sites: list[Site]) -> dict[Site, Tensor]:
    """Every site of one example from one trace of ``traced``, which must run eager attention for patterns.

    nnsight wants values in the order of the forward pass, and calls a module's output what it returns: attention
    returns the pattern beside ``attn_out``.
    """
    ordered = sorted(sites, key=lambda site: replace(site, name="attn_out") if site.name == "pattern" else site)
    wanted = [(_envoy(traced, site), site) for site in ordered]
    with torch.inference_mode(), traced.trace(**inputs.model_kwargs()):
        values = list().save()  # noqa: C408
        for (envoy, side), _ in wanted:
            values.append(envoy.input if side == "input" else envoy.output)
    found: dict[Site, Tensor] = {}
    assert len(values) == len(ordered)
    for site, value in zip(ordered, list(values), strict=True):
        if site.name == "pattern":
            found[site] = value[1].transpose(1, 2)
            continue
        whole = value[0] if isinstance(value, tuple) else value
        heads = site.name in ("q", "k", "v", "z")
        found[site] = whole.unflatten(-1, (-1, _d_head(llava, site.part))) if heads else whole
    return found


def _envoy(traced: Any, site: Site) -> tuple[Any, str]:
    """Where nnsight finds a site, and on which side."""
    path, side = _path(site)
    return traced.get(f"model.{path}"), side


def _path(site: Site) -> tuple[str, str]:
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
        "pattern": (f"{block}.self_attn", "output"),
        "z": (f"{block}.self_attn.{'o_proj' if language else 'out_proj'}", "input"),
        "attn_out": (f"{block}.self_attn", "output"),
        "resid_mid": (f"{block}.{'post_attention_layernorm' if language else 'layer_norm2'}", "input"),
        "mlp_out": (f"{block}.mlp", "output"),
        "resid_post": (block, "output"),
    }[site.name]
