"""Which replies become samples: the rules, and the reason of each refusal.

The rules read words, not pictures. They find what would teach a model to talk about captions and numbers, or to agree
that something is there which is not; they do not find every wrong answer.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from tasks.instructions.described import Described
from tasks.instructions.kinds import Kind
from tasks.instructions.reply import Pair

_SOURCES = re.compile(
    r"\b(captions?|bounding box(?:es)?|boxes\s+(?:show|indicate|suggest|given)|annotations?|"
    r"(?:provided|given|above|five|following)\s+(?:sentences?|descriptions?|information|context|texts?|coordinates?|data)|"
    r"(?:according to|based on|as (?:stated|described|mentioned) (?:in|by))\s+(?:the\s+)?"
    r"(?:sentences?|descriptions?|information|context|texts?|data|details)|"
    r"(?:the|these|those)\s+(?:sentences|descriptions?|context)\s+(?:say|says|state|states|mention|mentions|describe|"
    r"describes|indicate|indicates|suggest|suggests|do not|does not))\b",
    re.IGNORECASE,
)
_NUMBERS = re.compile(
    r"\bcoordinates?\b|[\[(]\s*\d+(?:\.\d+)?\s*(?:,\s*\d+(?:\.\d+)?\s*){3}[\])]|(?<![\d.])0\.\d{2,}\s*,\s*[01]\.\d{2,}",
    re.IGNORECASE,
)
_LEFTOVERS = re.compile(
    r"<image>|^\s*===|^\s*(?:question|answer|user|assistant|human|gpt)\s*:", re.IGNORECASE | re.MULTILINE
)
_DECLINED = re.compile(
    r"\bas an? (?:ai|artificial|language)\b|\bi(?:'m| am) (?:sorry|unable|not able)\b|"
    r"\bi (?:cannot|can't|can not) (?:see|view|assist|help|answer|provide|access)\b",
    re.IGNORECASE,
)
_NO = re.compile(r"^\s*no\b|\b(?:no|not|none|nobody|neither|without|isn't|aren't|doesn't|don't)\b", re.IGNORECASE)
# Names of COCO that are also other words, or that captions call by a hundred other words.
_AMBIGUOUS = {"orange", "person", "train", "tie", "book", "remote", "bear", "mouse", "bowl", "clock", "glass", "light"}


class Limits(NamedTuple):
    """The allowed numbers of turns of a conversation, and the longest text."""

    fewest_turns: int = 2
    most_turns: int = 10
    longest: int = 4000
    """Characters of one question or answer."""


def vocabulary(pictures: Iterable[Described]) -> frozenset[str]:
    """The names of objects in a data set, in lower case: what a question can ask about by name.

    Example:
        >>> from tasks.instructions.described import PlacedObject
        >>> sorted(vocabulary([Described("1", "1.jpg", ("A.",), (PlacedObject("Dog", (0, 0, 1, 1)),))]))
        ['dog']
    """
    return frozenset(item.name.lower() for picture in pictures for item in picture.objects) - _AMBIGUOUS


def refusal(
    pairs: tuple[Pair, ...], kind: Kind, picture: Described, *, names: frozenset[str], limits: Limits | None = None
) -> str:
    """Why the turns become no sample; empty if they do.

    Args:
        pairs: Questions and answers.
        kind: A conversation has several turns and may ask about what is not there, if the answer says so.
        picture: The picture that they are about.
        names: The ``vocabulary`` of the data set.
        limits: The allowed numbers of turns; the default ones if None.

    Example:
        >>> picture = Described("1", "1.jpg", ("A dog on a bed.",))
        >>> refusal((Pair("", "The caption says that a dog sleeps."),), "detail", picture, names=frozenset())
        'names its source (caption)'
        >>> refusal((Pair("Why does the cat sleep?", "It is tired."),), "reasoning", picture, names=frozenset({"cat"}))
        'asks about what is not there (cat)'
    """
    limits = limits or Limits()
    fewest, most = (limits.fewest_turns, limits.most_turns) if kind == "conversation" else (1, 1)
    if not fewest <= len(pairs) <= most:
        return f"wrong number of turns ({len(pairs)})"
    texts = [text for pair in pairs for text in (pair if kind != "detail" else pair[1:])]
    if not all(texts):
        return "an empty question or answer"
    if (longest := max(map(len, texts))) > limits.longest:
        return f"a text of {longest} characters"
    for pattern, what in (
        (_LEFTOVERS, "marks of the format in a text"), (_DECLINED, "the model declines"),
        (_SOURCES, "names its source"), (_NUMBERS, "numbers of places"),
    ):  # fmt: skip
        for text in texts:
            if found := pattern.search(text):
                return f"{what} ({' '.join(found[0].split()).lower()})"
    questions = [_words(pair.question) for pair in pairs if pair.question]
    if len({tuple(question) for question in questions}) < len(questions):
        return "asks the same twice"
    return _absent(pairs, kind, picture, names)


def _absent(pairs: tuple[Pair, ...], kind: Kind, picture: Described, names: frozenset[str]) -> str:
    """A refusal if a question names something that neither captions nor boxes have and the kind does not allow it."""
    there = {item.name.lower() for item in picture.objects} | _named("\n".join(picture.captions), names)
    for pair in pairs:
        absent = _named(pair.question, names) - there
        if absent and not (kind == "conversation" and _NO.search(pair.answer)):
            return f"asks about what is not there ({min(absent)})"
    return ""


def _named(text: str, names: frozenset[str]) -> set[str]:
    """The names that occur in a text; the longest first, so that a hot dog is no dog."""
    text = text.lower()
    found: set[str] = set()
    likely = [name for name in names if name[: max(1, len(name) - 2)] in text]  # the others cannot match
    for name in sorted(likely, key=lambda name: (-len(name), name)):
        text, n = _pattern(name).subn(" ", text)
        found |= {name} if n else set()
    return found


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """The name as whole words, in singular or plural."""
    stem = re.escape(name)
    if name.endswith(("s", "x", "ch", "sh")):
        ending = "(?:es)?"
    elif name.endswith("fe"):
        stem, ending = re.escape(name[:-2]), "(?:fe|ves)"
    elif name.endswith("y") and name[-2:-1] not in "aeiou":
        stem, ending = re.escape(name[:-1]), "(?:y|ies)"
    else:
        ending = "s?"
    return re.compile(rf"\b{stem}{ending}\b")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
