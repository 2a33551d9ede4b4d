"""Helpers of the engines' tests: pairs of batches, runs of cells, and how close two logits must be."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.base_runs import Base
from interventions.engines.edits import Cell
from interventions.engines.engine import run_cells
from interventions.engines.names import EngineName
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.sites import Site
from tasks.example import Example
from tests.conftest import make_examples, noise_picture

ENGINES: tuple[EngineName, ...] = ("full", "incremental")
# float32 in another order of summation; logits are of order 0.1 to 1, so this is the relative error that counts
RELATIVE = 1e-5
KINDS = [(grouped, attn) for grouped in (True, False) for attn in ("sdpa", "eager")]


def other_pictures(examples: Sequence[Example]) -> list[Example]:
    """The same examples with other pictures."""
    return [
        replace(e, pictures=tuple(noise_picture(900 + 10 * i + p) for p in range(len(e.pictures))))
        for i, e in enumerate(examples)
    ]


def last_columns(inputs: Inputs) -> Tensor:
    return torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])


def pair(
    llava: Llava, n: int = 3, *, n_pictures: Sequence[int] = (1, 2), padding_side: str = "right"
) -> tuple[Inputs, Inputs]:
    examples = make_examples(n, n_pictures=n_pictures)
    return (
        prepare(llava, examples, padding_side=padding_side),  # type: ignore[arg-type]
        prepare(llava, other_pictures(examples), padding_side=padding_side),  # type: ignore[arg-type]
    )


def run(llava: Llava, base: Base, cells: Sequence[Cell], engine: EngineName = "incremental") -> list[Tensor]:
    return run_cells(llava, base, cells, lambda logits: logits, engine=engine)


def close(got: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    assert_close(got, expected, rtol=0, atol=relative * float(expected.abs().max()))


def differs(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).abs().max()) > 100 * RELATIVE * float(expected.abs().max())


def real(inputs: Inputs) -> Tensor:
    return inputs.attention_mask.bool()


def mask_for(llava: Llava, inputs: Inputs, site: Site) -> Tensor:
    """Everything that can be written at a site."""
    if site.part == "language_model":
        return real(inputs)
    assert inputs.pixel_values is not None
    tokens = llava.n_image_tokens + (site.part == "vision_tower")
    return torch.ones(len(inputs.pixel_values), tokens, dtype=torch.bool)
