"""What lenses share: the sites that they read, the logits and words of a reading, and the logit lens itself.

A lens that predicts words is a *transport*: it maps the residual stream at a site to one after the last block, which
the model's final norm and head turn into logits. The norm is applied once, in ``models.adapter.Adapter.unembed``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from models.inputs import Inputs
from models.layer_ranges import LayerRange, parse_layers
from models.llava import Llava
from models.logit_lens import read_words
from models.sites import Site
from models.tokens import Group
from tasks.errors import UserError

INPUT = Site("language_model", 0, "resid_pre")
MADE_ANEW = "Make the lens again, or remove .checksums beside it if another program wrote it."


@runtime_checkable
class Reader(Protocol):
    """A lens: its name, the width that it reads, and its sites."""

    @property
    def name(self) -> str:
        """The name in tables."""

    @property
    def d_model(self) -> int | None:
        """The width of the residual stream; None for any."""

    def reads(self, site: Site, n_layers: int) -> bool:
        """True if the lens can read ``site`` of a model of ``n_layers`` blocks."""


@runtime_checkable
class Transport(Reader, Protocol):
    """A lens that maps the residual stream at a site to one after the last block."""

    def transport(self, resid: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """The residual stream after the last block that the lens expects from ``resid`` at ``site``."""


@dataclass(frozen=True)
class LogitLens:
    """The logit lens: every layer is read as if it were the last.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> LogitLens().words(llava, inputs, layers=2, k=3).shape
        (16, 5)
    """

    @property
    def name(self) -> str:
        """The name in tables."""
        return "logit"

    @property
    def d_model(self) -> int | None:
        """None: it reads any width."""
        return None

    def reads(self, site: Site, n_layers: int) -> bool:
        """True: it reads every site of the residual stream."""
        return True

    def transport(self, resid: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """``resid`` itself."""
        return resid

    def words(
        self, llava: Llava, inputs: Inputs, *, tokens: Group = "image", layers: LayerRange | None = None, k: int = 5
    ) -> pd.DataFrame:
        """The ``k`` most likely words at each token and layer; columns as ``Llava.logit_lens``."""
        return lens_words(self, llava, inputs, tokens=tokens, layers=layers, k=k)


def lens_sites(n_layers: int, layers: LayerRange | None = None, *, entry: bool = True) -> list[Site]:
    """The input of the language model and ``resid_post`` of the given blocks, in the order of the forward pass.

    Args:
        n_layers: The number of blocks.
        layers: The blocks, such as ``"0-9"``; None for all.
        entry: Whether the input, ``blocks.0.hook_resid_pre``, comes first.

    Raises:
        UserError: If a layer does not exist.

    Example:
        >>> [str(site) for site in lens_sites(4, "1,3")]
        ['blocks.0.hook_resid_pre', 'blocks.1.hook_resid_post', 'blocks.3.hook_resid_post']
    """
    numbers: Sequence[int] = range(n_layers) if layers is None else parse_layers(layers, n_layers)
    return [*([INPUT] if entry else []), *(Site("language_model", layer, "resid_post") for layer in numbers)]


def is_last(site: Site, n_layers: int) -> bool:
    """True for the last block's output, which every lens reads as the model does."""
    return site.name == "resid_post" and site.layer == n_layers - 1


def lens_logits(
    lens: Transport, llava: Llava, resid: Float[Tensor, "*batch d_model"], site: Site
) -> Float[Tensor, "*batch vocab"]:
    """The logits that a lens reads from the residual stream at a site."""
    return llava.unembed(lens.transport(resid.to(llava.dtype), site))


def lens_words(
    lens: Transport,
    llava: Llava,
    inputs: Inputs,
    *,
    tokens: Group = "image",
    layers: LayerRange | None = None,
    k: int = 5,
) -> pd.DataFrame:
    """The ``k`` most likely words of a lens at each token and layer; columns as ``Llava.logit_lens``.

    Raises:
        UserError: If the lens does not fit the model.
    """
    sites = lens_sites(llava.n_layers, layers, entry=False)
    check_lens(lens, llava, sites)
    found = llava.capture(inputs, sites, tokens=tokens)
    return read_words(llava, found, k=k, transport=lens.transport)


def check_lens(lens: Reader, llava: Llava, sites: Sequence[Site]) -> None:
    """Raise ``UserError`` unless the lens has the model's width and reads all of ``sites``."""
    if lens.d_model is not None and lens.d_model != llava.d_model:
        raise UserError(
            f"lens must have the width of the model, got {lens.d_model} in {lens.name} where {llava.id} has "
            f"{llava.d_model}. Use a lens that was made for this model."
        )
    missing = [site for site in sites if not lens.reads(site, llava.n_layers)]
    if missing:
        raise UserError(
            f"lens must read every chosen site, got none for {str(missing[0])!r} in {lens.name}. Choose other "
            "--layers, or train the lens there."
        )


def final_log_probs(llava: Llava, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """Log-probabilities, float32, of the residual stream after the last block."""
    return llava.unembed(resid).float().log_softmax(-1)


def kl_from(final: Float[Tensor, "*batch vocab"], logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(final || lens) in nats at each position; ``final`` are log-probabilities.

    Example:
        >>> import torch
        >>> final = torch.tensor([[0.5, 0.5]]).log()
        >>> kl_from(final, torch.tensor([[0.0, 0.0]])).tolist()
        [0.0]
    """
    return (final.exp() * (final - logits.float().log_softmax(-1))).sum(-1)
