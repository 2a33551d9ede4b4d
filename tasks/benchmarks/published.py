"""Published scores of LLaVA-1.5 and the models that its paper compares with, and the questions that they are about.

Source: tables 3 and 4 of Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744,
    version 2. POPE is the mean of the three F1 of table 4; LLaVA's model zoo gives 85.9 for both sizes. The paper took
    the scores of other models from their authors and from the benchmarks' tables. Numbers of questions are those of
    LLaVA's evaluation bundle and of the benchmarks' pages; MMBench's are those of the file of July 2023, and of the
    Chinese one of October 2023. Ids of POPE and ScienceQA are those of the bundle's files.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tasks.benchmarks.layout.question import Question

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


class Official(NamedTuple):
    """The questions that published scores are about, as far as they are known."""

    n: int
    """Questions of the score that papers report."""
    also: int | None = None
    """Questions of the whole file, if the score counts a part of them."""
    name: Callable[[Question], str | None] | None = None
    """What identifies a question; None for one that is left out. None if only the number is known."""
    digest: str = ""
    """``digest_of_names`` of all of them."""


def digest_of_names(names: Sequence[str]) -> str:
    """A hash of names in any order.

    Example:
        >>> digest_of_names(["a", "b"]) == digest_of_names(["b", "a"])
        True
    """
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _stem(question: Question) -> str | None:
    """The name of the picture's file; empty if the picture is embedded."""
    image = question.row.get("image")
    return Path(image).stem if isinstance(image, str) else ""


def _pope(question: Question) -> str | None:
    return f"{question.category} {stem} {question.text}" if (stem := _stem(question)) else ""


def _pictured(question: Question) -> str | None:
    """ScienceQA's id of a question with a picture; empty in data sets without ids."""
    named = "id" in question.row
    return None if question.picture is None else str(question.id) if named else ""


def _number(question: Question) -> str | None:
    return str(question.id).removeprefix("v1_")


def _numbers(n: int) -> str:
    return digest_of_names([str(i) for i in range(n)])


PUBLISHED_QUESTIONS: Mapping[str, Official] = MappingProxyType(
    {
        "vqav2": Official(107_394),
        "gqa": Official(12_578),
        "vizwiz": Official(8_000, None, _stem, digest_of_names([f"VizWiz_test_{i:08d}" for i in range(8_000)])),
        "scienceqa": Official(2_017, 4_241, _pictured, "8b9cf6dcf568f018"),
        "textvqa": Official(5_000),
        "pope": Official(8_910, None, _pope, "3b88f6b888b66c1b"),
        "mme": Official(2_114, 2_374),
        "mmbench": Official(4_377),
        "mmbench_cn": Official(4_329),
        "seed": Official(19_242),
        "llava_wild": Official(60, None, _number, _numbers(60)),
        "mmvet": Official(218, None, _number, _numbers(218)),
    }
)


def unlike_published(benchmark: str, questions: Sequence[Question]) -> str:
    """Why the published scores are about other questions than these; empty if nothing shows that they are.

    Numbers are compared for every benchmark; ids, texts or names of pictures for POPE, ScienceQA, VizWiz, LLaVA-Bench
    and MM-Vet, where the file has them.

    Example:
        >>> unlike_published("gqa", [Question(1, "What is it?")])
        'the number of questions is 1, that of the published scores 12,578'
    """
    official = PUBLISHED_QUESTIONS.get(benchmark)
    if official is None:
        return ""
    n = len(questions)
    if n not in (official.n, official.also):
        return f"the number of questions is {n:,}, that of the published scores {official.also or official.n:,}"
    if official.name is None:
        return ""
    names = [name for question in questions if (name := official.name(question)) is not None]
    if all(names) and digest_of_names(names) != official.digest:
        return f"these are {n:,} other questions than those of the published scores"
    return ""
