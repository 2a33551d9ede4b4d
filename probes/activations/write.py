"""Write activations that were made elsewhere as a run directory that every command reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from models.sites import Site
from probes.activations.config import CAPTURE
from probes.activations.open import EXAMPLES, TOKEN_COLUMNS, ActivationSet, open_activations
from probes.activations.store import FOLDERS, POSITIONS
from records.manifest import commit, new_manifest, write_manifest
from records.run import writing
from tasks.errors import UserError

Arrays = Mapping[str, Mapping[str, Mapping[str, npt.NDArray[Any]]]]


def write_activations(
    folder: Path,
    arrays: Arrays,
    examples: pd.DataFrame,
    manifest: Mapping[str, Any] | None = None,
    *,
    token_rows: Mapping[str, Mapping[str, pd.DataFrame]] | None = None,
    shard: int = 64,
) -> ActivationSet:
    """Write arrays as the run directory of ``capture-activations`` and open it.

    Args:
        folder: The new run directory; an existing one is overwritten.
        arrays: By condition (``image``, ``caption``), then site (full name), then token group: ``example d_model``, or
            ``token d_model`` with ``token_rows``. Floating-point types are kept.
        examples: One row for each example, at least the column ``id``.
        manifest: Entries to add to the manifest, such as ``model`` and ``data``.
        token_rows: Without pooling: by condition and token group, the columns ``example``, ``position``, ``row`` and
            ``column`` of every row of the arrays, sorted by example.
        shard: Number of examples in a file.

    Raises:
        UserError: If a name is unknown, or an array has another number of rows.

    Example:
        >>> import tempfile
        >>> values = {"image": {"blocks.0.hook_resid_post": {"last": np.ones((2, 4), np.float32)}}}
        >>> made = write_activations(Path(tempfile.mkdtemp()), values, pd.DataFrame({"id": ["a", "b"]}))
        >>> made.conditions, len(made)
        (('image',), 2)
    """
    unknown = set(arrays) - FOLDERS.keys()
    if unknown or not arrays:
        raise UserError(f"arrays must have the conditions {', '.join(FOLDERS)}, got {sorted(arrays)}.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for condition, by_site in arrays.items():
            root = folder / FOLDERS[condition]
            for site, by_group in by_site.items():
                Site.parse(site)
                for start in range(0, len(examples), shard):
                    values = {}
                    for group, rows in by_group.items():
                        place = _place(token_rows, condition, group, len(examples), len(rows))
                        inside = (place >= start) & (place < start + shard)
                        values[group] = torch.from_numpy(np.array(rows[inside], order="C"))
                    _write(root / site, start // shard, values)
            for start in range(0, len(examples) if token_rows else 0, shard):
                values = {}
                for group, table in (token_rows or {}).get(condition, {}).items():
                    chosen = table.loc[table["example"].between(start, start + shard - 1), list(TOKEN_COLUMNS)]
                    values[group] = torch.from_numpy(np.array(chosen, dtype=np.int32, order="C"))
                _write(root / POSITIONS, start // shard, values)
        commit(folder / EXAMPLES, examples.to_parquet(index=False))
        entries = dict(manifest or {})
        settings = {"pool": "none" if token_rows else "mean", **entries.pop("settings", {})}
        write_manifest(folder, {**new_manifest(CAPTURE, settings), **entries})
    return open_activations(folder)


def _place(
    token_rows: Mapping[str, Mapping[str, pd.DataFrame]] | None, condition: str, group: str, n: int, n_rows: int
) -> npt.NDArray[np.int64]:
    """The example of each row of an array, checked."""
    place = np.arange(n)
    if token_rows:
        place = token_rows[condition][group]["example"].to_numpy(dtype=np.int64)
    if len(place) != n_rows or (np.diff(place) < 0).any():
        raise UserError(
            f"arrays must have {len(place)} rows in the order of the examples, got {n_rows} for {group!r} tokens of "
            f"condition {condition!r}."
        )
    return place


def _write(folder: Path, number: int, values: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    commit(folder / f"{number:05d}.safetensors", save(dict(values)))
