"""The manifest of a run: its settings, model, data and versions. ``records.run`` compares manifests to resume a run.

A ``RunKind`` names the command that writes a directory, and the files that the command writes there.
"""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tasks.checksums import LEDGER, record
from tasks.errors import UserError
from tasks.files import is_file
from tasks.readers.parse import parse_json

FILE = "manifest.json"
FORMAT = 1
LAYER_CONVENTION = (
    "layers count from 0; resid_pre enters a block, resid_post of layer L leaves block L, before any final norm"
)
_EVERY_RUN = ("results.csv", "results.parquet", "figures", LEDGER)
# Fields that must agree for a run to be resumed; the command line and the times may differ.
_COMPARED = ("kind", "format", "settings", "model", "data", "template", "layer_convention", "versions")
_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "scipy", "pillow", "safetensors")


@dataclass(frozen=True)
class RunKind:
    """The runs of one command."""

    command: str
    """The command's name."""
    writes: tuple[str, ...] = ()
    """Patterns of the names that a run writes besides its manifest, results and figures."""
    last: str = "results.parquet"
    """The file that is written last: a run that has it is finished."""
    needs: tuple[str, ...] = ()
    """Other files without which a run is unfinished."""
    keeps: tuple[str, ...] = ()
    """Files without which a run that wrote them is unfinished."""

    @property
    def kind(self) -> str:
        """The entry ``kind`` of the manifest."""
        return f"laccolith {self.command}"

    def owns(self, name: str) -> bool:
        """True for a file that such a run writes. Other files in its folder are left unchanged."""
        return any(fnmatchcase(name, pattern) for pattern in (FILE, *self.writes, *_EVERY_RUN))


def versions() -> dict[str, str]:
    """The versions of Python and the numerical libraries; results may differ in the last bit between versions."""
    import importlib.metadata  # takes 30 ms, and --help does not need it

    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def new_manifest(kind: RunKind, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest entries that do not need a model or data; ``settings`` is the result of ``settings_of``."""
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
        UserError: If the manifest cannot be read or belongs to another command.
    """
    path = folder / FILE
    if not is_file(path):
        return None
    try:
        manifest = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"manifest must be readable JSON, got {str(path)!r} ({error}). Use another folder.") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind.kind:
        raise UserError(f"out must be a folder of {kind.command}, got {str(folder)!r}. Choose another folder.")
    return manifest


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: it is complete or absent, also if writing is interrupted or the disk is full."""
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


def commit(path: Path, data: bytes) -> None:
    """Write a file atomically and its checksum into the ledger of its folder, which readers check."""
    record(path, data)
    write_atomically(path, data)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest atomically."""
    write_atomically(folder / FILE, (json.dumps(manifest, indent=2) + "\n").encode())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first field in which the manifests differ, as ``name was ..., is ...``; None if they agree.

    Only fields in ``new`` are compared, so a manifest can be checked before all of it is known.
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
