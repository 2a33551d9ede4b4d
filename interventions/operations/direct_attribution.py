"""Direct logit attribution: the contribution of each component to the difference of two logits.

The last residual stream is the sum of the outputs of embedding, attention and MLPs. With the final norm's scale frozen
at its value in this run, the logit difference is linear in that sum, so the contributions add up to it.
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

# float32 sums over tens of layers agree to about 1e-6; a norm that subtracts a mean is off by far more.
_LINEAR = 1e-3
Ids = Int[Tensor, "example"]
Stream = Float[Tensor, "example d_model"]


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """Contributions to ``logit_difference`` at one position of each example.

    ``embedding`` is the input of the first block. ``embedding``, ``attn_out`` and ``mlp_out`` sum to
    ``logit_difference``; ``heads`` sum to ``attn_out`` less the output projection's bias.
    """

    embedding: Float[Tensor, " example"]
    attn_out: Float[Tensor, "layer example"]
    mlp_out: Float[Tensor, "layer example"]
    heads: Float[Tensor, "layer head example"]
    logit_difference: Float[Tensor, " example"]


def direct_logit_attribution(llava: Llava, inputs: Inputs, columns: Ids, answers: Ids, foils: Ids) -> DirectAttribution:
    """Contributions to logit(answer) - logit(foil), for token ids ``answers`` and ``foils``, one for each example.

    ``columns`` holds the position of each example at which the answer is predicted.

    Raises:
        UserError: If the model's final norm does more than scale its input, a column is padding or out of range, or the
            lengths differ.

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

    def contribution(site: Site) -> Tensor:
        return (at[site] * direction).sum(-1).float()

    return DirectAttribution(
        embedding=contribution(first),
        attn_out=torch.stack([contribution(site) for site in sites["attn_out"]]),
        mlp_out=torch.stack([contribution(site) for site in sites["mlp_out"]]),
        heads=heads.float(),
        logit_difference=contribution(last),
    )


def _check(inputs: Inputs, columns: Tensor, answers: Tensor, foils: Tensor) -> None:
    for name, given in (("columns", columns), ("answers", answers), ("foils", foils)):
        if tuple(given.shape) != (len(inputs),):
            raise UserError(f"{name} must have shape ({len(inputs)},), one for each example, got {tuple(given.shape)}.")
    if int(columns.min()) < 0 or int(columns.max()) >= inputs.n_positions:
        raise UserError(
            f"columns must be in [0, {inputs.n_positions}), got {int(columns.min())} to {int(columns.max())}. "
            "Columns of the batch count from 0."
        )


def _logit_direction(llava: Llava, resid: Stream, normed: Stream, answers: Ids, foils: Ids) -> Stream:
    """The vector whose product with the residual stream is the logit difference, with the norm's scale frozen.

    A norm without mean and bias is x -> weight * x / scale(x). The norm of a vector of ones gives the weight up to a
    factor, and the norm of this run's residual stream gives the factor, for any way in which the model stores them.
    """
    norm = llava.module_at(Site("language_model", None, "final_norm"))
    weight = norm(torch.ones(1, llava.d_model, device=llava.device, dtype=llava.dtype))[0].double()
    unscaled = weight * resid
    factor = (normed * unscaled).sum(-1, keepdim=True) / (unscaled**2).sum(-1, keepdim=True)
    # bfloat16 rounds each value to 8 bits, so that the comparison finds gross errors only
    slack = _LINEAR if llava.dtype == torch.float32 else 2e-2
    if float((factor * unscaled - normed).norm() / normed.norm()) > slack:
        raise UserError(f"final norm must only scale its input (an RMS norm), got another kind of norm in {llava.id}.")
    head: Any = llava.model.get_output_embeddings()
    rows = head.weight[answers.to(llava.device)].double() - head.weight[foils.to(llava.device)].double()
    scaled: Tensor = rows * factor * weight
    return scaled


def _by_head(
    llava: Llava, site: Site, z: Float[Tensor, "example head d_head"], direction: Stream
) -> Float[Tensor, "head example"]:
    """The contribution of each head along a direction, through its slice of the output projection."""
    output = llava.module_at(site)
    assert isinstance(output, nn.Linear)
    weight = output.weight.double().unflatten(1, z.shape[1:])
    return torch.einsum("ehd,mhd,em->he", z, weight, direction)
