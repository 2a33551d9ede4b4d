"""``Adapter``: a Hugging Face LLaVA with names for its parts.

This is the only file that contains module paths of transformers. ``tap(site)`` returns the module to hook for a site;
all other code works with sites. ``models.llava.Llava`` adds the methods for users.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaModel, apply_rotary_pos_emb

from models.sites import Site, check_site

Attention = Literal["sdpa", "eager"]


class Tap(NamedTuple):
    """The place at which an activation is hooked.

    ``side`` is ``"in"`` for the module's first argument, ``"out"`` for its (first) output, ``"pattern"`` for attention
    weights, which no module returns. ``d_head`` is the width of a head if the last axis is heads x d_head, else None.
    """

    module: nn.Module
    side: Literal["in", "out", "pattern"]
    d_head: int | None


@cache
def cache_keyword() -> str:
    """The name of the argument that takes a cache of keys and values: ``cache`` since transformers 5.24.

    Earlier versions call it ``past_key_values``. Forwards, ``generate`` and model outputs use the same name.
    """
    return "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


def cache_argument(held: Any) -> dict[str, Any]:
    """A cache as the keyword argument of this version of transformers."""
    return {cache_keyword(): held}


def cache_in(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a forward; None if there is none."""
    return kwargs.get(cache_keyword())


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LLaVA-1.5 stack: the Hugging Face model in ``eval()`` mode, its processor, and the sizes of both.

    ``id`` is the name it was loaded by, ``revision`` its commit on the hub, if it came from there.
    ``weight_hash`` is a hash of weights, config, tokenizer and picture processor.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    id: str
    revision: str | None
    weight_hash: str
    config: Any = field(init=False)  # a LlavaConfig, whose parts transformers types as dict | config | None

    def __post_init__(self) -> None:
        """Store the config of the model."""
        object.__setattr__(self, "config", self.model.config)

    def __repr__(self) -> str:
        """Name and size, in one line."""
        size = f"n_layers={self.n_layers}, d_model={self.d_model}"
        return f"{type(self).__name__}({self.id!r}, {size}, {self.dtype}, {self.device})"

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
        """Blocks of the vision tower, including the unused last one."""
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
        """Key and value heads of a block; fewer than query heads under grouped queries."""
        return int(self.config.text_config.num_key_value_heads)

    @property
    def n_vision_heads(self) -> int:
        """Heads of a block of the vision tower."""
        return int(self.config.vision_config.num_attention_heads)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and of columns of the patch grid."""
        side = self.image_size // int(self.config.vision_config.patch_size)
        return side, side

    @property
    def n_image_tokens(self) -> int:
        """Positions that one picture takes in the language model."""
        height, width = self.grid
        return height * width + self.n_class_tokens

    @property
    def n_class_tokens(self) -> int:
        """Positions of a picture before its patches: 1 if the language model gets the class token, else 0."""
        return 0 if self.config.vision_feature_select_strategy == "default" else 1

    @property
    def image_token_id(self) -> int:
        """The token id of image tokens."""
        return int(self.config.image_token_id)

    @property
    def pad_token_id(self) -> int:
        """The id at padded positions: the tokenizer's padding id, or a different one if that is the image token."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0, 1)
        return next(token for token in candidates if isinstance(token, int) and token != self.image_token_id)

    @property
    def image_size(self) -> int:
        """Side of the picture that the vision tower takes, in pixels."""
        return int(self.config.vision_config.image_size)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
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
        """The number of vision blocks that compute the projector's input; LLaVA skips the last block."""
        layer = int(self.config.vision_feature_layer)
        return layer if layer >= 0 else self.n_vision_layers + 1 + layer

    def tap(self, site: Site) -> Tap:
        """The module and side at which ``site`` is hooked; raise ``UserError`` if the model has no such layer."""
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
        """The module that is hooked for ``site``."""
        return self.tap(site).module

    def image_features(self, pixel_values: Float[Tensor, "image 3 H W"]) -> Float[Tensor, "image patch d_model"]:
        """The output of vision tower and projector for some pictures."""
        found: Any = self.model.get_image_features(pixel_values=pixel_values.to(self.device, self.dtype))
        features = getattr(found, "pooler_output", found)  # a list of pictures since transformers 5
        return features if isinstance(features, Tensor) else torch.stack(list(features))

    def embed(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings; image tokens, which are replaced later, get the embedding of token 0."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids.masked_fill(input_ids == self.image_token_id, 0))
        return embedded

    def run_language_model(self, embeddings: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The final norm's output. Rows start at column 0 and may end in padding.

        Attention is causal, so padding after a row changes nothing and no mask is needed.
        """
        position_ids = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        output: Any = self.language_model(inputs_embeds=embeddings, position_ids=position_ids, use_cache=False)
        final: Tensor = output.last_hidden_state
        return final

    def unembed(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits: the final norm and the head applied to ``resid_post`` of the last block."""
        scores: Tensor = self.model.lm_head(_module(self.language_model.norm)(resid))
        return scores

    def rotary(
        self, like: Tensor, position_ids: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]:
        """Cosine and sine of the rotary embedding of the language model's queries and keys."""
        cos, sin = _module(self.language_model.rotary_emb)(like, position_ids)
        return cos, sin

    def keys_values(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], position_ids: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch kv_head pos d_head"], Float[Tensor, "batch kv_head pos d_head"]]:
        """Keys after rotation, and values, of a block; nothing else of the block runs."""
        keys, values = self._heads(layer, resid, "k_proj", "v_proj")
        return self._rotated(keys, resid, position_ids), values

    def keys(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], position_ids: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch kv_head pos d_head"]:
        """Keys after rotation of a block; nothing else of the block runs."""
        (keys,) = self._heads(layer, resid, "k_proj")
        return self._rotated(keys, resid, position_ids)

    def queries(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], position_ids: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch head pos d_head"]:
        """Queries after rotation of a block; nothing else of the block runs."""
        (queries,) = self._heads(layer, resid, "q_proj")
        return self._rotated(queries, resid, position_ids)

    def _heads(self, layer: int, resid: Tensor, *names: str) -> list[Tensor]:
        """Outputs of some linear maps of a block's attention, ``batch head pos d_head``."""
        block = self.blocks[layer]
        attention = _module(block.self_attn)
        normed = _module(block.input_layernorm)(resid)
        shape = (*resid.shape[:2], -1, int(attention.head_dim))  # type: ignore[arg-type]
        return [_module(getattr(attention, name))(normed).view(shape).transpose(1, 2) for name in names]

    def _rotated(self, heads: Tensor, resid: Tensor, position_ids: Tensor) -> Tensor:
        rotated: Tensor = apply_rotary_pos_emb(heads, heads, *self.rotary(resid, position_ids))[0]
        return rotated

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
