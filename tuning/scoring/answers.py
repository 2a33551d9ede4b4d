"""Score a model's answers with teacher forcing: an answer is right if greedy decoding would generate exactly it.

Every token of the answer and its end-of-text token must be the most likely one after the tokens before it. One forward
pass computes this, for several questions about a picture at once.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from models.llava import Llava
from tuning.data.labels import IGNORED
from tuning.data.samples import Samples, collate
from tuning.training.loss import head_at, loss_positions, under_token_plan

TEXT = Path(__file__).parents[2] / "models" / "embedded" / "passage.txt"


@torch.inference_mode()
def score_answers(
    llava: Llava,
    samples: Samples,
    *,
    batch_size: int = 8,
    token_plan: str = "all",
    on_scored: Callable[[int], None] = lambda n: None,
) -> pd.DataFrame:
    """One row for each answer: ``id, group, family, right, log_prob, tokens``.

    ``group`` is the first picture, or the sample if it has none; ``right`` is 1 or 0; ``log_prob`` is the answer's
    total log-probability in nats, its end-of-text token included. The model runs under ``token_plan``.
    ``on_scored`` is called with the number of samples that are newly scored.
    """
    training = llava.model.training
    llava.model.eval()
    rows: list[dict[str, Any]] = []
    try:
        for start in range(0, len(samples), batch_size):
            items = [samples[index] for index in range(start, min(start + batch_size, len(samples)))]
            batch = collate(items, pad_id=llava.pad_token_id)
            planned = under_token_plan(llava, token_plan, dict(batch))
            labels, owner = batch.pop("labels"), batch.pop("owner")
            indices = batch.pop("sample")
            with head_at(llava, loss_positions(labels)), planned:
                logits = llava.model(**model_inputs(batch, llava)).logits[0]
            right, log_prob = _token_scores(logits, labels[:, 1:])
            for row, sample in enumerate(indices.tolist()):
                conversation = samples.conversation(sample)
                pictures = conversation.pictures
                for turn in range(len(conversation.turns)):
                    at = ((owner[row, 1:] == turn) & (labels[row, 1:] != IGNORED)).nonzero().flatten()
                    if len(at):
                        rows.append(
                            {
                                "id": conversation.id,
                                "group": pictures[0].key if pictures else f"sample {sample}",
                                "family": conversation.families[turn] if conversation.families else "",
                                "right": float(right[row, at].all()),
                                "log_prob": float(log_prob[row, at].sum()),
                                "tokens": len(at),
                            }
                        )
            on_scored(len(items))
    finally:
        llava.model.train(training)
    return pd.DataFrame(rows, columns=["id", "group", "family", "right", "log_prob", "tokens"])


def _token_scores(logits: Float[Tensor, "learned vocab"], labels: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
    """Whether each label is the most likely token, and its log-probability, both on the CPU."""
    learned = labels != IGNORED
    right = torch.zeros(labels.shape, dtype=torch.bool)
    log_prob = torch.zeros(labels.shape)
    wanted = labels[learned].to(logits.device)
    right[learned] = (logits.argmax(-1) == wanted).cpu()
    log_prob[learned] = -F.cross_entropy(logits.float(), wanted, reduction="none").cpu()
    return right, log_prob


@torch.inference_mode()
def text_log_likelihood(llava: Llava, text: str | None = None) -> float:
    """Mean log-likelihood of a token of ``text`` in nats, without a picture; higher is better.

    The default is the passage that ships with the embedded checkpoints.
    """
    words = TEXT.read_text(encoding="utf-8") if text is None else text
    limit = int(llava.config.text_config.max_position_embeddings)
    ids = llava.tokenizer(words, return_tensors="pt").input_ids[:, :limit].to(llava.device)
    training = llava.model.training
    llava.model.eval()
    try:
        logits = llava.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        llava.model.train(training)
    loss = float(F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]))
    return -loss if math.isfinite(loss) else math.nan


def model_inputs(batch: dict[str, Tensor], llava: Llava) -> dict[str, Any]:
    """A collated batch as model arguments on the model's device, with the mask in the dtype of attention."""
    moved: dict[str, Any] = {name: value.to(llava.device) for name, value in batch.items()}
    moved["use_cache"] = False
    mask = moved["attention_mask"]
    if mask.is_floating_point():
        kind = (
            torch.get_autocast_dtype(llava.device.type) if torch.is_autocast_enabled(llava.device.type) else llava.dtype
        )
        moved["attention_mask"] = mask.clamp(min=torch.finfo(kind).min).to(kind)
    return moved


def collator(llava: Llava) -> "partial[dict[str, Any]]":
    """``collate`` with this model's padding."""
    return partial(collate, pad_id=llava.pad_token_id)
