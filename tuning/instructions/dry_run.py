"""What a run would ask: requests, tokens and the largest costs. No request is sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.chat_server import ChatRequest, Price
from tasks.errors import UserError, one_line
from tasks.files import is_folder

_BYTES_PER_TOKEN = 4  # of English text with the tokenizers of current language models


@dataclass(frozen=True)
class GenerateEstimate:
    """Requests and tokens of a run.

    Example:
        >>> print(GenerateEstimate(3, 1000, 300, is_counted=True, most_cost=None))
        3 requests: 1,000 prompt tokens, at most 300 tokens of replies; the time is that of the server, not estimated
    """

    n_requests: int
    prompt_tokens: int
    most_reply_tokens: int
    is_counted: bool
    """Whether a tokenizer counted the prompt tokens; otherwise four bytes count as one."""
    most_cost: float | None
    """Dollars if every reply has its largest length; None without prices."""

    def __str__(self) -> str:
        """One line."""
        cost = "" if self.most_cost is None else f", at most ${self.most_cost:,.2f}"
        return (
            f"{self.n_requests:,} requests: {'' if self.is_counted else 'about '}{self.prompt_tokens:,} prompt tokens, "
            f"at most {self.most_reply_tokens:,} tokens of replies{cost}; the time is that of the server, not estimated"
        )


def estimate(requests: Sequence[ChatRequest], tokenizer: Path | None, price: Price | None) -> GenerateEstimate:
    """Count the tokens of requests.

    Args:
        requests: All of a run.
        tokenizer: Folder of the tokenizer, whose chat template is applied; None counts bytes.
        price: Dollars per million tokens.

    Raises:
        UserError: If the folder has no tokenizer with a chat template.

    Example:
        >>> from tasks.chat_server import Message
        >>> estimate([ChatRequest("m", (Message("user", "x" * 400),), 10)], None, Price(10, 20)).prompt_tokens
        100
    """
    if tokenizer is None:
        prompt = sum(math.ceil(len(m.content.encode()) / _BYTES_PER_TOKEN) for r in requests for m in r.messages)
    else:
        prompt = _counted(requests, tokenizer)
    replies = sum(request.max_tokens for request in requests)
    cost = None if price is None else price.cost(prompt, replies)
    return GenerateEstimate(len(requests), prompt, replies, tokenizer is not None, cost)


def _counted(requests: Sequence[ChatRequest], folder: Path) -> int:
    from models.loading.config_checks import check_json_files
    from models.loading.processors import read_tokenizer

    if not is_folder(folder):
        raise UserError(f"tokenizer must be a folder, got {str(folder)!r}. Leave it out to count bytes.")
    check_json_files(folder)
    found: Any = read_tokenizer(folder)
    tokenizer, template = found
    try:
        counts = [
            len(
                tokenizer.apply_chat_template(
                    [message._asdict() for message in request.messages],
                    chat_template=template,
                    add_generation_prompt=True,
                    return_dict=True,
                )["input_ids"]
            )
            for request in requests
        ]
    except Exception as error:  # a template is a program
        raise UserError(
            f"tokenizer must be a folder with a tokenizer and its chat template, got {str(folder)!r} "
            f"({one_line(error)}). Leave it out to count bytes."
        ) from error
    return sum(counts)
