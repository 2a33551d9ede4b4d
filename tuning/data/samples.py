"""Samples ready to train on: surveyed once, grouped by modality, padded into batches.

``survey`` writes every sample as tokens once and keeps its length, so that what cannot be trained on is counted and
listed before a step is taken. ``Samples`` gives them one by one, ``collate`` pads, ``GroupedSampler`` orders.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from models.llava import Llava
from models.pixels import read_pixels
from records.manifest import write_atomically
from records.progress import OnProgress, silent
from tasks.errors import UserError
from tasks.example import Picture
from tuning.data.conversation import Conversation, UnusableSampleError
from tuning.data.labels import IGNORED, Encoded, encode
from tuning.data.prompt_format import PromptFormat
from tuning.data.sources import Source

FAILED = "failed"  # in place of a sample: why it could not be made
_SHOWN = 3  # samples named in a refusal
_MEGABATCHES = 50  # batches that are sorted by length together: enough to pad little, few enough to stay random


class Skipped(NamedTuple):
    """A sample that cannot be trained on, and why."""

    sample: int
    id: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """What one pass over a source found.

    Args:
        lengths: Tokens of each sample, image tokens included, after cutting; 0 for samples left out.
        pictured: Whether a sample shows a picture.
        learned: How many of its tokens are learned.
        cut: How many samples were cut to the longest length.
        skipped: Samples left out.
    """

    lengths: Int[np.ndarray, " sample"]
    pictured: Bool[np.ndarray, " sample"]
    learned: Int[np.ndarray, " sample"]
    cut: int
    skipped: tuple[Skipped, ...]

    @property
    def kept(self) -> Int[np.ndarray, " kept"]:
        """The samples that can be trained on."""
        return np.flatnonzero(self.lengths)

    def describe(self) -> str:
        """One line of counts."""
        kept = self.kept
        text = int((~self.pictured[kept]).sum())
        return (
            f"{len(kept):,} samples ({text:,} without a picture), {int(self.lengths[kept].sum()):,} tokens, "
            f"{int(self.learned.sum()):,} learned; {self.cut:,} cut, {len(self.skipped):,} left out"
        )


def survey(
    llava: Llava, source: Source, prompt_format: PromptFormat, *, on_progress: Callable[[int], None] | None = None
) -> Survey:
    """Every sample of ``source`` written once; pictures are looked for, not opened.

    Args:
        llava: Gives the tokenizer.
        source: The samples.
        prompt_format: How they become tokens.
        on_progress: Called after each sample with how many are done.

    Raises:
        UserError: If a picture's path leaves its folder.
    """
    n = len(source)
    lengths, learned = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    pictured = np.zeros(n, dtype=bool)
    skipped: list[Skipped] = []
    cut = 0
    for index in range(n):
        name = str(index)
        try:
            conversation = source[index]
            name = conversation.id
            encoded = _encode(llava, conversation, prompt_format)
        except UnusableSampleError as error:
            skipped.append(Skipped(index, error.sample or name, str(error)))
        else:
            lengths[index], pictured[index] = len(encoded), bool(conversation.pictures)
            learned[index] = int((encoded.labels != IGNORED).sum())
            cut += encoded.cut > 0
        if on_progress is not None:
            on_progress(index + 1)
    return Survey(lengths, pictured, learned, cut, tuple(skipped))


def survey_usable(
    llava: Llava,
    source: Source,
    prompt_format: PromptFormat,
    stage: str,
    on_progress: OnProgress = silent,
) -> Survey:
    """``survey``, which must find something; ``on_progress`` is told of ``stage``.

    Raises:
        UserError: If no sample can be used.
        UserError: As of ``survey``.
    """
    found = survey(llava, source, prompt_format, on_progress=lambda done: on_progress(stage, 1, len(source)))
    if not len(found.kept):
        raise UserError(
            f"data must have at least one sample that can be used, got none of {len(source)} in {source.name!r} "
            f"({found.skipped[0].reason}). Correct them."
        )
    return found


def skipped_error(skipped: Sequence[Skipped], name: str | None = None) -> UserError:
    """The error for samples that cannot be used, in the data called ``name``."""
    shown = "; ".join(f"{bad.id!r}: {bad.reason}" for bad in skipped[:_SHOWN])
    more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    where = "" if name is None else f" in {name!r}"
    return UserError(
        f"every sample must be one that can be used, got {len(skipped)} that cannot ({shown}{more}){where}. "
        "Correct them, or leave them out with --skip-bad."
    )


class Samples(Dataset[dict[str, Any]]):
    """The samples that a survey kept, each written and its pictures opened when it is asked for."""

    def __init__(self, llava: Llava, source: Source, found: Survey, prompt_format: PromptFormat) -> None:
        """``found`` must be the survey of ``source`` under ``prompt_format``."""
        self.source, self.prompt_format = source, prompt_format
        self.indices = found.kept
        self.lengths, self.pictured = found.lengths[self.indices], found.pictured[self.indices]
        self._llava = llava
        self._prefix: Callable[[int], Float[Tensor, "pos d_model"] | None] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.indices)

    def conversation(self, index: int) -> Conversation:
        """The words and pictures of a sample."""
        return self.source[int(self.indices[index])]

    def read_prefix(self, read: Callable[[int], Float[Tensor, "pos d_model"] | None]) -> None:
        """From now on ask ``read`` for a kept prefix first; where it has one, pictures are not opened."""
        self._prefix = read

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample as ``encoded``, ``pixels`` (one tensor a picture), ``sample`` (its index), maybe ``prefix``.

        In a worker of torch's loader an error of the data comes back as ``FAILED``: raised there, it would reach the
        reader inside a trace.
        """
        try:
            return self._item(index)
        except (UserError, OSError) as error:
            if get_worker_info() is None:
                raise
            return {FAILED: error}

    def _item(self, index: int) -> dict[str, Any]:
        conversation = self.conversation(index)
        encoded = _encode(self._llava, conversation, self.prompt_format)
        prefix = self._prefix(index) if self._prefix is not None else None
        pixels = [] if prefix is not None else [self._open(picture) for picture in conversation.pictures]
        return {"encoded": encoded, "pixels": pixels, "sample": index, "prefix": prefix}

    def _open(self, picture: Picture) -> Float[Tensor, "3 H W"]:
        return read_pixels(self._llava, picture, self.prompt_format.preprocess)


