"""Original LLaVA checkpoints, in the layout of the authors' code, converted to that of transformers.

``read_original(folder)`` reads LLaVA-1.5 (two-layer projector) and LLaVA (linear projector), with the vision tower
inside the folder or beside it, and stage-1 folders, which hold only a projector.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from models.loading.checkpoints import stored_tensors, weight_files
from models.loading.configs import config_of
from models.loading.locate import locate
from models.loading.processors import clip_pictures, fast_tokenizer, llava_processor
from tasks.errors import UserError, one_line
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
        return "mm_vision_tower" in _read_json(folder / "config.json")
    except UserError:
        return False


def read_original(folder: Path, *, base: str | Path | None = None, weights: bool = True) -> Original:
    """Config, processor and weights of an original LLaVA folder.

    Embeddings and head get rows for ``<image>`` and as padding; each is the mean of the trained rows, so the logits of
    all other tokens are unchanged. The prompt of one question gets the ids that the authors' code makes; in later
    turns the text after ``</s>`` begins with a space token, as with LLaMA's older tokenizers.

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
    described = _read_json(folder / "config.json")
    _check(described, folder)
    language, files = language_files(folder, base)
    text = described if language == folder else _read_json(language / "config.json")
    _check_language(text, language)
    tokenizer = _tokenizer(language)
    stored = dict(stored_tensors(files)) if weights else {}
    inside = not weights or any(".vision_tower." in key for key in stored)
    name = described["mm_vision_tower"].rstrip("/")
    tower = _tower_folder(name, folder, needed=not inside)
    if tower is not None and not inside:
        files += weight_files(tower)
        for key, tensor in stored_tensors(weight_files(tower)):
            if key.startswith("vision_model."):  # a whole CLIP also has a text tower
                stored[f"model.vision_tower.vision_tower.{key}"] = tensor
    rows = -(-max(int(text["vocab_size"]), len(tokenizer)) // _ROWS) * _ROWS
    try:
        vision, pictures = _vision(name, tower)
        config = _config(described, text, vision, tokenizer, rows)
    except (StrictDataclassError, OSError, ValueError, TypeError) as error:
        raise UserError(f"config.json must be readable, got {one_line(error)} in {folder.name}. Correct it.") from error
    if described.get("image_aspect_ratio") != "pad":
        warnings.warn(
            f"{folder.name} was trained on pictures that CLIP's processor crops. "
            "Use preprocess='hf', or --preprocess hf.",
            stacklevel=2,
        )
    processor = llava_processor(tokenizer, pictures, config, chat_template=CHAT_TEMPLATE)
    return Original(config, processor, tuple(files), _convert(stored, config) if weights else {})


def _check(described: dict[str, Any], folder: Path) -> None:
    """Check that the folder is LLaVA or LLaVA-1.5; the authors' code also writes other models."""
    if not described["mm_vision_tower"] or not isinstance(described["mm_vision_tower"], str):
        raise UserError(
            f"mm_vision_tower must name a vision tower, got {described['mm_vision_tower']!r} in the config.json of "
            f"{folder.name}. A language model alone is not a LLaVA."
        )
    if re.search(r"\bdelta\b", f"{folder.name} {described.get('_name_or_path', '')}"):
        raise UserError(
            f"checkpoint must be whole, got a delta in {folder.name}. Add it to its LLaMA first "
            "(llava.model.apply_delta of the original code)."
        )
    architecture = (described.get("architectures") or ["LlavaLlamaForCausalLM"])[0]
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


def language_files(folder: Path, base: str | Path | None) -> tuple[Path, list[Path]]:
    """The folder with the language model's config and tokenizer, and the weight files except the tower's."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"checkpoint must be whole, got LoRA factors in {folder.name}. Merge them first "
            "(scripts/merge_lora_weights.py of the original code)."
        )
    whole = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if whole and base is not None:
        raise UserError(f"base is for folders that hold a projector alone, got whole weights in {folder.name}.")
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
    if beside.is_dir():
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


def _vision(name: str, tower: Path | None) -> tuple[Any, CLIPImageProcessorPil]:
    """The config and the picture processor of the vision tower."""
    vision: Any
    if tower is None:
        vision = config_of("llava-1.5-7b").vision_config
        vision.image_size = _TOWERS[name.rsplit("/", 1)[-1]]
    else:
        vision = CLIPVisionConfig.from_pretrained(tower)
        if (tower / "preprocessor_config.json").is_file():
            return vision, CLIPImageProcessorPil.from_pretrained(tower)
    return vision, clip_pictures(int(vision.image_size))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """LLaMA's tokenizer with ``<image>`` as its next token.

    The texts before and after a picture are tokenized separately, as in the original code: the text after ``<image>``
    begins with a space token.
    """
    fast = folder / "tokenizer.json"
    try:
        if not (folder / "tokenizer.model").is_file():
            if not fast.is_file():
                raise FileNotFoundError("none")
            if not json.loads(fast.read_text(encoding="utf-8"))["model"].get(
                "byte_fallback"
            ):  # LLaMA's class would make wrong ids
                raise UserError("a tokenizer.json of another kind")
        llama: Any = LlamaTokenizer.from_pretrained(folder, legacy=True)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"checkpoint folder must hold LLaMA's tokenizer.model, got {reason} in {folder.name}. "
            "Copy it from the language model."
        ) from error
    llama.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return fast_tokenizer(
        llama.backend_tokenizer,
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
        unk_token=llama.unk_token,
        pad_token=llama.pad_token or llama.unk_token,  # as the original code pads
    )


def _config(described: dict[str, Any], text: dict[str, Any], vision: Any, tokenizer: Any, rows: int) -> LlavaConfig:
    class_token = described.get("mm_vision_select_feature", "patch") == "cls_patch"
    known = {key: text[key] for key in _TEXT_KEYS if text.get(key) is not None}
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig.from_dict({**known, "vocab_size": rows, "pad_token_id": tokenizer.pad_token_id}),
        projector_hidden_act=_ACTIVATION[described.get("mm_projector_type", "linear")],
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(int(vision.image_size) // int(vision.patch_size)) ** 2 + class_token,
        vision_feature_layer=int(described.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="full" if class_token else "default",
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def _convert(stored: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The tensors under transformers' keys, with padded embeddings; a linear projector becomes two linear maps."""
    found = {}
    for key, tensor in stored.items():
        for pattern, replacement in _KEYS:
            key = re.sub(pattern, replacement, key)
        found[key] = tensor
    rows, width = int(config.text_config.vocab_size), int(config.text_config.hidden_size)
    for key in ("language_model.embed_tokens.weight", "lm_head.weight"):
        if key in found and (missing := rows - len(found[key])) > 0:
            mean = found[key].float().mean(0, keepdim=True).to(found[key].dtype)
            found[key] = torch.cat([found[key], mean.expand(missing, -1)])
    if config.projector_hidden_act == "linear":  # the second of transformers' two maps is the identity
        dtype = next(iter(found.values())).dtype
        found["multi_modal_projector.linear_2.weight"] = torch.eye(width, dtype=dtype)
        found["multi_modal_projector.linear_2.bias"] = torch.zeros(width, dtype=dtype)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"config.json must be readable, got {error} in {path.parent.name}.") from error
    if not isinstance(described, dict):
        raise UserError(f"config.json must hold a mapping, got something else in {path.parent.name}.")
    return described
