"""Find a model's files: ``locate(name)`` for embedded checkpoints, folders and Hugging Face ids."""

import os
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from models.loading.configs import EMBEDDED, SIZES
from tasks.errors import UserError

_PICKLED = ("pytorch_model*.bin", "mm_projector.bin")  # read as plain tensors only


def unknown_model(name: str) -> UserError:
    """The error for an unknown model name."""
    accepted = ", ".join([*EMBEDDED, *(f"random:{size}" for size in SIZES)])
    return UserError(
        f"model must be one of {accepted}, a checkpoint folder, or a Hugging Face id such as llava-hf/llava-1.5-7b-hf, "
        f"got {name!r}. Check the spelling."
    )


class Located(NamedTuple):
    """A checkpoint folder, its name, and its commit if it came from the hub."""

    folder: Path
    id: str
    revision: str | None


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Located:
    """The folder of an embedded name, a path or a Hugging Face id; embedded models are composed, ids are downloaded.

    Without ``weights``, only the small files of a Hugging Face id are downloaded.

    Raises:
        UserError: If the folder has no ``config.json``, the name is unknown, or the download fails.
    """
    if name in EMBEDDED:
        from models.loading.smol import compose

        return Located(compose(name), name, None)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"checkpoint folder must hold config.json, got none in {path.name!r}. Check the path.")
        return Located(path, path.resolve().name, None)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise unknown_model(name)
    small = ["*.json", "*.txt", "*.model", "*.jinja"]
    try:
        patterns = [*small, "*.safetensors"] if weights else small
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, *_PICKLED]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        offline = " (offline mode is on)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise UserError(
            f"model must be in the local Hugging Face cache or on a hub that can be reached, got {name!r}{offline}: "
            f"{reason} Give a folder, or one of {', '.join(EMBEDDED)}, which need no download."
        ) from error
    return Located(folder, name, folder.name)
