"""Original LLaVA checkpoints, in the layout of the authors' code, converted to that of transformers.

``read_original(folder)`` reads LLaVA-1.5 (two-layer projector) and LLaVA (linear projector) folders, with the vision
tower inside or beside them, and stage-1 folders that hold a projector alone. ``python -m models.convert SOURCE OUT``
writes one as a llava-hf folder, which every other tool opens.
"""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    PreTrainedTokenizerFast,
)

from models.loading.checkpoints import stored_tensors, weight_files
from models.loading.configs import config_of
from models.loading.locate import locate
from models.loading.processors import clip_pictures, llava_processor
from tasks.errors import UserError
from tasks.prompts import CHAT_TEMPLATE, IMAGE

_PROJECTOR = "mm_projector.bin"
_ACTIVATION = {"mlp2x_gelu": "gelu", "linear": "linear"}
_TOWERS = {"clip-vit-large-patch14-336": 336, "clip-vit-large-patch14": 224}  # pixels; otherwise the same network
_TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
_ROWS = 64  # embeddings are filled up to a multiple of this, as llava-hf's are


@dataclass(frozen=True)
class Original:
    """An original folder in transformers' layout.

    Args:
        config: Of the whole stack.
        processor: With ``<image>`` added to the tokenizer.
        files: Every weight file that was read.
        tensors: Keys as transformers writes them, and tensors.
    """

    config: LlavaConfig
    processor: LlavaProcessor
    files: tuple[Path, ...]
    tensors: list[tuple[str, Tensor]]


def is_original(folder: Path) -> bool:
    """Whether the folder's ``config.json`` was written by the authors' code."""
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and "mm_vision_tower" in described


def read_original(folder: Path, *, base: str | Path | None = None) -> Original:
    """Config, processor and weights of an original LLaVA folder.

    Embeddings and head get rows for ``<image>`` and for filling up, as llava-hf's have; each is the mean of the trained
    rows, and the logits of all other tokens are unchanged. A question's prompt becomes the ids that the authors' code
    makes; in later turns the text behind ``</s>`` begins with a space token, as with LLaMA's older tokenizers.

    Args:
        folder: Holds ``config.json``, the tokenizer, and the weights (``model.layers.*``, ``model.mm_projector.*``, and
            the vision tower, or its name in ``config.json``); or, after stage 1, ``config.json`` and
            ``mm_projector.bin`` alone.
        base: The language model (folder or Hugging Face id) of a stage-1 folder.

    Raises:
        UserError: If the folder is of another architecture or incomplete.
        UserError: If ``base`` or the tower cannot be found.

    Source: the layout is that of https://github.com/haotian-liu/LLaVA; the linear projector is LLaVA's (Liu et al.
        2023, arXiv 2304.08485), the other LLaVA-1.5's (Liu et al. 2024, arXiv 2310.03744).
    """
    described = _read_json(folder / "config.json")
    _check(described, folder)
    name = str(described["mm_vision_tower"]).rstrip("/")
    language, files = language_files(folder, base)
    text = described if language == folder else _read_json(language / "config.json")
    _check_language(text, language)
    tokenizer = _tokenizer(language)
    stored = list(stored_tensors(files))
    inside = any(".vision_tower." in key for key, _ in stored)
    tower = _tower_folder(name, folder, needed=not inside)
    if tower is not None and not inside:
        files += weight_files(tower)
        stored += [
            (f"model.vision_tower.vision_tower.{key}", tensor)
            for key, tensor in stored_tensors(weight_files(tower))
            if key.startswith("vision_model.")  # a whole CLIP has a text tower, too
        ]
    rows = -(-max(int(text["vocab_size"]), len(tokenizer)) // _ROWS) * _ROWS
    try:
        vision, pictures = _vision(name, tower)
        config = _config(described, text, vision, tokenizer, rows)
    except (StrictDataclassError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config.json must be readable, got {reason} in {folder.name}. Correct it.") from error
    if described.get("image_aspect_ratio") != "pad":
        warnings.warn(
            f"{folder.name} was trained on pictures that CLIP's processor crops. "
            "Use preprocess='hf', or --preprocess hf.",
            stacklevel=2,
        )
    processor = llava_processor(tokenizer, pictures, config, chat_template=CHAT_TEMPLATE)
    return Original(config, processor, tuple(files), _translated(stored, config))


def _check(described: dict[str, Any], folder: Path) -> None:
    """Check that the folder is LLaVA or LLaVA-1.5; the authors' code also writes other models."""
    architecture = (described.get("architectures") or ["LlavaLlamaForCausalLM"])[0]
    wanted = {
        "architectures": (architecture, ("LlavaLlamaForCausalLM", "LlamaForCausalLM")),
        "mm_projector_type": (described.get("mm_projector_type", "linear"), tuple(_ACTIVATION)),
        "mm_vision_select_feature": (described.get("mm_vision_select_feature", "patch"), ("patch", "cls_patch")),
        "image_aspect_ratio": (described.get("image_aspect_ratio", "square"), ("square", "pad", None)),
        "mm_use_im_start_end": (bool(described.get("mm_use_im_start_end")), (False,)),
    }
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
    for key, (found, accepted) in wanted.items():
        if found not in accepted:
            raise UserError(
                f"{key} must be {' or '.join(str(value) for value in accepted if value is not None)}, got {found} in "
                f"{folder.name}. Of the original checkpoints LLaVA and LLaVA-1.5 on LLaMA are read."
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
    """The folder with the language model's config and tokenizer, and the weight files of all but the tower."""
    projector = folder / _PROJECTOR
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"checkpoint must be whole, got LoRA factors in {folder.name}. Merge them first "
            "(scripts/merge_lora_weights.py of the original code)."
        )
    whole = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if whole and base is not None:
        raise UserError(f"base is for folders that hold a projector alone, got whole weights in {folder.name}.")
    if whole or not projector.is_file():
        return folder, weight_files(folder)
    if base is None:
        raise UserError(
            f"checkpoint must have its language model, got only {_PROJECTOR} in {folder.name}. Name it: "
            "load(..., base='lmsys/vicuna-7b-v1.5'), or python -m models.convert FOLDER OUT --base ..."
        )
    language = locate(str(base)).folder
    return language, [*weight_files(language), projector]


def _tower_folder(name: str, folder: Path, *, needed: bool) -> Path | None:
    """The folder of the vision tower; None if only its published sizes are needed."""
    beside = folder / name  # the name alone if it is absolute
    if beside.is_dir():
        return beside
    if not needed and name.rsplit("/", 1)[-1] in _TOWERS:
        return None
    try:
        return locate(name).folder
    except ValueError as error:
        raise UserError(
            f"mm_vision_tower must be a folder, or a Hugging Face id that can be read, got {name!r} in the config.json "
            f"of {folder.name}: {error}"
        ) from error


def _vision(name: str, tower: Path | None) -> tuple[CLIPVisionConfig, CLIPImageProcessorPil]:
    vision: Any
    if tower is None:
        side = _TOWERS[name.rsplit("/", 1)[-1]]
        vision = config_of("llava-1.5-7b").vision_config
        vision.image_size = side
        return vision, clip_pictures(side)
    vision = CLIPVisionConfig.from_pretrained(tower)
    if (tower / "preprocessor_config.json").is_file():
        return vision, CLIPImageProcessorPil.from_pretrained(tower)
    return vision, clip_pictures(int(vision.image_size))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """LLaMA's tokenizer with ``<image>`` as its next token.

    Text on both sides of a picture is tokenized as the original code does it, each part as if it stood alone: the part
    behind ``<image>`` begins with a space of its own.
    """
    try:
        if not (folder / "tokenizer.model").is_file():
            _check_sentencepiece(folder / "tokenizer.json")
        llama: Any = LlamaTokenizer.from_pretrained(folder, legacy=True)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"checkpoint folder must hold LLaMA's tokenizer.model, got {reason} in {folder.name}. "
            "Copy it from the language model."
        ) from error
    llama.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=llama.backend_tokenizer,
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
        unk_token=llama.unk_token,
        pad_token=llama.pad_token or llama.unk_token,  # as the original code pads
        additional_special_tokens=[IMAGE],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )


