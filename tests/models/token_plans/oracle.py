"""A token plan the slow way: every layer runs on every position, with dense masks, and the stream is put back."""

import torch
from torch import Tensor

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
