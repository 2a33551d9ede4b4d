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

_KINDS = 64  # graphs per block (trained or frozen, one row or several); torch's default limit is 8
_LONG = 512  # positions above which the score matrices of eager attention cost more than its fusion saves


def check_compiling(device: str, *, keep_prefix: bool = False) -> None:
    """Raise ``UserError`` if blocks cannot be compiled.

    A kept prefix and several processes exclude it; on a CPU it needs a C++ compiler and Python's headers.
    """
    if keep_prefix:
        raise UserError(
            "compile must be given without keep-prefix, which reads inside the blocks. Leave one of them out."
        )
    if launched() > 1:
        raise UserError("compile must run in one process, got several. Leave --compile out.")
    if device != "cpu":
        return  # Triton reports what is missing
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses it
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
    """Context manager: compile the language model's blocks; one graph serves all sequence lengths.

    Yields a function that opens a context in which the blocks run uncompiled. Results change by rounding only. On a
    CPU, blocks use eager attention if the ``longest`` row has at most ``_LONG`` positions: the compiler fuses its
    softmax and mask, while torch's fused attention has a slow backward pass.
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
