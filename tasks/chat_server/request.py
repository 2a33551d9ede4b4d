"""A request to a chat server, its key, and what comes back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tasks.errors import UserError

_TEMPLATE_BYTES = 64  # of a chat template around one message; those of Llama 3 and ChatML take 20 to 40


class Message(NamedTuple):
    """One message of a chat.

    Example:
        >>> Message("user", "What is it?").role
        'user'
    """

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """One request. Equal requests to equal models have equal keys.

    Args:
        model: The name of the model at the server.
        messages: At least one; the last is the user's.
        max_tokens: Largest number of tokens of the reply.
        temperature: 0 for greedy decoding.
        seed: Sent to the server unless it is None; not every server uses it.
        schema: A JSON schema of the reply, sent as ``response_format``; None for plain text.

    Raises:
        UserError: If ``model`` or ``messages`` is empty, or a number is out of range.

    Source: https://platform.openai.com/docs/api-reference/chat

    Example:
        >>> request = ChatRequest("some-model", (Message("user", "What is it?"),), seed=3)
        >>> request.body["messages"], request.body["seed"]
        ([{'role': 'user', 'content': 'What is it?'}], 3)
        >>> len(request.key)
        64
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int = 1024
    temperature: int | float = 0.0
    seed: int | None = None
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.model:
            raise UserError("model must be the name of a model at the server, got an empty text. Give --model.")
        if not self.messages:
            raise UserError("messages must hold at least one message, got none.")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be >= 1, got {self.max_tokens}.")
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature must be in [0, 2], got {self.temperature}.")

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message._asdict() for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": float(self.temperature),
        }
        if self.seed is not None:
            body["seed"] = self.seed
        if self.schema is not None:
            named = {"name": "reply", "strict": True, "schema": dict(self.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    @property
    def key(self) -> str:
        """SHA-256 of the request and the model in hexadecimal; the address of the server is not part of it."""
        text = json.dumps(self.body, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def most_prompt_tokens(self) -> int:
        """An upper bound of the tokens of the prompt: a tokenizer on bytes gives at most one a byte."""
        texts = sum(len(message.content.encode()) + _TEMPLATE_BYTES for message in self.messages)
        return texts + (len(json.dumps(self.schema)) if self.schema is not None else 0)


@dataclass(frozen=True)
class Reply:
    """What a request came to.

    Args:
        key: The key of the request.
        tag: The caller's name of the request, for people who read the log.
        status: ``answered``; ``rejected`` if the server does not accept this request (status 400, 413, 422); ``failed``
            if every attempt failed.
        text: The text of the reply; empty unless answered.
        finish: Why the reply ends: ``stop``, ``length`` at the limit of tokens, or the server's own word.
        prompt_tokens: As the server counts them; None if it does not.
        completion_tokens: As ``prompt_tokens``.
        seconds: Of all attempts and the waits between them.
        attempts: Requests sent.
        cost: Dollars; 0 without a table of prices. An attempt that was cut or timed out counts at its upper bound.
        error: The last fault, empty if answered.
        cached: Whether the reply comes from the log.

    Example:
        >>> Reply("k", "a", "answered", "Yes.", attempts=2).is_answered
        True
    """

    key: str
    tag: str
    status: Literal["answered", "rejected", "failed"]
    text: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    attempts: int = 1
    cost: float = 0.0
    error: str = ""
    cached: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether there is a text."""
        return self.status == "answered"
