"""Lengths of samples, kept on disk: tokenising LLaVA's 665,000 samples takes minutes, and the next run needs the same.

The file's name covers the data, the tokenizer and the prompt format, its contents carry a checksum. It is a cache: it
may be deleted at any time, and where it cannot be written or read the samples are tokenised again.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors
from jaxtyping import Int
from safetensors.numpy import load_file, save

from models.llava import Llava
from models.loading.smol import cache_folder
from records.manifest import write_atomically
from tuning.data.prompt_format import PromptFormat

SMALLEST = 5000  # samples; fewer are tokenised in seconds
_FORMAT = 2  # changes with the rules of labels

Table = Int[np.ndarray, "sample 3"]  # tokens, labelled tokens, 1 if cut; zeros for a sample that is not measured


class StoredLengths:
    """The table of lengths of one data set for one tokenizer and prompt format."""

    def __init__(self, llava: Llava, digest: str | None, n: int, prompt_format: PromptFormat) -> None:
        """Read the table, or begin an empty one.

        Args:
            llava: Its tokenizer and number of image tokens decide the lengths.
            digest: Of the file; None for other data, whose lengths are not kept.
            n: Number of samples.
            prompt_format: How samples become tokens.
        """
        self._path: Path | None = None
        self.table: Table = np.zeros((n, 3), dtype=np.int64)
        if digest is None or n < SMALLEST:
            return
        limits = [llava.n_image_tokens, llava.image_token_id, llava.config.text_config.max_position_embeddings]
        tokenizer = hashlib.sha256(llava.tokenizer._tokenizer.to_str().encode()).hexdigest()
        described = [_FORMAT, digest, n, asdict(prompt_format), limits, tokenizer, llava.tokenizer.eos_token]
        name = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]
        self._path = cache_folder() / "lengths" / f"{name}.safetensors"
        found = _read(self._path)
        if found is not None and found.shape == self.table.shape:
            self.table = found

    def save(self) -> None:
        """Write the table; a folder that cannot be written is passed over."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, save({"lengths": self.table}, {"sha256": _checksum(self.table)}))


def _read(path: Path) -> Table | None:
    """The table of a file; None if there is none, or its bytes changed."""
    try:
        with safetensors.safe_open(path, "np") as file:
            expected = (file.metadata() or {}).get("sha256")
        table: Table = load_file(path)["lengths"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
    return table if _checksum(table) == expected else None


def _checksum(table: Table) -> str:
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()