def _check_sentencepiece(path: Path) -> None:
    """Check that a fast tokenizer is of LLaMA's kind; from others LLaMA's class silently makes wrong ids."""
    if not path.is_file():
        raise FileNotFoundError("none")
    if not json.loads(path.read_text())["model"].get("byte_fallback"):
        raise UserError("a tokenizer.json of another kind")


def _config(
    described: dict[str, Any],
    text: dict[str, Any],
    vision: Any,
    tokenizer: Any,
    rows: int,
) -> LlavaConfig:
    class_token = described.get("mm_vision_select_feature", "patch") == "cls_patch"
    patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    known = {key: text[key] for key in _TEXT_KEYS if text.get(key) is not None}
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig.from_dict({**known, "vocab_size": rows, "pad_token_id": tokenizer.pad_token_id}),
        projector_hidden_act=_ACTIVATION[described.get("mm_projector_type", "linear")],
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=patches + class_token,
        vision_feature_layer=int(described.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="full" if class_token else "default",
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def _translated(stored: list[tuple[str, Tensor]], config: Any) -> list[tuple[str, Tensor]]:
    """The tensors under transformers' keys, embeddings filled up, one linear map written as two."""
    found = [(_key(key), tensor) for key, tensor in stored]
    rows = int(config.text_config.vocab_size)
    filled = [
        (key, _fill(tensor, rows) if key in ("language_model.embed_tokens.weight", "lm_head.weight") else tensor)
        for key, tensor in found
    ]
    if config.projector_hidden_act == "linear":  # the second of transformers' two maps is the identity
        width = int(config.text_config.hidden_size)
        dtype = found[0][1].dtype
        filled.append(("multi_modal_projector.linear_2.weight", torch.eye(width, dtype=dtype)))
        filled.append(("multi_modal_projector.linear_2.bias", torch.zeros(width, dtype=dtype)))
    return filled


def _key(key: str) -> str:
    """``model.mm_projector.2.weight`` -> ``multi_modal_projector.linear_2.weight``; other keys' parts likewise."""
    key = re.sub(r"^.*\bmm_projector\.0\.", "multi_modal_projector.linear_1.", key)
    key = re.sub(r"^.*\bmm_projector\.2\.", "multi_modal_projector.linear_2.", key)
    key = re.sub(r"^.*\bmm_projector\.(weight|bias)$", r"multi_modal_projector.linear_1.\1", key)
    key = re.sub(r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "vision_tower.", key)
    return re.sub(r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1.", key)


def _fill(tensor: Tensor, rows: int) -> Tensor:
    """``tensor`` with its mean row added until it has ``rows``."""
    missing = rows - len(tensor)
    if missing <= 0:
        return tensor
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(missing, -1)])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"config.json must be readable, got {error} in {path.parent.name}.") from error
    if not isinstance(described, dict):
        raise UserError(f"config.json must hold a mapping, got something else in {path.parent.name}.")
    return described
