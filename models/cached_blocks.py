"""Run single blocks, on some positions, with the keys and values of earlier runs.

``run_cached`` stores the residual stream, keys and values of every layer; ``run_block`` runs one decoder layer on any
positions of any runs, with chosen keys and values. Attention is causal, so everything before a change is exactly as in
the unchanged run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from models.adapter import Adapter, cache_argument
from models.hooks import first_output, recorded
from models.precision import fast_bfloat16
from models.sites import Part, Site


@contextmanager
def inference(llava: Adapter) -> Iterator[None]:
    """Inference mode, and fast bfloat16 on a CPU for a model in bfloat16."""
    with torch.inference_mode(), fast_bfloat16() if llava.dtype == torch.bfloat16 else nullcontext():
        yield


class KeysValues(NamedTuple):
    """Keys after rotation, and values, of one block."""

    keys: Float[Tensor, "example kv_head pos d_head"]
    values: Float[Tensor, "example kv_head pos d_head"]

    def at(self, columns: Int[Tensor, " column"]) -> "KeysValues":
        """The keys and values at ``columns``."""
        return KeysValues(self.keys.index_select(2, columns), self.values.index_select(2, columns))


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the language model: the residual stream before each block and after the last, keys and values."""

    resid: tuple[Float[Tensor, "example pos d_model"], ...]
    cached: tuple[KeysValues, ...]


@dataclass(frozen=True, eq=False)
class TowerRun:
    """A run of the vision tower and the projector: the residual stream up to the projector's input, and its output."""

    resid: tuple[Float[Tensor, "image token d_vision"], ...]
    features: Float[Tensor, "image patch d_model"]


def run_cached(
    llava: Adapter,
    embeddings: Float[Tensor, "example pos d_model"],
    attention_mask: Int[Tensor, "example pos"],
    position_ids: Int[Tensor, "example pos"],
) -> Run:
    """Run the language model and store its residual stream, keys and values at every layer."""
    sites = _resid_sites("language_model", llava.n_layers)
    cache = DynamicCache()
    with recorded(llava, sites) as values:
        llava.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **cache_argument(cache),
        )
    kept: list[Any] = list(cache.layers)
    return Run(tuple(values[site] for site in sites), tuple(KeysValues(layer.keys, layer.values) for layer in kept))


def _resid_sites(part: Part, n_layers: int) -> list[Site]:
    """The residual stream before each block and after the last."""
    return [*(Site(part, layer, "resid_pre") for layer in range(n_layers)), Site(part, n_layers - 1, "resid_post")]


def run_block(
    llava: Adapter,
    layer: int,
    resid: Float[Tensor, "example query d_model"],
    position_ids: Int[Tensor, "example query"],
    earlier: Sequence[KeysValues],
    allowed: Bool[Tensor, "example head query key"],
) -> Float[Tensor, "example query d_model"]:
    """The output of one block of the language model for packed queries.

    Args:
        llava: The model.
        layer: The block, counted from 0.
        resid: The residual stream before the block; the queries of a row may belong to different runs.
        position_ids: Positions for the rotary embedding.
        earlier: Keys and values that come before the keys and values of the queries.
        allowed: True where a query attends to a key (of ``earlier``, then of the queries), at least one for each query;
            a head axis of size 1 applies to all heads.
    """
    output = llava.blocks[layer](
        resid,
        attention_mask=additive(allowed, resid.dtype),
        position_ids=position_ids,
        position_embeddings=llava.rotary(resid, position_ids),
        use_cache=True,
        **cache_argument(Joined(earlier)),
    )
    return first_output(output)


def run_keys_values(
    llava: Adapter,
    layer: int,
    resid: Float[Tensor, "example query d_model"],
    position_ids: Int[Tensor, "example query"],
) -> KeysValues:
    """The keys and values of packed positions in one block; the rest of the block does not run."""
    taker = _Taker()
    with suppress(_Stop):
        llava.blocks[layer](
            resid,
            attention_mask=None,
            position_ids=position_ids,
            position_embeddings=llava.rotary(resid, position_ids),
            use_cache=True,
            **cache_argument(taker),
        )
    assert taker.found is not None
    return taker.found


def additive(allowed: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask to add to attention scores: 0 where allowed, else the lowest finite number.

    Eager attention adds its mask, so a boolean one would have no effect.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def run_tower(llava: Adapter, pixel_values: Float[Tensor, "image 3 H W"]) -> TowerRun:
    """Run the vision tower and the projector, and store the residual stream at every layer that the projector needs."""
    sites = _resid_sites("vision_tower", llava.vision_layer)
    with recorded(llava, sites) as values:
        features = llava.image_features(pixel_values)
    return TowerRun(tuple(values[site] for site in sites), features)


def run_tower_block(
    llava: Adapter, layer: int, resid: Float[Tensor, "image token d_vision"]
) -> Float[Tensor, "image token d_vision"]:
    """The output of one block of the vision tower."""
    return first_output(llava.vision_blocks[layer](resid, None))


def run_projector(llava: Adapter, resid: Float[Tensor, "image token d_vision"]) -> Float[Tensor, "image patch d_model"]:
    """Image features from the residual stream that the projector reads, without the class token."""
    features: Tensor = llava.projector(resid[:, 1 - llava.n_class_tokens :])
    return features


@dataclass(eq=False)
class Joined:
    """A cache that holds given keys and values and stores nothing."""

    earlier: Sequence[KeysValues]

    def update(self, keys: Tensor, values: Tensor, *unused: object, **also_unused: object) -> tuple[Tensor, Tensor]:
        """All keys and values; the ones of this call come last. Attention calls this."""
        found = zip(*self.earlier, (keys, values), strict=True)
        joined_keys, joined_values = (torch.cat(parts, dim=2) for parts in found)
        return joined_keys, joined_values


class _Stop(Exception):  # noqa: N818
    pass


@dataclass(eq=False)
class _Taker:
    """A cache that stores the keys and values of one call and ends the block's forward pass."""

    found: KeysValues | None = None

    def update(self, keys: Tensor, values: Tensor, *unused: object, **also_unused: object) -> tuple[Tensor, Tensor]:
        """Store the keys and values. Attention calls this."""
        self.found = KeysValues(keys, values)
        raise _Stop
