"""The model in TransformerLens and nnsight, with shared weights.

Both libraries replace modules of a model, so each gets new modules around the parameters and buffers of ``llava``. A
change of a weight is visible in both.
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
    """A TransformerLens bridge; ``run_with_cache(input_ids, pixel_values=...)`` takes the tensors of ``Inputs``.

    It runs eager attention, which returns the patterns.
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
    """Prevent TransformerLens from looking up a processor by the model's name.

    It would query the hub for names such as ``smol``, for 30 seconds if there is no network, and install torchvision
    with pip. A torchvision version that does not match torch breaks transformers.
    """
    from transformer_lens.model_bridge.sources.transformers import helpers

    with mock.patch.object(helpers, "_MODALITY_PROCESSOR_LOADERS", []):
        yield


def to_nnsight(llava: Adapter) -> "NNsight":
    """An nnsight model around the Hugging Face modules."""
    from nnsight import NNsight

    return NNsight(twin(llava))


def twin(llava: Adapter) -> LlavaForConditionalGeneration:
    """A copy of the model's modules around the same tensors."""
    shared: dict[int, Any] = {id(t): t for t in chain(llava.model.parameters(), llava.model.buffers())}
    return copy.deepcopy(llava.model, shared)


def _tokenizer(llava: Adapter) -> PreTrainedTokenizerBase:
    """A copy with settings that prevent TransformerLens from loading the tokenizer again by name."""
    tokenizer = copy.deepcopy(llava.tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    tokenizer.init_kwargs.setdefault("name_or_path", llava.id)
    return tokenizer
