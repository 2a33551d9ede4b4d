"""Weights: reading checkpoint folders in either llava-hf key layout, and seeded random weights.

``read_weights(stored_tensors(files), shapes)`` raises an error that names the key if a checkpoint does not fit;
``random_weights`` draws each tensor from its own seed.
"""

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
_NORM_SPREAD = 0.1  # random norm gains differ from 1, so that tests can tell a norm's output from its input
_SHOWN = 3  # keys named in an error


def canonical(key: str) -> str:
    """A weight's name, equal in every layout: ``language_model.layers.0...``, ``vision_tower.encoder...``, ``lm_head``.

    llava-hf checkpoints from before transformers 4.52 write ``language_model.model.*``, ``language_model.lm_head.*``,
    ``vision_tower.vision_model.*``; later ones write ``model.`` before each part instead.
    """
    key = key.removeprefix("model.")
    key = re.sub(r"^language_model\.lm_head\.", "lm_head.", key)
    key = re.sub(r"^language_model\.model\.", "language_model.", key)
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", key)


def read_weights(
    stored: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size], *, where: str, tied: bool = False
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the model's keys.

    Args:
        stored: Keys in either llava-hf layout, and tensors.
        shapes: The model's keys and shapes.
        where: The name of the checkpoint in errors.
        tied: Whether the head shares the token embedding and may be missing in the checkpoint.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape.
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
            f"{where}. Both llava-hf layouts and original LLaVA folders are read; convert others first."
        )
    return found


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every key and tensor of the given weight files.

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
    refusal = (
        f"checkpoint file must be whole and hold plain tensors only, got something else in {path.name}. "
        "Download it again, or convert it to safetensors."
    )
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are not zip files and are read at once
        state: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # The exception of the restricted unpickler depends on the bytes.
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(refusal) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(refusal)
    return state


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder: safetensors if there are any, else ``.bin``.

    Raises:
        UserError: If there are none, or one that the folder's index names is missing.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(
            f"checkpoint folder must hold *.safetensors (or pytorch_model*.bin), got none in {folder.name}. "
            "Download the weights."
        )
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        if index.is_file() and index.name.removesuffix(".index.json").rsplit(".", 1)[1] in files[0].suffix:
            try:
                named = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError(f"{index.name} must hold a weight_map, got {error!r}. Download it again.") from error
            absent = sorted(named - {file.name for file in files})
            if absent:
                raise UserError(
                    f"checkpoint folder must hold every file of its index, got no {_some(absent)} in {folder.name}. "
                    "Download the weights again."
                )
            return [file for file in files if file.name in named]
    return files


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the files' contents, 16 hexadecimal digits; independent of their folder."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return hashlib.sha256(b"".join(pool.map(digest, files))).hexdigest()[:16]


def hash_random(config: LlavaConfig, seed: int, dtype: torch.dtype) -> str:
    """A hash of the config and the seed that determine random weights."""
    described = json.dumps([_RULE, seed, str(dtype), _sizes(config)], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def random_weights(shapes: Mapping[str, torch.Size], *, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Seeded random tensors, one after the other.

    Matrices are normal with variance 1 / fan-in, so that activations keep their size at any width; norm gains are
    close to 1, biases 0. Each tensor has its own generator, so its values do not depend on the other tensors.
    """
    for key, shape in shapes.items():
        generator = torch.Generator().manual_seed(int.from_bytes(_key_digest(seed, canonical(key))[:7], "big"))
        if key.endswith(".bias"):
            yield key, torch.zeros(shape, dtype=dtype)
        elif len(shape) == 1 and key.endswith(".weight"):
            yield key, torch.randn(shape, generator=generator).mul_(_NORM_SPREAD).add_(1).to(dtype)
        else:
            fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
            yield key, torch.empty(shape, dtype=dtype).normal_(0, fan_in**-0.5, generator=generator)


def _key_digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{_RULE}/{seed}/{key}".encode()).digest()


def _sizes(config: LlavaConfig) -> dict[str, Any]:
    """The entries of a config that determine shapes and computation, without names and versions."""
    described: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    ignored = ("transformers_version", "dtype", "_name_or_path", "architectures", "name_or_path")
    for part in (described, described["text_config"], described["vision_config"]):
        for key in ignored:
            part.pop(key, None)
    return described


def _some(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(map(repr, keys[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
