"""Training samples: surveyed once, ordered by modality, padded into batches.

``survey`` tokenises every sample once and keeps its length, so that samples that cannot be used are counted and listed
before the first step. ``Samples`` returns them by index, ``collate`` pads them.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from models.llava import Llava
from models.pixels import read_pixels
from records.manifest import commit
from records.progress import OnProgress, silent
from tasks.errors import UserError, printable
from tasks.example import Picture
from tasks.readers.media import describe_unread
from tuning.data.conversation import Conversation, UnusableSampleError
from tuning.data.labels import IGNORED, Encoded, encode, measure
from tuning.data.prompt_format import PromptFormat
from tuning.data.sources import Source
from tuning.data.stored_lengths import StoredLengths

FAILED = "failed"  # key of the error in place of a sample
_SHOWN = 3  # samples named in an error message
_KEPT_EVERY = 20.0  # seconds
_SURVEYED = 256  # samples tokenised together: enough to use every core, few enough for memory


class Skipped(NamedTuple):
    """A sample that cannot be used."""

    sample: int
    id: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """Lengths of all samples of a source, and the samples that cannot be used.

    Args:
        lengths: Tokens of each sample, image tokens included, after cutting; 0 for samples left out.
        pictured: Whether each sample has a picture.
        labelled: Labelled tokens of each sample.
        cut: Number of samples cut to the longest length.
        skipped: Samples left out.
        unread: The keys of the file that are not read, with the number of samples that have them.
    """

    lengths: Int[np.ndarray, " sample"]
    pictured: Bool[np.ndarray, " sample"]
    labelled: Int[np.ndarray, " sample"]
    cut: int
    skipped: tuple[Skipped, ...]
    unread: tuple[tuple[str, int], ...] = ()

    @property
    def kept(self) -> Int[np.ndarray, " kept"]:
        """Indices of the samples that can be used."""
        return np.flatnonzero(self.lengths)

    def describe(self) -> str:
        """Counts in one line."""
        kept = self.kept
        text = int((~self.pictured[kept]).sum())
        return (
            f"{len(kept):,} samples ({text:,} without a picture), {int(self.lengths[kept].sum()):,} tokens, "
            f"{int(self.labelled.sum()):,} labelled; {self.cut:,} cut, {len(self.skipped):,} left out"
            + (f"; {self.describe_unread()}" if self.unread else "")
        )

    def describe_unread(self) -> str:
        """The keys of the file that are not read, in one line; empty if all are."""
        return describe_unread(self.unread)


def survey(
    llava: Llava, source: Source, prompt_format: PromptFormat, *, on_progress: Callable[[int], None] | None = None
) -> Survey:
    """Tokenise every sample of ``source`` once. Pictures must exist; they are not opened.

    Args:
        llava: Its tokenizer is used.
        source: The samples.
        prompt_format: How samples become tokens.
        on_progress: Called after each sample with the number done.

    Raises:
        UserError: If a picture's path leaves its folder.
    """
    n = len(source)
    is_file = getattr(source, "is_file", False)  # other digests may be given by the user
    stored = StoredLengths(llava, source.digest if is_file else None, n, prompt_format)
    table = stored.table
    pictured = np.zeros(n, dtype=bool)
    skipped: dict[int, Skipped] = {}
    unread: Counter[str] = Counter()
    found_all, saved = True, time.monotonic()
    with closing(_read_ahead(source)) as ahead:
        for indices, read in ahead:
            unmeasured: dict[int, Conversation] = {}
            for index, conversation in zip(indices, read, strict=True):
                if isinstance(conversation, UnusableSampleError):
                    skipped[index] = Skipped(index, conversation.sample or str(index), str(conversation))
                    continue
                pictured[index] = bool(conversation.pictures)
                unread.update(conversation.unread)
                if not table[index, 0]:
                    unmeasured[index] = conversation
            if unmeasured:
                longest = _longest(llava, prompt_format)
                sizes = measure(
                    llava,
                    list(unmeasured.values()),
                    recipe=prompt_format.recipe,
                    max_length=longest,
                    on_long=prompt_format.on_long,
                )
                for (index, conversation), size in zip(unmeasured.items(), sizes, strict=True):
                    if isinstance(size, UnusableSampleError):
                        skipped[index] = Skipped(index, conversation.id, str(size))
                    else:
                        table[index] = size
                        found_all = False
                if time.monotonic() > saved + _KEPT_EVERY:  # a survey that is stopped goes on here
                    stored.save()
                    saved = time.monotonic()
            if on_progress is not None:
                for index in indices:
                    on_progress(index + 1)
    if not found_all:
        stored.save()
    lengths, labelled, cut = table.copy().T
    left_out = sorted(skipped)
    for column in (lengths, labelled, cut, pictured):
        column[left_out] = 0
    reasons = tuple(skipped[index] for index in left_out)
    return Survey(lengths, pictured, labelled, int(cut.sum()), reasons, tuple(unread.most_common()))


def _read_ahead(source: Source) -> Generator[tuple[range, list[Conversation | UnusableSampleError]]]:
    """All samples in parts of ``_SURVEYED``; the next part is read while the caller works on one."""

    def read(indices: range) -> list[Conversation | UnusableSampleError]:
        found: list[Conversation | UnusableSampleError] = []
        for index in indices:
            if stopped.is_set():
                break
            try:
                found.append(source[index])
            except UnusableSampleError as error:
                found.append(error.with_traceback(None))  # a traceback would hold the list that holds the error
        return found

    stopped = Event()
    parts = [range(start, min(len(source), start + _SURVEYED)) for start in range(0, len(source), _SURVEYED)]
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, indices) for indices in parts[:1]]
        try:
            for number, indices in enumerate(parts, 1):
                found = waiting.pop().result()
                waiting += [pool.submit(read, following) for following in parts[number : number + 1]]
                yield indices, found
        finally:
            stopped.set()


def survey_usable(
    llava: Llava,
    source: Source,
    prompt_format: PromptFormat,
    stage: str,
    on_progress: OnProgress = silent,
) -> Survey:
    """``survey`` with at least one usable sample; ``on_progress`` is called with ``stage``.

    Raises:
        UserError: If no sample can be used; also those of ``survey``.
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
    """The usable samples of a survey; each is tokenised and its pictures are opened on access."""

    def __init__(self, llava: Llava, source: Source, survey: Survey, prompt_format: PromptFormat) -> None:
        """Use the usable samples of ``survey``, the survey of ``source`` under ``prompt_format``."""
        self.source, self.prompt_format = source, prompt_format
        self.indices = survey.kept
        self.lengths, self.pictured = survey.lengths[self.indices], survey.pictured[self.indices]
        self._llava = llava
        self._prefix: Callable[[int], Float[Tensor, "pos d_model"] | None] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.indices)

    def conversation(self, index: int) -> Conversation:
        """The conversation of a sample."""
        return self.source[int(self.indices[index])]

    def read_prefix(self, read: Callable[[int], Float[Tensor, "pos d_model"] | None]) -> None:
        """Use the stored prefixes that ``read`` returns from now on; samples that have one do not open pictures."""
        self._prefix = read

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample as ``encoded``, ``pixels`` (one tensor a picture), ``sample`` (its index), maybe ``prefix``.

        In a worker process of the loader an error is returned under ``FAILED``: raised there, its message would be
        wrapped in a traceback.
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
    limit = _longest(llava, prompt_format)
    return encode(llava, conversation, recipe=prompt_format.recipe, max_length=limit, on_long=prompt_format.on_long)


