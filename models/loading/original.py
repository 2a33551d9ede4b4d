"""Original LLaVA checkpoints, in the layout of the authors' code, converted to that of transformers.

``read_original(folder)`` reads LLaVA-1.5 (two-layer projector) and LLaVA (linear projector), with the vision tower
inside the folder or beside it, and stage-1 folders, which hold only a projector.
"""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from models.loading.checkpoints import stored_tensors, weight_files, weights_beside
from models.loading.config_checks import broken_files, check_config, check_json_files, read_json
from models.loading.configs import config_of
from models.loading.llama_tokenizer import llama_tokenizer
from models.loading.locate import locate
from models.loading.processors import clip_pictures, llava_processor, read_pictures, with_padding
from tasks.errors import UserError
from tasks.files import is_folder
from tasks.prompts import CHAT_TEMPLATE, IMAGE

_PROJECTOR = "mm_projector.bin"
_ACTIVATION = {"mlp2x_gelu": "gelu", "linear": "linear"}
_TOWERS = {"clip-vit-large-patch14-336": 336, "clip-vit-large-patch14": 224}  # pixels; otherwise the same network
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
_TEXT_KEYS = (
    *_NEEDED, "num_key_value_heads", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "head_dim", "attention_bias", "mlp_bias", "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip
# Config key -> accepted values; the first is the default.
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("linear", "mlp2x_gelu"),
    "mm_vision_select_feature": ("patch", "cls_patch"),
    "image_aspect_ratio": ("square", "pad", None),
    "mm_use_im_start_end": (False, None),
}
# Root mean square of the last norm's gains: above 1 in LLaMA and Vicuna, near 0 in a difference of two of them.
_DELTA_NORM = 0.1
_ROWS = 64  # embeddings are padded to a multiple of this, as in llava-hf checkpoints
# Regular expressions from the authors' keys to those of transformers.
_KEYS = (
    (r"^.*\bmm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^.*\bmm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^.*\bmm_projector\.(weight|bias)$", r"multi_modal_projector.linear_1.\1"),
    (r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "vision_tower."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
)


class Original(NamedTuple):
    """An original checkpoint in transformers' layout."""

    config: LlavaConfig
    processor: LlavaProcessor
    files: tuple[Path, ...]
    """Every weight file that was read."""
    tensors: dict[str, Tensor]


def is_original(folder: Path) -> bool:
    """Whether the folder's ``config.json`` was written by the authors' code."""
    try:
        return "mm_vision_tower" in read_json(folder / "config.json")
    except UserError:  # ``load`` reads the same file again and says what is wrong with it
        return False


def read_original(folder: Path, *, base: str | Path | None = None, weights: bool = True) -> Original:
    """Config, processor and weights of an original LLaVA folder.

    Embeddings and head get rows for ``<image>`` and as padding; each is the mean of the trained rows, so the logits of
    all other tokens are unchanged. Prompts get the ids that the authors' code makes.

    Args:
        folder: Holds ``config.json``, the tokenizer, and the weights (``model.layers.*``, ``model.mm_projector.*``, and
            the vision tower, or its name in ``config.json``). A stage-1 folder holds only ``config.json`` and
            ``mm_projector.bin``.
        base: The language model (folder or Hugging Face id) of a stage-1 folder.
        weights: Whether to read the weights; otherwise ``tensors`` is empty.

    Raises:
        UserError: If the folder is of another architecture or incomplete, or ``base`` or the tower cannot be found.

    Source: the layout is that of https://github.com/haotian-liu/LLaVA; the linear projector is LLaVA's (Liu et al.
        2023, arXiv 2304.08485), the other LLaVA-1.5's (Liu et al. 2024, arXiv 2310.03744).
    """
    described = read_json(folder / "config.json")
    _check(described, folder)
    language, files = language_files(folder, base)
    check_json_files(language)
    text = described if language == folder else read_json(language / "config.json")
    _check_language(text, language)
    tokenizer = llama_tokenizer(language)
    if tokenizer.vocab_size > text["vocab_size"]:
        raise UserError(
            f"vocab_size must be at least {tokenizer.vocab_size}, the tokens of the tokenizer, got "
            f"{text['vocab_size']} in {language.name}. Copy the tokenizer of the language model."
        )
    stored = dict(stored_tensors(files)) if weights else {}
    inside = not weights or any(".vision_tower." in key for key in stored)
    name = described["mm_vision_tower"].rstrip("/")
    tower = _tower_folder(name, folder, needed=not inside)
    if tower is not None and not inside:
        files += weight_files(tower)
        for key, tensor in stored_tensors(weight_files(tower)):
            if key.startswith("vision_model."):  # a whole CLIP also has a text tower
                stored[f"model.vision_tower.vision_tower.{key}"] = tensor
    rows = -(-max(text["vocab_size"], len(tokenizer)) // _ROWS) * _ROWS
    with broken_files("config.json", folder.name, "Correct it."):
        vision, pictures = _vision(name, tower)
        config = _config(described, text, vision, tokenizer, rows)
    check_config(config, folder.name)
    if described.get("image_aspect_ratio") != "pad":
        warnings.warn(
            f"{folder.name} was trained on pictures that CLIP's processor crops. "
            "Use preprocess='hf', or --preprocess hf.",
            stacklevel=2,
        )
    processor = llava_processor(tokenizer, pictures, config, chat_template=CHAT_TEMPLATE)
    if described.get("image_aspect_ratio") == "pad":
        processor = with_padding(processor)
    return Original(
        config, processor, tuple(files), _convert(stored, config, text["vocab_size"], folder.name) if weights else {}
    )


def _check(described: dict[str, Any], folder: Path) -> None:
    """Check that the folder is LLaVA or LLaVA-1.5; the authors' code also writes other models."""
    if not described["mm_vision_tower"] or not isinstance(described["mm_vision_tower"], str):
        raise UserError(
            f"mm_vision_tower must name a vision tower, got {described['mm_vision_tower']!r} in the config.json of "
            f"{folder.name}. A language model alone is not a LLaVA."
        )
    listed = described.get("architectures") or ["LlavaLlamaForCausalLM"]
    architecture = listed[0] if isinstance(listed, list) else listed
    found = {"architectures": architecture, **{key: described.get(key, _ACCEPTED[key][0]) for key in _ACCEPTED}}
    accepted = {"architectures": ("LlavaLlamaForCausalLM", "LlamaForCausalLM"), **_ACCEPTED}
    for key, value in found.items():
        if value not in accepted[key]:
            raise UserError(
                f"{key} must be {' or '.join(str(one) for one in accepted[key] if one is not None)}, got {value} in "
                f"{folder.name}. The original checkpoints of LLaVA and LLaVA-1.5 on LLaMA are supported."
            )


def _check_language(text: dict[str, Any], folder: Path) -> None:
    """Check that the language model is a LLaMA with all its sizes in the config."""
    kind = text.get("model_type", "llama")
    if kind not in ("llama", "llava", "llava_llama") or "text_config" in text:
        raise UserError(
            f"language model must be a LLaMA (model_type llama), got {kind} in {folder.name}. Give the folder that the "
            "projector was trained with."
        )
    missing = [key for key in _NEEDED if text.get(key) is None]
    if missing:
        raise UserError(
            f"config.json must hold {', '.join(_NEEDED)}, got no {', '.join(missing)} in {folder.name}. Correct it."
        )
    if type(text["vocab_size"]) is not int:
        raise UserError(f"vocab_size must be an integer, got {text['vocab_size']!r:.40} in {folder.name}. Correct it.")


def language_files(folder: Path, base: str | Path | None) -> tuple[Path, list[Path]]:
    """The folder with the language model's config and tokenizer, and the weight files except the tower's."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"checkpoint must be complete, got only LoRA factors in {folder.name}. Merge them first "
            "(scripts/merge_lora_weights.py of the original code)."
        )
    whole = bool(weights_beside(folder, "*.safetensors") or weights_beside(folder, "pytorch_model*.bin"))
    if whole and base is not None:
        raise UserError(
            f"base must be None unless the folder contains only a projector, got complete weights in {folder.name}."
        )
    if whole or not (folder / _PROJECTOR).is_file():
        return folder, weight_files(folder)
    if base is None:
        raise UserError(
            f"checkpoint must have its language model, got only {_PROJECTOR} in {folder.name}. Name it: "
            "load(..., base='lmsys/vicuna-7b-v1.5'), or python -m models.loading.convert FOLDER OUT --base ..."
        )
    language = locate(str(base)).folder
    return language, [*weight_files(language), folder / _PROJECTOR]


def _tower_folder(name: str, folder: Path, *, needed: bool) -> Path | None:
    """The folder of the vision tower; None if only its published sizes are needed."""
    beside = folder / name  # ``name`` itself if it is absolute
    if is_folder(beside):
        return beside
    if not needed and name.rsplit("/", 1)[-1] in _TOWERS:
        return None
    try:
        return locate(name).folder
    except UserError as error:
        raise UserError(
            f"mm_vision_tower must be a folder, or a Hugging Face id that can be read, got {name!r} in the config.json "
            f"of {folder.name}: {error}"
        ) from error


def _vision(name: str, tower: Path | None) -> tuple[Any, Any]:
    """The config and the picture processor of the vision tower."""
    vision: Any
    if tower is None:
        vision = config_of("llava-1.5-7b").vision_config
        vision.image_size = _TOWERS[name.rsplit("/", 1)[-1]]
    else:
        vision = CLIPVisionConfig.from_pretrained(tower)
        if (tower / "preprocessor_config.json").is_file():
            return vision, read_pictures(tower, SimpleNamespace(vision_config=vision))
    return vision, clip_pictures(int(vision.image_size))


def _config(described: dict[str, Any], text: dict[str, Any], vision: Any, tokenizer: Any, rows: int) -> LlavaConfig:
    class_token = described.get("mm_vision_select_feature", "patch") == "cls_patch"
    known = {key: text[key] for key in _TEXT_KEYS if text.get(key) is not None}
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig.from_dict({**known, "vocab_size": rows, "pad_token_id": tokenizer.pad_token_id}),
        projector_hidden_act=_ACTIVATION[described.get("mm_projector_type", "linear")],
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(int(vision.image_size) // int(vision.patch_size)) ** 2 + class_token,
        vision_feature_layer=described.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if class_token else "default",
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def _convert(stored: dict[str, Tensor], config: Any, vocabulary: int, where: str) -> dict[str, Tensor]:
    """The tensors under transformers' keys, with padded embeddings; a linear projector becomes two linear maps."""
    found = {}
    for key, tensor in stored.items():
        for pattern, replacement in _KEYS:
            key = re.sub(pattern, replacement, key)
        found[key] = tensor
    rows, width = int(config.text_config.vocab_size), int(config.text_config.hidden_size)
    norm = found.get("language_model.norm.weight")
    if norm is not None and float(norm.float().square().mean().sqrt()) < _DELTA_NORM:
        raise UserError(
            f"checkpoint must be complete, got delta weights in {where}: the gains of its last norm are differences. "
            "Add it to its LLaMA first (llava.model.apply_delta of the original code)."
        )
    for key in ("language_model.embed_tokens.weight", "lm_head.weight"):
        if key not in found:
            continue
        if found[key].shape != (vocabulary, width):
            raise UserError(
                f"{key.removeprefix('language_model.')} must have the shape {(vocabulary, width)} of config.json, "
                f"got {tuple(found[key].shape)} in {where}. Use the config and the weights of one checkpoint."
            )
        mean = found[key].float().mean(0, keepdim=True).to(found[key].dtype)
        found[key] = torch.cat([found[key], mean.expand(rows - vocabulary, -1)])
    first = found.get("multi_modal_projector.linear_1.weight")
    if config.projector_hidden_act == "linear" and first is not None and len(first) == width:
        # The second of transformers' two maps is the identity.
        found["multi_modal_projector.linear_2.weight"] = torch.eye(width, dtype=first.dtype)
        found["multi_modal_projector.linear_2.bias"] = torch.zeros(width, dtype=first.dtype)
    return found
