"""Ids and labels with LLaMA's tokenizer are those of the authors' preprocess_plain and preprocess_v1."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from models.llava import Llava
from models.loading.load import load
from models.loading.processors import clip_pictures, llava_processor
from tasks.prompts import SYSTEM
from tests.conftest import noise_picture, tiny_config
from tests.models.sentencepiece_models import slow_ids, tokenizer_of, trained
from tuning.data.conversation import Conversation, Turn
from tuning.data.labels import IGNORED, encode, measure

IMAGE_ID = -200  # what the authors' code writes for a picture
CAPTIONS = ["2 dogs", "\u732b", " And where", "\nAnd", "And where", "  A red cat. \n", "", " ", "\u00e9"]
CHATS: list[tuple[tuple[tuple[str, str], ...], tuple[int, ...]]] = [
    ((("What is it?", "a cat"),), (1, 0)),
    ((("\u732b", "\u732b"), ("2 dogs", "2 dogs")), (1, 0, 0, 0)),
    ((("", "a cat"), ("Where?", "left")), (1, 0, 0, 0)),
    ((("Hello.", "Show me."), ("2 dogs?", "a cat")), (0, 0, 1, 0)),
    ((("Hello.", "2 dogs"), ("What?", "a cat")), (0, 1, 0, 0)),
    ((("Hello.", "\u732b"), ("What?", "\u732b"), ("Where?", "left")), (0, 1, 0, 1, 1, 0)),
    ((("Hello.", ""), ("What?", "a cat")), (0, 1, 0, 0)),
]


def with_user(sentences: bytes) -> bytes:
    """The model with USER as a piece that starts no word, as in LLaMA's: the authors' code counts on it."""
    model: Any = sentencepiece_model_pb2.ModelProto.FromString(sentences)  # type: ignore[attr-defined]
    model.pieces.append(model.SentencePiece(piece="USER", score=-1e8, type=1))
    return bytes(model.SerializeToString())


class Authors:
    """How the authors' code makes ids and labels (llava/mm_utils.py and llava/train/train.py)."""

    def __init__(self, sentences: bytes, legacy: bool) -> None:
        self.pieces: Any = sentencepiece.SentencePieceProcessor(model_proto=sentences)
        self.legacy = legacy

    def tokenizer(self, text: str) -> list[int]:
        return [1, *slow_ids(self.pieces, text, legacy=self.legacy)]

    def tokenizer_image_token(self, text: str) -> list[int]:
        first, *others = (self.tokenizer(chunk) for chunk in text.split("<image>"))
        return first + [token for chunk in others for token in (IMAGE_ID, *chunk[1:])]

    def preprocess_plain(self, caption: str) -> tuple[list[int], list[int]]:
        ids = self.tokenizer_image_token(f"<image>{caption}\n")
        question = len(self.tokenizer_image_token("<image>"))
        return ids, [IGNORED] * question + ids[question:]

    def preprocess_v1(self, texts: list[str]) -> tuple[list[int], list[int]]:
        """Every label is -100 if the counts do not agree, where the authors' code prints a warning."""
        sep = " ASSISTANT: "
        whole = f"{SYSTEM} "
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            whole += f"USER: {question} ASSISTANT: {answer}</s>"
        ids = self.tokenizer_image_token(whole)
        target, at = list(ids), 1
        target[:1] = [IGNORED]
        for number, turn in enumerate(whole.split("</s>")):
            parts = turn.split(sep)
            if turn == "" or len(parts) != 2:
                break
            length = len(self.tokenizer_image_token(turn))
            instruction = len(self.tokenizer_image_token(parts[0] + sep)) - 2
            if number and not self.legacy:
                length, instruction = length - 1, instruction - 1
            target[at : at + instruction] = [IGNORED] * instruction
            at += length
        target[at:] = [IGNORED] * (len(ids) - at)
        return ids, target if at == len(ids) else [IGNORED] * len(ids)


def spliced(llava: Llava, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """Ids and labels after a picture's features replace its token; their labels are -100."""
    pairs: list[tuple[int, int]] = []
    for token, label in zip(ids, labels, strict=True):
        pairs += [(llava.image_token_id, IGNORED)] * llava.n_image_tokens if token == IMAGE_ID else [(token, label)]
    return [token for token, _ in pairs], [label for _, label in pairs]


@pytest.fixture(scope="module", params=[False, True], ids=["vicuna", "legacy"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Llava, Authors]:
    sentences, legacy = with_user(trained()), bool(request.param)
    folder: Path = tmp_path_factory.mktemp("llama")
    tokenizer = tokenizer_of(folder, sentences, legacy=legacy)
    config = tiny_config()
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    llava = load(config, seed=0, validate=False)
    processor = llava_processor(tokenizer, clip_pictures(28), config, chat_template=None)
    return dataclasses.replace(llava, processor=processor), Authors(sentences, legacy)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_of_stage_1_are_labelled_as_by_the_authors(pair: tuple[Llava, Authors], caption: str) -> None:
    llava, authors = pair
    sample = Conversation("c", (noise_picture(1),), (Turn("Describe.", caption),))
    ids, labels = spliced(llava, *authors.preprocess_plain(caption))
    if not caption:  # left out: only a newline would be learned
        labels = [IGNORED] * len(labels)
        assert "empty answers" in str(measure(llava, [sample], recipe="plain", max_length=2048, on_long="cut")[0])
        return
    encoded = encode(llava, sample, recipe="plain")
    assert (encoded.ids.tolist(), encoded.labels.tolist()) == (ids, labels)
    (size,) = measure(llava, [sample], recipe="plain", max_length=2048, on_long="cut")
    assert size == (len(ids), sum(label != IGNORED for label in labels), False)


@pytest.mark.parametrize(("turns", "placed"), CHATS)
def test_chats_of_stage_2_are_labelled_as_by_the_authors(
    pair: tuple[Llava, Authors], turns: tuple[tuple[str, str], ...], placed: tuple[int, ...]
) -> None:
    llava, authors = pair
    sample = Conversation("c", (noise_picture(1),) * sum(placed), tuple(Turn(*turn) for turn in turns), placed=placed)
    texts = [text for turn in turns for text in turn]
    # preprocess_multimodal writes each placeholder before its text.
    texts = [f"<image>\n{text}".strip() if n else text for text, n in zip(texts, placed, strict=True)]
    ids, labels = spliced(llava, *authors.preprocess_v1(texts))
    encoded = encode(llava, sample)
    assert encoded.ids.tolist() == ids
    assert encoded.labels.tolist() == labels
    (size,) = measure(llava, [sample], recipe="vicuna_v1", max_length=2048, on_long="cut")
    assert size == (len(ids), sum(label != IGNORED for label in labels), False)
