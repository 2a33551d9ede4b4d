"""Published scores of LLaVA-1.5 and the models that its paper compares with.

Source: tables 3 and 4 of Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744,
    version 2. POPE is the mean of the three F1 of table 4; LLaVA's model zoo gives 85.9 for both sizes. The paper took
    the scores of other models from their authors and from the benchmarks' tables.
"""

from collections.abc import Mapping
from typing import NamedTuple

SOURCE = "arXiv 2310.03744v2, tables 3 and 4"


class Published(NamedTuple):
    """A row of the table: the model, its scores by the name of the benchmark, and the source."""

    model: str
    scores: Mapping[str, float]
    source: str = SOURCE


_NAMES = (
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "mme",
    "mmbench",
    "mmbench_cn",
    "seed",
    "llava_wild",
    "mmvet",
)


def _row(model: str, pope: tuple[float, float, float] | None, *values: float | None) -> Published:
    found = {name: value for name, value in zip(_NAMES, values, strict=True) if value is not None}
    if pope:
        found["pope"] = round(sum(pope) / 3, 1)
    return Published(model, found)


PUBLISHED = (
    _row("LLaVA-1.5-7B", (87.3, 86.1, 84.2), 78.5, 62.0, 50.0, 66.8, 58.2, 1510.7, 64.3, 58.3, 58.6, 65.4, 31.1),
    _row("LLaVA-1.5-13B", (87.1, 86.2, 84.5), 80.0, 63.3, 53.6, 71.6, 61.3, 1531.3, 67.7, 63.6, 61.6, 72.5, 36.1),
    _row("LLaVA-7B", (76.3, 72.2, 70.1), None, None, None, None, None, 809.6, 38.7, 36.4, 33.5, 62.8, 25.5),
    _row("InstructBLIP-7B", None, None, 49.2, 34.5, 60.5, 50.1, None, 36.0, 23.7, 53.4, 60.9, 26.2),
    _row("InstructBLIP-13B", (87.7, 77.0, 72.0), None, 49.5, 33.4, 63.1, 50.7, 1212.8, None, None, None, 58.2, 25.6),
    _row("IDEFICS-9B", None, 50.9, 38.4, 35.5, None, 25.9, None, 48.2, 25.2, None, None, None),
    _row("IDEFICS-80B", None, 60.0, 45.2, 36.0, None, 30.9, None, 54.5, 38.1, None, None, None),
    _row("Qwen-VL", None, 78.8, 59.3, 35.2, 67.1, 63.8, None, 38.2, 7.4, 56.3, None, None),
    _row("Qwen-VL-Chat", None, 78.2, 57.5, 38.9, 68.2, 61.5, 1487.5, 60.6, 56.7, 58.2, None, None),
)
