"""Folders whose tokenizer is SentencePiece's tokenizer.model alone get the ids of SentencePiece."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from peft import LoraConfig, get_peft_model

from models.llava import Llava
from models.loading.llama_tokenizer import llama_tokenizer
from models.loading.load import load
from models.loading.processors import stored_tokenizer
from tasks.chat_server import ChatRequest, Message
from tasks.errors import UserError
from tests.conftest import tiny_config
from tests.models.sentencepiece_models import SPACE, slow_ids, trained
from tuning.instructions.dry_run import estimate

SENTENCES = trained()
ORACLE: Any = sentencepiece.SentencePieceProcessor(model_proto=SENTENCES)
IMAGE_ID = ORACLE.vocab_size()
TEXTS = ["And  where", "\n    return", " And", "USER: a ASSISTANT: b</s>USER: c", "\u732b  2 dogs"]


def added(token: str) -> dict[str, object]:
    return {"content": token, "special": True} | dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)


def write_tokenizer(folder: Path, sentences: bytes = SENTENCES, **changes: object) -> None:
    """As llava-hf checkpoints have it: <image> and <pad> after the vocabulary."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentences)
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>", IMAGE_ID: "<image>", IMAGE_ID + 1: "<pad>"}
    described = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "legacy": False, "chat_template": "{{ messages[0].content }}",
        "added_tokens_decoder": {str(number): added(token) for number, token in tokens.items()},
    }  # fmt: skip
    kept = {key: value for key, value in (described | changes).items() if value is not ...}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))


@pytest.fixture(scope="module")
def model() -> Llava:
    config = tiny_config()
    config.image_token_index = config.image_token_id = IMAGE_ID
    return load(config, seed=0, validate=False)


@pytest.fixture
def folder(model: Llava, tmp_path: Path) -> Path:
    """A folder in transformers' layout with tokenizer.model alone."""
    path = tmp_path / "slow-llava"
    model.model.save_pretrained(path)
    model.processor.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (path / name).unlink(missing_ok=True)
    write_tokenizer(path)
    return path


def check_ids(tokenizer: Any, *, legacy: bool = False) -> None:
    found = tokenizer.convert_ids_to_tokens(tokenizer("And  where").input_ids)
    assert found == ["<s>", f"{SPACE}And", SPACE, f"{SPACE}w", "here"]
    for text in TEXTS:
        assert tokenizer(text).input_ids == [1, *slow_ids(ORACLE, text, legacy=legacy)], text
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [IMAGE_ID, IMAGE_ID + 1]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_folder_in_transformers_layout_gets_the_ids_of_sentencepiece(folder: Path, legacy: bool) -> None:
    write_tokenizer(folder, legacy=legacy)
    llava = load(folder)
    check_ids(llava.tokenizer, legacy=legacy)
    assert llava.processor.chat_template == "{{ messages[0].content }}"
    assert llava.pad_token_id == IMAGE_ID + 1


def test_added_tokens_of_an_older_layout_keep_their_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, added_tokens_decoder=...)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": IMAGE_ID, "<pad>": IMAGE_ID + 1}))
    check_ids(llama_tokenizer(tmp_path))


def test_a_tokenizer_model_beside_lora_factors_is_read_alike(model: Llava, folder: Path, tmp_path: Path) -> None:
    factors = tmp_path / "factors"
    targets = [name for name, _ in model.model.named_modules() if name.endswith("language_model.layers.0.mlp.up_proj")]
    copy: Any = load(folder)
    peft = get_peft_model(copy.model, LoraConfig(r=2, target_modules=targets))
    peft.peft_config["default"].base_model_name_or_path = str(folder)
    peft.save_pretrained(factors)
    write_tokenizer(factors)
    check_ids(load(factors).tokenizer)


def test_another_kind_of_tokenizer_model_is_one_sentence(folder: Path) -> None:
    write_tokenizer(folder, trained(remove_extra_whitespaces=True))
    with pytest.raises(
        UserError, match=r"must hold LLaMA's tokenizer\.model, got a SentencePiece model of another kind"
    ):
        load(folder)
    (folder / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"must hold LLaMA's tokenizer\.model, got .* in slow-llava"):
        load(folder)


def test_a_dry_run_of_instructions_counts_the_tokens_of_sentencepiece(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    request = ChatRequest("m", (Message("user", "\n    return  And"),), 10)
    assert estimate([request], tmp_path, None).prompt_tokens == len(ORACLE.encode("\n    return  And"))
    shutil.copy(tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json")  # not a tokenizer
    with pytest.raises(UserError, match="tokenizer must be readable"):
        estimate([request], tmp_path, None)


def test_a_saved_tokenizer_of_llama_makes_the_same_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    llama_tokenizer(tmp_path).save_pretrained(tmp_path / "saved")
    check_ids(stored_tokenizer(tmp_path / "saved"))
