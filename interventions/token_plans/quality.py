"""What a batch of questions is answered under every plan: text, score, and probabilities against the full model."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from models.inputs import prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.token_plans.plan import TokenPlan
from tasks.example import Example
from tasks.scoring import score_answer

COLUMNS = (
    "plan", "id", "split", "group", "family", "answer", "text", "right", "agrees", "log_prob", "kl", "n_image",
    "n_text",
)  # fmt: skip


def score_batch(
    llava: Llava,
    plans: Sequence[TokenPlan],
    examples: Sequence[Example],
    *,
    new_tokens: int,
    preprocess: Preprocess = "pad",
    on_plan: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """One row for each plan and example; the first plan is ``all``.

    ``right`` is the score of the generated text by the rule of its family; ``agrees`` is 1 if the text is that of
    ``all``; ``log_prob`` the log-probability of the expected answer in nats; ``kl`` the divergence of the distribution
    of its first token from that of ``all``, in nats. ``on_plan`` is called after each plan.
    """
    asked = prepare(llava, examples, preprocess=preprocess)
    answered = prepare(llava, examples, preprocess=preprocess, answers=True)
    n_image = [sum(span.stop - span.start for span in layout.images) for layout in asked.layout]
    lengths = [layout.prompt_stop - layout.real.start for layout in asked.layout]
    rows: list[dict[str, Any]] = []
    first_of_all: Tensor | None = None
    texts_of_all: list[str] = []
    for plan in plans:
        tokens = llava.generate_tokens(asked, new_tokens, token_plan=plan.text)
        texts = [text.strip() for text in llava.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        log_prob, first = _answers(llava, plan, answered)
        if first_of_all is None:
            first_of_all, texts_of_all = first, texts
        kl = (first_of_all.exp() * (first_of_all - first)).sum(-1).clamp(min=0)
        for i, example in enumerate(examples):
            rows.append(
                {
                    "plan": plan.text, "id": example.id, "split": example.split, "group": example.group,
                    "family": example.family, "answer": example.answer, "text": texts[i],
                    "right": score_answer(texts[i], example.answer, example.family),
                    "agrees": float(texts[i] == texts_of_all[i]), "log_prob": float(log_prob[i]), "kl": float(kl[i]),
                    "n_image": n_image[i], "n_text": lengths[i] - n_image[i],
                }
            )  # fmt: skip
        on_plan()
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _answers(llava: Llava, plan: TokenPlan, answered: Any) -> tuple[Float[Tensor, " row"], Float[Tensor, "row vocab"]]:
    """The log-probability of each row's answer, and the log-probabilities of its first token, on the CPU."""
    starts = [layout.prompt_stop for layout in answered.layout]
    stops = [layout.real.stop for layout in answered.layout]
    kept = torch.arange(min(starts) - 1, max(stops) - 1, device=llava.device)
    with llava.intervened(answered, plan):
        logits = llava.model(**answered.model_kwargs(), logits_to_keep=kept, use_cache=False).logits
        scores = logits.float().log_softmax(-1).cpu()
    totals, firsts = [], []
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        columns = torch.arange(start - 1, stop - 1) - int(kept[0])
        wanted = answered.input_ids[row, start:stop].cpu()
        totals.append(scores[row, columns].gather(1, wanted[:, None]).sum())
        firsts.append(scores[row, columns[0]])
    return torch.stack(totals), torch.stack(firsts)
