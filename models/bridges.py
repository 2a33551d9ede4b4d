"""The same weights in other libraries: ``to_transformer_lens(llava)`` and ``to_nnsight(llava)``, without a copy.

Both libraries replace modules of a model. They get a twin with new modules around the same parameters and buffers, so a
changed weight changes both, and ``llava`` itself is not modified.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any
from unittest import mock

from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from models.adapter import Adapter

if TYPE_CHECKING:
    from nnsight import NNsight
    from transformer_lens.model_bridge import TransformerBridge


def to_transformer_lens(llava: Adapter) -> "TransformerBridge":
    """A TransformerLens bridge; its ``run_with_cache(input_ids, pixel_values=...)`` takes what ``prepare`` makes.

    It always runs eager attention, which it needs to see patterns.
    """
    from transformer_lens.model_bridge import TransformerBridge

    with without_looking_for_a_processor():
        bridge = TransformerBridge.boot_transformers(
            llava.id, hf_model=twin(llava), tokenizer=_tokenizer(llava), device=str(llava.device), dtype=llava.dtype
        )
    bridge.processor = llava.processor  # type: ignore[assignment]  # declared as None there
    return bridge


@contextmanager
def without_looking_for_a_processor() -> Iterator[None]:
    """Keeps TransformerLens from looking for a processor by the model's name while it boots.

    It asks the hub for names such as ``smol``, and retries for half a minute without a network. If it finds none, it
    installs torchvision with pip, which may not match the installed torch and then breaks transformers.
    """
    from transformer_lens.model_bridge.sources.transformers import helpers

    with mock.patch.object(helpers, "_MODALITY_PROCESSOR_LOADERS", []):
        yield


def to_nnsight(llava: Adapter) -> "NNsight":
    """An nnsight model around the Hugging Face modules."""
    from nnsight import NNsight

    return NNsight(twin(llava))


def twin(llava: Adapter) -> LlavaForConditionalGeneration:
    """The model with modules of its own around the same tensors."""
    shared: dict[int, Any] = {id(t): t for t in chain(llava.model.parameters(), llava.model.buffers())}
    return copy.deepcopy(llava.model, shared)


def _tokenizer(llava: Adapter) -> PreTrainedTokenizerBase:
    """A copy that TransformerLens takes as it is; otherwise it reloads the tokenizer by name, with a first token."""
    tokenizer = copy.deepcopy(llava.tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    tokenizer.init_kwargs.setdefault("name_or_path", llava.id)
    return tokenizer
