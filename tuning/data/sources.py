"""Sources of training conversations: LLaVA's own JSON, a table of questions, or the embedded scenes.

A source is read by index: ``LlavaFile`` keeps 16 bytes per sample and reads a sample on access, so the memory does not
grow with the size of ``llava_v1_5_mix665k.json``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.files import is_file
from tasks.readers.load_dataset import read_table
from tasks.readers.tables import Parquet, is_parquet
from tuning.data.conversation import Conversation, from_examples
from tuning.data.llava_json import LlavaFile, is_llava_jsonl
from tuning.data.scene_mix import SceneMix


@runtime_checkable
class Source(Protocol):
    """Conversations by index, and a digest of them."""

    name: str
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


class TableFile:
    """A JSONL or Parquet file with one question and answer a row (``tasks.readers.load_dataset.read_table``)."""

    def __init__(self, dataset: Dataset) -> None:
        """Use the examples of ``dataset``, each as a conversation of one turn."""
        self.name, self.digest = dataset.name, dataset.digest
        self._examples = dataset.examples
        if any(example.family == "all" for example in dataset.examples):
            raise UserError(f"family must not be 'all' in {dataset.name!r}: scores use it for all of them. Rename it.")

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Conversation:
        """The example as a conversation."""
        example = self._examples[index]
        unread = tuple(key for key in example.labels if key != "answer")
        return replace(from_examples([example]), unread=unread)


class Subset:
    """Some samples of a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        """Use the samples at ``indices``, counted from 0."""
        self.name = source.name
        self._source, self._indices = source, indices
        chosen = hashlib.sha256(json.dumps([int(i) for i in indices]).encode()).hexdigest()[:8]
        self.digest = f"{source.digest}-{chosen}"
        self.is_file = getattr(source, "is_file", False)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Conversation:
        """The sample."""
        return self._source[int(self._indices[index])]


def first_of(source: Source, n: int | None) -> Source:
    """The first ``n`` samples; the source itself if it has no more or ``n`` is None."""
    return source if n is None or n >= len(source) else Subset(source, range(n))


def spread_over(source: Source, n: int) -> Source:
    """``n`` samples at equal distances; the source itself if it has no more."""
    total = len(source)
    return source if n >= total else Subset(source, [index * total // n for index in range(n)])


def open_source(
    spec: str, images: Path | None = None, *, scenes: SceneMix | None = None, follow_links: bool = False
) -> Source:
    """Open the source that ``spec`` names.

    Args:
        spec: ``"scenes"``, a JSON, JSONL or Parquet file in LLaVA's layout, or a JSONL or Parquet file with columns
            ``question`` and ``answer``.
        images: Folder of the picture paths; the file's own folder if None.
        scenes: The source for ``"scenes"``; 4,000 scenes if None.
        follow_links: Whether links in the picture folder may lead out of it.

    Raises:
        UserError: If the file cannot be read.
    """
    if spec == "scenes":
        return scenes or SceneMix(4000)
    path = Path(spec)
    if is_llava(path):
        return LlavaFile(path, images, follow_links=follow_links)
    return TableFile(read_table(path, images, follow_links=follow_links))


def is_llava(path: Path) -> bool:
    """Whether a file has LLaVA's layout."""
    ending = path.suffix.lower()
    if is_parquet(path) and is_file(path):
        return "conversations" in Parquet(path).columns
    return ending == ".json" or (ending in (".jsonl", ".ndjson") and is_llava_jsonl(path))
