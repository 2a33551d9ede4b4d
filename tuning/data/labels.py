"""A conversation as token ids and labels: exactly the answers and their end-of-text tokens are labelled.

The text is tokenised once; a token is labelled if all its characters belong to an answer. A token that joins
characters of an answer with others raises ``UnusableSampleError``, which callers count and list.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from models.llava import Llava
from tasks.prompts import IMAGE, SYSTEM, plain
from tuning.data.conversation import Conversation, UnusableSampleError
from tuning.data.prompt_format import OnLong, Recipe

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_PARALLEL = os.environ.get(_PARALLELISM)  # what the user decided
IGNORED = -100  # the label of tokens without a loss, which torch's cross-entropy ignores


@dataclass(frozen=True)
class Encoded:
    """A tokenised sample, before padding.

    Args:
        ids: Token ids, placeholders expanded to image tokens.
        labels: The id of labelled tokens, else -100. Position i is predicted from position i - 1, as in transformers;
            if turns are separate, a turn's first token is predicted from the end of the shared part.
        segments: 0 for the part that every turn attends to, else the number of the turn; 0 if turns are in sequence.
        position_ids: Positions from 0; separate turns all start after the shared part.
        owner: The turn, from 0, whose answer the token belongs to; -1 elsewhere.
        cut: Number of tokens cut off the end.
    """

    ids: Int[Tensor, " pos"]
    labels: Int[Tensor, " pos"]
    segments: Int[Tensor, " pos"]
    position_ids: Int[Tensor, " pos"]
    owner: Int[Tensor, " pos"]
    cut: int = 0

    def __len__(self) -> int:
        """The number of tokens."""
        return int(self.ids.numel())


class _Part(NamedTuple):
    text: str
    owner: int  # the turn whose answer this is, or -1


def encode(
    llava: Llava,
    conversation: Conversation,
    *,
    recipe: Recipe = "vicuna_v1",
    max_length: int = 2048,
    on_long: OnLong = "cut",
) -> Encoded:
    """Ids and labels of a sample.

    Under ``vicuna_v1`` an answer is labelled from the space after ``ASSISTANT:`` to its end-of-text token; an empty
    answer has no labels. Under ``plain`` (stage 1) the sample is the picture and its first answer with a newline,
    without the question. In samples without pictures ``<image>`` is a word like others.

    Args:
        llava: Its tokenizer and number of image tokens are used.
        conversation: The sample.
        recipe: The template.
        max_length: Longest sample in tokens, image tokens included.
        on_long: ``"cut"`` longer samples at the end, as LLaVA does, or raise (``"refuse"``).

    Raises:
        UnusableSampleError: If the sample has no assistant turn, no picture under ``plain``, a placeholder beside its
            pictures or an end-of-text token in its text, a token that is partly answer, no label (all answers empty or
            cut off), or an image that would be cut.

    Source: Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744; stage 1 from Liu et
        al. 2023, "Visual Instruction Tuning", arXiv 2304.08485.
    """
    _check_words(llava, conversation)
    if conversation.apart and len(conversation.turns) > 1 and recipe != "plain":
        encoded = _encode_apart(llava, conversation)
    else:
        encoded = _tokens(llava, _parts(llava, conversation, recipe), plain_words=_has_words_like_image(conversation))
    if len(encoded) > max_length:
        if on_long == "refuse":
            raise UnusableSampleError(f"longer than the context: {len(encoded)} tokens, {max_length} allowed")
        encoded = _cut(llava, encoded, max_length)
    if not bool((encoded.labels != IGNORED).any()):
        raise _no_labels(cut=encoded.cut > 0)
    return encoded


class Lengths(NamedTuple):
    """The size of a sample in tokens."""

    total: int
    """Tokens after cutting, image tokens included."""
    labelled: int
    """Tokens with a label."""
    cut: bool
    """Whether the end is cut off."""


def measure(
    llava: Llava, conversations: Sequence[Conversation], *, recipe: Recipe, max_length: int, on_long: OnLong
) -> list[Lengths | UnusableSampleError]:
    """The sizes of samples as ``encode`` makes them, or why it cannot; all are tokenised in one call.

    Args:
        llava: Its tokenizer and number of image tokens are used.
        conversations: The samples.
        recipe: See ``encode``.
        max_length: See ``encode``.
        on_long: See ``encode``.
    """
    found: list[Lengths | UnusableSampleError | None] = [None] * len(conversations)
    parts: dict[int, list[_Part]] = {}
    for index, conversation in enumerate(conversations):
        try:
            _check_words(llava, conversation)
            if not (conversation.apart and len(conversation.turns) > 1) and not _has_words_like_image(conversation):
                parts[index] = _parts(llava, conversation, recipe)
        except UnusableSampleError as error:
            found[index] = error
    image, n_image = llava.image_token_id, llava.n_image_tokens
    with _all_cores():
        encodings = _encode_batch(llava.tokenizer, ["".join(part.text for part in own) for own in parts.values()])
    for index, encoding in zip(parts, encodings, strict=True):
        ids = encoding.ids
        try:
            spans = _answer_spans(parts[index], encoding)
        except UnusableSampleError as error:
            found[index] = error
            continue
        total = len(ids) + (n_image - 1) * ids.count(image)
        labelled = sum(last - first - ids[first:last].count(image) for first, last in spans)  # images are not learned
        if total <= max_length:
            found[index] = Lengths(total, labelled, cut=False) if labelled else _no_labels(cut=False)
    for index, conversation in enumerate(conversations):
        if found[index] is None:  # turns apart, words like <image>, or too long: few in most data
            found[index] = _measure_one(llava, conversation, recipe, max_length, on_long)
    return [one for one in found if one is not None]


def _measure_one(
    llava: Llava, conversation: Conversation, recipe: Recipe, max_length: int, on_long: OnLong
) -> Lengths | UnusableSampleError:
    try:
        encoded = encode(llava, conversation, recipe=recipe, max_length=max_length, on_long=on_long)
    except UnusableSampleError as error:
        return error
    return Lengths(len(encoded), int((encoded.labels != IGNORED).sum()), cut=encoded.cut > 0)


def _no_labels(*, cut: bool) -> UnusableSampleError:
    return UnusableSampleError("nothing to learn: " + ("cut off before its first answer" if cut else "empty answers"))


def _check_words(llava: Llava, conversation: Conversation) -> None:
    if not conversation.turns:
        raise UnusableSampleError("no assistant turn")
    eos = _eos(llava)
    for turn in conversation.turns:
        for role, words in (("question", turn.question), ("answer", turn.answer)):
            if conversation.pictures and IMAGE in words:
                raise UnusableSampleError(f"a placeholder {IMAGE} in the words of a {role}")
            if eos and eos in words:  # would end the answer
                raise UnusableSampleError(f"the end-of-text mark {eos} in the words of a {role}")


def _has_words_like_image(conversation: Conversation) -> bool:
    """Whether a sample without pictures has the placeholder in its text."""
    return not conversation.pictures and any(IMAGE in words for turn in conversation.turns for words in turn)


def _parts(llava: Llava, conversation: Conversation, recipe: Recipe) -> list[_Part]:
    if recipe == "plain":
        return _plain_parts(conversation)
    return _vicuna_parts(llava, conversation, range(len(conversation.turns)))


def _plain_parts(conversation: Conversation) -> list[_Part]:
    if len(conversation.pictures) != 1:
        raise UnusableSampleError(f"stage 1 needs one picture, has {len(conversation.pictures)}")
    if any(conversation.placed[1:]):
        raise UnusableSampleError("stage 1 needs its picture before the caption")
    answer = conversation.turns[0].answer
    head, _, tail = plain(answer).partition(IMAGE)
    return [_Part(head + IMAGE, -1), _Part(tail, 0 if answer else -1)]


def _vicuna_parts(llava: Llava, conversation: Conversation, turns: Sequence[int]) -> list[_Part]:
    """The text of the given turns, split where answers begin and end."""
    eos = _eos(llava)
    parts = [_Part(f"{SYSTEM} ", -1)]
    placed = conversation.placed
    for index, number in enumerate(turns):
        turn = conversation.turns[number]
        first = len(conversation.pictures) if index == 0 else 0
        before_question, before_answer = placed[2 * number : 2 * number + 2] if placed else (first, 0)
        question = _with_pictures(before_question, (conversation.shared if index == 0 else "") + turn.question)
        answer = _with_pictures(before_answer, turn.answer)
        learned = number if answer else -1
        parts += [_Part(f"USER: {question} ASSISTANT:", -1), _Part((f" {answer}" if answer else "") + eos, learned)]
    return parts


def _with_pictures(n: int, words: str) -> str:
    """The text of a turn after ``n`` placeholders, each on a line of its own; LLaVA adds no newline to them alone."""
    return f"{IMAGE}\n" * n + words if words else "\n".join([IMAGE] * n)


_Read = tuple[Int[np.ndarray, " token"], Int[np.ndarray, "token 2"]]  # ids; first and last character of each token


def _tokenise(tokenizer: Any, text: str, *, plain_words: bool = False) -> _Read:
    """Token ids and character offsets of a text, with the beginning-of-text token."""
    with _image_as_words(tokenizer) if plain_words else nullcontext():
        (encoding,) = _encode_batch(tokenizer, [text])
    return np.asarray(encoding.ids, dtype=np.int64), np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _encode_batch(tokenizer: Any, texts: list[str]) -> list[Any]:
    """The encodings of the ``tokenizers`` library, in which single tokens are looked up without lists of all."""
    if not texts:
        return []
    whole = tokenizer._tokenizer
    whole.no_truncation()
    whole.no_padding()
    whole.encode_special_tokens = False
    found: list[Any] = whole.encode_batch(texts)
    return found


def _answer_spans(parts: Sequence[_Part], encoding: Any) -> list[tuple[int, int]]:
    """First and past-the-last token of each answer.

    Raises:
        UnusableSampleError: As `_owners`.
    """
    spans, end = [], 0
    whole = sum(len(part.text) for part in parts)
    for part in parts:
        begin, end = end, end + len(part.text)
        if part.owner < 0 or not part.text:
            continue
        first, last = _token_at(encoding, begin, whole), _token_at(encoding, end, whole)
        if first is None or last is None:  # tokens do not end with parts, or special ones follow: look at all
            owned = _owners(parts, np.asarray(encoding.offsets).reshape(-1, 2)) >= 0
            edges = np.flatnonzero(np.diff([False, *owned.tolist(), False]))
            return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
        spans.append((first, last))
    return spans


def _token_at(encoding: Any, character: int, whole: int) -> int | None:
    """The first token that begins at a character of a text of length ``whole``; None if none begins there."""
    if character == whole:  # past the last token
        last = encoding.token_to_chars(len(encoding) - 1)
        return len(encoding) if last is not None and last[1] == whole else None
    token: int | None = encoding.char_to_token(character)
    if token is None or encoding.token_to_chars(token)[0] != character:
        return None
    while token and encoding.token_to_chars(token - 1) == (character, character):  # belongs to the next character
        token -= 1
    return token


def _owners(parts: Sequence[_Part], offsets: Int[np.ndarray, "token 2"]) -> Int[np.ndarray, " token"]:
    """The turn whose answer each token belongs to, or -1.

    A token without characters belongs to the next character: after a picture, LLaMA's tokenizer writes a space that the
    text does not have. No answer begins with the first character, so the beginning-of-text token belongs to none.

    Raises:
        UnusableSampleError: If a token joins characters of an answer with others.
    """
    ends = np.cumsum([len(part.text) for part in parts])
    part_owner = np.array([part.owner for part in parts])
    first, last = offsets[:, 0], offsets[:, 1]
    begins = np.minimum(np.searchsorted(ends, first, side="right"), len(parts) - 1)
    stops = np.maximum(begins, np.searchsorted(ends, last - 1, side="right"))
    owners = part_owner[begins]
    for token in np.flatnonzero((begins != stops) & (first != last)):
        spanned = {part.owner for part in parts[begins[token] : stops[token] + 1] if part.text}
        if len(spanned) > 1:
            text = "".join(part.text for part in parts)
            raise UnusableSampleError(f"the token {text[first[token] : last[token]]!r} is answer in part")
    return owners


def _tokens(llava: Llava, parts: Sequence[_Part], *, plain_words: bool = False) -> Encoded:
    """Tokenise the parts as one text; placeholders become image tokens."""
    ids, offsets = _tokenise(llava.tokenizer, "".join(part.text for part in parts), plain_words=plain_words)
    owners = _owners(parts, offsets)
    is_image = ids == llava.image_token_id
    copies = np.where(is_image, llava.n_image_tokens, 1)
    row = torch.from_numpy(np.repeat(ids, copies))
    owner_row = torch.from_numpy(np.repeat(np.where(is_image, -1, owners), copies))
    labels = torch.where(owner_row >= 0, row, torch.full_like(row, IGNORED))
    if len(row):  # no position predicts the first token
        labels[0] = IGNORED
    return Encoded(row, labels, torch.zeros_like(row), torch.arange(len(row)), owner_row)


@contextmanager
def _all_cores() -> Iterator[None]:
    """Tokenise on every core unless the environment decides; afterwards on one, as processes that fork later need."""
    if _PARALLEL is None:
        os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        if _PARALLEL is None:
            os.environ[_PARALLELISM] = "false"


@contextmanager
def _image_as_words(tokenizer: Any) -> Iterator[None]:
    """Read ``<image>`` as ordinary characters, as the original tokenizer does, which has no such token."""
    whole = tokenizer._tokenizer
    described = json.loads(whole.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] != IMAGE]
    tokenizer._tokenizer = type(whole).from_str(json.dumps(described))
    try:
        yield
    finally:
        tokenizer._tokenizer = whole


def _encode_apart(llava: Llava, conversation: Conversation) -> Encoded:
    """Encode the shared part, then each turn; a turn attends to the shared part and itself."""
    rows = [_tokens(llava, _vicuna_parts(llava, conversation, [number])) for number in range(len(conversation.turns))]
    shortest = min(len(row) for row in rows)
    stacked = torch.stack([row.ids[:shortest] for row in rows])
    differs = (stacked != stacked[0]).any(0).nonzero()
    common = int(differs[0]) if len(differs) else shortest
    # The shared part has no label, and every turn has its own token that predicts its first label.
    firsts = [int((row.labels != IGNORED).nonzero()[0]) for row in rows if bool((row.labels != IGNORED).any())]
    common = max(0, min([common, *(first - 1 for first in firsts), shortest - 1]))
    head = rows[0]
    nothing = torch.zeros(common, dtype=torch.int64)
    pieces = [(head.ids[:common], head.labels[:common], nothing, head.position_ids[:common], head.owner[:common])]
    for number, row in enumerate(rows):
        segment = torch.full((len(row) - common,), number + 1)
        pieces.append((row.ids[common:], row.labels[common:], segment, row.position_ids[common:], row.owner[common:]))
    ids, labels, segments, positions, owner = (torch.cat(list(column)) for column in zip(*pieces, strict=True))
    return Encoded(ids, labels, segments, positions, owner)


def _cut(llava: Llava, encoded: Encoded, length: int) -> Encoded:
    kept = encoded.ids[:length]
    if bool((encoded.ids[length:] == llava.image_token_id).any()):
        raise UnusableSampleError(f"its picture does not fit into {length} tokens")
    return Encoded(
        kept,
        encoded.labels[:length],
        encoded.segments[:length],
        encoded.position_ids[:length],
        encoded.owner[:length],
        len(encoded) - length,
    )


def _eos(llava: Llava) -> str:
    eos = llava.tokenizer.eos_token
    return eos if isinstance(eos, str) else ""
