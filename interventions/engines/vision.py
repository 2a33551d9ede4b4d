"""Image features under the edits of a cell: run the vision tower from the first edited block on, then the projector."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from interventions.engines.base_runs import Placeholder, Prefix
from interventions.engines.edits import Write
from interventions.engines.write_values import boundary_of, written
from models.cached_blocks import run_projector, run_tower_block
from models.hooks import edited, recorded
from models.llava import Llava
from models.sites import Site


def changed_placeholders(llava: Llava, prefix: Prefix, writes: Sequence[Write]) -> list[Placeholder]:
    """The placeholders whose features the writes can change."""
    seen = [write for write in writes if _is_read(write.site, llava)]
    return [p for p in prefix.placeholders if any(bool(write.mask[p.picture].any()) for write in seen)]


def edited_features(
    llava: Llava, prefix: Prefix, writes: Sequence[Write], placeholders: Sequence[Placeholder]
) -> list[Tensor]:
    """Features ``patch d_model`` of each placeholder, under writes to the vision tower and the projector."""
    tower = prefix.tower
    assert tower is not None  # there are placeholders
    writes = [write for write in writes if _is_read(write.site, llava)]
    pairs = list(dict.fromkeys((p.picture, p.other_picture) for p in placeholders))
    device = tower.features.device
    mine = torch.tensor([picture for picture, _ in pairs], device=device)
    # No write takes a value for a picture without a partner (check_cells), so any row is valid here.
    theirs = torch.tensor([0 if other is None else other for _, other in pairs], device=device)

    first = min((_first(write.site, llava) for write in writes), default=llava.vision_layer)
    resid = tower.resid[first][mine]
    for layer in range(first, llava.vision_layer + 1):
        between = [w for w in writes if w.site.part == "vision_tower" and boundary_of(w) == layer]
        other = tower.resid[layer][theirs]
        resid = _apply(mine, sorted(between, key=lambda w: w.site), other, resid)
        if layer < llava.vision_layer:
            inside = [w for w in writes if w.site.layer == layer and boundary_of(w) is None]
            resid = _within(llava, mine, inside, partial(run_tower_block, llava, layer), resid, other)
    inside = [w for w in writes if w.site.part == "projector"]
    features = _within(llava, mine, inside, partial(run_projector, llava), resid, other)
    return [features[pairs.index((p.picture, p.other_picture))] for p in placeholders]


def _within(
    llava: Llava, mine: Tensor, writes: Sequence[Write], run: Callable[[Tensor], Tensor], resid: Tensor, other: Tensor
) -> Tensor:
    """The output of a block or the projector under the writes inside it."""
    by_site: dict[Site, list[Write]] = {}
    for write in writes:
        by_site.setdefault(write.site, []).append(write)
    borrowed = {write.site for write in writes if isinstance(write.value, str)}
    with recorded(llava, borrowed) as values:
        if borrowed:
            run(other)
    with edited(llava, {site: partial(_apply, mine, found, values.get(site)) for site, found in by_site.items()}):
        return run(resid)


def _apply(mine: Tensor, writes: Sequence[Write], other: Tensor | None, current: Tensor) -> Tensor:
    """The activation at a site under writes; ``mine`` holds the picture of each row."""
    for write in writes:
        mask = write.mask.to(current.device)
        if isinstance(write.value, str):
            assert other is not None  # recorded
            value = other
        else:
            value = write.value.to(current.device).broadcast_to(mask.shape[0], *current.shape[1:])[mine]
        current = written(current, mask[mine], value, heads=write.heads, add=write.add)
    return current


def _first(site: Site, llava: Llava) -> int:
    """The first block whose input a write at the site changes."""
    if site.layer is None:
        return llava.vision_layer
    return site.layer + (site.name == "resid_post")


def _is_read(site: Site, llava: Llava) -> bool:
    """True if the projector depends on the site: it is not above the layer that the projector reads."""
    if site.part == "projector":
        return True
    assert site.layer is not None  # every site of the tower has one
    inside = site.name not in ("resid_pre", "resid_post")
    return _first(site, llava) + inside <= llava.vision_layer
