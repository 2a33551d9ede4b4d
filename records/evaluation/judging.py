"""Answers graded by a judge at a chat server. A reply is logged before it is used, and never asked for again.

The judge's name is the rule of every number, and the notes say that figures of two judges are not comparable. Reviews
lie in a folder, or in files, of their judge, so that those of two judges never mix.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import quote

from records.evaluation.config import JudgeOptions
from tasks.benchmarks.layout.judge import JudgedModule, judge_prompts, review, score_reviews
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.scores import Scores
from tasks.benchmarks.registry import Benchmark
from tasks.chat_server import ChatClient, ServerJudge, read_price

STAGE = "judge"
REVIEWS = "reviews"


@dataclass(frozen=True)
class Graded:
    """The scores of a benchmark by a judge, and the reviews in the authors' layout by the name of the file."""

    scores: Scores
    files: dict[str, bytes]


def name_of_judge(model: str) -> str:
    """The judge's name as part of a file's name; two judges have two names.

    Example:
        >>> name_of_judge("gpt-4-0613"), name_of_judge("org/judge"), name_of_judge("..")
        ('gpt-4-0613', 'org%2Fjudge', '%2E.')
    """
    return re.sub(r"^\.", "%2E", quote(model, safe=" "))


def open_judge(options: JudgeOptions, log: Path | None) -> ChatClient:
    """The client of the judge's server; nothing is sent.

    Raises:
        UserError: If an option, the key or the log cannot be used.
    """
    return ChatClient(
        options.url or "",
        key_env=options.key_env,
        log=log,
        concurrency=options.concurrency,
        timeout=options.timeout,
        attempts=options.attempts,
        price=read_price(options.prices, options.model, "judge-") if options.prices else None,
        max_cost=options.max_cost,
        prefix="judge-",
    )


def grade_answers(
    client: ChatClient,
    model: str,
    benchmark: Benchmark,
    questions: Sequence[Question],
    texts: Sequence[str | None],
    ids: Sequence[str],
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Graded:
    """Ask the judge about every answer to a judged benchmark.

    Args:
        client: The judge's server.
        model: The judge's name.
        benchmark: ``llava_wild`` or ``mmvet``.
        questions: With their labels; without them nothing is asked.
        texts: The answers.
        ids: Ids of the answers, for the file of reviews.
        on_progress: Called with (stage, newly graded, total).

    Raises:
        ChatServerError: If the server cannot be used or accepts no answer, or every attempt of a request failed. Other
            replies are in the log. An answer that the server rejects is left out of the scores and counted.
        CostLimitError: If the next request could exceed the limit of costs.
    """
    module = cast(JudgedModule, benchmark.module)
    if any(question.label is None for question in questions):
        return Graded(benchmark.module.score(questions, texts), {})
    judge = ServerJudge(client, model, system=module.RUBRIC.system)
    prompts = judge_prompts(module.RUBRIC, questions, texts)
    judge.ask_all(prompts, on_reply=lambda: on_progress(f"{benchmark.name}, {STAGE}", 1, len(prompts)))
    reviews = review(module.RUBRIC, questions, texts, judge)  # from the log
    scores = score_reviews(module.RUBRIC, questions, texts, reviews=reviews)
    own = f"graded by {model}: not comparable with figures of another judge, the published ones included"
    notes = (own, *scores.notes)
    metrics = tuple(metric._replace(rule=f"graded by {model}") for metric in scores.metrics)
    return Graded(replace(scores, metrics=metrics, notes=notes), module.review_files(reviews, ids, model))
