"""The benchmarks of a run with their questions, checked before a model is loaded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from records.evaluation.config import EvaluationConfig
from tasks.benchmarks.layout.question import Question, labels_digest
from tasks.benchmarks.layout.rows import Source
from tasks.benchmarks.registry import Benchmark, find_benchmark
from tasks.errors import UserError
from tasks.files import expanded


class Skipped(NamedTuple):
    """A question that is left out, and the reason."""

    benchmark: str
    id: str
    reason: str


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark with the questions that are asked, and those that are left out."""

    benchmark: Benchmark
    source: Source
    questions: tuple[Question, ...]
    n_official: int
    """Questions in the file."""
    skipped: tuple[Skipped, ...] = ()

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.benchmark.name

    @property
    def digest(self) -> str:
        """A hash of what answers depend on: the questions, and path, size and time of change of their pictures."""
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(repr((question.id, question.text, question.picture and question.picture.key)).encode())
        digest.update(repr(sorted(self.source.folder.stats.items())).encode())
        return digest.hexdigest()[:16]

    @property
    def labels_digest(self) -> str:
        """A hash of the labels and categories of the questions: what the scores depend on besides the answers."""
        return labels_digest(self.questions)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the score is not the official one, if it is not."""
        found = []
        if self.skipped:
            found.append(f"{len(self.skipped)} questions are left out, so the score is not the official one")
        limited = self.n_official - len(self.skipped) - len(self.questions)
        if limited:
            found.append(f"only {len(self.questions)} of {self.n_official} questions are asked")
        return tuple(found)


def open_benchmark(
    text: str,
    *,
    questions: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    limit: int | None = None,
    follow_links: bool = False,
    skip_bad: bool = False,
) -> OpenBenchmark:
    """The benchmark of a text ``NAME=FOLDER`` with its questions.

    Raises:
        UserError: If there is no such benchmark, its files cannot be read, pictures are missing and ``skip_bad`` is
            False, or the labels do not fit the questions.
    """
    name, given, folder = text.partition("=")
    benchmark = find_benchmark(name)
    if not given or not folder:
        raise UserError(f"benchmark must be NAME=FOLDER, got {text!r}. Write {benchmark.name}=FOLDER.")
    source = benchmark.module.FILES.find(
        expanded(folder), questions=questions, images=images, labels=labels, follow_links=follow_links
    )
    read = benchmark.read(source)
    kept, skipped = _usable(benchmark, source, read, limit, skip_bad)
    if not kept:
        raise UserError(f"{benchmark.name} must have a question that can be asked, got none in {folder!r}.")
    benchmark.module.score(kept, [""] * len(kept))  # labels that do not fit raise now, and not after the run
    return OpenBenchmark(benchmark, source, tuple(kept), len(read), tuple(skipped))


def open_benchmarks(config: EvaluationConfig) -> tuple[OpenBenchmark, ...]:
    """The benchmarks of the settings; raises as ``open_benchmark``, and if one is named twice."""
    if not config.benchmarks:
        raise UserError("benchmark must be given, got none. Write --benchmark pope=FOLDER.")
    paths = {"questions": config.questions, "images": config.images, "labels": config.labels}
    named = [name for name, path in paths.items() if path is not None]
    if named and len(config.benchmarks) > 1:
        raise UserError(
            f"{named[0]} must be left out with several benchmarks, got {len(config.benchmarks)} benchmarks."
        )
    found = tuple(
        open_benchmark(
            text, questions=config.questions, images=config.images, labels=config.labels, limit=config.limit,
            follow_links=config.follow_links, skip_bad=config.skip_bad,
        )
        for text in config.benchmarks
    )  # fmt: skip
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"benchmark must be named once, got {name!r} twice.")
    return found


def _usable(
    benchmark: Benchmark, source: Source, questions: Sequence[Question], limit: int | None, skip_bad: bool
) -> tuple[list[Question], list[Skipped]]:
    """The first ``limit`` questions with usable pictures, and those before them that are left out."""
    reasons: dict[str, str] = {}
    kept: list[Question] = []
    skipped: list[Skipped] = []
    for question in questions:
        if limit is not None and len(kept) == limit:
            break
        reason = _reason(source, question, reasons, decode=skip_bad)
        if reason:
            skipped.append(Skipped(benchmark.name, str(question.id), reason))
        else:
            kept.append(question)
    if skipped and not skip_bad:
        more = f" and {len(skipped) - 1} more questions" if len(skipped) > 1 else ""
        raise UserError(
            f"{skipped[0].reason} It belongs to question {skipped[0].id!r} of {benchmark.name}{more}. Name the folder "
            "with --images, or leave such questions out with --skip-bad."
        )
    return kept, skipped


def _reason(source: Source, question: Question, reasons: dict[str, str], *, decode: bool) -> str:
    """Why a question's picture cannot be used; empty if it can. Pictures are decoded if bad ones may be left out."""
    picture = question.picture
    if picture is None:
        return ""
    if picture.key not in reasons:
        reasons[picture.key] = ""
        if source.missing(picture):
            reasons[picture.key] = f"picture must exist, got {picture.key!r}."
        elif decode:
            try:
                picture.open()
            except UserError as error:
                reasons[picture.key] = str(error)
    return reasons[picture.key]
