"""Checks of a checkpoint's JSON files and config, before anything is built from them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlavaConfig
from transformers.activations import ACT2FN

from tasks.errors import UserError, one_line
from tasks.readers.parse import parse_json

# What transformers, torch and json raise on a damaged file.
_BROKEN = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, ArithmeticError,
    StrictDataclassError,
)  # fmt: skip
_LARGEST_JSON = 2**26  # bytes; the largest tokenizer.json in use has half of it
_SHOWN = 200  # characters of another library's message
_JSON = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "added_tokens.json", "adapter_config.json",
)  # fmt: skip
# The largest sizes are several times those of any published model; building them on the meta device takes seconds.
_TEXT = {
    "vocab_size": 2**24, "hidden_size": 2**17, "intermediate_size": 2**20, "num_hidden_layers": 256,
    "num_attention_heads": 2**12, "num_key_value_heads": 2**12, "head_dim": 2**12, "max_position_embeddings": 2**31,
}  # fmt: skip
_VISION = {
    "hidden_size": 2**17, "intermediate_size": 2**20, "num_hidden_layers": 256, "num_attention_heads": 2**12,
    "image_size": 2**13, "patch_size": 2**13,
}  # fmt: skip


@contextmanager
def broken_files(what: str, where: str, advice: str) -> Iterator[None]:
    """Re-raise what a library raises on a damaged checkpoint as ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(f"{what} must be readable, got {one_line(error)[:_SHOWN]} in {where}. {advice}") from error


def check_json_files(folder: Path) -> None:
    """Check that the JSON files of a checkpoint are mappings of a size that is read within seconds.

    Raises:
        UserError: If one is not.
    """
    for name in _JSON:
        if (folder / name).exists():
            read_json(folder / name)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        UserError: If it is missing, larger than 64 MiB, nested too deeply, holds a key twice, or is no mapping.
    """
    where = path.parent.name
    with broken_files(path.name, where, "Download it again."):
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(
                f"{path.name} must have at most {_LARGEST_JSON} bytes, got {path.stat().st_size} in {where}."
            )
        described: Any = parse_json(path.read_bytes())
    if not isinstance(described, dict):
        raise UserError(f"{path.name} must hold a mapping, got {type(described).__name__} in {where}.")
    return described


def check_config(config: LlavaConfig, where: str) -> None:
    """Check every number and name of a config that a model is built from.

    Raises:
        UserError: If one is out of range.
    """
    text: Any = config.text_config
    vision: Any = config.vision_config
    for part, limits, prefix in ((text, _TEXT, ""), (vision, _VISION, "vision ")):
        for name, largest in limits.items():
            _check_integer(f"{prefix}{name}", getattr(part, name), 1, largest, where)
    for name, whole, divisor in (
        ("hidden_size", vision.hidden_size, vision.num_attention_heads),
        ("num_attention_heads", text.num_attention_heads, text.num_key_value_heads),
        ("head_dim", text.head_dim, 2),
    ):
        if whole % divisor:
            raise UserError(f"{name} must be a multiple of {divisor}, got {whole} in {where}. Correct config.json.")
    _check_integer("vision num_channels", vision.num_channels, 3, 3, where)
    _check_integer("vision image_size", vision.image_size, vision.patch_size, _VISION["image_size"], where)
    _check_integer("image_token_index", config.image_token_index, 0, text.vocab_size - 1, where)
    if text.pad_token_id is not None:  # torch counts negative ids from the last row
        _check_integer("pad_token_id", text.pad_token_id, -text.vocab_size, text.vocab_size - 1, where)
    layers = vision.num_hidden_layers
    layer: Any = config.vision_feature_layer
    if type(layer) is not int or layer in (0, -layers - 1) or not -layers <= layer <= layers:
        raise UserError(
            f"vision_feature_layer must be one layer, in [1, {layers}] or [-{layers}, -1], got {layer} in {where}. "
            "LLaVA-1.5 reads -2."
        )
    for name, activation in (
        ("projector_hidden_act", config.projector_hidden_act),
        ("hidden_act", text.hidden_act),
        ("vision hidden_act", vision.hidden_act),
    ):
        if not isinstance(activation, str) or activation not in ACT2FN:
            raise UserError(f"{name} must be an activation of transformers, got {activation!r:.60} in {where}.")
    rope: Any = text.rope_parameters or {}
    for name, value in (
        ("rms_norm_eps", text.rms_norm_eps),
        ("layer_norm_eps", vision.layer_norm_eps),
        ("rope_theta", rope.get("rope_theta", 1.0)),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{name} must be a positive number, got {value!r:.60} in {where}. Correct config.json.")
    for name, value in (("attention_dropout", text.attention_dropout), ("attention_dropout", vision.attention_dropout)):
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{name} must be in [0, 1), got {value!r:.60} in {where}. Correct config.json.")
    if getattr(config, "transformers_weights", None) is not None:
        raise UserError(
            f"transformers_weights must not be in config.json, got {config.transformers_weights!r:.60} in {where}. "
            "Weights are read from model.safetensors or its index."
        )


def _check_integer(name: str, value: object, least: int, largest: int, where: str) -> None:
    if type(value) is not int or not least <= value <= largest:
        shown = str(value)[:40]
        raise UserError(
            f"{name} must be an integer in [{least}, {largest}], got {shown} in {where}. Correct config.json."
        )


def without_extras(config: LlavaConfig, attention: str) -> LlavaConfig:
    """The config without what a folder cannot decide.

    An attention kernel named in config.json would be fetched from a hub and run; a quantisation that is left over there
    does not describe plain weights.
    """
    parts: list[Any] = [config, config.text_config, config.vision_config]
    for part in parts:
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    config._attn_implementation = attention
    return config
