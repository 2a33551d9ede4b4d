"""Compile the language model's blocks during training, which fuses everything between matrix products."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from models.llava import Llava
from records.processes import launched
from tasks.errors import UserError

_KINDS = 64  # graphs per block (trained or frozen, one row or several); above torch's default of 8 nothing compiles
_LONG = 512  # positions from which the score matrices of eager attention cost more than its fused passes save


def check_compiling(device: str, *, keep_prefix: bool = False) -> None:
    """Raise ``UserError`` if blocks cannot be compiled in this run.

    The run must not keep its prefix, must have one process, and on a CPU needs a C++ compiler and Python's headers.
    """
    if keep_prefix:
        raise UserError(
            "compile must be given without keep-prefix, which reads inside the blocks. Leave one of them out."
        )
    if launched() > 1:
        raise UserError("compile must run in one process, got several. Leave --compile out.")
    if device != "cpu":
        return  # Triton reports what is missing
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # where torch looks
    if shutil.which(compiler) is None:
        raise UserError(
            f"compile must find the C++ compiler {compiler!r}, got none. Install it, or leave --compile out."
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise UserError(
            f"compile must find Python.h, got none in {str(headers)!r}. Install python3-dev, or leave --compile out."
        )


@contextmanager
def compiled(
    llava: Llava, *, longest: int, backend: str = "inductor"
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """In this context, the language model's blocks are compiled; one graph serves all sequence lengths.

    Results change by rounding only. On a CPU, blocks use eager attention if ``longest``, the length of the longest row,
    is small: the compiler fuses its softmax and mask, while torch's fused attention has a slow backward pass.

    Yields:
        A function that opens a context in which the blocks run uncompiled.
    """
    config: Any = llava.model.config.text_config
    original: str = config._attn_implementation
    meanwhile = "eager" if llava.device.type == "cpu" and longest <= _LONG else original
    blocks: list[Any] = list(llava.blocks)
    before = [block._compiled_call_impl for block in blocks]

    @contextmanager
    def uncompiled() -> Iterator[None]:
        config._attn_implementation = original
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            config._attn_implementation = meanwhile

    try:
        config._attn_implementation = meanwhile
        for block in blocks:
            block.compile(dynamic=True, backend=backend)
        with torch._dynamo.config.patch(recompile_limit=_KINDS):
            yield uncompiled
    finally:
        config._attn_implementation = original
        for block, call in zip(blocks, before, strict=True):
            block._compiled_call_impl = call
