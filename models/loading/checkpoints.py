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
from transformers import LlavaConfig, LlavaProcessor

from models.loading.config_checks import read_json
from tasks.errors import UserError
from tasks.files import is_file

_RULE = "normal-fan-in-1"  # identifies how random weights are drawn; change it when they change
_NORM_SPREAD = 0.1  # random norm gains differ from 1, so that the output of a norm differs from its input
_SHOWN = 3  # keys named in an error
_QUANTISED = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
# What bitsandbytes, GPTQ, AWQ and compressed-tensors store beside or instead of a weight.
_SCALES = re.compile(
    r"\.(SCB|(nested_)?absmax|(nested_)?quant_map|quant_state\..*|qweight|qzeros|scales|g_idx|(weight|input)_scale\w*|"
    r"weight_(packed|shape|zero_point))$"
)


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
        elif not tensor.is_floating_point():
            raise UserError(f"checkpoint key {key!r} must hold floating-point numbers, got {tensor.dtype} in {where}.")
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
                        yield key, _plain(key, file.get_tensor(key), path)
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"checkpoint file must be complete, got {path.name} ({error}). Download it again."
                ) from error
        else:
            for key, tensor in _read_bin(path).items():
                yield key, _plain(key, tensor, path)


def _plain(key: str, tensor: Tensor, path: Path) -> Tensor:
    """``tensor``, if it holds weights as they are."""
    if tensor.dtype in _QUANTISED or _SCALES.search(key):
        raise UserError(
            f"checkpoint must hold weights as float32, bfloat16 or float16, got quantised ones ({key!r}, "
            f"{str(tensor.dtype).removeprefix('torch.')}) in {path.parent.name}. Use it before quantisation."
        )
    return tensor


def load_restricted(path: Path) -> Any:
    """The value in a file of ``torch.save``: tensors, numbers, text and containers of them; no code runs.

    Raises:
        ValueError: If the file is damaged or holds anything else.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are not zip files and cannot be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # The exception of the restricted unpickler depends on the bytes.
    except (UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        state = load_restricted(path)
        if not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in state.items()):
            raise TypeError("not a mapping from names to tensors")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint file must be complete and contain only tensors, got a damaged file or other objects in "
            f"{path.name}. Download it again, or convert it to safetensors."
        ) from error
    return dict(state)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder: those that transformers reads.

    These are ``model.safetensors``, or the files in its index, or ``pytorch_model.bin``, or the files in its index. A
    folder without any of them may hold one set of ``.safetensors`` or ``pytorch_model*.bin`` files.

    Raises:
        UserError: If there are none or several sets, or a file of the index is missing.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        whole, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _indexed(index)
    found = weights_beside(folder, "*.safetensors") or weights_beside(folder, "pytorch_model*.bin")
    if not found:
        raise UserError(
            f"checkpoint folder must hold *.safetensors (or pytorch_model*.bin), got none in {folder.name}. "
            "Download the weights."
        )
    sets = sorted({re.sub(r"-\d+-of-\d+$", "", path.stem) for path in found})
    if len(sets) > 1:
        raise UserError(
            f"checkpoint folder must hold one set of weights, got {_some(sets)} in {folder.name}. "
            "Name the right one model.safetensors, or remove the others."
        )
    return found


def weights_beside(folder: Path, pattern: str) -> list[Path]:
    """The regular files of a pattern, without LoRA factors."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and path.stem != "adapter_model")


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, all of its folder."""
    described = read_json(index).get("weight_map")
    if not isinstance(described, dict) or not all(isinstance(name, str) for name in described.values()):
        raise UserError(f"{index.name} must hold a weight_map, got none in {index.parent.name}. Download it again.")
    named = sorted(set(described.values()))
    absent = [name for name in named if Path(name).name != name or not is_file(index.parent / name)]
    if absent or not named:
        raise UserError(
            f"checkpoint folder must hold every file of its index, got no {_some(absent)} in {index.parent.name}. "
            "Download the weights again."
        )
    return [index.parent / name for name in named]


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 of the files' contents, 16 hexadecimal digits."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return hashlib.sha256(b"".join(pool.map(digest, files))).hexdigest()[:16]


def hash_model(files: Sequence[Path], config: LlavaConfig, processor: LlavaProcessor, lora: object = None) -> str:
    """A hash of all that determines what a checkpoint computes: weight files, config, tokenizer, picture processor.

    ``lora`` are the settings of LoRA factors, if their file is among ``files``.
    """
    tokenizer: Any = processor.tokenizer
    pictures = {k: v for k, v in processor.image_processor.to_dict().items() if not k.endswith(("_type", "_class"))}
    special = tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token
    described = [hash_files(files), _sizes(config), pictures, tokenizer.backend_tokenizer.to_str(), special, lora]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _sizes(config: LlavaConfig) -> dict[str, Any]:
    """A config without names and versions."""
    sizes: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for part in (sizes, sizes["text_config"], sizes["vision_config"]):
        for key in ("transformers_version", "dtype", "_name_or_path", "architectures", "name_or_path"):
            part.pop(key, None)
    return sizes


def hash_random(config: LlavaConfig, seed: int, dtype: torch.dtype, drawn_on: str = "cpu") -> str:
    """A hash of all that determines random weights: the config without names and versions, seed, dtype, and device.

    ``drawn_on`` is the type of the device whose generator draws the numbers; each type has its own.
    """
    where = [] if drawn_on == "cpu" else [drawn_on]
    described = json.dumps([_RULE, seed, str(dtype), _sizes(config), *where], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def random_weights(
    shapes: Mapping[str, torch.Size], *, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Seeded random tensors on ``device``, one after the other.

    Matrices are normal with variance 1 / fan-in, so that activations keep their size at any width; norm gains are
    close to 1, biases 0. Each tensor has its own generator, whose numbers depend on the type of the device.
    """
    for key, shape in shapes.items():
        digest = hashlib.sha256(f"{_RULE}/{seed}/{canonical(key)}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
        if key.endswith(".bias"):
            yield key, torch.zeros(shape, dtype=dtype, device=device)
        elif len(shape) == 1 and key.endswith(".weight"):
            yield key, torch.randn(shape, generator=generator, device=device).mul_(_NORM_SPREAD).add_(1).to(dtype)
        else:
            fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
            yield key, torch.empty(shape, dtype=dtype, device=device).normal_(0, fan_in**-0.5, generator=generator)


def _some(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(map(repr, keys[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
