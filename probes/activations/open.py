"""Read the activations of a finished run: lazily, memory-mapped, with rows that match ``examples.parquet``.

    activations = open_activations("runs/smol-activations")
    x = activations.numpy("blocks.12.hook_resid_post", "image")                # example d_model, float32
    y = activations.numpy("blocks.12.hook_resid_post", "caption", "caption")   # of the captions of the same examples

A run stores one folder for each condition (``image``: the question about the picture; ``caption``: the same question
about the caption), in it one folder for each site, in it shards of consecutive examples with one tensor for each token
group. Without pooling, the folder ``positions`` of a condition stores the example, position, patch row and patch column
of every token.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.sites import Site
from probes.activations.config import CAPTURE
from probes.activations.store import FOLDERS, POSITIONS, RANDOM, groups_at
from probes.config import RUN
from records.manifest import FILE
from tasks.checksums import check_whole
from tasks.errors import UserError
from tasks.readers.parse import parse_json

_KINDS = (CAPTURE.kind, RUN.kind)  # of manifests

EXAMPLES = "examples.parquet"
_AGAIN = "Start the command that wrote it again: its examples are captured anew."
TOKEN_COLUMNS = ("example", "position", "row", "column")


@dataclass(frozen=True, eq=False)
class ActivationSet:
    """The stored activations of a run. Nothing is read before it is asked for.

    Example:
        >>> import tempfile
        >>> from probes.activations.write import write_activations
        >>> folder = Path(tempfile.mkdtemp())
        >>> values = {"image": {"blocks.0.hook_resid_post": {"last": np.ones((3, 4), np.float32)}}}
        >>> stored = write_activations(folder, values, pd.DataFrame({"id": ["a", "b", "c"]}))
        >>> stored.sites, stored.numpy("blocks.0.hook_resid_post", "last").shape
        (('blocks.0.hook_resid_post',), (3, 4))
    """

    folder: Path
    """The run directory."""
    manifest: Mapping[str, Any] = field(repr=False)
    """The manifest of the run: its settings, model, data and versions."""
    examples: pd.DataFrame = field(repr=False)
    """One row for each example, in the order of the arrays."""
    pool: str
    """How tokens became one activation; ``none`` for every token."""
    sites: tuple[str, ...]
    """The full names of the stored sites, in the order of the forward pass."""
    conditions: tuple[str, ...]
    """``image``, ``caption`` or both."""
    tokens_of: Mapping[str, tuple[str, ...]] = field(repr=False)
    """The token groups of each condition."""
    folders: Mapping[str, str] = field(repr=False)
    """The folder of each condition."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token groups of all conditions."""
        return tuple(dict.fromkeys(group for condition in self.conditions for group in self.tokens_of[condition]))

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.manifest.get("settings", {}).get("model") or self.manifest.get("model", {}).get("id", "model"))

    @property
    def model_id(self) -> str:
        """The name of the model with a hash of its weights: equal for two runs of one model."""
        model = self.manifest.get("model", {})
        return f"{model.get('id', self.model)}@{model.get('weight_hash')}"

    @property
    def digest(self) -> str:
        """A hash of what decides the activations, so that a run on others is not resumed."""
        decides = {key: self.manifest.get(key) for key in ("settings", "model", "data", "versions")}
        text = json.dumps([decides, list(self.examples["id"].astype(str))], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    @cached_property
    def random_init(self) -> "ActivationSet | None":
        """The activations of the randomly initialised model, if the run has them.

        A probe sweep stores the fitted examples only; these come first, and ``examples`` holds them alone.
        """
        return _open(self.folder, dict(self.manifest), self.examples, self.pool, RANDOM)

    def tensor(self, site: Site | str, tokens: str, condition: str = "image") -> Float[Tensor, "row d_model"]:
        """The activations at a site, in the stored floating-point type.

        Args:
            site: A stored site or its full name.
            tokens: A stored token group.
            condition: ``image`` or ``caption``.

        Returns:
            One row for each example, in the order of ``examples``; without pooling one for each token, in the order of
            ``token_rows``.

        Raises:
            UserError: If the run lacks the site, the tokens or the condition, or a shard is damaged.
        """
        return torch.cat(list(self.shards(site, tokens, condition)))

    def shards(self, site: Site | str, tokens: str, condition: str = "image") -> Iterator[Float[Tensor, "row d_model"]]:
        """The rows of ``tensor``, shard by shard, for work that holds one shard in memory; raises as ``tensor``."""
        self._check(str(site), tokens, condition)
        paths = _shard_paths(self.folder / self.folders[condition] / str(site))
        if not paths or tokens not in groups_at(Site.parse(str(site)), self.tokens_of[condition]):
            raise UserError(
                f"site must be one that the run {str(self.folder)!r} has for {tokens!r} tokens of the condition "
                f"{condition!r}, got {str(site)!r}. The vision tower and the projector have image tokens only."
            )
        for path in paths:
            yield _read(path, tokens)

    def numpy(self, site: Site | str, tokens: str, condition: str = "image") -> Float32[np.ndarray, "row d_model"]:
        """The rows of ``tensor`` as float32; raises as ``tensor``."""
        rows: npt.NDArray[np.float32] = self.tensor(site, tokens, condition).to(torch.float32).numpy()
        return rows

    def token_rows(self, tokens: str, condition: str = "image") -> pd.DataFrame:
        """The place of every token, one row for each row of ``tensor``.

        Returns:
            ``example`` (row of ``examples``), ``position`` (in the unpadded prompt, from 0), and ``row`` and ``column``
            in the patch grid, -1 for tokens that are no patch.

        Raises:
            UserError: If the tokens were pooled, or the run lacks the tokens or the condition.
        """
        if self.pool != "none":
            raise UserError(f"pool must be none for the place of each token, got {self.pool!r}. Capture with none.")
        self._check(None, tokens, condition)
        places = [_read(path, tokens) for path in _shard_paths(self.folder / self.folders[condition] / POSITIONS)]
        return pd.DataFrame(torch.cat(places).numpy().astype(np.int64), columns=list(TOKEN_COLUMNS))

    def to_pandas(self, site: Site | str, tokens: str, condition: str = "image") -> pd.DataFrame:
        """The examples, or tokens without pooling, with the columns of ``examples`` and one for each dimension.

        Dimensions are the columns 0, 1, ...; raises as ``tensor``.
        """
        values = pd.DataFrame(self.numpy(site, tokens, condition))
        rows = self.examples
        if self.pool == "none":
            place = self.token_rows(tokens, condition)
            rows = self.examples.iloc[place["example"]].reset_index(drop=True)
            rows = pd.concat([rows.drop(columns=["example"], errors="ignore"), place], axis=1)
        return pd.concat([rows, values], axis=1)

    def to_dataset(self, site: Site | str, tokens: str, condition: str = "image") -> Any:
        """A Hugging Face ``datasets.Dataset``: the columns of ``to_pandas`` with ``activation``, one list a row.

        Raises:
            UserError: As ``tensor``, and if the package ``datasets`` is missing.
        """
        try:
            from datasets import Dataset
        except ImportError as error:
            raise UserError(
                "datasets must be installed for to_dataset, got none. Run pip install 'laccolith[datasets]'."
            ) from error
        table = self.to_pandas(site, tokens, condition)
        rows = table[[name for name in table.columns if isinstance(name, str)]]
        made = Dataset.from_pandas(rows, preserve_index=False)
        return made.add_column("activation", list(self.numpy(site, tokens, condition)))

    def _check(self, site: str | None, tokens: str, condition: str) -> None:
        for argument, value, known in (
            ("condition", condition, self.conditions),
            ("site", site, self.sites),
            ("tokens", tokens, self.tokens_of.get(condition, ())),
        ):
            if value is not None and value not in known:
                raise UserError(
                    f"{argument} must be one that the run {str(self.folder)!r} has, got {value!r}. "
                    f"It has: {', '.join(known)}."
                )


def open_activations(run: Path | str) -> ActivationSet:
    """The activations in the run directory of ``capture-activations`` or ``probe-sweep``.

    Raises:
        UserError: If the folder is no run directory, or has no complete activations.

    Example:
        >>> import tempfile
        >>> from probes.activations.write import write_activations
        >>> values = {"image": {"blocks.0.hook_resid_post": {"last": np.ones((2, 4), np.float32)}}}
        >>> made = write_activations(Path(tempfile.mkdtemp()), values, pd.DataFrame({"id": ["a", "b"]}))
        >>> open_activations(made.folder).tokens
        ('last',)
    """
    folder = Path(run)
    check_whole(folder / EXAMPLES, advice="Start the command that wrote it again: it is made anew.")
    try:
        manifest = parse_json((folder / FILE).read_bytes())
        examples = pd.read_parquet(folder / EXAMPLES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"activations must be the folder of a run of capture-activations or probe-sweep, got {str(folder)!r} "
            f"({error}). Check the path."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") not in _KINDS or "id" not in examples:
        raise UserError(
            "activations must have a manifest of capture-activations or probe-sweep and examples with the column id, "
            f"got {str(folder)!r} without. Capture again."
        )
    pool = str(manifest.get("settings", {}).get("pool", "mean"))
    found = _open(folder, manifest, examples, pool, FOLDERS)
    if found is None:
        raise UserError(f"activations must be stored in the run, got none in {str(folder)!r}. Capture them first.")
    return found


def _open(
    folder: Path, manifest: dict[str, Any], examples: pd.DataFrame, pool: str, folders: Mapping[str, str]
) -> ActivationSet | None:
    """The set in the given folders, with its sites and token groups read from the disk; None if there is none."""
    conditions = tuple(condition for condition, name in folders.items() if (folder / name).is_dir())
    if not conditions:
        return None
    tokens: dict[str, tuple[str, ...]] = {}
    sites: set[Site] = set()
    n_rows = {}
    for condition in conditions:
        root = folder / folders[condition]
        here = sorted(Site.parse(path.name) for path in root.iterdir() if path.is_dir() and path.name != POSITIONS)
        if not here:
            raise UserError(f"activations must have a site, got none in {str(root)!r}. Resume the capture.")
        sites.update(here)
        n_rows[condition], tokens[condition] = _contents(root / str(here[-1]))
        if pool == "none":
            places = [
                _read(path, group)[:, 0] for path in _shard_paths(root / POSITIONS) for group in tokens[condition]
            ]
            n_rows[condition] = len(torch.cat(places).unique()) if places else 0
    expected = len(examples)
    if folders is RANDOM:  # holds the examples to fit on, which come first
        expected = int(examples["fitted"].sum()) if "fitted" in examples else max(n_rows.values())
    if set(n_rows.values()) != {expected}:
        raise UserError(
            f"activations must be complete, got {min(n_rows.values())} of {expected} examples in {str(folder)!r}. "
            "Resume the run that writes them."
        )
    examples = examples.iloc[:expected]
    names = tuple(str(site) for site in sorted(sites))
    return ActivationSet(folder, manifest, examples, pool, names, conditions, tokens, dict(folders))


def _contents(folder: Path) -> tuple[int, tuple[str, ...]]:
    """The number of rows of a site, and the token groups of its shards."""
    n, groups = 0, dict[str, None]()
    for path in _shard_paths(folder):
        check_whole(path, advice=_AGAIN)
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                groups |= dict.fromkeys(names)
                n += int(file.get_slice(names[0]).get_shape()[0])
        except SafetensorError as error:
            raise _damaged(path, error) from error
    return n, tuple(groups)


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.safetensors"))


def _read(path: Path, name: str) -> Tensor:
    check_whole(path, advice=_AGAIN)
    try:
        with safe_open(path, framework="pt") as file:
            value: Tensor = file.get_tensor(name)
            return value
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"shard must be a complete safetensors file, got {str(path)!r} ({error}). "
        "Delete the file and start the capture again."
    )
