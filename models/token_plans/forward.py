"""Run the language model under a token plan: what the plan leaves out is not computed and not held in the cache.

Inside ``with planned(llava, plan, batch):`` every forward of the language model runs its decoder layers on the tokens
that the plan computes, packed to the left, with their original positions. Keys and values of hidden tokens are never
made; of frozen tokens only they are.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from models.adapter import Adapter, cache_argument, cache_in
from models.cached_blocks import Joined, KeysValues, additive
from models.hooks import first_output
from models.inputs import Inputs
from models.token_plans.plan import TokenPlan
from models.token_plans.selection import attention_scores, keep_highest, random_scores, uniform_scores
from tasks.errors import UserError


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """What a token plan needs to know of a batch, column by column; generated columns may follow."""

    image: Bool[Tensor, "row pos"]
    """True at image tokens."""
    last: Int[Tensor, " row"]
    """The last column of each prompt."""
    names: tuple[str, ...]
    """A name of each row that does not depend on the batch, for random choices."""

    @classmethod
    def of(cls, inputs: Inputs) -> "PlannedBatch":
        """The image tokens and the ends of the prompts of a batch."""
        image = torch.zeros(inputs.input_ids.shape, dtype=torch.bool)
        for row, layout in enumerate(inputs.layout):
            for span in layout.images:
                image[row, span.start : span.stop] = True
        last = torch.tensor([layout.prompt_stop - 1 for layout in inputs.layout])
        keys = [" ".join(inputs.picture_keys[picture] for picture in pictures) for pictures in inputs.image_of]
        names = tuple(f"{key}: {prompt}" for key, prompt in zip(keys, inputs.prompts, strict=True))
        device = inputs.input_ids.device
        return cls(image.to(device), last.to(device), names)


class PlannedCache(DynamicCache):
    """Keys and values of the visible tokens of each layer, with the columns of the batch that they belong to."""

    def __init__(self, config: Any) -> None:
        """``config`` is that of the language model."""
        super().__init__(config=config)
        self.seen = 0  # columns of the batch that have run
        self.held: dict[int, _Columns] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of columns that have run, from which transformers takes the next ones."""
        return self.seen

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values held."""
        return cached_bytes(self)


def cached_bytes(cache: DynamicCache) -> int:
    """Bytes of the keys and values in a cache."""
    layers: list[Any] = [layer for layer in cache.layers if getattr(layer, "is_initialized", False)]
    return sum(part.numel() * part.element_size() for layer in layers for part in (layer.keys, layer.values))


@contextmanager
def planned(llava: Adapter, plan: TokenPlan, batch: PlannedBatch) -> Iterator[None]:
    """Run every forward of the language model inside the context under ``plan``; the batch is the one that runs."""
    module: Any = llava.language_model
    before = module.__dict__.get("forward")
    module.forward = _PlannedForward(llava, plan, batch)
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


class _Columns(NamedTuple):
    """Columns of the batch in a packed tensor; -1 in slots without a token. ``full`` if no slot is empty."""

    place: Int[Tensor, "row slot"]
    full: bool


class _Packed(NamedTuple):
    """Some tokens of every row, packed to the left."""

    place: Int[Tensor, "row slot"] | None
    """Where each slot lies among the tokens of this forward; None if all tokens are there in their order."""
    valid: Bool[Tensor, "row slot"]
    columns: _Columns
    position_ids: Int[Tensor, "row slot"]
    rotary: tuple[Tensor, Tensor]

    def take(self, stream: Float[Tensor, "row pos d"]) -> Float[Tensor, "row slot d"]:
        """The tokens of the slots."""
        if self.place is None:
            return stream
        return stream.gather(1, self.place[..., None].expand(-1, -1, stream.shape[-1]))

    def put(self, stream: Float[Tensor, "row pos d"], x: Float[Tensor, "row slot d"]) -> Float[Tensor, "row pos d"]:
        """The stream with the tokens of the slots replaced."""
        if self.place is None:
            return x
        place = self.place[..., None].expand(-1, -1, stream.shape[-1])
        return stream.scatter(1, place, torch.where(self.valid[..., None], x, stream.gather(1, place)))


class _PlannedForward:
    """The forward of a LLaMA stack without its head, under a token plan."""

    def __init__(self, llava: Adapter, plan: TokenPlan, batch: PlannedBatch) -> None:
        self._llava, self._plan, self._batch = llava, plan, batch

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Called by transformers in place of the language model's own forward."""
        cache = cache_in(others)
        if cache is not None and not isinstance(cache, PlannedCache):
            raise UserError("cache must be a PlannedCache under a token plan, got another. Use llava.generate.")
        if inputs_embeds is None:
            inputs_embeds = self._llava.model.get_input_embeddings()(input_ids)
        rows, n, _ = inputs_embeds.shape
        start = 0 if cache is None else cache.seen
        device = inputs_embeds.device
        real = torch.ones((rows, start + n), dtype=torch.bool, device=device)
        dense = None
        if attention_mask is not None and attention_mask.ndim == 4:  # one row for each query, as in training
            dense = attention_mask[:, 0] >= 0
        elif attention_mask is not None:
            real = attention_mask[:, : start + n].bool()
        if position_ids is None:
            position_ids = (real.long().cumsum(1) - 1).clamp(min=0)[:, start:]
        real, position_ids = real[:, start:], position_ids.expand(rows, n)
        call = _Call(self._llava, self._plan, self._batch, cache, start, real, position_ids, dense)
        stream = call.run(inputs_embeds)
        if cache is not None:
            cache.seen += n
        norm: Any = self._llava.language_model.norm
        return BaseModelOutputWithPast(last_hidden_state=norm(stream), **cache_argument(cache))


