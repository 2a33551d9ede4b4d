"""Fill a store with pooled activations, captured in batches that do not depend on the number of processes.

Batches never cross shards, so a resumed run and a run on several processes write the same bytes. Only one
shard's pooled activations are in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from models.capture import capture, plan_batches
from models.hooks import CaptureError
from models.inputs import Layout, prepare
from models.llava import Llava
from models.sites import Site
from models.tokens import GroupName, token_mask
from probes.activations.store import DTYPES, ActivationStore
from probes.config import SweepConfig
from records.processes import Processes
from tasks.errors import UserError, user_errors
from tasks.example import Example, Picture

_SHARD = 64  # examples; a killed run loses at most this many, and there are few files


def shard_size(batch_size: int) -> int:
    """Number of examples in a shard, a multiple of the batch size."""
    return batch_size * max(1, _SHARD // batch_size)


def fill_store(
    store: ActivationStore,
    llava: Callable[[], Llava],
    examples: Sequence[Example],
    sites: Sequence[Site],
    groups: Sequence[str],
    config: SweepConfig,
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
        values = capture_pooled(model, part, sites, groups, config)
        stored = {site: {g: rows.to(dtype) for g, rows in by_group.items()} for site, by_group in values.items()}
        check_finite(stored, part)
        store.write(shard, stored)
        on_progress(len(shard))


def stored_dtype(config: SweepConfig, llava: Llava) -> torch.dtype:
    """The dtype of stored activations: the one in the settings or, if None, the model's."""
    return DTYPES[config.sites.stored_as] if config.sites.stored_as else llava.dtype


def capture_pooled(
    llava: Llava, examples: Sequence[Example], sites: Sequence[Site], groups: Sequence[str], config: SweepConfig
) -> dict[Site, dict[str, Float[Tensor, "example d"]]]:
    """The pooled activation of each example by site and token group; heads are concatenated.

    A batch holds its examples once for each group. ``capture`` runs equal rows only once, so a second group of tokens
    in the same picture needs no second forward pass.

    Raises:
        UserError: If an example lacks the tokens, or an activation is not finite.
    """
    rows: dict[Site, dict[str, list[Tensor]]] = {site: {g: [] for g in groups} for site in sites}
    names = cast(Sequence[GroupName], groups)
    order: list[int] = []
    with user_errors(CaptureError):
        for indices in plan_batches(examples, tokens=names[0], batch_size=config.batch_size):
            batch = [examples[index] for index in indices]
            repeated = batch * len(groups)
            inputs = prepare(llava, repeated, preprocess=config.data.preprocess)
            masks = [token_mask(inputs, name, llava, repeated) for name in names]
            n = len(batch)
            wanted = torch.cat([mask[n * i : n * (i + 1)] for i, mask in enumerate(masks)])
            found = capture(llava, inputs, sites, tokens=wanted, pool=config.sites.pool, examples=repeated)
            order += indices
            for site in sites:
                for i, group in enumerate(groups):
                    rows[site][group].append(found[site][n * i : n * (i + 1)].flatten(1).cpu())
    place = torch.argsort(torch.tensor(order))
    return {site: {g: torch.cat(parts)[place] for g, parts in by_group.items()} for site, by_group in rows.items()}


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


def check_finite(values: Mapping[Site, Mapping[str, Float[Tensor, "example d"]]], examples: Sequence[Example]) -> None:
    """Check that every activation is finite; the error names the first site in the order of the forward pass."""
    for site in sorted(values):
        for group, rows in values[site].items():
            bad = (~torch.isfinite(rows)).any(dim=1).nonzero()
            if len(bad):
                row = int(bad[0])
                value = rows[row][~torch.isfinite(rows[row])][0].item()
                raise UserError(
                    f"activations must be finite, got {value} at {site} ({group} tokens) in example "
                    f"{examples[row].id!r}. Try --dtype and --store-dtype float32, or check the weights."
                )


def layouts(llava: Llava, examples: Sequence[Example], config: SweepConfig) -> list[Layout]:
    """Positions of image, question and answer in each example's unpadded prompt; no picture is opened."""
    blank = Picture("blank", lambda: Image.new("RGB", (8, 8)))
    found: list[Layout] = []
    with user_errors(ValueError):
        for start in range(0, len(examples), 256):  # bounds the size of the padded batch
            part = [examples[i] for i in range(start, min(start + 256, len(examples)))]
            bare = [replace(example, pictures=(blank,) * len(example.pictures)) for example in part]
            found.extend(prepare(llava, bare, preprocess=config.data.preprocess).layout)
    return found
