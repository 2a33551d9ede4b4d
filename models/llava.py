"""The one adapter to transformers: ``load(name_or_path)`` gives a ``Llava``, a validated LLaVA-1.5 stack.

This is the only file that knows where transformers keeps the parts (vision tower, projector, language model) and what
their modules are called. ``Llava.tap(site)`` says where an activation is read; everything else asks for sites.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase
from transformers.utils import logging

from models.checkpoints import (
    PUBLISHED,
    CheckpointError,
    hash_files,
    hash_random,
    published_config,
    random_weights,
    read_weights,
    stored_tensors,
    weight_files,
)
from models.locate import Located, locate, unknown_model
from models.original import is_original, read_original
from models.processors import offline_processor, read_processor
from models.sites import Site, all_sites, check_site

Attention = Literal["sdpa", "eager"]
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Above this many parameters the check on a real forward is left out for random weights: it would cost minutes on a CPU
# and can only repeat what the same code shows on small models.
_CHECK_RANDOM_BELOW = 10**9


class Tap(NamedTuple):
    """Where an activation is read.

    Args:
        module: The module to hook.
        side: ``"in"`` for its first argument, ``"out"`` for its output (the first, if there are several); ``"pattern"``
            for the attention weights, which no module hands out.
        d_head: The width of a head where the last axis is heads x d_head, else None.
    """

    module: nn.Module
    side: Literal["in", "out", "pattern"]
    d_head: int | None


@dataclass(frozen=True, eq=False)
class Llava:
    """A LLaVA-1.5 stack: the Hugging Face model in ``eval()``, its processor, and what is known about both.

    Args:
        model: The model itself; plain transformers code runs on it.
        processor: Tokenizer and picture processor.
        id: The name it was loaded by.
        revision: The commit on the hub, if it came from there.
        weight_hash: Tells one set of weights from another.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    id: str
    revision: str | None
    weight_hash: str
    config: Any = field(init=False)  # a LlavaConfig, whose parts transformers types as dict | config | None

    def __post_init__(self) -> None:
        """Takes the config from the model."""
        object.__setattr__(self, "config", self.model.config)

    def __repr__(self) -> str:
        """One line: a printed model would fill pages."""
        return f"Llava({self.id!r}, n_layers={self.n_layers}, d_model={self.d_model}, {self.dtype}, {self.device})"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        return tokenizer

    @property
    def n_layers(self) -> int:
        """Blocks of the language model."""
        return len(self.blocks)

    @property
    def n_vision_layers(self) -> int:
        """Blocks of the vision tower, the unused last one included."""
        return len(self.vision_blocks)

    @property
    def d_model(self) -> int:
        """Width of the language model's residual stream."""
        return int(self.config.text_config.hidden_size)

    @property
    def attention(self) -> Attention:
        """The attention implementation of the language model."""
        implementation: Attention = self.config.text_config._attn_implementation
        return implementation

    @property
    def n_heads(self) -> int:
        """Query heads of a block of the language model."""
        return int(self.config.text_config.num_attention_heads)

    @property
    def n_kv_heads(self) -> int:
        """Its key and value heads: fewer under grouped queries."""
        return int(self.config.text_config.num_key_value_heads)

    @property
    def n_vision_heads(self) -> int:
        """Heads of a block of the vision tower."""
        return int(self.config.vision_config.num_attention_heads)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        side = self.image_size // int(self.config.vision_config.patch_size)
        return side, side

    @property
    def n_image_tokens(self) -> int:
        """Positions that one picture takes in the language model."""
        height, width = self.grid
        return height * width + self.n_class_tokens

    @property
    def n_class_tokens(self) -> int:
        """How many of them stand before the patches: 0, or 1 if the class token is passed on."""
        return 0 if self.config.vision_feature_select_strategy == "default" else 1

    @property
    def image_token_id(self) -> int:
        """The id that stands at image tokens."""
        return int(self.config.image_token_id)

    @property
    def image_size(self) -> int:
        """Side of the picture that the vision tower takes, in pixels."""
        return int(self.config.vision_config.image_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.model.dtype

    @property
    def vision_tower(self) -> nn.Module:
        """The CLIP vision model."""
        return _module(self.model.model.vision_tower)

    @property
    def projector(self) -> nn.Module:
        """The two-layer map from the vision tower to the language model."""
        return _module(self.model.model.multi_modal_projector)

    @property
    def language_model(self) -> nn.Module:
        """The LLaMA stack, without its head."""
        return _module(self.model.model.language_model)

    @property
    def blocks(self) -> nn.ModuleList:
        """The language model's blocks."""
        return _list(self.language_model.layers)

    @property
    def vision_blocks(self) -> nn.ModuleList:
        """The vision tower's blocks."""
        tower = getattr(self.vision_tower, "vision_model", self.vision_tower)  # nested in transformers before 5.18
        return _list(_module(tower.encoder).layers)

    @property
    def vision_layer(self) -> int:
        """How many blocks of the vision tower stand before the projector: all but the last."""
        layer = int(self.config.vision_feature_layer)
        return layer if layer >= 0 else self.n_vision_layers + 1 + layer

    def tap(self, site: Site) -> Tap:
        """Where ``site`` is read.

        Raises:
            ValueError: If the model has no such layer.
        """
        check_site(site, self)
        if site.part == "projector":
            inner: dict[str, Tap] = {
                "in": Tap(self.projector, "in", None),
                "linear_1": Tap(_module(self.projector.linear_1), "out", None),
                "act": Tap(_module(self.projector.act), "out", None),
                "out": Tap(self.projector, "out", None),
            }
            return inner[site.name]
        if site.layer is None:
            return Tap(_module(self.language_model.norm), "out", None)
        language = site.part == "language_model"
        block = (self.blocks if language else self.vision_blocks)[site.layer]
        attention = _module(block.self_attn)
        d_head = int(attention.head_dim)  # type: ignore[arg-type]
        taps: dict[str, Tap] = {
            "resid_pre": Tap(block, "in", None),
            "q": Tap(_module(attention.q_proj), "out", d_head),
            "k": Tap(_module(attention.k_proj), "out", d_head),
            "v": Tap(_module(attention.v_proj), "out", d_head),
            "pattern": Tap(attention, "pattern", None),
            "z": Tap(_module(attention.o_proj if language else attention.out_proj), "in", d_head),
            "attn_out": Tap(attention, "out", None),
            "resid_mid": Tap(_module(block.post_attention_layernorm if language else block.layer_norm2), "in", None),
            "mlp_out": Tap(_module(block.mlp), "out", None),
            "resid_post": Tap(block, "out", None),
        }
        return taps[site.name]

    def module_at(self, site: Site) -> nn.Module:
        """The module at whose input or output ``site`` stands."""
        return self.tap(site).module

    def image_features(self, pixel_values: Float[Tensor, "image 3 H W"]) -> Float[Tensor, "image patch d_model"]:
        """Pictures through the vision tower and the projector."""
        found: Any = self.model.get_image_features(pixel_values=pixel_values.to(self.device, self.dtype))
        features = getattr(found, "pooler_output", found)  # a list of pictures since transformers 5
        return features if isinstance(features, Tensor) else torch.stack(list(features))

    def embed(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings; image tokens, which a picture replaces, get the embedding of token 0."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids.masked_fill(input_ids == self.image_token_id, 0))
        return embedded

    def run_language_model(self, embeddings: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The final norm's output, for rows that start at column 0 and whose padding, if any, follows them.

        Attention is causal, so real positions cannot see what follows them and no mask is needed.
        """
        position_ids = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        output: Any = self.language_model(inputs_embeds=embeddings, position_ids=position_ids, use_cache=False)
        final: Tensor = output.last_hidden_state
        return final

    def logits(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """The last block's ``resid_post`` through the final norm and the head."""
        scores: Tensor = self.model.lm_head(_module(self.language_model.norm)(resid))
        return scores

    def rotary(
        self, like: Tensor, position_ids: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]:
        """Cosine and sine that rotate the language model's queries and keys."""
        cos, sin = _module(self.language_model.rotary_emb)(like, position_ids)
        return cos, sin

    def attention_scale(self, site: Site) -> float:
        """The factor on query-key products in the block of ``site``."""
        attention = self.tap(site).module
        scale: Any = getattr(attention, "scaling", None) or getattr(attention, "scale", None)
        return float(scale)


def _module(value: object) -> nn.Module:
    assert isinstance(value, nn.Module)
    return value


def _list(value: object) -> nn.ModuleList:
    assert isinstance(value, nn.ModuleList)
    return value


def load(
    name_or_path: str | Path | LlavaConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    attn: Attention = "sdpa",
    seed: int = 0,
    base: str | Path | None = None,
    validate: bool = True,
) -> Llava:
    """A LLaVA-1.5 stack, checked on a real forward.

    Args:
        name_or_path: ``"smol"`` or ``"smol-stage1"`` (embedded), a checkpoint folder or Hugging Face id in either
            llava-hf key layout or the original one (``liuhaotian/llava-v1.5-7b``),
            ``"random:llava-1.5-7b"`` or ``"random:llava-1.5-13b"`` (published size, random weights and a byte-level
            tokenizer), or a config, which gets random weights too.
        device: Where the weights go.
        dtype: What they are stored in; None keeps float32 on a CPU and takes the checkpoint's own dtype elsewhere.
        revision: A branch, tag or commit, for a Hugging Face id.
        attn: The attention implementation; every site can be captured under both.
        seed: Of random weights.
        base: The language model (folder or Hugging Face id) of an original stage-1 folder, which has none.
        validate: Whether to check that image tokens match the patch grid, that the captured last ``resid_post`` gives
            the model's logits, and that every site fires. Random weights of a billion and more skip the last two.

    Raises:
        ValueError: If the name is unknown, or the checkpoint is not LLaVA-1.5 or does not fit (CheckpointError).
        FileNotFoundError: If the package that holds the language model of ``smol`` is missing.
    """
    if attn not in ("sdpa", "eager"):
        raise ValueError(f"attn must be 'sdpa' or 'eager', got {attn!r}. Every site works with both.")
    if dtype is not None and dtype not in _FLOATS:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}. Weights are floating-point.")
    config = name_or_path if isinstance(name_or_path, LlavaConfig) else None
    name = "random" if config is not None else str(name_or_path)
    if name.startswith("random:"):
        if name.removeprefix("random:") not in PUBLISHED:
            raise unknown_model(name)
        config = published_config(name.removeprefix("random:"))
    if config is not None:
        llava = _random(config, offline_processor(config), f"{name}@{seed}", seed, dtype or torch.float32, device, attn)
    else:
        llava = _from_folder(locate(name, revision), base=base, device=torch.device(device), dtype=dtype, attn=attn)
    if validate:
        _validate(llava, forward=config is None or llava.model.num_parameters() < _CHECK_RANDOM_BELOW)
    return llava


def randomised(llava: Llava, seed: int) -> Llava:
    """The same architecture and tokenizer with fresh random weights: the control for what training put there."""
    attn = llava.model.config._attn_implementation
    return _random(llava.config, llava.processor, f"random({llava.id})@{seed}", seed, llava.dtype, llava.device, attn)


def _random(
    config: LlavaConfig,
    processor: LlavaProcessor,
    name: str,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    attn: str,
) -> Llava:
    _check_architecture(config, name)
    shapes = _shapes(config)
    weights = dict(random_weights(shapes, seed=seed, dtype=dtype))
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return Llava(_build(config, weights, dtype, device, attn), processor, name, None, hash_random(config, seed, dtype))


def _shapes(config: LlavaConfig) -> dict[str, torch.Size]:
    """The model's own keys and shapes, found without allocating anything."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in LlavaForConditionalGeneration(config).state_dict().items()}


def _build(
    config: LlavaConfig, weights: dict[str, Tensor], dtype: torch.dtype, device: torch.device | str, attn: str
) -> LlavaForConditionalGeneration:
    """The model around the given tensors; it takes them as they are where dtype and device agree."""
    config.architectures = ["LlavaForConditionalGeneration"]
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    # nothing is read here, so there is no progress worth a line
    try:
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, attn_implementation=attn
        )
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    placed: LlavaForConditionalGeneration = model.to(device).eval()
    return placed


def _from_folder(
    located: Located,
    *,
    base: str | Path | None,
    device: torch.device,
    dtype: torch.dtype | None,
    attn: Attention,
) -> Llava:
    folder, name, revision = located
    if is_original(folder):
        original = read_original(folder, base=base)
        config, processor, files = original.config, original.processor, original.files
        stored: Iterable[tuple[str, Tensor]] = original.tensors
    else:
        if base is not None:
            raise CheckpointError(f"base is for original stage-1 folders, got {str(base)!r} with {name}. Leave it out.")
        config = _read_config(folder)
        _check_architecture(config, name)
        files, processor = tuple(weight_files(folder)), read_processor(folder, config)
        stored = stored_tensors(files)
    weights = read_weights(stored, _shapes(config), where=folder.name, tied=bool(config.tie_word_embeddings))
    kept = next(iter(weights.values())).dtype
    chosen = dtype or (torch.float32 if device.type == "cpu" or kept not in _FLOATS else kept)
    return Llava(_build(config, weights, chosen, device, attn), processor, name, revision, hash_files(files))


def _read_config(folder: Path) -> LlavaConfig:
    try:
        config: LlavaConfig = LlavaConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, LookupError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"config.json must be readable, got {reason} in {folder.name}. Download it again."
        ) from error
    return config


def _check_architecture(config: Any, name: str) -> None:
    """Refuses anything but CLIP + projector + LLaMA, read from one layer."""
    parts = config.model_type, config.vision_config.model_type, config.text_config.model_type
    if parts != ("llava", "clip_vision_model", "llama"):
        raise CheckpointError(
            "checkpoint must be LLaVA-1.5 (model_type llava with clip_vision_model and llama), got "
            f"{' with '.join(parts)} in {name}. Other architectures are not supported."
        )
    if not isinstance(config.vision_feature_layer, int):
        raise CheckpointError(
            f"vision_feature_layer must be one layer, got {config.vision_feature_layer} in {name}. LLaVA-1.5 reads -2."
        )


def _validate(llava: Llava, *, forward: bool) -> None:
    """Image tokens = patch grid; last resid_post -> norm -> head = logits; every site fires."""
    if llava.tokenizer.convert_tokens_to_ids("<image>") != llava.image_token_id:
        raise CheckpointError(
            f"tokenizer must give <image> the id {llava.image_token_id}, got "
            f"{llava.tokenizer.convert_tokens_to_ids('<image>')} in {llava.id}. Config and tokenizer do not match."
        )
    declared = llava.config.image_seq_length
    if declared != llava.n_image_tokens:
        raise CheckpointError(
            f"image_seq_length must be {llava.n_image_tokens} (the patch grid {llava.grid}), got {declared} in "
            f"{llava.id}. Correct config.json."
        )
    if not forward:
        return
    from models.capture import probe_forward  # capture needs Llava, so it is imported where it is used

    probe_forward(llava, all_sites(llava))