class _Call:
    """One forward: all columns of a prompt, or the next columns of a sequence whose first ones are in the cache."""

    def __init__(
        self,
        llava: Adapter,
        plan: TokenPlan,
        batch: PlannedBatch,
        cache: PlannedCache | None,
        start: int,
        real: Bool[Tensor, "row pos"],
        position_ids: Int[Tensor, "row pos"],
        dense: Bool[Tensor, "row query key"] | None,
    ) -> None:
        self._llava, self._plan, self._batch, self._cache, self._start = llava, plan, batch, cache, start
        self._dense = dense  # which keys each query may attend to, if that is more than causal
        self._real, self._position_ids = real, position_ids
        n = real.shape[1]
        known = batch.image[:, start : start + n]
        self._image = torch.zeros_like(real)
        self._image[:, : known.shape[1]] = known
        self._image &= real
        self._masks: dict[tuple[int, ...], Tensor | None] = {}
        self._joined: dict[tuple[int, ...], _Columns] = {}
        self._held: list[object] = []  # tensors whose id is a key above

    def run(self, stream: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the last block."""
        text, alive = self._real & ~self._image, self._image
        pictured = bool(alive.any())
        packed = frozen = None
        parts: tuple[Any, ...] = ()
        x = stream
        for layer, state in enumerate(self._plan.states):
            stage = self._plan.stage_at(layer) if pictured else None
            if stage is not None:
                if packed is not None:
                    stream = packed.put(stream, x)
                alive = self._choose(stage, layer, stream, text, alive)
            key = (state, alive) if pictured else ("compute", None)
            if packed is None or key[0] != parts[0] or key[1] is not parts[1]:
                if packed is not None and stage is None:
                    stream = packed.put(stream, x)
                packed = self._pack(stream, text | alive if key[0] == "compute" else text)
                frozen = self._pack(stream, alive) if key[0] == "freeze" else None
                x, parts = packed.take(stream), key
                if layer == 0 and key[0] != "compute" and not self._embeddings_train():
                    x = x.detach()  # no gradient is needed below the layer in which image tokens join
                waiting = None if frozen is None else frozen.take(stream)
            x = self._block(layer, x, packed, frozen, waiting)
        assert packed is not None
        return packed.put(stream, x)

    def _embeddings_train(self) -> bool:
        return any(p.requires_grad for p in self._llava.model.get_input_embeddings().parameters())

    def _choose(self, stage: Any, layer: int, stream: Tensor, text: Tensor, alive: Tensor) -> Tensor:
        """True at the image tokens that stay from ``layer`` on."""
        if stage.rule == "attention":
            visible = self._pack(stream, text | alive)
            place = torch.arange(stream.shape[1], device=stream.device).expand(stream.shape[:2])
            place = place if visible.place is None else visible.place
            last = ((place == self._batch.last[:, None]) & visible.valid).int().argmax(1)
            with torch.no_grad():
                found = attention_scores(
                    self._llava, layer, visible.take(stream), visible.position_ids, visible.valid, last
                )
            scores = torch.zeros(stream.shape[:2], device=stream.device)
            scores = scores.scatter(1, place, found.masked_fill(~visible.valid, 0))
        elif stage.rule == "random":
            scores = random_scores(stage, self._batch.names, self._image)
        else:
            scores = uniform_scores(stage, self._image, alive)
        return keep_highest(stage, scores, self._image, alive)

    def _pack(self, stream: Tensor, wanted: Bool[Tensor, "row pos"]) -> _Packed:
        """The wanted tokens of each row."""
        counts = wanted.sum(1)
        n, width = wanted.shape[1], int(counts.max())
        columns = torch.arange(n, device=stream.device).expand(wanted.shape)
        full = bool((counts == width).all())
        if full and width == n:
            index = columns + self._start
            rotary = self._llava.rotary(stream, self._position_ids)
            return _Packed(None, wanted, _Columns(index, True), self._position_ids, rotary)
        place = (~wanted).int().argsort(dim=1, stable=True)[:, :width]
        valid = torch.arange(width, device=stream.device) < counts[:, None]
        index = torch.where(valid, place + self._start, -1)
        position_ids = self._position_ids.gather(1, place)
        rotary = self._llava.rotary(stream, position_ids)
        return _Packed(place, valid, _Columns(index, full), position_ids, rotary)

    def _block(
        self, layer: int, x: Tensor, packed: _Packed, frozen: _Packed | None, waiting: Tensor | None
    ) -> Float[Tensor, "row slot d_model"]:
        """The output of one decoder layer for the packed tokens."""
        keys = [] if self._cache is None or layer not in self._cache.held else [self._cache.held[layer]]
        made = None
        if frozen is not None:
            assert waiting is not None
            made = KeysValues(*self._llava.keys_values(layer, waiting, frozen.position_ids))
            keys.append(frozen.columns)
        keys.append(packed.columns)
        joined = self._join(keys)
        cache: Any = self._cache
        if cache is not None:
            if made is not None:
                cache.update(made.keys, made.values, layer)
            cache.held[layer] = joined
        elif made is not None:
            cache = Joined((made,))
        block: Any = self._llava.blocks[layer]

        mask = self._mask(packed.columns, joined, x.dtype)
        call = block

        def run(x: Tensor) -> Tensor:
            output = call(
                x, attention_mask=mask, position_ids=packed.position_ids, position_embeddings=packed.rotary,
                use_cache=cache is not None, **cache_argument(cache),
            )  # fmt: skip
            return first_output(output)

        if made is not None and getattr(block, "gradient_checkpointing", False) and block.training:
            # transformers takes the keys of frozen tokens away from a layer that it checkpoints itself.
            call = partial(inspect.unwrap(type(block).forward), block)
            return checkpoint(run, x, use_reentrant=False)  # type: ignore[no-any-return]
        return run(x)

    def _join(self, parts: list[_Columns]) -> _Columns:
        """The columns of all parts; equal parts give the same object, so that masks are made once."""
        if len(parts) == 1:
            return parts[0]
        key = tuple(id(part.place) for part in parts)
        if key not in self._joined:
            index = torch.cat([part.place for part in parts], dim=1)
            self._joined[key] = _Columns(index, all(part.full for part in parts))
            self._held.extend(parts)
        return self._joined[key]

    def _mask(self, queries: _Columns, keys: _Columns, dtype: torch.dtype) -> Tensor | None:
        """The attention mask of packed queries and keys; None where the kernel's own causal mask is right."""
        name = (id(queries.place), id(keys.place))
        if name not in self._masks:
            self._held += [queries.place, keys.place]
            alone = queries.place.shape[1] == 1
            own = queries.place is keys.place and self._llava.attention == "sdpa" and self._dense is None
            if keys.full and queries.full and ((alone and self._dense is None) or own):
                self._masks[name] = None
            else:
                allowed = (keys.place[:, None] <= queries.place[..., None]) & (keys.place >= 0)[:, None]
                if self._dense is not None:
                    rows = torch.arange(len(allowed), device=allowed.device)[:, None, None]
                    places = queries.place.clamp(min=0)[..., None], keys.place.clamp(min=0)[:, None]
                    allowed &= self._dense[rows, places[0], places[1]]
                allowed |= (queries.place < 0)[..., None]  # a query in an empty slot attends to anything
                self._masks[name] = additive(allowed[:, None], dtype)
        return self._masks[name]
