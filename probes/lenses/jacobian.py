"""The Jacobian lens: the average derivative of the last layer with respect to an earlier one, as a linear map.

lens = fit_jacobian_lens(llava, [inputs], sources="image"); lens.save("lens.pt"); JacobianLens.load("lens.pt")

The ``.pt`` file has the format of TransformerLens 4.3 and of anthropics/jacobian-lens: either opens the other's.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.hooks import edited, recorded
from models.inputs import Inputs
from models.layer_ranges import LayerRange
from models.llava import Llava
from models.loading.checkpoints import load_restricted
from models.sites import Site
from models.tokens import Group, token_mask
from probes.lenses.reading import MADE_ANEW, lens_sites, lens_words
from tasks.checksums import check_recorded, move_recorded
from tasks.errors import UserError, one_line

Sources = Literal["image", "text"]
SKIP_FIRST = 16  # text positions at the start that attention sinks make unlike others; TransformerLens' default
_TOGETHER = 16  # output dimensions of one backward pass


@dataclass(frozen=True, eq=False)
class JacobianLens:
    """A matrix for each block but the last, from its output to the last block's output, before the final norm.

    Source: Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models",
        Transformer Circuits Thread; format and estimator as anthropics/jacobian-lens and TransformerLens 4.3.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> lens = JacobianLens({1: torch.eye(48)}, n_prompts=1)
        >>> same = llava.logit_lens(inputs, layers=1)["words"]
        >>> bool((lens.words(llava, inputs, layers=1)["words"] == same).all())
        True
    """

    jacobians: Mapping[int, Float[Tensor, "d_model d_model"]]
    """The matrix of each block."""
    n_prompts: int
    """Prompts that were averaged."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The entry ``metadata`` of the file: text, numbers, lists and mappings."""

    @property
    def name(self) -> str:
        """The name in tables: ``jacobian``, with the positions that it was fitted on."""
        sources = self.about.get("sources")
        return f"jacobian:{sources}" if sources else "jacobian"

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return next(iter(self.jacobians.values())).shape[0]

    def reads(self, site: Site, n_layers: int) -> bool:
        """True if there is a matrix for ``site``, or it is the last block's output."""
        return site.name == "resid_post" and (site.layer in self.jacobians or site.layer == n_layers - 1)

    def transport(self, resid: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """The matrix of the site's block times ``resid``; the last block's output stays."""
        if site.layer is None or site.layer not in self.jacobians:
            return resid
        matrix = self.jacobians[site.layer].to(resid.device, resid.dtype)
        return torch.nn.functional.linear(resid, matrix)

    def words(
        self, llava: Llava, inputs: Inputs, *, tokens: Group = "image", layers: LayerRange | None = None, k: int = 5
    ) -> pd.DataFrame:
        """The ``k`` most likely words at each token and layer; columns as ``Llava.logit_lens``."""
        return lens_words(self, llava, inputs, tokens=tokens, layers=layers, k=k)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write the lens in TransformerLens' format, with its own function; ``dtype`` is that of the matrices.

        The file appears when it is complete, and its checksum stands in the ledger beside it.
        """
        from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as TheirLens

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        theirs = TheirLens(
            dict(self.jacobians), n_prompts=self.n_prompts, d_model=self.d_model, metadata=dict(self.about)
        )
        fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
        fresh.mkdir(exist_ok=True)
        try:  # under its own name, which torch writes into the file
            theirs.save(str(fresh / path.name), dtype=dtype)
            move_recorded(fresh / path.name, path)
        finally:
            shutil.rmtree(fresh)

    @staticmethod
    def load(path: str | Path) -> "JacobianLens":
        """The lens in a file of this format; nothing but tensors, numbers and text is read.

        Raises:
            UserError: If the file holds no such lens, or changed since ``save`` wrote it.
        """
        check_recorded(Path(path), advice=MADE_ANEW)
        try:
            saved = load_restricted(Path(path))
            matrices = {int(layer): matrix.float() for layer, matrix in saved["J"].items()}
            n_prompts, width = int(saved["n_prompts"]), int(saved["d_model"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"Jacobian lens must be a file of TransformerLens' format, got {str(path)!r} "
                f"({one_line(error)[:120]}). lens-sweep train --kind jacobian writes one."
            ) from error
        if not matrices or any(tuple(matrix.shape) != (width, width) for matrix in matrices.values()):
            raise UserError(f"Jacobian lens must have matrices of {width} x {width}, got others in {str(path)!r}.")
        return JacobianLens(matrices, n_prompts, saved.get("metadata") or {})


def fit_jacobian_lens(
    llava: Llava,
    prompts: Iterable[Inputs],
    *,
    sources: Sources = "image",
    layers: LayerRange | None = None,
    skip_first: int = SKIP_FIRST,
    together: int = _TOGETHER,
    on_prompt: Callable[[int, dict[int, Tensor]], None] = lambda number, jacobians: None,
) -> JacobianLens:
    """The average Jacobian of the last block's output with respect to that of earlier blocks.

    For each prompt: the mean over source positions t of the sum over target positions t' >= t of
    d h_final,t' / d h_l,t. Then the mean over prompts.

    Args:
        llava: The model.
        prompts: Batches of one row each.
        sources: ``"image"``: sources are the image tokens, targets all positions from the first of them to the one
            before the last. ``"text"``: sources and targets are the positions after the first ``skip_first`` that are
            no image tokens, without the last.
        layers: Blocks; None for all but the last.
        skip_first: Positions at the start that are left out of ``"text"``.
        together: Output dimensions of one backward pass.
        on_prompt: Called with the number of each prompt and its Jacobians.

    Raises:
        UserError: If no prompt has a source position, or a layer is the last one.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> sorted(fit_jacobian_lens(llava, [inputs], layers="1-2").jacobians)
        [1, 2]
    """
    sites = jacobian_sites(llava.n_layers, layers)
    total: dict[int, Tensor] = {}
    done = 0
    for number, inputs in enumerate(prompts):
        found = jacobians_of(llava, inputs, sites, sources=sources, skip_first=skip_first, together=together)
        if found is None:
            continue
        on_prompt(number, found)
        done += 1
        total = {layer: total[layer] + matrix if total else matrix for layer, matrix in found.items()}
    if not done:
        raise UserError(f"prompts must have {sources} positions to average over, got none. Use longer prompts.")
    return average(llava, total, done, sources=sources)


def average(llava: Llava, total: Mapping[int, Tensor], n_prompts: int, *, sources: Sources) -> JacobianLens:
    """The lens of a sum of Jacobians over prompts."""
    about = {"model_name": llava.id, "weight_hash": llava.weight_hash, "sources": sources}
    return JacobianLens({layer: matrix / n_prompts for layer, matrix in total.items()}, n_prompts, about)


def jacobian_sites(n_layers: int, layers: LayerRange | None) -> list[Site]:
    """``resid_post`` of the given blocks, None for all but the last."""
    if n_layers < 2:
        raise UserError(f"model must have at least two blocks for a Jacobian lens, got {n_layers}.")
    chosen = lens_sites(n_layers, range(n_layers - 1) if layers is None else layers, entry=False)
    if chosen[-1].layer == n_layers - 1:
        raise UserError(f"layers must leave out the last one, {n_layers - 1}, got it. Its Jacobian is the identity.")
    return chosen


def jacobians_of(
    llava: Llava,
    inputs: Inputs,
    sites: Sequence[Site],
    *,
    sources: Sources,
    skip_first: int = SKIP_FIRST,
    together: int = _TOGETHER,
    rows: int | None = None,
) -> dict[int, Float[Tensor, "rows d_model"]] | None:
    """The Jacobians of one prompt by layer, float32 on the CPU; None if it has no source positions.

    ``rows`` is the number of output dimensions, from the first, that are computed; None for all.
    """
    if len(inputs) != 1:
        raise UserError(f"inputs must be one prompt, got {len(inputs)}. Jacobians are averaged prompt by prompt.")
    source, target = _positions(llava, inputs, sources, skip_first)
    if not bool(source.any()):
        return None
    last = Site("language_model", llava.n_layers - 1, "resid_post")
    first = min(sites)

    def rooted(value: Tensor) -> Tensor:  # the graph starts here: weights stay without gradients
        return value.detach().requires_grad_()

    kwargs = inputs.model_kwargs()
    repeated = {key: value.repeat(together, *[1] * (value.dim() - 1)) for key, value in kwargs.items()}
    frozen = [parameter for parameter in llava.model.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad(), edited(llava, {first: rooted}), recorded(llava, [*sites, last]) as values:
            llava.model(**repeated, logits_to_keep=1, use_cache=False)
        return _rows(values, sites, last, source, target, together, llava.d_model if rows is None else rows)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _rows(
    values: Mapping[Site, Tensor],
    sites: Sequence[Site],
    last: Site,
    source: Bool[Tensor, " pos"],
    target: Bool[Tensor, " pos"],
    together: int,
    rows: int,
) -> dict[int, Tensor]:
    """The first ``rows`` rows of every matrix, ``together`` at a time."""
    final, starts = values[last], [values[site] for site in sites]
    width = final.shape[-1]
    found = {int(site.layer or 0): torch.zeros(rows, width) for site in sites}
    for begin in range(0, rows, together):
        n = min(together, rows - begin)
        cotangent = torch.zeros_like(final)
        for row in range(n):
            cotangent[row, target, begin + row] = 1.0
        grads = torch.autograd.grad(final, starts, cotangent, retain_graph=begin + n < rows)
        for site, grad in zip(sites, grads, strict=True):
            found[int(site.layer or 0)][begin : begin + n] = grad[:n, source].float().mean(1).cpu()
    return found


def _positions(
    llava: Llava, inputs: Inputs, sources: Sources, skip_first: int
) -> tuple[Bool[Tensor, " pos"], Bool[Tensor, " pos"]]:
    """Source and target positions of a batch of one row."""
    real = inputs.layout[0].real
    columns = torch.arange(inputs.n_positions, device=inputs.input_ids.device)
    before_last = (columns >= real.start) & (columns < real.stop - 1)
    image = (inputs.input_ids[0] == llava.image_token_id) & before_last
    if sources == "text":
        kept = before_last & ~image & (columns >= real.start + skip_first)
        return kept, kept
    if inputs.layout[0].images:
        image = token_mask(inputs, "image", llava)[0] & before_last
    first = int(image.nonzero()[0]) if bool(image.any()) else real.stop
    return image, before_last & (columns >= first)
