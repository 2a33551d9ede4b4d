"""Activations on disk: ``<root>/<site>/<shard>.safetensors``, with consecutive examples in each shard.

A shard is written to a temporary file, flushed and renamed, so every shard on disk is complete and a killed run
continues with the missing ones. Its checksum is checked when it is read again, and a damaged one counts as missing.
Each shard has one writer, so processes need no locks and write the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.sites import Site
from records.manifest import commit
from records.run import free_bytes, write_error
from tasks.checksums import check_whole, is_whole
from tasks.errors import UserError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADROOM = 1.02  # safetensors headers and file-system blocks add less than 2 % to shards of 20 kB or more
FOLDERS = {"image": "activations", "caption": "caption_activations"}  # the folder of each condition in a run directory
RANDOM = {"image": "random_init", "caption": "caption_random_init"}  # the same for the randomly initialised model
STORES = (*FOLDERS.values(), *RANDOM.values())
POSITIONS = "positions"  # beside the sites' folders: the place of every token, without pooling


@dataclass(frozen=True, order=True)
class Shard:
    """The examples ``start`` to ``stop`` (exclusive), stored in one file for each site."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        """The number of examples."""
        return self.stop - self.start


def plan_shards(n_examples: int, size: int) -> tuple[Shard, ...]:
    """Consecutive shards of ``size`` examples; the last one may be shorter."""
    if size < 1:
        raise UserError(f"size must be >= 1, got {size}. A shard holds at least one example.")
    starts = range(0, n_examples, size)
    return tuple(Shard(i, start, min(start + size, n_examples)) for i, start in enumerate(starts))


@dataclass(frozen=True)
class ActivationStore:
    """Activations by site and token group: pooled, or one row for each token."""

    root: Path
    """The folder with one folder for each site."""
    n_examples: int
    shard_size: int
    ragged: bool = False
    """True for one row a token: a shard has any number of rows, and `POSITIONS` says which token each is."""

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, including those not yet written."""
        return plan_shards(self.n_examples, self.shard_size)

    def path(self, site: Site | str, shard: Shard) -> Path:
        """The file of one site and shard."""
        return self.root / str(site) / f"{shard.index:05d}.safetensors"

    def missing(
        self, sites: Iterable[Site | str], groups: Sequence[str], *, rank: int = 0, world: int = 1
    ) -> list[Shard]:
        """The shards of process ``rank`` of ``world`` that are not complete for every site and its token groups."""
        owned = (shard for shard in self.shards if shard.index % world == rank)
        names: list[Site | str] = [*sites, POSITIONS] if self.ragged else [*sites]
        return [s for s in owned if not all(self._holds(site, s, groups_at(site, groups)) for site in names)]

    def damaged(self, sites: Iterable[Site | str], shards: Sequence[Shard]) -> list[Path]:
        """The files among these that exist and are not as they were written."""
        names: list[Site | str] = [*sites, POSITIONS] if self.ragged else [*sites]
        files = (self.path(site, shard) for shard in shards for site in names)
        return [path for path in files if path.is_file() and not is_whole(path)]

    def write(self, shard: Shard, values: Mapping[Site | str, Mapping[str, Shaped[Tensor, "row d"]]]) -> None:
        """Write one shard: a file for each site, with one tensor for each token group.

        Raises:
            UserError: If a tensor does not have one row for each example, or the disk is full or cannot be written.
        """
        for site, groups in values.items():
            for group, rows in groups.items():
                if rows.ndim != 2 or (rows.shape[0] != len(shard) and not self.ragged):
                    raise UserError(
                        f"rows must be {len(shard)} x d for shard {shard.index} of {site} ({group}), got "
                        f"{tuple(rows.shape)}. Pool and flatten before writing."
                    )
            path = self.path(site, shard)
            data = save({group: rows.detach().cpu().contiguous() for group, rows in groups.items()})
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                commit(path, data)
            except OSError as error:
                raise write_error(error, path) from error

    def read(self, site: Site, group: str) -> Float[Tensor, "example d"]:
        """The activations of all examples at a site, in their order and dtype; ``UserError`` if a shard is damaged."""
        parts = []
        for shard in self.shards:
            with _opened(self.path(site, shard), group) as file:
                parts.append(file.get_tensor(group))
        return torch.cat(parts)

    def width(self, site: Site, group: str) -> int:
        """The length of one activation, from the first shard; raises as `read`."""
        with _opened(self.path(site, self.shards[0]), group) as file:
            return int(file.get_slice(group).get_shape()[1])

    def _holds(self, site: Site | str, shard: Shard, groups: Sequence[str]) -> bool:
        """True if the file is as it was written and has every token group of the shard."""
        if not is_whole(self.path(site, shard)):
            return False
        try:
            with safe_open(self.path(site, shard), framework="pt") as file:
                if not set(groups) <= set(file.keys()):
                    return False
                return self.ragged or all(file.get_slice(g).get_shape()[0] == len(shard) for g in groups)
        except (OSError, SafetensorError):
            return False


def groups_at(site: Site | str, groups: Sequence[str]) -> tuple[str, ...]:
    """The token groups that exist at a site: the vision tower and the projector have image tokens only."""
    everywhere = not isinstance(site, Site) or site.part == "language_model"
    return tuple(group for group in groups if everywhere or group in ("image", "object"))


@contextmanager
def _opened(path: Path, group: str) -> Iterator[Any]:
    check_whole(path, advice="Start the same command again: it is captured anew.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"shard must be a complete safetensors file with {group!r}, got {str(path)!r} ({error}). "
            "Delete the file and start again."
        ) from error


class SizeEstimate(NamedTuple):
    """Bytes of a run's activations."""

    activations: int
    """Bytes of all activations."""
    free: int
    """Free bytes on the disk."""
    present: int
    """Bytes that the run has stored already."""

    @property
    def missing(self) -> int:
        """Bytes still to be written."""
        return self.activations - self.present


def estimate_size(
    widths: Mapping[Site, int], *, n_rows: int, n_groups: int, dtype: torch.dtype, folder: Path
) -> SizeEstimate:
    """Bytes of stored activations.

    ``widths`` are the lengths of one pooled activation by site; ``n_rows`` counts examples, including the control
    model's.
    """
    return size_of(sum(widths.values()) * n_rows * n_groups, dtype=dtype, folder=folder)


def size_of(n_values: int, *, dtype: torch.dtype, folder: Path) -> SizeEstimate:
    """Bytes of ``n_values`` stored numbers, beside those that ``folder`` has already."""
    size = n_values * dtype.itemsize
    shards = [path for name in STORES for path in (folder / name).glob("*/*.safetensors")]
    return SizeEstimate(int(size * _HEADROOM), free_bytes(folder), sum(path.stat().st_size for path in shards))
