"""Weights: reading checkpoint folders in either llava-hf key layout, and seeded random weights."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlavaConfig

from tasks.errors import UserError

_RULE = "normal-fan-in-1"  # identifies how random weights are drawn; change it when they change
_NORM_SPREAD = 0.1  # random norm gains differ from 1, so that the output of a norm differs from its input
_SHOWN = 3  # keys named in an error


def canonical(key: str) -> str:
    """The name of a weight in both llava-hf layouts: ``language_model.layers.0...``, ``vision_tower.encoder...``.

    Checkpoints from before transformers 4.52 write ``language_model.model.*``, ``language_model.lm_head.*`` and
    ``vision_tower.vision_model.*``; later ones write ``model.`` before each part instead.
    """
    key = re.sub(r"^language_model\.(?=lm_head\.)", "", key.removeprefix("model."))
    return re.sub(r"^(language_model|vision_tower)\.(model|vision_model)\.", r"\1.", key)


def read_weights(
    stored: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size], *, where: str, tied: bool = False
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the model's keys.

    Args:
        stored: Keys in either llava-hf layout, and tensors.
        shapes: The model's keys and shapes.
        where: The name of the checkpoint, for errors.
        tied: Whether the head shares the token embedding and may be missing.

    Raises:
        UserError: If a key is missing or unexpected, or a shape is wrong.
    """
    own = {canonical(key): key for key in shapes}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in stored:
        name = canonical(key)
        if name.endswith((".position_ids", ".rotary_emb.inv_freq")):  # buffers that old versions of transformers saved
            continue
        if name not in own:
            unexpected.append(key)
        elif tensor.shape != shapes[own[name]]:
            raise UserError(
                f"checkpoint key {key!r} must have shape {tuple(shapes[own[name]])}, got {tuple(tensor.shape)} in "
                f"{where}. The weights do not match the config.json in the folder."
            )
        else:
            found[own[name]] = tensor
    head = own.get("lm_head.weight", "")
    embedding = own.get("language_model.embed_tokens.weight", "")
    if tied and head not in found and embedding in found:
        found[head] = found[embedding]
    missing = [key for key in shapes if key not in found]
    if missing or unexpected:
        parts = [f"{kind} {_some(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise UserError(
            f"checkpoint must have exactly the keys of LlavaForConditionalGeneration, got {' and '.join(parts)} in "
            f"{where}. Both llava-hf layouts and original LLaVA folders are supported; convert others first."
        )
    return found


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every key and tensor of weight files.

    Raises:
        UserError: If a file is broken or contains anything but tensors.
    """
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118
                        yield key, file.get_tensor(key)
            except SafetensorError as error:
                raise UserError(
                    f"checkpoint file must be complete, got {path.name} ({error}). Download it again."
                ) from error
        else:
            yield from _read_bin(path).items()


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are not zip files and cannot be memory-mapped
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in state.items()):
            raise TypeError("not a mapping from names to tensors")
    # The exception of the restricted unpickler depends on the bytes.
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint file must be whole and hold plain tensors only, got something else in {path.name}. "
            "Download it again, or convert it to safetensors."
        ) from error
    return dict(state)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder: safetensors if there are any, else ``.bin``.

    Raises:
        UserError: If there are none, or a file of the index is missing.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(
            f"checkpoint folder must hold *.safetensors (or pytorch_model*.bin), got none in {folder.name}. "
            "Download the weights."
        )
    stem = "model" if files[0].suffix == ".safetensors" else "pytorch_model"
    index = folder / f"{stem}{files[0].suffix}.index.json"
    if not index.is_file():
        return files
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index.name} must hold a weight_map, got {error!r}. Download it again.") from error
    absent = sorted(named - {file.name for file in files})
    if absent:
        raise UserError(
            f"checkpoint folder must hold every file of its index, got no {_some(absent)} in {folder.name}. "
            "Download the weights again."
        )
    return [file for file in files if file.name in named]


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 of the files' contents, 16 hexadecimal digits."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return hashlib.sha256(b"".join(pool.map(digest, files))).hexdigest()[:16]


def hash_random(config: LlavaConfig, seed: int, dtype: torch.dtype) -> str:
    """A hash of all that determines random weights: the config without names and versions, seed and dtype."""
    sizes: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for part in (sizes, sizes["text_config"], sizes["vision_config"]):
        for key in ("transformers_version", "dtype", "_name_or_path", "architectures", "name_or_path"):
            part.pop(key, None)
    described = json.dumps([_RULE, seed, str(dtype), sizes], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def random_weights(shapes: Mapping[str, torch.Size], *, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Seeded random tensors, one after the other.

    Matrices are normal with variance 1 / fan-in, so that activations keep their size at any width; norm gains are
    close to 1, biases 0. Each tensor has its own generator.
    """
    for key, shape in shapes.items():
        digest = hashlib.sha256(f"{_RULE}/{seed}/{canonical(key)}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if key.endswith(".bias"):
            yield key, torch.zeros(shape, dtype=dtype)
        elif len(shape) == 1 and key.endswith(".weight"):
            yield key, torch.randn(shape, generator=generator).mul_(_NORM_SPREAD).add_(1).to(dtype)
        else:
            fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
            yield key, torch.empty(shape, dtype=dtype).normal_(0, fan_in**-0.5, generator=generator)


def _some(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(map(repr, keys[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
