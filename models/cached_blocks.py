"""Run single blocks on some positions, with keys and values cached from earlier runs.

``run_cached`` stores a run at every layer; ``run_block`` then runs one decoder layer on any positions of any runs,
packed into rows of queries, with chosen keys and values. Attention is causal, so values that a change cannot affect
are taken from the unchanged run, exactly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from models.adapter import Adapter
from models.hooks import first_output, recorded
from models.precision import fast_bfloat16
from models.sites import Site


@contextmanager
def running(llava: Adapter) -> Iterator[None]:
    """Inference mode, with fast bfloat16 products on a CPU."""
    with torch.inference_mode(), fast_bfloat16() if llava.dtype == torch.bfloat16 else nullcontext():
        yield


class KeysValues(NamedTuple):
    """Keys (after rotation) and values of one block."""

    keys: Float[Tensor, "example kv_head pos d_head"]
    values: Float[Tensor, "example kv_head pos d_head"]

    def at(self, columns: Int[Tensor, " column"]) -> "KeysValues":
        """The keys and values of some columns."""
        return KeysValues(self.keys.index_select(2, columns), self.values.index_select(2, columns))


@dataclass(frozen=True, eq=False)
class Run:
    """The stored values of a run of the language model.

    Args:
        resid: ``example pos d_model``: the residual stream entering each block, and leaving the last.
        cached: Keys and values of each block.
    """

    resid: tuple[Float[Tensor, "example pos d_model"], ...]
    cached: tuple[KeysValues, ...]


@dataclass(frozen=True, eq=False)
class TowerRun:
    """The stored values of a run of the vision tower and the projector.

    Args:
        resid: ``image token d_vision``: the residual stream entering each block, up to the one the projector reads.
        features: ``image patch d_model``: the output of the projector.
    """

    resid: tuple[Float[Tensor, "image token d_vision"], ...]
    features: Float[Tensor, "image patch d_model"]


def run_cached(
    llava: Adapter,
    embeddings: Float[Tensor, "example pos d_model"],
    attention_mask: Int[Tensor, "example pos"],
    position_ids: Int[Tensor, "example pos"],
) -> Run:
    """Run the language model and store residual stream, keys and values at every layer."""
    blocks = [Site("language_model", layer, "resid_pre") for layer in range(llava.n_layers)]
    last = Site("language_model", llava.n_layers - 1, "resid_post")
    cache = DynamicCache()
    with recorded(llava, [*blocks, last]) as values:
        llava.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
    kept: list[Any] = list(cache.layers)
    return Run(
        tuple(values[site] for site in [*blocks, last]), tuple(KeysValues(layer.keys, layer.values) for layer in kept)
    )


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
        llava: The model; its own attention runs.
        layer: The block, counted from 0.
        resid: The residual stream entering it; the queries of a row may belong to different runs.
        position_ids: For the rotary embedding.
        earlier: Keys and values that precede those of the queries.
        allowed: Which query sees which key (those of ``earlier``, then the queries' own); every query at least one.
            One head serves for all.
    """
    output = llava.blocks[layer](
        resid,
        attention_mask=additive(allowed, resid.dtype),
        position_ids=position_ids,
        position_embeddings=llava.rotary(resid, position_ids),
        past_key_values=_Joined(earlier),
        use_cache=True,
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
    with suppress(_Taken):
        llava.blocks[layer](
            resid,
            attention_mask=None,
            position_ids=position_ids,
            position_embeddings=llava.rotary(resid, position_ids),
            past_key_values=taker,
            use_cache=True,
        )
    assert taker.found is not None
    return taker.found


def additive(allowed: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask to add to attention scores: 0 where allowed, else the least finite number.

    Eager attention adds whatever mask it gets, so a boolean one would be a silent no-op there.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def run_tower(llava: Adapter, pixel_values: Float[Tensor, "image 3 H W"]) -> TowerRun:
    """Run vision tower and projector and store the residual stream before every block."""
    before = [Site("vision_tower", layer, "resid_pre") for layer in range(llava.vision_layer)]
    read = Site("vision_tower", llava.vision_layer - 1, "resid_post")
    with recorded(llava, [*before, read]) as values:
        features = llava.image_features(pixel_values)
    return TowerRun(tuple(values[site] for site in [*before, read]), features)


def run_tower_block(
    llava: Adapter, layer: int, resid: Float[Tensor, "image token d_vision"]
) -> Float[Tensor, "image token d_vision"]:
    """The output of one block of the vision tower."""
    return first_output(llava.vision_blocks[layer](resid, None))


def run_projector(llava: Adapter, resid: Float[Tensor, "image token d_vision"]) -> Float[Tensor, "image patch d_model"]:
    """Image features from the residual stream at the projector's input, without the class token."""
    projector: nn.Module = llava.projector
    features: Tensor = projector(resid[:, 1 - llava.n_class_tokens :])
    return features


class _Joined:
    """Used as a cache: returns earlier keys and values followed by the new ones."""

    def __init__(self, earlier: Sequence[KeysValues]) -> None:
        self._earlier = earlier

    def update(self, keys: Tensor, values: Tensor, *unused: object, **also_unused: object) -> tuple[Tensor, Tensor]:
        """Keys and values that the attention uses."""
        return (
            torch.cat([*(part.keys for part in self._earlier), keys], dim=2),
            torch.cat([*(part.values for part in self._earlier), values], dim=2),
        )


class _Taken(Exception):  # noqa: N818
    pass


class _Taker:
    """Used as a cache: stores the keys and values, and ends the block."""

    def __init__(self) -> None:
        self.found: KeysValues | None = None

    def update(self, keys: Tensor, values: Tensor, *unused: object, **also_unused: object) -> tuple[Tensor, Tensor]:
        """Store the keys and values."""
        self.found = KeysValues(keys, values)
        raise _Taken
