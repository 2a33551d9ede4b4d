"""VQAv2: short answers to open questions about COCO pictures. A server scores test-dev; val is scored here.

Source: Goyal et al. 2017, "Making the V in VQA Matter", arXiv 1612.00837, and its public evaluation script; LLaVA's
    question file, answer file and ``convert_vqav2_for_submission``: Liu et al. 2024, arXiv 2310.03744.
"""

import json
from collections.abc import Sequence

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_json
from tasks.benchmarks.layout.scores import Scores, answered, mean_scores, unlabelled
from tasks.errors import UserError
from tasks.prompts import SHORT
from tasks.rules.vqav2 import normalise

FILES = FileNames(
    questions=("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_*.jsonl"),
    images=("test2015", "val2014"),
    labels=("v2_mscoco_val2014_annotations.json",),
)
_WHOLE = "llava_vqav2_mscoco_test2015.jsonl"  # every question of test2015, which an upload must list


def prompt(row: Row) -> str:
    """The words of the model's prompt: ``text`` of LLaVA's file, or the question with the short-answer prompt."""
    return row.text("text") if "text" in row.values else f"{row.text('question')}\n{SHORT}"


def read(source: Source) -> list[Question]:
    """The questions, with people's answers as labels if they are known.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": "a.jpg", "text": "What?"}))
        >>> read(Source((folder / "q.jsonl",), folder))[0].text
        'What?'
    """
    labels = {}
    if source.labels:
        found = read_json(source.labels)
        if not isinstance(found, dict) or "annotations" not in found:
            raise UserError(f"labels must have the key 'annotations', got none in {str(source.labels)!r}.")
        labels = {str(one["question_id"]): _texts(one["answers"]) for one in found["annotations"]}
    questions = []
    for row in source.rows():
        name = row.id("question_id")
        given = row.values.get("answers")
        label = _texts(given) if given else labels.get(str(name))
        questions.append(
            Question(name, prompt(row), source.picture(row), row.text("category", ""), label, row=row.plain())
        )
    return questions


def parse(text: str) -> str:
    """The answer in the normal form of EvalAI's processor, as LLaVA uploads it."""
    return normalise(text)


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """The VQA script's accuracy of the uploaded answers; LLaVA uploads them in EvalAI's normal form.

    Example:
        >>> people = ["red"] * 2 + ["blue"] * 8
        >>> score([Question(1, "Which colour?", label=people)], ["Red."]).main
        60.0
    """
    if empty := unlabelled(questions, "a server scores the test splits: upload the file, or give val's annotations"):
        return empty
    texts = answered(questions, answers)
    official = [script_accuracy(parse(text), q.label) for q, text in zip(questions, texts, strict=True)]
    lmms = [script_accuracy(lmms_form(text), q.label) for q, text in zip(questions, texts, strict=True)]
    return mean_scores(questions, official, others={"lmms-eval": lmms})


def script_accuracy(answer: str, people: Sequence[str]) -> float:
    """min(matches / 3, 1) averaged over leaving out each person; texts are normalised only where people differ.

    Example:
        >>> script_accuracy("the dog", ["dog"] * 10), script_accuracy("the dog", ["dog"] * 9 + ["cat"])
        (0.0, 1.0)
    """
    own, others = _plain(answer), [_plain(one) for one in people]
    if len(set(others)) > 1:
        own, *others = (normalise(one, evalai=False) for one in (own, *others))
    n = sum(one == own for one in others)
    return sum(min(1.0, (n - (one == own)) / 3) for one in others) / len(others)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The file for the server: every question of test2015, with an empty text for those that were not asked."""
    given = {str(q.id): parse(text) for q, text in zip(questions, answers, strict=True) if text is not None}
    whole = source.questions[0].with_name(_WHOLE)
    ids = [row.id("question_id") for row in Source((whole,), source.images).rows()] if whole.is_file() else []
    listed = ids or [question.id for question in questions]
    rows = [{"question_id": name, "answer": given.get(str(name), "")} for name in listed]
    return {"vqav2.json": json.dumps(rows).encode()}


def lmms_form(text: str) -> str:
    """The answer as lmms-eval's task compares it: the processor without its first step."""
    return normalise(text, evalai=False)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _texts(answers: Sequence[object]) -> list[str]:
    return [str(one["answer"]) if isinstance(one, dict) else str(one) for one in answers]
