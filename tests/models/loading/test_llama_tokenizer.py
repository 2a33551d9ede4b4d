"""LLaMA's tokenizer: the ids of SentencePiece itself, part by part, as the authors' code makes them."""

import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.loading.llama_tokenizer import llama_tokenizer
from tasks.errors import UserError
from tests.models.sentencepiece_models import SPACE, slow_ids, tokenizer_of, trained

WORDS = [
    "And",
    " ",
    "  ",
    "   ",
    "    ",
    "\n",
    "where",
    "picture",
    "USER:",
    "ASSISTANT:",
    "\u00e9",
    "\u732b",
    "1",
    "23",
    ".",
    "\t",
    SPACE,
]


@pytest.fixture(scope="module")
def sentences() -> bytes:
    return trained()


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text).input_ids
    assert found[0] == 1
    return found[1:]


def texts(n: int) -> list[str]:
    drawn = random.Random(0)
    return ["".join(drawn.choices(WORDS, k=drawn.randint(1, 12))) for _ in range(n)]


@pytest.mark.parametrize("legacy", [True, False])
def test_runs_of_spaces_become_the_pieces_of_sentencepiece(tmp_path: Path, sentences: bytes, legacy: bool) -> None:
    oracle: Any = sentencepiece.SentencePieceProcessor(model_proto=sentences)
    tokenizer = tokenizer_of(tmp_path, sentences, legacy=legacy)
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "And  where"))[-2:] != [SPACE * 2, "where"]
    for text in ("And  where", "\n    return", "    And\n    And", " And", "  ", *texts(500)):
        assert ids(tokenizer, text) == oracle.encode(text), text


def test_mistral_s_own_tokenizer_agrees_with_sentencepiece(tmp_path: Path) -> None:
    found = find_spec("mistral_common")
    apart = Path(sys.prefix) / "mistral-common" / "mistral_common"  # where ``make setup-dev`` puts it
    package = Path(found.origin).parent if found is not None and found.origin is not None else apart
    if not package.is_dir():
        pytest.skip("mistral-common is not installed: make setup-dev")
    sentences = (package / "data" / "tokenizer.model.v1").read_bytes()
    oracle: Any = sentencepiece.SentencePieceProcessor(model_proto=sentences)
    tokenizer = tokenizer_of(tmp_path, sentences)
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "And  where")) == [f"{SPACE}And", SPACE, f"{SPACE}where"]
    for text in texts(2000):
        assert ids(tokenizer, text) == oracle.encode(text), text


@pytest.mark.parametrize("described", [{"legacy": True}, {"legacy": None}, {}, {"legacy": False}])
def test_each_part_begins_as_in_the_authors_code(
    tmp_path: Path, sentences: bytes, described: dict[str, object]
) -> None:
    oracle: Any = sentencepiece.SentencePieceProcessor(model_proto=sentences)
    tokenizer = tokenizer_of(tmp_path / "llama", sentences, **described)
    image = oracle.vocab_size()

    def authors(text: str) -> list[int]:
        found: list[int] = []
        for number, part in enumerate(text.split("<image>")):
            found += [image] * bool(number) + slow_ids(oracle, part, legacy=described.get("legacy") is not False)
        return found

    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in (
        "USER: <image>\nAnd where? ASSISTANT: picture</s>USER: And</s>USER: a ASSISTANT: b</s>",
        "<image> And",
        " And where",
        "</s>USER: And",
        "And</s> where</s>  And",
        "<image><image>  picture</s>",
        "",
    ):
        assert ids(tokenizer, text) == authors(text), text
        assert ids(again, text) == authors(text), text
    wanted = ["</s>", "U" if described.get("legacy") is False else SPACE]
    found = tokenizer.convert_ids_to_tokens(ids(tokenizer, "And</s>U: And"))
    assert found[found.index("</s>") :][:2] in (wanted, ["</s>", f"{SPACE}U"])


def test_text_comes_back_when_it_is_decoded(tmp_path: Path, sentences: bytes) -> None:
    tokenizer = tokenizer_of(tmp_path, sentences, legacy=False)
    for text in ("And  where", " And", "\n    return \u732b"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_a_tokenizer_that_the_library_cannot_build_is_one_sentence(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"<unk>": 0}, "merges": [["a", "b"]], "byte_fallback": True}
    described = {"version": "1.0", "model": model, "normalizer": {"type": "Unheard"}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match="must hold LLaMA's tokenizer.model"):
        llama_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unigram", "vocab_size": 330},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"must hold LLaMA's tokenizer\.model, got .* in "):
        tokenizer_of(tmp_path, trained(**changes))
