"""Blocks that are compiled while they train: what is no matrix product is fused into fewer passes over memory."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from models.llava import Llava
from records.errors import BadInput
from records.processes import launched

_COMPILERS = ("c++", "g++", "clang++")


def check_compiling(*, keep_prefix: bool = False) -> None:
    """Passes if blocks can be compiled here.

    Args:
        keep_prefix: Whether the run keeps the frozen prefix's output.

    Raises:
        BadInput: If there is no C++ compiler, the run keeps its prefix, or several processes share it.
    """
    named = os.environ.get("CXX")
    wanted = (named,) if named else _COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise BadInput(
            f"compile must find a C++ compiler, got none of {', '.join(wanted)}. Install g++, or leave --compile out."
        )
    if keep_prefix:
        raise BadInput(
            "compile must not stand beside keep-prefix, which reads inside the blocks. Leave one of them out."
        )
    if launched() > 1:
        raise BadInput("compile must run in one process, got several. Leave --compile out.")


@contextmanager
def compiled(llava: Llava, *, backend: str = "inductor") -> Iterator[None]:
    """Inside the block the language model's blocks are compiled, all lengths of a row by one graph; afterwards none is.

    All blocks of a kind (trained, frozen) share one graph, so it is the number of kinds that takes time. On a CPU they
    use plain attention meanwhile: the compiler fuses its softmax and mask, where torch's fused kernel is slower in the
    backward pass under a mask of its own. Names of parameters do not change, and values by rounding alone.

    Args:
        llava: Without LoRA, whose dropout is drawn outside of torch. Changed in place, and back.
        backend: Of ``torch.compile``.
    """
    config: Any = llava.model.config.text_config
    attention = config._attn_implementation
    blocks: list[Any] = list(llava.blocks)
    try:
        if llava.device.type == "cpu":
            config._attn_implementation = "eager"
        for block in blocks:
            block.compile(dynamic=True, backend=backend)
        yield
    finally:
        config._attn_implementation = attention
        for block in blocks:
            block._compiled_call_impl = None


def uncompiled() -> Any:
    """A context in which nothing is compiled and compiled blocks run as they were written: for scoring on the way."""
    return torch.compiler.set_stance("force_eager")
