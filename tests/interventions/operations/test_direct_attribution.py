"""Direct logit attribution: the parts add up to the model's own logit difference."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from interventions.operations.direct_attribution import DirectAttribution, direct_logit_attribution
from models.capture import capture
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.sites import Site
from tests.conftest import make_examples, tiny_config

ANSWERS, FOILS = torch.tensor([5, 17, 300]), torch.tensor([9, 4, 301])


def columns_of(inputs: Inputs) -> Tensor:
    return torch.tensor([layout.prompt_stop - 1 for layout in inputs.layout])


def attribution(llava: Llava, inputs: Inputs) -> DirectAttribution:
    return direct_logit_attribution(llava, inputs, columns_of(inputs), ANSWERS, FOILS)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_parts_add_up_to_the_models_logit_difference(
    llava: Llava, llava_plain: Llava, grouped: bool, side: str
) -> None:
    model = llava if grouped else llava_plain
    inputs = prepare(model, make_examples(3), padding_side=side)  # type: ignore[arg-type]
    found = attribution(model, inputs)
    with torch.no_grad():
        logits = model.model(**inputs.model_kwargs()).logits
    at = logits[torch.arange(3), columns_of(inputs)]
    expected = at[torch.arange(3), ANSWERS] - at[torch.arange(3), FOILS]
    assert float(expected.abs().min()) > 1e-3
    assert_close(found.logit_difference, expected, rtol=0, atol=1e-5)  # logits are of order 0.1 to 1
    assert_close(found.embedding + found.attn_out.sum(0) + found.mlp_out.sum(0), expected, rtol=0, atol=1e-5)
    assert_close(found.heads.sum(1), found.attn_out, rtol=0, atol=1e-5)
    assert found.heads.shape == (model.n_layers, model.n_heads, 3)
    assert float(found.heads.abs().amin()) > 0


def test_the_norms_weight_counts_and_a_parts_share_is_linear_in_what_it_wrote() -> None:
    model = load(tiny_config(), seed=3, validate=False)
    norm = model.module_at(Site("language_model", None, "final_norm"))
    with torch.no_grad():
        weight = norm.get_parameter("weight")
        weight.copy_(torch.linspace(-2, 2, len(weight)))
    inputs = prepare(model, make_examples(3))
    found = attribution(model, inputs)
    sites = [Site("language_model", 2, name) for name in ("resid_post", "mlp_out")]
    values = capture(model, inputs, sites, tokens="last")
    resid, mlp = (values[site][:, 0] for site in sites)
    head = model.model.get_output_embeddings().weight
    direction = (head[ANSWERS] - head[FOILS]) * weight / resid.pow(2).mean(-1, keepdim=True).sqrt()
    assert_close(found.mlp_out[2], (mlp * direction).sum(-1), rtol=1e-4, atol=1e-6)
    assert_close(found.embedding + found.attn_out.sum(0) + found.mlp_out.sum(0), found.logit_difference)


def test_a_norm_that_is_no_scaling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_config(), seed=0, validate=False)
    owner = model.language_model
    monkeypatch.setattr(owner, "norm", nn.LayerNorm(48, bias=True).requires_grad_(False))
    norm = model.module_at(Site("language_model", None, "final_norm"))
    with torch.no_grad():
        norm.get_parameter("bias").normal_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match="final norm must only scale its input .an RMS norm., got another kind of norm in random@0"
    ):
        attribution(model, prepare(model, make_examples(3)))


def test_padding_has_no_logits_to_attribute(llava: Llava) -> None:
    inputs = prepare(llava, make_examples(3))
    short = min(range(3), key=lambda row: inputs.layout[row].real.stop)
    columns = columns_of(inputs)
    columns[short] = inputs.n_positions - 1
    with pytest.raises(ValueError, match="tokens must not contain padding, got some"):
        direct_logit_attribution(llava, inputs, columns, ANSWERS, FOILS)


def test_what_does_not_belong_to_the_examples_is_refused(llava: Llava) -> None:
    """A column of -1 would be the batch's last, and one answer would serve all, without a word."""
    inputs = prepare(llava, make_examples(3))
    columns, unchecked = columns_of(inputs), inspect.unwrap(direct_logit_attribution)
    with pytest.raises(ValueError, match=r"columns must be in \[0, \d+\), got -1"):
        unchecked(llava, inputs, torch.tensor([-1, *columns[1:]]), ANSWERS, FOILS)
    with pytest.raises(ValueError, match=r"answers must have shape \(3,\), one for each example, got \(1,\)"):
        unchecked(llava, inputs, columns, ANSWERS[:1], FOILS)
