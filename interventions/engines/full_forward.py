"""The full engine: one forward pass of the complete model, with hooks, for each cell.

It is slow and simple. The incremental engine is tested against it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.engines.base_runs import Base, Read, plain_logits
from interventions.engines.edits import Cell, Cut, Hold, Write
from interventions.engines.write_values import written
from models.cached_blocks import additive, inference
from models.hooks import Columns, edited, first_argument, first_output, recorded, with_first_output
from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site


def run_full(llava: Llava, base: Base, cells: Sequence[Cell], read: Read) -> list[Tensor]:
    """The result of ``read`` on the logits of each cell; see ``engine.run_cells``."""
    sites = {e.site for cell in cells for e in cell.edits if isinstance(e, Write) and isinstance(e.value, str)}
    others = _other_values(llava, base.other, sites)
    results: list[Tensor] = []
    for cell in cells:
        with applied(llava, base.inputs, cell, others=others, other=base.other):
            logits = plain_logits(llava, base.inputs, base.readout)
        results.append(read(logits))
    return results


@contextmanager
def applied(
    llava: Llava,
    inputs: Inputs,
    cell: Cell,
    *,
    others: Mapping[Site, Tensor] | None = None,
    other: Inputs | None = None,
    columns: Columns | None = None,
) -> Iterator[None]:
    """Apply the edits of a cell to forwards on ``inputs`` while the context is open.

    ``others`` holds the other run's activations, for edits that write them. ``columns`` returns the columns
    that the current forward computes (``tracked_columns``); None means all.
    """
    writes = [e for e in cell.edits if isinstance(e, Write)]
    changes = _changes(_Batch(inputs, other, others or {}, columns), writes)
    after = {site: change for site, change in changes.items() if site.name == "resid_post"}
    rest = {site: change for site, change in changes.items() if site.name != "resid_post"}
    cuts: dict[int, list[Cut]] = {}
    for edit in cell.edits:
        if isinstance(edit, Cut):
            cuts.setdefault(edit.layer, []).append(edit)
    with ExitStack() as stack:
        stack.enter_context(edited(llava, after))  # entered first, so that writes at resid_post come after holding
        for hold in (e for e in cell.edits if isinstance(e, Hold)):
            keep = partial(_keep, hold.mask, columns)
            handle = llava.blocks[hold.layer].register_forward_hook(keep, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        stack.enter_context(edited(llava, rest))
        for layer, found in cuts.items():
            mask = partial(_mask, _allowed(llava, inputs, found), columns)
            handle = llava.blocks[layer].register_forward_pre_hook(mask, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


class _Batch(NamedTuple):
    inputs: Inputs
    other: Inputs | None
    others: Mapping[Site, Tensor]
    columns: Columns | None


def _computed(part: Tensor, columns: Columns | None) -> Tensor:
    """The columns of ``example pos ...`` that the current forward computes; a single column is shared by all."""
    return part if columns is None or part.shape[1] == 1 else part[:, columns.start : columns.stop]


def _other_values(llava: Llava, other: Inputs | None, sites: set[Site]) -> Mapping[Site, Tensor]:
    """The other run's activations by site; in the vision tower and the projector one row for each placeholder."""
    if not sites:
        return {}
    assert other is not None  # checked
    with inference(llava), recorded(llava, sites) as values:
        llava.model(**other.model_kwargs(), logits_to_keep=1, use_cache=False)
    return values


def _changes(batch: _Batch, writes: list[Write]) -> dict[Site, Callable[[Tensor], Tensor]]:
    """The writes at each hooked site, in the order given."""
    by_site: dict[Site, list[Write]] = {}
    # In the tower, the input of a block is changed at the output of the block below, which the projector may read.
    for write in sorted(writes, key=lambda w: w.site):
        site = write.site
        if site.part == "vision_tower" and site.name == "resid_pre" and site.layer:
            site = Site("vision_tower", site.layer - 1, "resid_post")
        by_site.setdefault(site, []).append(write)
    return {site: partial(_apply, batch, found) for site, found in by_site.items()}


def _apply(batch: _Batch, writes: list[Write], current: Tensor) -> Tensor:
    for write in writes:
        mask = write.mask.to(current.device)
        other = batch.others[write.site] if isinstance(write.value, str) else None
        if write.site.part != "language_model":
            # A forward pass takes one row of pixels for every placeholder.
            rows = torch.tensor([row for rows in batch.inputs.image_of for row in rows], device=current.device)
            if other is None:
                assert isinstance(write.value, Tensor)
                value = write.value.to(current.device).broadcast_to(mask.shape[0], *current.shape[1:])[rows]
            else:
                value = other[torch.tensor(_partners(batch), device=current.device)]
            mask = mask[rows]
        elif other is None:
            assert isinstance(write.value, Tensor)
            mask = _computed(mask, batch.columns)
            value = write.value if write.value.dim() < current.dim() else _computed(write.value, batch.columns)
        else:
            missing = current.shape[1] - other.shape[1]  # the other batch may be padded to another length
            value = torch.nn.functional.pad(other, (*[0, 0] * (other.dim() - 2), 0, missing))
        current = written(current, mask, value, heads=write.heads, add=write.add)
    return current


def _partners(batch: _Batch) -> list[int]:
    """For each placeholder, the index of its partner in the other batch; 0, which no write uses, if it has none."""
    assert batch.other is not None
    found: list[int] = []
    before = 0
    for mine, theirs in zip(batch.inputs.image_of, batch.other.image_of, strict=True):
        found += [before + number if number < len(theirs) else 0 for number in range(len(mine))]
        before += len(theirs)
    return found


def _keep(
    mask: Tensor, columns: Columns | None, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    entered, left = first_argument(args, kwargs), first_output(output)
    kept = _computed(mask.to(left.device), columns)
    return with_first_output(output, torch.where(kept[..., None], entered, left))


def _mask(allowed: Tensor, columns: Columns | None, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if columns is not None:
        allowed = allowed[:, :, columns.start : columns.stop, : columns.stop]
    return args, {**kwargs, "attention_mask": additive(allowed, first_argument(args, kwargs).dtype)}


def _allowed(llava: Llava, inputs: Inputs, cuts: Sequence[Cut]) -> Bool[Tensor, "example head query key"]:
    """The remaining attention edges: causal, to real tokens, not cut. A position always attends to itself."""
    real = inputs.attention_mask.bool()
    n = inputs.n_positions
    causal = torch.ones(n, n, dtype=torch.bool, device=real.device).tril()
    n_heads = llava.n_heads if any(cut.heads is not None for cut in cuts) else 1
    allowed = (causal & real[:, None, :])[:, None].repeat(1, n_heads, 1, 1)
    for cut in cuts:
        edges = cut.queries.to(real.device)[:, :, None] & cut.keys.to(real.device)[:, None, :]
        heads = list(range(n_heads)) if cut.heads is None else list(cut.heads)
        allowed[:, heads] &= ~edges[:, None]
    return allowed | torch.eye(n, dtype=torch.bool, device=real.device)
