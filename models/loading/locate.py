"""Find a model's files: ``locate(name)`` for embedded checkpoints, folders and Hugging Face ids."""

from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import NamedTuple

from huggingface_hub import constants, model_info, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.loading.configs import EMBEDDED, SIZES
from tasks.errors import UserError, one_line
from tasks.files import expanded, is_folder, real_path

_WAIT = 8.0  # seconds for a hub's answer; then only the local cache is read
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
    path = expanded(name)
    if is_folder(path):
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise UserError(f"checkpoint folder must hold config.json, got none in {path.name!r}. Check the path.")
        return Located(path, real_path(path).name, None)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise unknown_model(name)
    small = ["*.json", "*.txt", "*.model", "*.jinja"]
    patterns = [[*small, "*.safetensors"], [*small, *_PICKLED]] if weights else [small]
    silent = ""
    try:
        if constants.HF_HUB_OFFLINE:
            silent = " (offline mode is on)"
        elif not _hub_answers(name, revision):
            silent = " (no hub answered)"
        for allowed in patterns:
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=allowed, local_files_only=bool(silent))
            )
            if any(folder.glob("*.safetensors")):
                break
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = silent or f": {one_line(error)[:150]}"
        raise UserError(
            f"model must be in the local Hugging Face cache or on a hub that can be reached, got {name!r:.100}"
            f"{reason}. Give a folder, or one of {', '.join(EMBEDDED)}, which need no download."
        ) from error
    return Located(folder, name, folder.name)


def _hub_answers(name: str, revision: str | None) -> bool:
    """Whether a hub answers within seconds, also behind a proxy or a mirror that does not.

    Raises:
        HfHubHTTPError: If the hub answers that it has no such model.
        HFValidationError: If the name cannot be one.
    """
    answers: Queue[HfHubHTTPError | HFValidationError | bool] = Queue()

    def ask() -> None:
        with suppress(Exception):  # whatever the transport raises is no answer
            try:
                model_info(name, revision=revision, timeout=_WAIT)
                answers.put(True)
            except (GatedRepoError, DisabledRepoError):  # the download takes the cache, or says why there is none
                answers.put(True)
            except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
                answers.put(error)
            except HfHubHTTPError:
                answers.put(True)
        answers.put(False)

    Thread(target=ask, daemon=True).start()  # looking up a host's address has no time limit of its own
    try:
        answer = answers.get(timeout=_WAIT)
    except Empty:
        return False
    if isinstance(answer, bool):
        return answer
    raise answer
