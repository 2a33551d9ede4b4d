"""The answers of a model to questions of a benchmark: greedy, in batches, the same as one by one."""

from collections.abc import Iterator, Sequence

from models.inputs import prepare
from models.llava import Llava
from models.pixels import Preprocess
from tasks.benchmarks.layout.question import Question
from tasks.example import Example


def answer_batch(
    llava: Llava,
    questions: Sequence[Question],
    *,
    new_tokens: int,
    token_plan: str = "all",
    preprocess: Preprocess = "pad",
) -> list[str]:
    """The model's text for each question, without spaces at its ends, as LLaVA's scripts record it.

    Prompts are in LLaVA's format ``vicuna_v1``; rows are padded on the left. A token plan concerns only questions with
    a picture.
    """
    examples = [question.example(row) for row, question in enumerate(questions)]
    return answer_examples(llava, examples, new_tokens=new_tokens, token_plan=token_plan, preprocess=preprocess)


def answer_examples(
    llava: Llava,
    examples: Sequence[Example],
    *,
    new_tokens: int,
    token_plan: str = "all",
    preprocess: Preprocess = "pad",
) -> list[str]:
    """As ``answer_batch``, for examples."""
    texts = [""] * len(examples)
    for pictured in (True, False):
        rows = [row for row, example in enumerate(examples) if bool(example.pictures) == pictured]
        if rows:
            inputs = prepare(llava, [examples[row] for row in rows], preprocess=preprocess)
            tokens = llava.generate_tokens(inputs, new_tokens, token_plan=token_plan if pictured else "all")
            for row, text in zip(rows, llava.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                texts[row] = text.strip()
    return texts


def answer_questions(
    llava: Llava,
    questions: Sequence[Question],
    indices: Sequence[int],
    *,
    batch_size: int,
    new_tokens: int,
    token_plan: str = "all",
    preprocess: Preprocess = "pad",
) -> Iterator[dict[int, str]]:
    """The answers to the questions at ``indices``, a batch at a time, by index."""
    for start in range(0, len(indices), batch_size):
        own = indices[start : start + batch_size]
        texts = answer_batch(
            llava, [questions[index] for index in own], new_tokens=new_tokens, token_plan=token_plan,
            preprocess=preprocess,
        )  # fmt: skip
        yield dict(zip(own, texts, strict=True))
