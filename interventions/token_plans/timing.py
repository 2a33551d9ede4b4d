"""Time to the first token, time of a decoding step, bytes of the cache and peak memory of every plan, in turn."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from transformers import DynamicCache

from models.adapter import cache_argument
from models.inputs import Inputs
from models.llava import Llava
from models.token_plans.forward import PlannedCache, cached_bytes
from models.token_plans.plan import TokenPlan


def measure(
    llava: Llava,
    plans: Sequence[TokenPlan],
    inputs: Inputs,
    *,
    rounds: int,
    new_tokens: int,
    on_round: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """One row for each plan and round, after one round that is not kept.

    Columns: ``plan, round``; ``first_token`` (seconds from pixels and ids to the first token); ``prefill`` (seconds of
    the language model alone); ``decode`` (seconds of one further token); ``cache_bytes`` (keys and values after the
    prompt); ``peak_memory`` (bytes above the weights, on CUDA only). Every round runs all plans, so that all meet the
    same state of the machine.
    """
    prompts = inputs.laid_out("left", answers=False)
    rows = []
    for number in range(rounds + 1):
        for plan in plans:
            found = _once(llava, plan, inputs, prompts, new_tokens)
            if number:
                rows.append({"plan": plan.text, "round": number - 1, **found})
        on_round()
    return pd.DataFrame(rows)


def _once(llava: Llava, plan: TokenPlan, inputs: Inputs, prompts: Inputs, new_tokens: int) -> dict[str, Any]:
    cuda = llava.device.type == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize(llava.device)
        return time.perf_counter()

    clock: dict[str, float] = {}
    module: Any = llava.language_model
    handles = [
        module.register_forward_pre_hook(lambda m, args: clock.setdefault("start", now()) and None),
        module.register_forward_hook(lambda m, args, output: clock.setdefault("stop", now()) and None),
    ]
    weights = 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(llava.device)
        weights = torch.cuda.memory_allocated(llava.device)
    text = llava.config.text_config
    cache: Any = DynamicCache(config=text) if plan.is_all else PlannedCache(text)
    mask = prompts.attention_mask
    extended = inputs.laid_out("left", answers=False, room=new_tokens)
    try:
        with llava.intervened(extended, plan):
            began = now()
            kwargs = prompts.model_kwargs()
            output = llava.model(**kwargs, **cache_argument(cache), use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            first = now() - began
            n_bytes = cached_bytes(cache)
            began = now()
            for _ in range(new_tokens):
                mask = torch.cat([mask, torch.ones_like(token)], 1)
                output = llava.model(
                    input_ids=token, attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
                    use_cache=True, **cache_argument(cache),
                )  # fmt: skip
                token = output.logits[:, -1].argmax(-1, keepdim=True)
            decode = (now() - began) / new_tokens
    finally:
        for handle in handles:
            handle.remove()
    peak = torch.cuda.max_memory_allocated(llava.device) - weights if cuda else None
    return {
        "first_token": first, "prefill": clock["stop"] - clock["start"], "decode": decode, "cache_bytes": n_bytes,
        "peak_memory": peak,
    }  # fmt: skip
