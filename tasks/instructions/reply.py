"""Turns from a reply: strict JSON, or blocks of ``Question:`` and ``Answer:`` with ``===`` between them."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.instructions.kinds import Kind
from tasks.readers.parse import parse_json

NOT_JSON = "the reply is not JSON"
_TURNS = {
    "type": "object",
    "properties": {
        "turns": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["turns"],
    "additionalProperties": False,
}
_DESCRIPTION = {
    "type": "object",
    "properties": {"description": {"type": "string"}},
    "required": ["description"],
    "additionalProperties": False,
}


class UnusableReplyError(ValueError):
    """A reply that becomes no sample. The message is the reason."""


class Pair(NamedTuple):
    """A question and its answer; the question of a description is empty until the sample is made.

    Example:
        >>> Pair("What is it?", "A dog.").answer
        'A dog.'
    """

    question: str
    answer: str


def schema_of(kind: Kind) -> Mapping[str, Any]:
    """The JSON schema of a reply.

    Example:
        >>> schema_of("detail")["required"]
        ['description']
    """
    return _DESCRIPTION if kind == "detail" else _TURNS


def parse_reply_json(text: str, kind: Kind) -> tuple[Pair, ...]:
    """The turns of a reply that is a JSON object of the schema, and nothing else.

    Raises:
        UnusableReplyError: If it is another text.

    Example:
        >>> parse_reply_json('{"turns": [{"question": "What is it?", "answer": "A dog."}]}', "conversation")
        (Pair(question='What is it?', answer='A dog.'),)
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UnusableReplyError(NOT_JSON) from error
    if kind == "detail":
        if not (isinstance(value, dict) and set(value) == {"description"} and isinstance(value["description"], str)):
            raise UnusableReplyError("the reply does not follow the JSON schema")
        return (Pair("", value["description"].strip()),)
    turns = value.get("turns") if isinstance(value, dict) and set(value) == {"turns"} else None
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict)
        and set(turn) == {"question", "answer"}
        and all(isinstance(v, str) for v in turn.values())
        for turn in turns
    ):
        raise UnusableReplyError("the reply does not follow the JSON schema")
    return tuple(Pair(turn["question"].strip(), turn["answer"].strip()) for turn in turns)


def parse_text(text: str, kind: Kind) -> tuple[Pair, ...]:
    r"""The turns of a reply in the text format; a description is the whole reply.

    Raises:
        UnusableReplyError: If it is another text.

    Example:
        >>> parse_text("Question:\nWhat is it?\n===\nAnswer:\nA dog.", "conversation")
        (Pair(question='What is it?', answer='A dog.'),)
    """
    if kind == "detail":
        return (Pair("", text.strip()),)
    blocks = [block.strip() for block in re.split(r"^\s*===\s*$", text.strip(), flags=re.MULTILINE)]
    names = ["Question", "Answer"] * (len(blocks) // 2)
    if len(blocks) % 2 or not all(block.startswith(f"{name}:") for name, block in zip(names, blocks, strict=False)):
        raise UnusableReplyError("the reply is not in blocks of Question: and Answer: with === between them")
    words = [block.partition(":")[2].strip() for block in blocks]
    return tuple(Pair(*pair) for pair in zip(words[::2], words[1::2], strict=True))


def as_json(text: str, kind: Kind) -> str:
    """A reply in the text format as one in JSON."""
    pairs = parse_text(text, kind)
    value = {"description": pairs[0].answer} if kind == "detail" else {"turns": [pair._asdict() for pair in pairs]}
    return json.dumps(value, ensure_ascii=False)