def _longest(llava: Llava, prompt_format: PromptFormat) -> int:
    return min(prompt_format.max_length, int(llava.config.text_config.max_position_embeddings))


def collate(rows: Sequence[dict[str, Any]], *, pad_id: int) -> dict[str, Any]:
    """One batch of model arguments, padded on the right, with ``sample`` and ``owner``.

    The mask has one row per query if a sample's turns are separate, else one value per position.

    Args:
        rows: Items of ``Samples``.
        pad_id: Token id of the padding.
    """
    failed = next((row[FAILED] for row in rows if FAILED in row), None)
    if failed is not None:
        return {FAILED: failed}
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
        "attention_mask": block_mask(segments) if (segments > 0).any() else (segments >= 0).to(torch.int64),
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
        raise RuntimeError("a batch must have all prefixes or none: read_prefix must return them for whole epochs")
    return batch


def block_mask(segments: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch 1 query key"]:
    """0 where a query attends (itself, earlier positions of shared part and turn), else a large negative number."""
    n = segments.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=segments.device).tril()
    key, query = segments[:, None, :], segments[:, :, None]
    seen = (earlier & ((key == 0) | (key == query))) | torch.eye(n, dtype=torch.bool, device=segments.device)
    return torch.zeros(seen.shape, device=segments.device).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write the samples left out as a table with columns sample (index from 0), id and reason."""
    import pandas as pd

    rows = [bad._replace(id=printable(bad.id), reason=printable(bad.reason)) for bad in skipped]
    table = pd.DataFrame(rows, columns=list(Skipped._fields))
    commit(path, table.to_csv(index=False).encode())
