"""The worked example of ``interventions/engines/README.md``."""

from pathlib import Path

import torch
from torch import Tensor

from interventions.engines import needed_positions
from interventions.engines.base_runs import PositionFacts
from interventions.engines.edits import Cut
from interventions.engines.needed_positions import Between, EqualTo, LayerEdits, enter, start, step

README = Path(needed_positions.__file__).with_name("README.md")


def at(*positions: int) -> Tensor:
    mask = torch.zeros(1, 5, dtype=torch.bool)
    mask[:, list(positions)] = True
    return mask


def named(status: EqualTo, cell: int) -> list[str]:
    names = {(True, True): "=", (True, False): "base", (False, True): "other", (False, False): "own"}
    return [names[bool(b), bool(o)] for b, o in zip(status.base[0, cell], status.other[0, cell], strict=True)]


def listed(mask: Tensor, cell: int) -> str:
    return ", ".join(str(pos) for pos in mask[0, cell].nonzero().flatten().tolist())


def test_the_table_of_the_readme_is_what_the_code_computes() -> None:
    facts = PositionFacts(
        relevant=at(0, 1, 2, 3, 4), readout=at(4), same=at(0, 3, 4), common=at(0), aligned=at(0, 1, 2, 3, 4)
    )
    cut = Cut(1, queries=at(4), keys=at(1, 2))
    layers = [LayerEdits(), LayerEdits([Between(0, at(1, 2), None)], cuts=[(1, cut)]), LayerEdits(), LayerEdits()]
    status = start([1, 1], facts)
    rows = []
    for layer in (1, 2):
        enter(status, layers[layer], facts)
        done = step(status, layers[layer], layers[layer + 1], facts, last=layer == 2)
        for cell, name in enumerate("AB"):
            rows.append([name, str(layer), *named(status, cell), listed(done.compute, cell), listed(done.serve, cell)])
        status = done.after
    table = [
        [field.strip() for field in line.strip("|").split("|")]
        for line in README.read_text().splitlines()
        if line.startswith(("| A", "| B"))
    ]
    assert sorted(rows) == table
