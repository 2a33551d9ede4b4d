"""Activations on disk: ``<root>/<site>/<shard>.safetensors``, one shard for a run of consecutive examples.

A shard is written under a temporary name, flushed to the disk and renamed, so a file that bears its name is whole:
a run that was killed goes on with the shards that are missing. Every shard has one writer (rank r of n owns the shards
r, r + n, ...), so any number of processes write without waiting for each other, and the files are the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.sites import Site
from records.manifest import write_atomically
from records.run import RESERVE, free_bytes
from tasks.errors import UserError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADROOM = 1.02  # safetensors headers and file-system blocks: below 2 % for shards of 20 kB and more
STORES = ("activations", "random_init")  # folders of a run directory: the model's, and the control model's


@dataclass(frozen=True, order=True)
class Shard:
    """The examples ``start`` to ``stop`` (exclusive), which are stored together."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        """The number of examples."""
        return self.stop - self.start


def plan_shards(n_examples: int, size: int) -> tuple[Shard, ...]:
    """Consecutive shards of ``size`` examples, the last one shorter where it must be."""
    if size < 1:
        raise UserError(f"size must be >= 1, got {size}. A shard holds at least one example.")
    starts = range(0, n_examples, size)
    return tuple(Shard(i, start, min(start + size, n_examples)) for i, start in enumerate(starts))


@dataclass(frozen=True)
class ActivationStore:
    """Pooled activations of ``n_examples`` examples by site and token group.

    Args:
        root: The folder that holds one folder for each site.
        n_examples: How many examples there are in all.
        shard_size: How many examples a shard holds.
    """

    root: Path
    n_examples: int
    shard_size: int

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, written or not."""
        return plan_shards(self.n_examples, self.shard_size)

    def path(self, site: Site, shard: Shard) -> Path:
        """The file of one site and shard."""
        return self.root / str(site) / f"{shard.index:05d}.safetensors"

    def is_committed(self, shard: Shard, sites: Iterable[Site], groups: Sequence[str]) -> bool:
        """Whether the shard is there for every site, with every token group."""
        return all(self._holds(self.path(site, shard), shard, groups) for site in sites)

    def missing(self, sites: Sequence[Site], groups: Sequence[str], *, rank: int = 0, world: int = 1) -> list[Shard]:
        """The shards that process ``rank`` of ``world`` owns and has still to write."""
        owned = (shard for shard in self.shards if shard.index % world == rank)
        return [shard for shard in owned if not self.is_committed(shard, sites, groups)]

    def write(self, shard: Shard, values: Mapping[Site, Mapping[str, Float[Tensor, "example d"]]]) -> None:
        """Commits one shard: a file for each site, holding one tensor for each token group.

        Raises:
            ValueError: If a tensor does not have one row for each example of the shard.
            UserError: If the disk is full or cannot be written; no partial file keeps its final name.
        """
        for site, groups in values.items():
            for group, rows in groups.items():
                if rows.ndim != 2 or rows.shape[0] != len(shard):
                    raise UserError(
                        f"rows must be {len(shard)} x d for shard {shard.index} of {site} ({group}), got "
                        f"{tuple(rows.shape)}. Pool and flatten before writing."
                    )
            path = self.path(site, shard)
            data = save({group: rows.detach().cpu().contiguous() for group, rows in groups.items()})
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
            except OSError as error:
                raise UserError(
                    f"activations must fit on the disk, got {error.strerror or error} at {str(path)!r}. "
                    "Free some space and start again: finished shards are kept."
                ) from error

    def read(self, site: Site, group: str) -> Float[Tensor, "example d"]:
        """The activations of all examples at one site, in the order of the examples, as stored.

        Raises:
            FileNotFoundError: If a shard is missing.
            UserError: If a shard is not whole.
        """
        parts = []
        for shard in self.shards:
            with self._opened(self.path(site, shard), group) as file:
                parts.append(file.get_tensor(group))
        return torch.cat(parts)

    def width(self, site: Site, group: str) -> int:
        """The length of one activation, by the first shard.

        Raises:
            FileNotFoundError: If the shard is missing.
            UserError: If it is not whole.
        """
        with self._opened(self.path(site, self.shards[0]), group) as file:
            return int(file.get_slice(group).get_shape()[1])

    @staticmethod
    @contextmanager
    def _opened(path: Path, group: str) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise UserError(
                f"shard must be a whole safetensors file with {group!r}, got {str(path)!r} ({error}). "
                "Delete the file and start again."
            ) from error

    @staticmethod
    def _holds(path: Path, shard: Shard, groups: Sequence[str]) -> bool:
        try:
            with safe_open(path, framework="pt") as file:
                present = set(file.keys())
                return set(groups) <= present and all(file.get_slice(g).get_shape()[0] == len(shard) for g in groups)
        except (OSError, SafetensorError):
            return False


@dataclass(frozen=True)
class SizeEstimate:
    """What a run stores, in bytes, what the disk has free, and what is there from before (kept or overwritten)."""

    activations: int
    free: int
    present: int = 0

    @property
    def fits(self) -> bool:
        """Whether the run leaves the disk with some room."""
        return self.activations - self.present + RESERVE <= self.free


def estimate_size(
    widths: Mapping[Site, int], *, n_rows: int, n_groups: int, dtype: torch.dtype, folder: Path
) -> SizeEstimate:
    """What storing ``n_rows`` examples takes.

    Args:
        widths: For each site the length of one pooled activation.
        n_rows: Examples, those of the control model counted again.
        n_groups: Token groups.
        dtype: As stored.
        folder: The run directory; it need not exist. Activations that it holds take no more room.
    """
    size = sum(widths.values()) * n_rows * n_groups * dtype.itemsize
    shards = [path for name in STORES for path in (folder / name).glob("*/*.safetensors")]
    return SizeEstimate(
        activations=int(size * _HEADROOM),
        free=free_bytes(folder),
        present=sum(path.stat().st_size for path in shards),
    )
