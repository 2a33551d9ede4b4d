"""A conversation as token ids and labels: exactly the answers and their end-of-text tokens are labelled.

The whole text is tokenised once; a token is labelled if all its characters belong to an answer. A token that joins
characters of an answer with others raises ``UnusableSampleError``, which callers count and list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from models.llava import Llava
from tasks.prompts import IMAGE, SYSTEM, plain
from tuning.data.conversation import Conversation, UnusableSampleError
from tuning.data.prompt_format import OnLong, Recipe

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
    without the question.

    Args:
        llava: Its tokenizer and number of image tokens are used.
        conversation: The sample.
        recipe: The template.
        max_length: Longest sample in tokens, image tokens included.
        on_long: ``"cut"`` longer samples at the end, as LLaVA does, or raise (``"refuse"``).

    Raises:
        UnusableSampleError: If the sample has no assistant turn, no picture under ``plain``, a placeholder or an
            end-of-text token in its text, a token that is partly answer, no label (all answers empty or cut off), or
            an image that would be cut.

    Source: Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744; stage 1 from Liu et
        al. 2023, "Visual Instruction Tuning", arXiv 2304.08485.
    """
    _check_words(llava, conversation)
    if recipe == "plain":
        encoded = _tokens(llava, _plain_parts(conversation), bos=True)
    elif conversation.apart and len(conversation.turns) > 1:
        encoded = _encode_apart(llava, conversation)
    else:
        encoded = _tokens(llava, _vicuna_parts(llava, conversation, range(len(conversation.turns))), bos=True)
    if len(encoded) > max_length:
        if on_long == "refuse":
            raise UnusableSampleError(f"longer than the context: {len(encoded)} tokens, {max_length} allowed")
        encoded = _cut(llava, encoded, max_length)
    if not bool((encoded.labels != IGNORED).any()):
        raise UnusableSampleError(
            "nothing to learn: " + ("cut off before its first answer" if encoded.cut else "empty answers")
        )
    return encoded


def _check_words(llava: Llava, conversation: Conversation) -> None:
    if not conversation.turns:
        raise UnusableSampleError("no assistant turn")
    eos = _eos(llava)
    for turn in conversation.turns:
        for role, words in (("question", turn.question), ("answer", turn.answer)):
            if IMAGE in words:
                raise UnusableSampleError(f"a placeholder {IMAGE} in the words of a {role}")
            if eos and eos in words:  # would end the answer
                raise UnusableSampleError(f"the end-of-text mark {eos} in the words of a {role}")


def _plain_parts(conversation: Conversation) -> list[_Part]:
    if len(conversation.pictures) != 1:
        raise UnusableSampleError(f"stage 1 needs one picture, has {len(conversation.pictures)}")
    answer = conversation.turns[0].answer.strip()
    head, _, tail = plain(answer).partition(IMAGE)
    return [_Part(head + IMAGE, -1), _Part(tail, 0 if answer else -1)]


def _vicuna_parts(llava: Llava, conversation: Conversation, turns: Sequence[int]) -> list[_Part]:
    """The text of the given turns, split where answers begin and end."""
    eos = _eos(llava)
    parts = [_Part(f"{SYSTEM} ", -1)]
    for index, number in enumerate(turns):
        turn = conversation.turns[number]
        pictures = f"{IMAGE}\n" * len(conversation.pictures) if index == 0 else ""
        learned = number if turn.answer.strip() else -1
        words = f" {turn.answer}" if turn.answer.strip() else ""
        question = conversation.shared + turn.question if index == 0 else turn.question
        parts += [_Part(f"USER: {pictures}{question} ASSISTANT:", -1), _Part(words + eos, learned)]
    return parts


def _tokens(llava: Llava, parts: Sequence[_Part], *, bos: bool) -> Encoded:
    """Tokenise the parts as one text."""
    text = "".join(part.text for part in parts)
    tokenizer = llava.tokenizer
    encoding: Any = tokenizer(
        text, return_offsets_mapping=True, return_attention_mask=False, add_special_tokens=bos, verbose=False
    )
    bounds = []
    start = 0
    for part in parts:
        bounds.append((start, start + len(part.text), part.owner))
        start += len(part.text)
    ids: list[int] = []
    owners: list[int] = []
    part_index = 0
    image_id, n_image_tokens = llava.image_token_id, llava.n_image_tokens  # looked up once: configs are slow
    for token, (first, last) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        if first == last:  # the beginning-of-text token has no characters
            ids.append(token)
            owners.append(-1)
            continue
        while part_index < len(bounds) - 1 and bounds[part_index][1] <= first:
            part_index += 1
        spanned = {owner for begin, end, owner in bounds[part_index:] if begin < last and end > first}
        if len(spanned) > 1:
            raise UnusableSampleError(f"the token {text[first:last]!r} is answer in part")
        owner = spanned.pop()
        if token == image_id:
            ids += [token] * n_image_tokens
            owners += [-1] * n_image_tokens
        else:
            ids.append(token)
            owners.append(owner)
    owner_row = torch.tensor(owners)
    row = torch.tensor(ids)
    labels = torch.where(owner_row >= 0, row, torch.full_like(row, IGNORED))
    if len(row):  # no position predicts the first token
        labels[0] = IGNORED
    return Encoded(row, labels, torch.zeros_like(row), torch.arange(len(row)), owner_row)


def _encode_apart(llava: Llava, conversation: Conversation) -> Encoded:
    """The shared part, then the tokens of each turn, which see the shared part and their own turn."""
    rows = [
        _tokens(llava, _vicuna_parts(llava, conversation, [number]), bos=True)
        for number in range(len(conversation.turns))
    ]
    shortest = min(len(row) for row in rows)
    stacked = torch.stack([row.ids[:shortest] for row in rows])
    differs = (stacked != stacked[0]).any(0).nonzero()
    common = int(differs[0]) if len(differs) else shortest
    # The shared part has no label, and every turn has a token of its own that predicts its first label.
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
