"""Names of ``records.options`` for modules that still import them from here."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from records.options import DtypeName, ModelOptions, plain, slug
from tasks.errors import UserError

__all__ = ["DtypeName", "ModelOptions", "plain", "read_yaml", "slug"]


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
