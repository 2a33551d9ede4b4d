"""Blocks that are compiled while they train: what is no matrix product is fused into fewer passes over memory."""

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
from tuning.plan.plan import LayerPlan

_KINDS = 64  # of blocks; torch would go on without compiling, and all but silently, from the ninth on
_LONG = 512  # positions: from here on the squares that plain attention keeps weigh more than the passes that it saves


def is_compiled(plan: LayerPlan, *, asked: bool) -> bool:
    """Whether a plan's blocks are compiled where that is asked for: LoRA's dropout is drawn outside of torch."""
    return asked and plan.method != "lora"


def check_compiling(device: str, *, keep_prefix: bool = False) -> None:
    """Passes if blocks can be compiled here.

    Args:
        device: The run's.
        keep_prefix: Whether the run keeps the frozen prefix's output.

    Raises:
        UserError: If the run keeps its prefix, several processes share it, or a CPU has no C++ compiler with Python's
            headers.
    """
    if keep_prefix:
        raise UserError(
            "compile must not stand beside keep-prefix, which reads inside the blocks. Leave one of them out."
        )
    if launched() > 1:
        raise UserError("compile must run in one process, got several. Leave --compile out.")
    if device != "cpu":
        return  # Triton brings what it needs, or says what it misses
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
    """Inside, the language model's blocks are compiled, all lengths of a row by one graph; then they are as before.

    All blocks of a kind share one graph: those that train, those that are frozen, those whose input has a gradient, and
    each of them with one row or several, in one type of weights. Where no row is long, blocks on a CPU use plain
    attention meanwhile: the compiler fuses its softmax and mask, where torch's fused kernel is slower in the backward
    pass under a mask of its own. Names of parameters do not change, and values by rounding alone (and by the draws of
    attention's dropout, which LLaMA has not).

    Args:
        llava: Without LoRA. Changed in place, and back.
        longest: Positions of the longest row.
        backend: Of ``torch.compile``.

    Yields:
        A function that opens a context in which the blocks run as they were written.
    """
    config: Any = llava.model.config.text_config
    written: str = config._attn_implementation
    meanwhile = "eager" if llava.device.type == "cpu" and longest <= _LONG else written
    blocks: list[Any] = list(llava.blocks)
    before = [block._compiled_call_impl for block in blocks]

    @contextmanager
    def as_written() -> Iterator[None]:
        config._attn_implementation = written
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
            yield as_written
    finally:
        config._attn_implementation = written
        for block, call in zip(blocks, before, strict=True):
            block._compiled_call_impl = call
