"""SentencePiece models of LLaMA's kind, trained on a few sentences."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import PreTrainedTokenizerBase

from models.loading.llama_tokenizer import llama_tokenizer
from tasks.prompts import LETTER, SHORT, SYSTEM

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def trained(**changes: Any) -> bytes:
    """A SentencePiece model whose runs of spaces have the lowest score and the first places, as in LLaMA's."""
    learned = io.BytesIO()
    corpus = [SYSTEM, SHORT, LETTER, "And where does the return value of a picture go?", "USER: x ASSISTANT: y"]
    settings = {
        "vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "character_coverage": 1.0, "pad_id": -1,
        "unk_id": 0, "bos_id": 1, "eos_id": 2, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "minloglevel": 2,
    }  # fmt: skip
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(corpus * 3), model_writer=learned, **(settings | changes))
    model: Any = sentencepiece_model_pb2.ModelProto.FromString(learned.getvalue())  # type: ignore[attr-defined]
    space = next(piece for piece in model.pieces if piece.piece == SPACE)
    space.score = -1e9
    runs = [model.SentencePiece(piece=SPACE * n, score=-1e9, type=1) for n in (2, 4, 8, 3, 5, 6, 7)]
    first = 3 + 256
    kept = list(model.pieces)
    del model.pieces[:]
    model.pieces.extend([*kept[:first], *runs, *kept[first:]])
    return bytes(model.SerializeToString())


def tokenizer_of(folder: Path, sentences: bytes, **described: object) -> PreTrainedTokenizerBase:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentences)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **described}))
    return llama_tokenizer(folder)


def slow_ids(oracle: Any, text: str, *, legacy: bool) -> list[int]:
    """The ids of LLaMA's slow tokenizer in transformers 4.37, without the beginning-of-text token."""
    found: list[int] = []
    for turn, words in enumerate(text.split("</s>")):
        found += [2] * bool(turn)
        if not words:
            continue
        if turn and not legacy:  # without the space that SentencePiece adds
            mark = oracle.encode("\n")
            found += oracle.encode("\n" + words)[len(mark) :]
        else:
            found += oracle.encode(words)
    return found
