"""The words that name an object, as tokens of a vocabulary, and control words.

A word has forms: itself, its plural, its synonyms, each as written and with a capital. The word-start token of a form
is the first token of the form after a space. A token that begins forms of two words, or is a piece of fewer than three
letters, names nothing and is dropped.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.llava import Llava
from tasks.errors import UserError, one_line
from tasks.files import read_file
from tasks.readers.parse import parse_json

_SHORTEST = 3  # letters of a piece of a longer word that still says which word it is
SYNONYMS = Path(__file__).with_name("synonyms.json")


@dataclass(frozen=True)
class WordTable:
    """The forms and word-start tokens of some words.

    Example:
        >>> from models import load
        >>> table = word_table(load("random:tiny"), ["cat", "dog"])
        >>> table.forms["cat"]
        ('cat', 'cats')
    """

    forms: Mapping[str, tuple[str, ...]]
    """Lower-case forms of each word."""
    tokens: Mapping[str, tuple[int, ...]]
    """Word-start tokens of each word; empty if none names it alone."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The words without a token."""
        return tuple(word for word, tokens in self.tokens.items() if not tokens)


def word_table(llava: Llava, words: Iterable[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> WordTable:
    """The forms and tokens of ``words``; ``synonyms`` maps a word to further ones, None takes the embedded table.

    Example:
        >>> from models import load
        >>> word_table(load("random:tiny"), ["plane"]).forms["plane"]
        ('plane', 'planes', 'airplane', 'airplanes', 'aeroplane', 'aeroplanes', 'aircraft', 'aircrafts')
    """
    known = read_synonyms(None) if synonyms is None else synonyms
    distinct = sorted({word.strip().lower() for word in words})
    forms = {word: _forms([word, *known.get(word, ())]) for word in distinct}
    starts = {word: {_start(llava, one) for form in forms[word] for one in (form, form.capitalize())} for word in forms}
    shared = Counter(token for found in starts.values() for token in found)
    tokens = {
        word: tuple(sorted(t for t in found if t is not None and shared[t] == 1)) for word, found in starts.items()
    }
    return WordTable(forms, tokens)


def read_synonyms(path: Path | None) -> dict[str, list[str]]:
    """The synonyms in a JSON file; None for the embedded ones.

    Raises:
        UserError: If the file is not a mapping of words to lists of words.
    """
    try:
        found = parse_json(read_file(path or SYNONYMS))
    except (OSError, ValueError) as error:
        raise UserError(f"words must be a readable JSON file, got {str(path)!r} ({one_line(error)}).") from error
    if not isinstance(found, dict) or not all(
        isinstance(value, list) and all(isinstance(one, str) for one in value) for value in found.values()
    ):
        raise UserError(f"words must map each word to a list of words, got another value in {str(path)!r}.")
    return {str(word).strip().lower(): [one.strip().lower() for one in value] for word, value in found.items()}


def others(words: Sequence[str]) -> list[str]:
    """For each example the word of the next example that has another one; its own word if all are equal.

    Example:
        >>> others(["cat", "cat", "dog"])
        ['dog', 'dog', 'cat']
    """
    n = len(words)
    return [
        next((words[(i + k) % n] for k in range(1, n) if words[(i + k) % n] != words[i]), words[i]) for i in range(n)
    ]


def matched_tokens(llava: Llava, table: WordTable) -> dict[str, tuple[int, ...]]:
    """For each word as many tokens of other words, whose numbers in the vocabulary are nearest to those of its own.

    Vocabularies of byte-pair encoding are in the order of their merges, so near numbers mean like frequency in the
    tokenizer's training text. Only tokens that start a word of three or more letters count.

    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909.
    """
    taken = {token for tokens in table.tokens.values() for token in tokens}
    candidates = [token for token in _word_starts(llava) if token not in taken]
    found: dict[str, tuple[int, ...]] = {}
    for word, tokens in table.tokens.items():
        chosen: list[int] = []
        for token in tokens:
            free = [one for one in candidates if one not in chosen]
            if free:
                chosen.append(min(free, key=lambda one: (abs(one - token), one)))
        found[word] = tuple(chosen)
    return found


def matched_words(words: Sequence[str], table: WordTable) -> dict[str, tuple[str, ...]]:
    """For each word of a table another word of a text that occurs about as often; ``words`` are the text's words."""
    counts = Counter(words)
    named = {form for forms in table.forms.values() for form in forms}
    free = sorted(word for word in counts if word not in named and word.isalpha() and len(word) >= _SHORTEST)
    found: dict[str, tuple[str, ...]] = {}
    for number, word in enumerate(table.forms):
        own = sum(counts[form] for form in table.forms[word])
        ranked = sorted(free, key=lambda one: (abs(counts[one] - own), one))
        found[word] = (ranked[number % min(len(ranked), 10)],) if ranked else ()
    return found


def _forms(words: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for word in words:
        found[word] = None
        found[_plural(word)] = None
    return tuple(found)


def _plural(word: str) -> str:
    if word.endswith("s"):
        return word
    if word.endswith(("x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"


def _start(llava: Llava, form: str) -> int | None:
    """The first token of a form after a space; None if it is a short piece of it."""
    tokenizer: Any = llava.tokenizer
    plain = list(tokenizer(f"a {form}", add_special_tokens=False, verbose=False)["input_ids"])
    before = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    if plain[: len(before)] != before or len(plain) == len(before):
        return None
    rest = plain[len(before) :]
    piece = str(tokenizer.decode(rest[:1])).strip()
    whole = len(rest) == 1
    return int(rest[0]) if whole or (len(piece) >= _SHORTEST and form.startswith(piece)) else None


def _word_starts(llava: Llava) -> list[int]:
    """Tokens that start a word of at least three letters, by number."""
    vocabulary: dict[str, int] = llava.tokenizer.get_vocab()
    size = int(llava.config.text_config.vocab_size)
    return sorted(
        number
        for text, number in vocabulary.items()
        if text[:1] in ("Ġ", "▁") and text[1:].isalpha() and len(text) > _SHORTEST and number < size
    )


def dump(table: WordTable) -> str:
    """The table as JSON, for the digest of a run."""
    return json.dumps([table.forms, table.tokens], sort_keys=True)