def _encode(llava: Llava, conversation: Conversation, prompt_format: PromptFormat) -> Encoded:
    limit = min(prompt_format.max_length, int(llava.config.text_config.max_position_embeddings))
    return encode(llava, conversation, recipe=prompt_format.recipe, max_length=limit, on_long=prompt_format.on_long)


def collate(rows: Sequence[dict[str, Any]], *, pad_id: int) -> dict[str, Any]:
    """Samples padded on the right into one batch of the Hugging Face model's arguments, and ``sample``, ``owner``.

    The mask has one row for each query where a sample's turns stand apart, else one value for each position.

    Args:
        rows: From ``Samples``.
        pad_id: The id at padded positions.
    """
    failed = next((row[FAILED] for row in rows if FAILED in row), None)
    if failed is not None:
        return {FAILED: failed, "labels": torch.empty(1, 0, dtype=torch.int64)}  # Trainer counts what is learned
    encoded: list[Encoded] = [row["encoded"] for row in rows]
    length = max(len(row) for row in encoded)

    def padded(name: str, filler: int) -> Tensor:
        out = torch.full((len(encoded), length), filler, dtype=torch.int64)
        for index, row in enumerate(encoded):
            out[index, : len(row)] = getattr(row, name)
        return out

    segments = padded("segments", -1)
    batch = {
        "input_ids": padded("ids", pad_id),
        "labels": padded("labels", IGNORED),
        "position_ids": padded("position_ids", 0),
        "attention_mask": _block_mask(segments) if (segments > 0).any() else (segments >= 0).to(torch.int64),
        "owner": padded("owner", -1),
        "sample": torch.tensor([row["sample"] for row in rows]),
    }
    pixels = [picture for row in rows for picture in row["pixels"]]
    if pixels:
        batch["pixel_values"] = torch.stack(pixels)
    prefixes = [row["prefix"] for row in rows]
    if all(prefix is not None for prefix in prefixes):
        kept = torch.zeros(len(rows), length, prefixes[0].shape[-1], dtype=prefixes[0].dtype)
        for index, prefix in enumerate(prefixes):
            kept[index, : len(prefix)] = prefix
        batch["prefix"] = kept
    elif any(prefix is not None for prefix in prefixes):
        raise RuntimeError("a batch must have all prefixes or none: read_prefix must answer for whole epochs")
    return batch


def _block_mask(segments: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch 1 query key"]:
    """0 where a query may look (earlier positions of the shared part and of its own turn, itself), else very low."""
    n = segments.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool).tril()
    key, query = segments[:, None, :], segments[:, :, None]
    seen = (earlier & ((key == 0) | (key == query))) | torch.eye(n, dtype=torch.bool)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


class GroupedSampler(Sampler[int]):
    """A fresh order each epoch, a function of seed and epoch alone, so that plans and resumed runs see the same data.

    Grouped by modality: no group of ``group`` samples in a row mixes samples with and without a picture (but for the
    last), and samples of like length stand together, which saves LLaVA about a quarter of its time.

    Source: ``group_by_modality_length`` of Liu et al. 2024, arXiv 2310.03744.
    """

    def __init__(
        self, samples: Samples, *, group: int, seed: int, by_modality: bool = True, even: bool = False
    ) -> None:
        """Describes the order.

        Args:
            samples: What is ordered.
            group: Samples of one optimizer step, over all processes.
            seed: Of the order.
            by_modality: Whether groups are of one modality.
            even: Leave out the last samples of an epoch that fill no group of one modality. Processes that share the
                weights (FSDP) must all see pictures or none, or they wait for each other forever.
        """
        self._lengths, self._pictured = samples.lengths, samples.pictured
        self._group, self._seed, self._by_modality, self._even = group, seed, by_modality, even
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of samples."""
        if not self._even:
            return len(self._lengths)
        counts = int(self._pictured.sum()), int((~self._pictured).sum())
        return sum(count // self._group * self._group for count in counts)

    def __iter__(self) -> Iterator[int]:
        """The indices of one epoch."""
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(len(self._lengths))
        if not self._by_modality and not self._even:
            yield from (int(i) for i in order)
            return
        groups: list[np.ndarray[Any, Any]] = []
        rest: list[np.ndarray[Any, Any]] = []
        for kind in (True, False):
            own = order[self._pictured[order] == kind]
            for start in range(0, len(own), self._group * _MEGABATCHES):
                mega = own[start : start + self._group * _MEGABATCHES]
                by_length = mega[np.argsort(-self._lengths[mega], kind="stable")]
                full = len(by_length) // self._group * self._group
                # What fills no group, the shortest of them, comes last
                groups += [by_length[i : i + self._group] for i in range(0, full, self._group)]
                rest.append(by_length[full:])
        for index in rng.permutation(len(groups)):
            yield from (int(i) for i in groups[int(index)])
        if not self._even:
            yield from (int(i) for part in rest for i in part)


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """The samples left out, as a table of sample (its place, from 0), id and reason."""
    import pandas as pd

    table = pd.DataFrame(list(skipped), columns=list(Skipped._fields))
    write_atomically(path, table.to_csv(index=False).encode())
