"""The time that the questions left of a run take at least, from their prompts; nothing is asked."""

from collections.abc import Sequence

from models.inputs import prepare
from models.llava import Llava
from models.token_plans.cost import Sizes, prefill
from models.token_plans.plan import TokenPlan
from records.evaluation.config import EvaluationConfig
from records.evaluation.parts import read_parts
from records.evaluation.sources import OpenBenchmark
from records.processes import Processes, matmul_speed
from records.timings import LowerBound


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
) -> LowerBound:
    """The prefill of every question that is left, as long as the first one of its benchmark, and the vision tower.

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
    tower = llava.n_image_tokens * sum(weights.numel() for weights in llava.vision_blocks.parameters())
    work = [0.0] * processes.world
    n_left = 0
    for one in opened:
        prompt = prepare(llava, [one.questions[0].example(0)], preprocess=config.preprocess).layout[0]
        n_image = sum(span.stop - span.start for span in prompt.images)
        once = prefill(Sizes.of(llava), plan, n_image, prompt.prompt_stop - n_image)
        n = len(one.questions)
        answered = read_parts(config.folder, one.name, n) if resumes else {}
        n_left += n - len(answered)
        for rank in range(processes.world):
            own = own_questions(n, config.batch_size, Processes(rank, processes.world))
            left = [one.questions[index] for index in own if index not in answered]
            pictures = sum(question.picture is not None for question in left)
            work[rank] += len(left) * once + pictures * tower
    n_all, names = sum(len(one.questions) for one in opened), ", ".join(one.name for one in opened)
    what = f"{n_all} questions of {names}" if n_left == n_all else f"{n_left} of {n_all} questions of {names} are left"
    shared = f", in {processes.world} processes" if processes.world > 1 else ""
    return LowerBound(what + shared, 2 * max(work) / matmul_speed(device, llava.dtype))
