"""Fill a store with activations, captured in batches that do not depend on the number of processes.

Batches never cross shards, so a resumed run and a run on several processes write the same bytes. Only one
shard's activations are in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor

from models.capture import capture, plan_batches
from models.hooks import CaptureError, Pool
from models.inputs import Inputs, Layout, prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.sites import Site
from models.tokens import GroupName, patch_at, token_mask
from probes.activations.store import DTYPES, POSITIONS, ActivationStore, groups_at
from records.processes import Processes
from tasks.errors import UserError, user_errors
from tasks.example import Example, Picture

_SHARD = 64  # examples; a killed run loses at most this many, and there are few files


@runtime_checkable
class _Sites(Protocol):
    @property
    def pool(self) -> str: ...
    @property
    def stored_as(self) -> str | None: ...


@runtime_checkable
class _Data(Protocol):
    @property
    def preprocess(self) -> Preprocess: ...


@runtime_checkable
class CaptureSettings(Protocol):
    """The settings of a sweep or a capture that decide what is stored."""

    @property
    def sites(self) -> _Sites:
        """How tokens become an activation, and the stored type."""

    @property
    def data(self) -> _Data:
        """How pictures are prepared."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""


def shard_size(batch_size: int, pool: str = "mean") -> int:
    """Number of examples in a shard, a multiple of the batch size; one batch if every token is kept."""
    return batch_size * (1 if pool == "none" else max(1, _SHARD // batch_size))


def fill_store(
    store: ActivationStore,
    llava: Callable[[], Llava],
    examples: Sequence[Example],
    sites: Sequence[Site],
    groups: Sequence[str],
    config: CaptureSettings,
    processes: Processes,
    on_progress: Callable[[int], None],
    on_note: Callable[[str], None] = lambda line: None,
) -> None:
    """Capture and write every missing or damaged shard of this process.

    ``llava`` returns the model and is called only if a shard is missing. ``processes`` determines the shards of this
    process. ``on_progress`` is called with numbers of examples: first those found on disk, then those newly done.
    ``on_note`` is called for each damaged file.

    Raises:
        UserError: If an activation is not finite, or the disk is full.
    """
    missing = store.missing(sites, groups, rank=processes.rank, world=processes.world)
    if not missing:
        return
    for path in store.damaged(sites, missing):
        on_note(f"{path.relative_to(store.root.parent)} is damaged: its examples are captured again")
    owned = sum(len(shard) for shard in store.shards if shard.index % processes.world == processes.rank)
    on_progress(owned - sum(len(shard) for shard in missing))
    model = llava()
    dtype = stored_dtype(config, model)
    for shard in missing:
        part = [examples[i] for i in range(shard.start, shard.stop)]
        found = _capture(model, part, sites, groups, config)
        stored = {site: {g: rows.to(dtype) for g, rows in by_group.items()} for site, by_group in found.values.items()}
        check_finite(stored, part, {g: rows[:, 0] for g, rows in found.places.items()} if store.ragged else None)
        store.write(shard, {site: by_group for site, by_group in stored.items()})  # noqa: C416
        if store.ragged:  # written last, with the number of each example in the data
            at = torch.tensor([shard.start, 0, 0, 0], dtype=torch.int32)
            store.write(shard, {POSITIONS: {g: rows + at for g, rows in found.places.items()}})
        on_progress(len(shard))


def stored_dtype(config: CaptureSettings, llava: Llava) -> torch.dtype:
    """The dtype of stored activations: the one in the settings or, if None, the model's."""
    return DTYPES[config.sites.stored_as] if config.sites.stored_as else llava.dtype


def capture_pooled(
    llava: Llava, examples: Sequence[Example], sites: Sequence[Site], groups: Sequence[str], config: CaptureSettings
) -> dict[Site, dict[str, Float[Tensor, "example d"]]]:
    """The pooled activation of each example by site and token group; heads are concatenated.

    A batch holds its examples once for each group. ``capture`` runs equal rows, and rows that begin another, only once,
    so a second group of tokens of the same prompt needs no second forward pass.

    Raises:
        UserError: If an example lacks the tokens, or an activation is not finite.
    """
    return _capture(llava, examples, sites, groups, config).values


class _Found(NamedTuple):
    values: dict[Site, dict[str, Float[Tensor, "row d"]]]
    places: dict[str, Shaped[Tensor, "row 4"]]  # example, position, patch row and column of a token; empty if pooled


def _capture(
    llava: Llava, examples: Sequence[Example], sites: Sequence[Site], groups: Sequence[str], config: CaptureSettings
) -> _Found:
    """The activations of every example in order, one row each or, without pooling, one for each of its tokens."""
    pool = config.sites.pool
    rows: dict[Site, dict[str, list[Tensor]]] = {site: {g: [] for g in groups_at(site, groups)} for site in sites}
    places: dict[str, list[Tensor]] = {g: [] for g in groups}
    of_groups: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        of_groups.setdefault(groups_at(site, groups), []).append(site)
    order: list[int] = []
    with user_errors(CaptureError):
        for indices in plan_batches(examples, tokens=cast(GroupName, groups[0]), batch_size=config.batch_size):
            batch = [examples[index] for index in indices]
            repeated = batch * len(groups)
            inputs = prepare(llava, repeated, preprocess=config.data.preprocess)
            n = len(batch)
            masks = {g: token_mask(inputs, cast(GroupName, g), llava, repeated)[:n] for g in groups}
            if pool == "last":
                masks = {g: _last_only(mask) for g, mask in masks.items()}
            order += indices
            for names, members in of_groups.items():
                part = inputs if len(names) == len(groups) else inputs.select(range(n * len(names)))
                found = capture(
                    llava, part, members, tokens=torch.cat([masks[g] for g in names]),
                    pool="mean" if pool == "last" else cast(Pool, pool), examples=batch * len(names),
                )  # fmt: skip
                for site in members:
                    for i, group in enumerate(names):
                        mine = range(n * i, n * (i + 1))
                        if pool != "none":
                            rows[site][group].extend(found[site][mine.start : mine.stop].flatten(1).cpu().split(1))
                        else:
                            kept = (found[site][row][found.mask[site][row]].flatten(1).cpu() for row in mine)
                            rows[site][group].extend(kept)
            if pool == "none":
                for group, mask in masks.items():
                    places[group] += [_places(inputs, row, mask[row], indices[row], llava) for row in range(n)]
    place = torch.argsort(torch.tensor(order)).tolist()

    def in_order(parts: list[Tensor]) -> Tensor:
        return torch.cat([parts[i] for i in place])

    return _Found(
        {site: {g: in_order(parts) for g, parts in by_group.items()} for site, by_group in rows.items()},
        {g: in_order(parts) for g, parts in places.items() if parts},
    )


def _last_only(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The mask of the last position of each row."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * columns).amax(1)
    return mask & (columns == last[:, None])


def _places(
    inputs: Inputs, row: int, mask: Bool[Tensor, " pos"], example: int, llava: Llava
) -> Shaped[Tensor, "token 4"]:
    """Example, position in the unpadded prompt, patch row and patch column of every token; -1 where it is no patch."""
    found = []
    start = inputs.layout[row].real.start
    patches = {
        position: patch_at(inputs, row, position, llava)
        for span in inputs.layout[row].images
        for position in range(span.start + llava.n_class_tokens, span.stop)
    }
    for position in mask.nonzero().flatten().tolist():
        patch = patches.get(position)
        found.append((example, position - start, *((-1, -1) if patch is None else (patch.row, patch.column))))
    return torch.tensor(found, dtype=torch.int32).reshape(-1, 4)


def width(site: Site, llava: Llava) -> int:
    """The length of one activation, with heads concatenated."""
    text, vision = llava.config.text_config, llava.config.vision_config
    if site.part == "projector":
        return int(vision.hidden_size if site.name == "in" else text.hidden_size)
    config = text if site.part == "language_model" else vision
    if site.name not in ("q", "k", "v", "z"):
        return int(config.hidden_size)
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or config.hidden_size // n_heads)
    shared = site.name in ("k", "v") and site.part == "language_model"
    return d_head * int(text.num_key_value_heads if shared else n_heads)


def check_finite(
    values: Mapping[Site, Mapping[str, Float[Tensor, "row d"]]],
    examples: Sequence[Example],
    owners: Mapping[str, Shaped[Tensor, " token"]] | None = None,
) -> None:
    """Check that every activation is finite; the error names the first site in the order of the forward pass.

    ``owners`` are the numbers of the examples of the rows of each group; None if each example has one row.
    """
    for site in sorted(values):
        for group, rows in values[site].items():
            bad = (~torch.isfinite(rows)).any(dim=1).nonzero()
            if len(bad):
                row = int(bad[0])
                owner = row if owners is None else int(owners[group][row])
                value = rows[row][~torch.isfinite(rows[row])][0].item()
                raise UserError(
                    f"activations must be finite, got {value} at {site} ({group} tokens) in example "
                    f"{examples[owner].id!r}. Try --dtype and --store-dtype float32, or check the weights."
                )


def layouts(llava: Llava, examples: Sequence[Example], config: CaptureSettings) -> list[Layout]:
    """Positions of image, question and answer in each example's unpadded prompt; no picture is opened."""
    blank = Picture("blank", lambda: Image.new("RGB", (8, 8)))
    found: list[Layout] = []
    with user_errors(ValueError):
        for start in range(0, len(examples), 256):  # bounds the size of the padded batch
            part = [examples[i] for i in range(start, min(start + 256, len(examples)))]
            bare = [replace(example, pictures=(blank,) * len(example.pictures)) for example in part]
            found.extend(prepare(llava, bare, preprocess=config.data.preprocess).layout)
    return found
