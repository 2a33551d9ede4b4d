"""The questions of a benchmark as a ``Dataset``: ``benchmark:gqa=FOLDER`` wherever a data file is named."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.benchmarks.layout.question import Question, labels_digest
from tasks.benchmarks.registry import find_benchmark
from tasks.dataset import Dataset, LazyExamples
from tasks.errors import UserError
from tasks.example import Example, Target
from tasks.files import expanded

PREFIX = "benchmark:"
_LETTERS = ("scienceqa", "mmbench", "mmbench_cn", "seed")  # their answers are letters of options


def benchmark_dataset(
    spec: str, images: str | Path | None = None, *, limit: int | None = None, follow_links: bool = False
) -> Dataset:
    """The questions of a benchmark as examples, with the labels ``answer`` and ``category`` where all have them.

    Of several people's answers the most frequent one is the label. Options, yes and no keep the words of the labels.

    Args:
        spec: ``benchmark:NAME=FOLDER``.
        images: The folder of the pictures; None for the official name in the benchmark's folder.
        limit: The largest number of questions.
        follow_links: Whether links in the picture folder may lead out of it.

    Raises:
        UserError: If there is no such benchmark, or its files cannot be read.

    Example:
        >>> from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
        >>> write_pope(Path("pope"), scene_pictures(2, size=28))
        >>> data = benchmark_dataset("benchmark:pope=pope")
        >>> data.examples[0].labels
        {'answer': 'yes', 'category': 'adversarial'}
    """
    name, given, folder = spec.removeprefix(PREFIX).partition("=")
    benchmark = find_benchmark(name)
    if not given or not folder:
        raise UserError(f"data must be benchmark:NAME=FOLDER, got {spec!r}. Write benchmark:{benchmark.name}=FOLDER.")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be >= 1, got {limit}. Leave it out for all questions.")
    source = benchmark.module.FILES.find(
        expanded(folder), images=None if images is None else Path(images), follow_links=follow_links
    )
    questions = benchmark.read(source)[:limit]
    judged = benchmark.scored_by == "judge"
    answers = ["" if judged else _answer(question.label) for question in questions]
    answered, sorted_in = all(answers), all(question.category for question in questions)
    family = "choice" if benchmark.name in _LETTERS else ""

    def make(index: int) -> Example:
        question, answer = questions[index], answers[index]
        labels = {**({"answer": answer} if answered else {}), **({"category": question.category} if sorted_in else {})}
        captions = question.label if benchmark.name == "caption" else ()
        example = replace(question.example(index), answer=answer, labels=labels, family=family or question.category)
        return replace(example, captions=captions)

    targets = [*(["answer"] if answered else []), *(["category"] if sorted_in else [])]
    return Dataset(
        name=f"{PREFIX}{benchmark.name}",
        examples=LazyExamples(len(questions), make),
        targets=tuple(Target(target) for target in targets),
        digest=_digest(questions, source.folder.stats),
    )


def _answer(label: Any) -> str:
    """The label as a text; empty if there is none."""
    if isinstance(label, list):
        return Counter(map(str, label)).most_common(1)[0][0]
    if isinstance(label, tuple):
        return str(label[0])
    return label if isinstance(label, str) else ""


def _digest(questions: list[Question], stats: dict[str, tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.id, question.text, question.group)).encode())
    digest.update(labels_digest(questions).encode())
    digest.update(repr(sorted(stats.items())).encode())
    return digest.hexdigest()[:16]
