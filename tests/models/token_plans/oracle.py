"""A token plan the slow way: every layer runs on every position, with dense masks, and the stream is put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from models.inputs import Inputs
from models.llava import Llava
from models.token_plans.forward import PlannedBatch
from models.token_plans.plan import TokenPlan
from models.token_plans.selection import random_scores


def last_resid(llava: Llava, plan: TokenPlan, inputs: Inputs, extra: Tensor | None = None) -> Tensor:
    """The final norm's output under ``plan``, ``row pos d``; ``extra`` are generated tokens after left-padded rows."""
    ids, real = inputs.input_ids, inputs.attention_mask.bool()
    embeds = llava.embed(ids)
    if inputs.pixel_values is not None:
        rows = [picture for pictures in inputs.image_of for picture in pictures]
        features = llava.image_features(inputs.pixel_values[rows])
        embeds = embeds.masked_scatter((ids == llava.image_token_id)[..., None], features)
    image = ids == llava.image_token_id
    if extra is not None:
        embeds = torch.cat([embeds, llava.embed(extra)], 1)
        more = torch.ones_like(extra, dtype=torch.bool)
        real, image = torch.cat([real, more], 1), torch.cat([image, ~more], 1)
    n = embeds.shape[1]
    position_ids = (real.long().cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    batch = PlannedBatch.of(inputs)
    alive, text, stream = image & real, real & ~image, embeds
    low = torch.finfo(stream.dtype).min
    for layer, state in enumerate(plan.states):
        block = llava.blocks[layer]
        rotary = llava.rotary(stream, position_ids)
        stage = plan.stage_at(layer)
        if stage is not None:
            allowed = causal & (text | alive)[:, None] | torch.eye(n, dtype=torch.bool)
            for row in range(len(ids)):
                places = image[row].nonzero()[:, 0].tolist()
                left = [place for place in places if alive[row, place]]
                number = min(len(places), max(1, int(stage.share * len(places) + 0.5))) if places else 0
                if stage.rule == "attention":
                    mask = torch.zeros(1, 1, n, n).masked_fill(~allowed[row], low)
                    normed = block.input_layernorm(stream[row : row + 1])
                    one = tuple(part[row : row + 1] if len(part) > 1 else part for part in rotary)
                    before = llava.config.text_config._attn_implementation
                    llava.config.text_config._attn_implementation = "eager"  # the one that returns weights
                    _, weights = block.self_attn(normed, position_embeddings=one, attention_mask=mask)
                    llava.config.text_config._attn_implementation = before
                    score = weights[0, :, int(batch.last[row])].mean(0).tolist()
                elif stage.rule == "random":
                    whole = random_scores(stage, batch.names, image)  # the draw itself has a test of its own
                    score = whole[row].tolist()
                else:
                    chosen = {left[int((i + 0.5) * len(left) / number)] for i in range(number)}
                    score = [float(place in chosen) for place in range(n)]
                kept = sorted(left, key=lambda place: -score[place])[:number]
                alive[row] = False
                alive[row, kept] = True
        seen = text | alive if state != "hide" else text
        allowed = causal & seen[:, None] | torch.eye(n, dtype=torch.bool)
        mask = torch.zeros(len(ids), 1, n, n, dtype=stream.dtype).masked_fill(~allowed[:, None], low)
        out = block(stream, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary)
        computed = text | alive if state == "compute" else text
        stream = torch.where(computed[..., None], out, stream)
    return llava.language_model.norm(stream)


def generate(llava: Llava, plan: TokenPlan, inputs: Inputs, n: int) -> tuple[Tensor, Tensor]:
    """Logits at the last prompt position, and ``n`` greedy tokens, with the whole sequence run for every token."""
    prompts = inputs.laid_out("left", answers=False)
    made = torch.zeros(len(inputs), 0, dtype=torch.long)
    first = None
    for _ in range(n):
        scores = llava.model.lm_head(last_resid(llava, plan, prompts, made)[:, -1])
        first = scores if first is None else first
        made = torch.cat([made, scores.argmax(-1)[:, None]], 1)
    assert first is not None
    return first, made


class DenseForward:
    """The forward of the language model under a plan with dense masks; also for masks with a row for each query."""

    def __init__(self, llava: Llava, plan: TokenPlan, batch: PlannedBatch) -> None:
        assert not any(stage.rule == "attention" for stage in plan.stages)
        self._llava, self._plan, self._batch = llava, plan, batch

    def __call__(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, **unused: Any) -> Any:
        """Called by transformers in place of the language model's own forward."""
        llava, stream = self._llava, inputs_embeds
        n = stream.shape[1]
        if attention_mask.ndim == 4:
            seen, real = attention_mask[:, 0] >= 0, torch.ones(stream.shape[:2], dtype=torch.bool)
        else:
            real = attention_mask.bool()
            seen = torch.ones(n, n, dtype=torch.bool).tril() & real[:, None]
        image, text = self._batch.image & real, real & ~self._batch.image
        alive = image
        for layer, state in enumerate(self._plan.states):
            stage = self._plan.stage_at(layer)
            if stage is not None:
                whole = random_scores(stage, self._batch.names, image)
                order = whole.masked_fill(~alive, -1).argsort(dim=1, descending=True, stable=True)
                alive = torch.zeros_like(alive)
                for row, places in enumerate(order.tolist()):
                    number = int(image[row].sum())
                    alive[row, places[: max(1, int(stage.share * number + 0.5))] if number else []] = True
            shown = text | alive if state != "hide" else text
            allowed = seen & shown[:, None] | torch.eye(n, dtype=torch.bool)
            mask = torch.zeros(len(stream), 1, n, n).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min)
            rotary = llava.rotary(stream, position_ids)
            out = llava.blocks[layer](
                stream, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary
            )
            computed = text | alive if state == "compute" else text
            stream = torch.where(computed[..., None], out, stream)
        return BaseModelOutputWithPast(last_hidden_state=llava.language_model.norm(stream))


@contextmanager
def densely_planned(llava: Llava, plan: TokenPlan, batch: PlannedBatch) -> Iterator[None]:
    """In place of ``models.token_plans.forward.planned``."""
    llava.language_model.forward = DenseForward(llava, plan, batch)
    try:
        yield
    finally:
        del llava.language_model.forward
