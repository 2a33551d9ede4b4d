"""Weights: reading checkpoint folders in either llava-hf key layout, seeded random weights, published sizes.

``read_weights(folder, model_shapes)`` refuses a checkpoint that does not fit, naming the key; ``random_weights`` draws
each tensor from a seed of its own, in the dtype asked for; ``published_config`` and ``offline_processor`` make a model
of LLaVA-1.5's size without any download.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tasks.prompts import CAPTION, CHAT_TEMPLATE, IMAGE, LETTER, SHORT, SYSTEM, vicuna_v1

# (width, inner width, layers, heads) of the language model. Source: Liu et al. 2024, arXiv 2310.03744 (Vicuna 1.5).
PUBLISHED = {"llava-1.5-7b": (4096, 11008, 32, 32), "llava-1.5-13b": (5120, 13824, 40, 40)}
_RULE = "normal-fan-in-1"  # names how random weights are drawn; change it whenever they would differ
_NORM_SPREAD = 0.1  # random norm gains differ from 1, so that a test can tell a norm's output from its normalised input
_SHOWN = 3  # keys named in an error


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or does not fit."""


def canonical(key: str) -> str:
    """One name for a weight in every layout: ``language_model.layers.0...``, ``vision_tower.encoder...``, ``lm_head``.

    llava-hf checkpoints from before transformers 4.52 write ``language_model.model.*``, ``language_model.lm_head.*``,
    ``vision_tower.vision_model.*``; later ones put ``model.`` in front of each part instead.
    """
    key = key.removeprefix("model.")
    key = re.sub(r"^language_model\.lm_head\.", "lm_head.", key)
    key = re.sub(r"^language_model\.model\.", "language_model.", key)
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", key)


def read_weights(folder: Path, shapes: Mapping[str, torch.Size], *, tied: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder by the model's own keys.

    Args:
        folder: Holds ``*.safetensors``, or else ``pytorch_model*.bin`` of plain tensors.
        shapes: The model's keys and the shape that each must have.
        tied: Whether the head shares the token embedding, so that the checkpoint may leave it out.

    Raises:
        CheckpointError: If there are no weights, a file is broken or holds more than plain tensors, or a key is
            missing, unexpected or of the wrong shape.
    """
    own = {canonical(key): key for key in shapes}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in _tensors(folder):
        name = canonical(key)
        if name.endswith((".position_ids", ".rotary_emb.inv_freq")):  # buffers that old versions saved
            continue
        if name not in own:
            unexpected.append(key)
        elif tensor.shape != shapes[own[name]]:
            raise CheckpointError(
                f"checkpoint key {key!r} must have shape {tuple(shapes[own[name]])}, got {tuple(tensor.shape)} in "
                f"{folder.name}. The weights do not belong to the config.json beside them."
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
        raise CheckpointError(
            f"checkpoint must have exactly the keys of LlavaForConditionalGeneration, got {' and '.join(parts)} in "
            f"{folder.name}. Both llava-hf layouts are read; convert others first."
        )
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's weight files, with its key as written."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                        yield key, file.get_tensor(key)
            except SafetensorError as error:
                raise CheckpointError(
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
        state: object = torch.load(path, map_location="cpu", weights_only=True)
    # What the restricted unpickler raises on bytes that are no pickle depends on the bytes.
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(refusal) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(refusal)
    return state


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder: safetensors where there are any, else ``.bin``.

    Raises:
        CheckpointError: If there are none, or one that the folder's index names is missing.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(
            f"checkpoint folder must hold *.safetensors (or pytorch_model*.bin), got none in {folder.name}. "
            "Download the weights."
        )
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        if index.is_file() and index.name.removesuffix(".index.json").rsplit(".", 1)[1] in files[0].suffix:
            try:
                named = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{index.name} must hold a weight_map, got {error!r}. Download it again."
                ) from error
            absent = sorted(named - {file.name for file in files})
            if absent:
                raise CheckpointError(
                    f"checkpoint folder must hold every file of its index, got no {_some(absent)} in {folder.name}. "
                    "Download the weights again."
                )
            return [file for file in files if file.name in named]
    return files


def hash_files(folder: Path) -> str:
    """SHA-256 over the weight files' contents, 16 hexadecimal digits; independent of the folder's place."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return hashlib.sha256(b"".join(pool.map(digest, weight_files(folder)))).hexdigest()[:16]


def hash_random(config: LlavaConfig, seed: int, dtype: torch.dtype) -> str:
    """The same for weights that a seed determines."""
    described = json.dumps([_RULE, seed, str(dtype), _sizes(config)], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def random_weights(shapes: Mapping[str, torch.Size], *, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Seeded random tensors, one after the other.

    Matrices are normal with variance 1 / fan-in, so that activations keep their size at any width; norm gains stand
    close to 1, biases at 0. Each tensor has a generator of its own, so its values do not depend on the others'.
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


def published_config(name: str) -> LlavaConfig:
    """LLaVA-1.5's sizes: CLIP ViT-L/14 at 336 px, a two-layer projector, Vicuna 7B or 13B."""
    width, inner, layers, heads = PUBLISHED[name]
    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=32001,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576)


def offline_processor(config: LlavaConfig) -> LlavaProcessor:
    """A processor made on the spot, for models that come without one (random weights).

    The tokenizer is a byte-level BPE whose merges were learned from LLaVA-1.5's own prompts, so that any text can be
    written and a prompt has about as many tokens as LLaVA's. It means nothing to trained weights.

    Raises:
        ValueError: If the vocabulary cannot hold 256 bytes and four special tokens.
    """
    text: Any = config.text_config
    vision: Any = config.vision_config
    size, image_id = int(text.vocab_size), int(config.image_token_id)
    smallest = 256 + 4
    if size < smallest or not 0 <= image_id < size:
        raise ValueError(
            f"vocab_size must be at least {smallest} and hold image_token_index, got {size} and {image_id}. "
            "A model without a tokenizer of its own is given a byte-level one."
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg, unused-ignore]
        vocab_size=min(size - 4, 2000),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    corpus = [SYSTEM, SHORT, LETTER, CAPTION, vicuna_v1("What is in the picture? Is there a red cat at the top left?")]
    learner.train_from_iterator([text.replace(IMAGE, " ") for text in corpus], trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())["model"]
    free = iter(i for i in range(size) if i != image_id)
    vocabulary = {token: next(free) for token in ("<s>", "</s>", "<pad>")}
    vocabulary[IMAGE] = image_id
    vocabulary |= {token: next(free) for token in sorted(learned["vocab"], key=learned["vocab"].__getitem__)}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", IMAGE])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )
    side = int(vision.image_size)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(  # type: ignore[no-untyped-call, unused-ignore]
        image_processor=pictures,
        tokenizer=fast,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _sizes(config: LlavaConfig) -> dict[str, Any]:
    """What of a config determines the tensors' shapes and the computation; names and versions do not count."""
    described: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    ignored = ("transformers_version", "dtype", "_name_or_path", "architectures", "name_or_path")
    for part in (described, described["text_config"], described["vision_config"]):
        for key in ignored:
            part.pop(key, None)
    return described


def _some(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(map(repr, keys[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
