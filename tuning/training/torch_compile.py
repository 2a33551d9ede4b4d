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

_KINDS = 64  # graphs per block; torch's default is 8, after which it silently runs without compiling
_LONG = 512  # positions from which the score matrices of eager attention cost more than its fused passes save


def check_compiling(device: str, *, keep_prefix: bool = False) -> None:
    """Check that blocks can be compiled on this machine.

    Args:
        device: Device of the run.
        keep_prefix: Whether the run stores the frozen prefix's output.

    Raises:
        UserError: If the run stores its prefix, has several processes, or is on a CPU without a C++ compiler or
            Python's headers.
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
    """Within the block, the language model's blocks are compiled; one graph serves all sequence lengths.

    All blocks of a kind share a graph: trained or frozen, with or without a gradient of the input, one row or several.
    If no row is long, blocks on a CPU use eager attention meanwhile: the compiler fuses its softmax and mask, while
    torch's fused kernel with a custom mask is slower in the backward pass. Parameter names do not change; values
    change by rounding.

    Args:
        llava: Changed in place, and restored.
        longest: Positions of the longest row.
        backend: Backend of ``torch.compile``.

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
