"""``benchmark-eval score``: the scores of an answer file that anyone made. No model is loaded."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.evaluation.config import ScoreConfig
from records.evaluation.intervals import Estimate, score_estimate
from records.evaluation.judging import grade_answers, name_of_judge, open_judge
from records.manifest import commit, write_atomically
from records.run import writing
from records.shared_jobs import one_at_a_time
from tasks.benchmarks.layout.answers import Answer, match_answers, read_answers
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.scores import Scores
from tasks.benchmarks.registry import BENCHMARKS, Benchmark, find_benchmark
from tasks.errors import UserError, user_errors


@dataclass(frozen=True)
class FileScores:
    """The scores of an answer file; ``str`` gives lines for people, ``to_json`` a JSON object."""

    benchmark: Benchmark
    scores: Scores
    estimate: Estimate | None
    n: int

    def __str__(self) -> str:
        """The main score with its interval, every other number, and the notes."""
        lines = [f"{self.benchmark.title}, {self.n} questions"]
        if self.estimate is None:
            lines.append(f"score: none here, a {self.benchmark.scored_by} gives it")
        else:
            found = self.estimate
            interval = "" if math.isnan(found.lower) else f" [{found.lower:.2f}, {found.upper:.2f}] ({found.interval})"
            lines.append(f"score: {found.value:.2f}{interval}")
        width = max((len(f"{m.name} {m.part}") for m in self.scores.metrics), default=0)
        lines += [
            f"  {f'{m.name} {m.part}':<{width}}  {m.value:8.2f}  n = {m.n:<6} {m.rule}" for m in self.scores.metrics
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.scores.notes)])

    def to_json(self) -> str:
        """A JSON object: ``benchmark, n, score, lower, upper, interval, metrics, notes``."""
        found: dict[str, Any] = {"benchmark": self.benchmark.name, "n": self.n}
        for name in ("value", "lower", "upper", "interval"):
            value = None if self.estimate is None else getattr(self.estimate, name)
            missing = isinstance(value, float) and math.isnan(value)
            found["score" if name == "value" else name] = None if missing else value
        found["metrics"] = [metric._asdict() for metric in self.scores.metrics]
        return json.dumps(found | {"notes": list(self.scores.notes)}, indent=2)


def score_file(config: ScoreConfig) -> FileScores:
    r"""Score the answers of the settings; write the upload files if a folder is named.

    Raises:
        UserError: If a file is missing or in another layout, or the answers belong to other questions.

    Example:
        >>> from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
        >>> write_pope(Path("pope"), scene_pictures(2, size=28))
        >>> rows = [json.loads(line) for line in Path("pope/llava_pope_test.jsonl").read_text().splitlines()]
        >>> lines = [json.dumps({"question_id": row["question_id"], "text": "Yes"}) for row in rows]
        >>> _ = Path("answers.jsonl").write_text("\n".join(lines))
        >>> round(score_file(ScoreConfig("pope", Path("answers.jsonl"), Path("pope"))).estimate.value, 2)
        66.67
    """
    if not config.benchmark:
        raise UserError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got none.")
    benchmark = find_benchmark(config.benchmark)
    if config.answers is None:
        raise UserError("answers must be given, got none. Write --answers FILE.")
    if config.questions is None:
        raise UserError("questions must be given, got none. Write --questions FILE.")
    if not config.questions.exists():
        raise UserError(f"questions must exist, got {str(config.questions)!r}. Check the path.")
    is_folder = config.questions.is_dir()
    source = benchmark.module.FILES.find(
        config.questions if is_folder else config.questions.parent,
        questions=None if is_folder else config.questions,
        labels=config.labels,
    )
    if config.uploads is not None and config.uploads.exists() and not config.uploads.is_dir():
        raise UserError(f"uploads must be a folder, got the file {str(config.uploads)!r}. Choose another name.")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit must be >= 1, got {config.limit}.")
    questions = benchmark.read(source)[: config.limit]
    given = read_answers(config.answers)
    if config.limit is not None:  # the answers of the other questions do not count
        names = {str(question.id) for question in questions}
        given = [answer for answer in given if str(answer.id) in names]
    texts = match_answers(questions, given)
    if not any(text is not None for text in texts):
        raise UserError(f"answers must belong to the questions, got none that does in {str(config.answers)!r}.")
    config.judge.check(benchmark.scored_by == "judge")
    if config.judge_log is not None and not config.judge.is_given:
        raise UserError("judge-log must go with judge-url and judge-model, got neither. Give both.")
    scores = _graded(config, benchmark, questions, texts, given) if config.judge.is_given else None
    scores = scores or benchmark.module.score(questions, texts)
    if config.uploads is not None:
        _write_uploads(config.uploads, benchmark.module.write_submission(questions, texts, source))
    if scores.main is None and benchmark.scored_by == "labels":
        raise UserError(f"labels must be given to score {benchmark.name}: {scores.notes[0]}.")
    return FileScores(benchmark, scores, score_estimate(scores), len(questions))


def _graded(
    config: ScoreConfig,
    benchmark: Benchmark,
    questions: Sequence[Question],
    texts: Sequence[str | None],
    given: Sequence[Answer],
) -> Scores:
    """The scores by the judge of the settings. Its log and the reviews lie beside the answers."""
    assert config.answers is not None
    log = config.judge_log or config.answers.with_name(f"{config.answers.stem}.judge.jsonl")
    names = {str(answer.id): str(answer.row.get("answer_id", answer.id)) for answer in given}
    ids = [names.get(str(question.id), str(question.id)) for question in questions]
    with user_errors(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(log.parent), open_judge(config.judge, log) as client:
            graded = grade_answers(client, config.judge.model, benchmark, questions, texts, ids)
        for name, content in graded.files.items():
            own = f"{config.answers.stem}.{name_of_judge(config.judge.model)}.{name}"
            write_atomically(log.with_name(own), content)
    return graded.scores


def _write_uploads(folder: Path, files: dict[str, bytes]) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            commit(folder / name, content)
