"""MMBench-CN dev: MMBench in Chinese, asked with a Chinese format prompt.

Source: Liu et al. 2023, "MMBench", arXiv 2307.06281; LLaVA's ``model_vqa_mmbench`` with ``--lang cn``.
"""

from collections.abc import Sequence

from tasks.benchmarks import mmbench
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source
from tasks.benchmarks.layout.scores import Scores
from tasks.prompts import LETTER_CN

FILES = FileNames(questions=("mmbench_dev_cn_20231003.tsv", "mmbench_dev_cn_*.tsv"))


def prompt(row: Row) -> str:
    """The words of the model's prompt: hint if there is one, question, options, and the Chinese format prompt."""
    return f"{mmbench.words(row)}\n{LETTER_CN}"


def read(source: Source) -> list[Question]:
    """As ``mmbench.read``, with the Chinese format prompt."""
    return mmbench.read_with(source, LETTER_CN)


def parse(text: str) -> str | None:
    """As ``mmbench.parse``."""
    return mmbench.parse(text)


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """As ``mmbench.score``."""
    return mmbench.score(questions, answers)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """As ``mmbench.write_submission``."""
    (content,) = mmbench.write_submission(questions, answers, source).values()
    return {"mmbench_cn.xlsx": content}
