"""The manifest of a run: what it was made of, so that an equal run resumes and another is refused.

``open_run(folder, manifest, kind, overwrite=...)`` is the one gate to a run directory; ``write_manifest`` fills it in.
A ``RunKind`` says which command wrote the directory, and what in it is the command's own.
"""

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError

FILE = "manifest.json"
FORMAT = 1
LAYER_CONVENTION = (
    "layers count from 0; resid_pre enters a block, resid_post of layer L leaves block L, before any final norm"
)
_EVERY_RUN = ("results.csv", "results.parquet", "figures")
# What must be equal for a run to be resumed; command, host and clock may differ.
_COMPARED = ("kind", "format", "settings", "model", "data", "template", "layer_convention", "versions")
_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "scipy", "pillow", "safetensors")


@dataclass(frozen=True)
class RunKind:
    """Runs of one command.

    Args:
        command: Its name.
        writes: What such a run writes besides the manifest, its results and their figures.
    """

    command: str
    writes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What the manifest calls such a run."""
        return f"laccolith {self.command}"

    @property
    def own(self) -> tuple[str, ...]:
        """Everything a run writes; anything else in its folder is somebody's, and never touched."""
        return (FILE, *self.writes, *_EVERY_RUN)


def versions() -> dict[str, str]:
    """The versions of what computes: a different one may change a last bit."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def new_manifest(kind: RunKind, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is known before anything is loaded.

    Args:
        kind: Which command's run it is.
        settings: Everything that decides the results, as plain values by option.
    """
    return {
        "kind": kind.kind,
        "format": FORMAT,
        "settings": dict(settings),
        "template": "vicuna_v1",
        "layer_convention": LAYER_CONVENTION,
        "versions": versions(),
    }


def read_manifest(folder: Path, kind: RunKind) -> dict[str, Any] | None:
    """The manifest of a run directory; None if it has none.

    Raises:
        UserError: If there is a manifest that is not one of that kind.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"manifest must be readable JSON, got {str(path)!r} ({error}). Use another folder.") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind.kind:
        raise UserError(f"out must be a folder of {kind.command}, got {str(folder)!r}. Choose another folder.")
    return manifest


def write_atomically(path: Path, data: bytes) -> None:
    """Writes the file so that it is either whole or not there, whatever happens in between.

    Raises:
        OSError: If the file system refuses, for instance because it is full; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, atomically."""
    write_atomically(folder / FILE, (json.dumps(manifest, indent=2) + "\n").encode())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first field in which the manifests differ, as ``name was ..., is ...``; None if they agree.

    Only fields that ``new`` holds are compared, so a manifest can be checked before all of it is known.
    """
    for key in _COMPARED:
        if key not in new:
            continue
        before, after = old.get(key), new[key]
        if isinstance(after, Mapping) and isinstance(before, Mapping):
            for name in {**after, **before}:
                if before.get(name) != after.get(name):
                    return f"{key}.{name} was {before.get(name)!r}, is {after.get(name)!r}"
        elif before != after:
            return f"{key} was {before!r}, is {after!r}"
    return None


def check_folder(folder: Path, wanted: Mapping[str, Any], kind: RunKind, *, overwrite: bool) -> bool:
    """Whether ``folder`` holds a run that ``wanted`` would resume; touches nothing.

    Args:
        folder: The run directory; it need not exist.
        wanted: The manifest of the run about to start, or as much of it as is known.
        kind: Which command's run it is.
        overwrite: Whether a different run may be replaced.

    Raises:
        UserError: If the folder is a file, holds anything that is not a run's, or holds a different run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out must be a folder, got the file {str(folder)!r}. Choose another name.")
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if not entries:
        return False
    manifest = read_manifest(folder, kind)
    foreign = sorted(name for name in entries if name not in kind.own and not _temporary(name))
    if foreign or manifest is None:
        seen = foreign or sorted(entries)
        raise UserError(
            f"out must be empty or hold a run of {kind.command}, got {seen[0]!r}"
            f"{f' and {len(seen) - 1} more' if len(seen) > 1 else ''} in {str(folder)!r}. Choose another folder."
        )
    differing = difference(manifest, wanted)
    if differing is not None and not overwrite:
        raise UserError(
            f"out must hold the same run or none, got a run in {str(folder)!r} that differs: {differing}. "
            "Choose another folder with --out, or replace it with --overwrite."
        )
    return differing is None


def open_run(folder: Path, manifest: Mapping[str, Any], kind: RunKind, *, overwrite: bool) -> None:
    """Makes the run directory ready: made, resumed, or emptied where ``overwrite`` allows it.

    Raises:
        UserError: As ``check_folder``, and if the folder cannot be written to.
    """
    resumes = check_folder(folder, manifest, kind, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.rglob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        if not resumes or overwrite:
            for name in reversed(kind.own):  # the manifest last: a folder without it would count as foreign
                _remove(folder / name)
            write_manifest(folder, manifest)
    except OSError as error:
        raise UserError(f"out must be a folder that can be written, got {str(folder)!r} ({error}).") from error


def _temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
