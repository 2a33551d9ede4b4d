"""LLaVA-1.5's twelve benchmarks and captions by name: their module, new tokens of an answer, and who scores them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

from tasks.benchmarks import (
    caption,
    gqa,
    llava_wild,
    mmbench,
    mmbench_cn,
    mme,
    mmvet,
    pope,
    scienceqa,
    seed,
    textvqa,
    vizwiz,
    vqav2,
)
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source
from tasks.benchmarks.layout.scores import Scores
from tasks.errors import UserError, printable

# New tokens: the loader's in LLaVA's scripts, those of ScienceQA, MMBench and open answers, lmms-eval's of captions.
_SHORT, _LONG, _CAPTION = 128, 1024, 64
Answers = Sequence[str | None]


@runtime_checkable
class BenchmarkModule(Protocol):
    """What every module of a benchmark has."""

    FILES: FileNames

    def prompt(self, row: Row) -> str:
        """The words of the model's prompt for a row of the question file."""

    def read(self, source: Source) -> list[Question]:
        """The questions in the order of the file, with their labels if they are known."""

    def score(self, questions: Sequence[Question], answers: Answers) -> Scores:
        """The scores by the official rule, and by other named rules."""

    def write_submission(self, questions: Sequence[Question], answers: Answers, source: Source) -> dict[str, bytes]:
        """The upload files by name; none where no server takes them."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its module, and what a run needs besides.

    Example:
        >>> find_benchmark("pope").new_tokens
        128
    """

    name: str
    title: str
    column: str
    """The heading of its column in the table of published scores."""
    new_tokens: int
    module: BenchmarkModule
    scored_by: Literal["labels", "server", "judge"] = "labels"

    def read(self, source: Source) -> list[Question]:
        """The questions in the order of the file.

        Raises:
            UserError: If they or the labels have another layout, or labels that the user named are those of others.
        """
        try:
            found = self.module.read(source)
        except (KeyError, TypeError, AttributeError, IndexError) as error:  # labels in another layout
            raise UserError(
                f"labels must have the layout of {self.title}, got {type(error).__name__} {str(error)[:60]} in "
                f"{str(source.labels or source.questions[0])!r}. See the page on benchmarks."
            ) from error
        if source.labels_given and all(question.label is None for question in found):
            raise UserError(
                f"labels must belong to the questions, got none for {len(found)} questions of {self.name} in "
                f"{str(source.labels)!r}. Use the labels of the same split."
            )
        return [
            one if printable(one.category) == one.category else replace(one, category=printable(one.category))
            for one in found
        ]


_ALL = (
    Benchmark("vqav2", "VQAv2 test-dev", "VQAv2", _SHORT, vqav2, "server"),
    Benchmark("gqa", "GQA testdev-balanced", "GQA", _SHORT, gqa),
    Benchmark("vizwiz", "VizWiz test", "VizWiz", _SHORT, vizwiz, "server"),
    Benchmark("scienceqa", "ScienceQA test, IMG", "SQA-I", _LONG, scienceqa),
    Benchmark("textvqa", "TextVQA val", "TextVQA", _SHORT, textvqa),
    Benchmark("pope", "POPE, mean F1", "POPE", _SHORT, pope),
    Benchmark("mme", "MME perception", "MME", _SHORT, mme),
    Benchmark("mmbench", "MMBench dev", "MMB", _LONG, mmbench, "server"),
    Benchmark("mmbench_cn", "MMBench-CN dev", "MMB-CN", _LONG, mmbench_cn, "server"),
    Benchmark("seed", "SEED-Bench", "SEED", _SHORT, seed),
    Benchmark("llava_wild", "LLaVA-Bench (in the wild)", "LLaVA-W", _LONG, llava_wild, "judge"),
    Benchmark("mmvet", "MM-Vet", "MM-Vet", _LONG, mmvet, "judge"),
    Benchmark("caption", "Captions, CIDEr", "CIDEr", _CAPTION, caption),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({one.name: one for one in _ALL})


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``; hyphens count as underscores.

    Raises:
        UserError: If there is none.

    Example:
        >>> find_benchmark("mmbench-cn").title
        'MMBench-CN dev'
    """
    key = name.strip().lower().replace("-", "_")
    if key not in BENCHMARKS:
        raise UserError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}.")
    return BENCHMARKS[key]
