"""The time that the questions left of a run take, from their prompts; nothing is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.inputs import prepare
from models.llava import Llava
from models.token_plans.cost import Sizes, prefill
from models.token_plans.plan import TokenPlan
from records.evaluation.config import EvaluationConfig
from records.evaluation.parts import read_parts
from records.evaluation.sources import OpenBenchmark
from records.open_model import load_seconds, token_seconds
from records.processes import Processes, matmul_speed
from records.timings import describe_estimate, rounded_seconds

# Time over that of the products, measured on smol and one CPU thread, 2026-11-30.
OVERHEAD = 1.1
QUESTION_SECONDS = 3e-4  # of a question in the scores and their intervals
SHORTEST = 2  # tokens of an answer: a word, and the end


@dataclass(frozen=True)
class EvaluationEstimate:
    """The work of a run in words, and its estimated time, which depends on how long the answers become."""

    work: str
    stages: Mapping[str, float]
    """Seconds by stage if every answer is one word, named as in the manifest's ``timings``."""
    longest: float
    """Seconds of the run if every answer has its largest number of tokens."""
    is_judged: bool = False
    """Whether a judge grades answers, whose time is not counted."""

    @property
    def seconds(self) -> float:
        """Estimated seconds of the run if every answer is one word."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        longest = f"; up to {rounded_seconds(self.longest)} if every answer is as long as may be"
        short = f"{self.work}, {describe_estimate(self.stages)} (answers of one word{longest})"
        return f"{short}; the judge is not counted" if self.is_judged else short


def own_questions(n: int, batch_size: int, processes: Processes) -> list[int]:
    """The questions of a process among ``n``: batches rank, rank + world, rank + 2 world, ...

    Example:
        >>> own_questions(10, 2, Processes(rank=1, world=2))
        [2, 3, 6, 7]
    """
    return [i for i in range(n) if i // batch_size % processes.world == processes.rank]


def estimate_run(
    config: EvaluationConfig,
    llava: Llava,
    opened: Sequence[OpenBenchmark],
    plan: TokenPlan,
    *,
    device: str,
    processes: Processes,
    resumes: bool,
) -> EvaluationEstimate:
    """The prefill of every question that is left, as long as the first of its benchmark, the tower, and the answers.

    The seconds are those of the process with the most work.

    Args:
        config: The settings.
        llava: The model; its weights may have no values.
        opened: The benchmarks.
        plan: The token plan.
        device: Where this process runs.
        processes: Of the run, all equally fast.
        resumes: Whether the answers in the run directory count.
    """
    second = 2 / matmul_speed(device, llava.dtype)  # of a multiply-add
    tower = llava.n_image_tokens * sum(weights.numel() for weights in llava.vision_blocks.parameters())
    head = llava.config.text_config.vocab_size * llava.d_model
    short, longest = [0.0] * processes.world, [0.0] * processes.world
    n_left = 0
    for one in opened:
        prompt = prepare(llava, [one.questions[0].example(0)], preprocess=config.preprocess).layout[0]
        n_image = sum(span.stop - span.start for span in prompt.images)
        once = prefill(Sizes.of(llava), plan, n_image, prompt.prompt_stop - n_image) + head
        n, most = len(one.questions), config.new_tokens or one.benchmark.new_tokens
        answered = read_parts(config.folder, one.name, n) if resumes else {}
        n_left += n - len(answered)
        for rank in range(processes.world):
            own = own_questions(n, config.batch_size, Processes(rank, processes.world))
            left = [one.questions[index] for index in own if index not in answered]
            pictures = sum(question.picture is not None for question in left)
            prompts = second * (len(left) * once + pictures * tower)
            whole, rest = divmod(len(left), config.batch_size)
            batches = ((config.batch_size, whole), (rest, rest > 0))  # rows and number
            a_token = sum(count * token_seconds(llava, rows, second=second, device=device) for rows, count in batches)
            short[rank] += OVERHEAD * (prompts + min(SHORTEST, most) * a_token)
            longest[rank] += OVERHEAD * (prompts + most * a_token)
    n_all, names = sum(len(one.questions) for one in opened), ", ".join(one.name for one in opened)
    what = f"{n_all} questions of {names}" if n_left == n_all else f"{n_left} of {n_all} questions of {names} are left"
    shared = f", in {processes.world} processes" if processes.world > 1 else ""
    stages = {"load": load_seconds(llava), "answering": max(short), "scoring": QUESTION_SECONDS * n_all}
    apart = stages["load"] + stages["scoring"]
    return EvaluationEstimate(what + shared, stages, apart + max(longest), config.judge.is_given)
