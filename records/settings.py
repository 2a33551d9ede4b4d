"""Settings that every command has: which model, from which line or file, and how they are written down.

``read_yaml`` reads a configuration file whose keys are option names; ``plain`` and ``slug`` make a setting fit for a
manifest and for a folder's name.
"""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tasks.errors import UserError

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelOptions:
    """Which model is watched, and how it runs."""

    name: str = "smol"
    revision: str | None = None
    device: str = "cpu"
    dtype: DtypeName | None = None
    attn: Literal["sdpa", "eager"] = "sdpa"
    preprocess: Literal["pad", "hf"] = "pad"


def plain(value: Any) -> Any:
    """``value`` as JSON would give it back."""
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def slug(text: str) -> str:
    """The name of a model or a file as part of a folder's name."""
    stem = text.rstrip("/").rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".parquet")
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in stem) or "run"


def read_yaml(path: Path, options: Collection[str], command: str) -> dict[str, Any]:
    """The settings in a YAML file, by option name with underscores.

    Args:
        path: A file that holds one mapping; its keys are option names, with hyphens or underscores.
        options: The names that are known, with underscores.
        command: Whose options they are.

    Raises:
        UserError: If the file cannot be read, holds no mapping, or has a key that is no option.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config must be a readable YAML file, got {str(path)!r} ({reason}). Check the file."
        ) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(
            f"config must hold a mapping of options, got a {type(loaded).__name__} in {str(path)!r}. Write key: value."
        )
    settings: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            advice = f"Did you mean {close[0].replace('_', '-')!r}?" if close else f"See {command} --help."
            raise UserError(f"config key must be an option of {command}, got {str(key)!r} in {str(path)!r}. {advice}")
        if name in settings:
            raise UserError(f"config key must be given once, got {str(key)!r} twice in {str(path)!r}. Remove one.")
        settings[name] = value
    return settings
