"""LLaMA's tokenizer with the ids of SentencePiece, as the authors' code uses it."""

import re
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.loading.config_checks import read_json
from tasks.errors import UserError
from tasks.prompts import IMAGE

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # types of pieces


def llama_tokenizer(folder: Path, *, chat_template: bool = False) -> PreTrainedTokenizerBase:
    """LLaMA's tokenizer with ``<image>``: as its next token, or where the folder has it.

    The texts before and after a picture are tokenized separately, as in the original code, so each begins with a space
    token. The text after another special token, such as ``</s>``, begins with one only if ``tokenizer_config.json``
    says ``legacy: true`` or nothing.

    Args:
        folder: Holds ``tokenizer.model``, or a ``tokenizer.json`` of LLaMA's kind.
        chat_template: Whether to keep the folder's chat template.

    Raises:
        UserError: If the folder has no tokenizer of LLaMA's kind.
    """
    written = folder / "tokenizer.model"
    try:
        if not written.is_file():
            fast = folder / "tokenizer.json"
            if not fast.is_file():
                raise FileNotFoundError("none")
            if not read_json(fast)["model"].get("byte_fallback"):  # LLaMA's class would make wrong ids
                raise UserError("a tokenizer.json of another kind")
        try:
            llama: Any = LlamaTokenizer.from_pretrained(folder)
        except Exception as error:  # the tokenizers library raises nothing more special
            raise ValueError(error) from error
        described = folder / "tokenizer_config.json"
        legacy = read_json(described).get("legacy") if described.is_file() else None
        model = _model(written.read_bytes()) if written.is_file() else llama.backend_tokenizer.model
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, DecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"checkpoint folder must hold LLaMA's tokenizer.model, got {reason} in {folder.name}. "
            "Copy it from the language model."
        ) from error
    special = [token.content for _, token in sorted(llama.backend_tokenizer.get_added_tokens_decoder().items())]
    found = fast_tokenizer(
        _tokenizer(model, special, legacy=legacy is not False),
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
        unk_token=llama.unk_token,
        pad_token=llama.pad_token or llama.unk_token,  # as the original code pads
    )
    if chat_template:
        found.chat_template = llama.chat_template
    return found


def _model(written: bytes) -> models.BPE:
    """The vocabulary and merges of a SentencePiece file.

    SentencePiece joins the pair of pieces whose union has the highest score. Transformers 5 takes the place in the file
    for the score, but runs of spaces stand first in LLaMA's file and have the lowest score.
    """
    stored: Any = sentencepiece_model_pb2.ModelProto.FromString(written)  # type: ignore[attr-defined, unused-ignore]
    trained, normalised = stored.trainer_spec, stored.normalizer_spec
    types = {int(piece.type) for piece in stored.pieces}
    if not (
        trained.model_type == trained.BPE
        and trained.byte_fallback
        and normalised.add_dummy_prefix
        and not normalised.remove_extra_whitespaces
        and not normalised.precompiled_charsmap
        and types <= {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}
    ):
        raise UserError("a SentencePiece model of another kind")
    scores = {piece.piece: piece.score for piece in stored.pieces if piece.type == _NORMAL}
    merges = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append((-score, -cut, (left, right)))
    merges.sort(key=lambda merge: merge[:2])
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(stored.pieces)},
        merges=[pair for *_, pair in merges],
        unk_token=next(piece.piece for piece in stored.pieces if piece.type == _UNKNOWN),
        fuse_unk=True,
        byte_fallback=True,
    )


def _tokenizer(model: Any, special: list[str], *, legacy: bool) -> Tokenizer:
    """A tokenizer that adds a space token before each part of a text.

    Parts are separated by all special tokens with ``legacy``, otherwise by ``<image>`` only: tokens with
    ``normalized=True`` are found after the space is added.
    """
    tokenizer = Tokenizer(model)
    own = "|".join(re.escape(token) for token in special if token != IMAGE)
    start = normalizers.Prepend(_SPACE) if legacy else normalizers.Replace(Regex(rf"\A(?!{own})"), _SPACE)
    tokenizer.normalizer = normalizers.Sequence([start, normalizers.Replace(" ", _SPACE)])
    for token in [*special, *([] if IMAGE in special else [IMAGE])]:  # in the order of their ids
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=token != IMAGE and not legacy)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def fast_tokenizer(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerBase:
    """A tokenizer for transformers, with ``<image>`` and the tokens named in ``special``."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=tokenizer,
        additional_special_tokens=[IMAGE],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        **special,
    )
