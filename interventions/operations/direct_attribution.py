"""Direct logit attribution: what each part of the model writes straight into the difference of two logits.

The last residual stream is the sum of what embedding, attention and MLPs wrote. With the final norm's scale frozen at
its value in this run, the logit difference is linear in that sum, so the parts' shares add up to it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.capture import capture
from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site
from tasks.errors import UserError

# float32 sums over tens of layers agree to about 1e-6; a norm that is no scaling misses by far more.
_LINEAR = 1e-3


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """The shares of a logit difference, at one position of each example.

    Args:
        embedding: Of what entered the first block.
        attn_out: Of each attention layer.
        mlp_out: Of each MLP.
        heads: Of each head; without the output map's bias, if it has one, they add up to ``attn_out``.
        logit_difference: The whole; ``embedding``, ``attn_out`` and ``mlp_out`` add up to it.
    """

    embedding: Float[Tensor, "example"]
    attn_out: Float[Tensor, "layer example"]
    mlp_out: Float[Tensor, "layer example"]
    heads: Float[Tensor, "layer head example"]
    logit_difference: Float[Tensor, "example"]


def direct_logit_attribution(
    llava: Llava,
    inputs: Inputs,
    columns: Int[Tensor, "example"],
    answers: Int[Tensor, "example"],
    foils: Int[Tensor, "example"],
) -> DirectAttribution:
    """The shares of logit(answer) - logit(foil).

    Args:
        llava: The model.
        inputs: The batch.
        columns: The position of each example where the answer is predicted.
        answers: Token ids.
        foils: Token ids.

    Raises:
        ValueError: If the model's final norm is no scaling of its input, a column is padding or not there, or there is
            not one of everything for each example.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; frozen norm as in Wang et al. 2022,
        "Interpretability in the Wild", arXiv 2211.00593.
    """
    _check(inputs, columns, answers, foils)
    layers = range(llava.n_layers)
    wanted = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    wanted[torch.arange(len(inputs), device=wanted.device), columns.to(wanted.device)] = True
    sites = {name: [Site("language_model", layer, name) for layer in layers] for name in ("attn_out", "mlp_out", "z")}
    first, last = Site("language_model", 0, "resid_pre"), Site("language_model", llava.n_layers - 1, "resid_post")
    final = Site("language_model", None, "final_norm")
    found = capture(llava, inputs, [first, last, final, *(s for named in sites.values() for s in named)], tokens=wanted)
    at = {site: values[:, 0].double() for site, values in found.items()}
    with torch.no_grad():
        direction = _logit_direction(llava, at[last], at[final], answers, foils)
        heads = torch.stack([_by_head(llava, site, at[site], direction) for site in sites["z"]])

    def share(site: Site) -> Tensor:
        return (at[site] * direction).sum(-1).float()

    return DirectAttribution(
        embedding=share(first),
        attn_out=torch.stack([share(site) for site in sites["attn_out"]]),
        mlp_out=torch.stack([share(site) for site in sites["mlp_out"]]),
        heads=heads.float(),
        logit_difference=share(last),
    )


def _check(inputs: Inputs, columns: Tensor, answers: Tensor, foils: Tensor) -> None:
    for name, given in (("columns", columns), ("answers", answers), ("foils", foils)):
        if tuple(given.shape) != (len(inputs),):
            raise UserError(
                f"{name} must be one for each of {len(inputs)} examples, got shape {tuple(given.shape)}. "
                "None is shared."
            )
    if int(columns.min()) < 0 or int(columns.max()) >= inputs.n_positions:
        raise UserError(
            f"columns must be in [0, {inputs.n_positions}), got {int(columns.min())} to {int(columns.max())}. "
            "Columns of the batch count from 0."
        )


def _logit_direction(
    llava: Llava,
    resid: Float[Tensor, "example d_model"],
    normed: Float[Tensor, "example d_model"],
    answers: Tensor,
    foils: Tensor,
) -> Float[Tensor, "example d_model"]:
    """What the residual stream is multiplied with to give the logit difference, the norm's scale frozen.

    A norm without mean and bias is x -> weight * x / scale(x). On ones it shows its weight up to a factor, and the
    factor follows from what it made of this run's stream; so nothing need be known of how the model stores it.
    """
    norm = llava.module_at(Site("language_model", None, "final_norm"))
    weight = norm(torch.ones(1, llava.d_model, device=llava.device, dtype=llava.dtype))[0].double()
    unscaled = weight * resid
    factor = (normed * unscaled).sum(-1, keepdim=True) / (unscaled**2).sum(-1, keepdim=True)
    # in bfloat16 each value is rounded to 8 bits, so that the comparison can only see gross errors
    slack = _LINEAR if llava.dtype == torch.float32 else 2e-2
    if float((factor * unscaled - normed).norm() / normed.norm()) > slack:
        raise UserError(
            f"final norm must be a scaling of its input, got another one in {llava.id}. Only RMS norms are attributed."
        )
    head: Any = llava.model.get_output_embeddings()
    rows = head.weight[answers.to(llava.device)].double() - head.weight[foils.to(llava.device)].double()
    scaled: Tensor = rows * factor * weight
    return scaled


def _by_head(
    llava: Llava, site: Site, z: Float[Tensor, "example head d_head"], direction: Float[Tensor, "example d_model"]
) -> Float[Tensor, "head example"]:
    """What each head's output, through its part of the output map, adds along a direction."""
    output = llava.module_at(site)
    assert isinstance(output, nn.Linear)
    weight = output.weight.double().unflatten(1, z.shape[1:])
    return torch.einsum("ehd,mhd,em->he", z, weight, direction)
