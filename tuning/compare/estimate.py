"""The time that the remaining runs of a comparison take, computed from plans and data; no step is run."""

from collections.abc import Mapping, Sequence

import torch

from models.llava import Llava
from models.token_plans.cost import Sizes, prefill
from models.token_plans.plan import parse_token_plan
from records.evaluation.sources import OpenBenchmark
from records.open_model import load_seconds
from records.processes import matmul_speed
from tuning.compare.config import CompareConfig
from tuning.compare.data import OpenData, SurveyedData, survey_data
from tuning.compare.table import FULL, START
from tuning.config import is_bf16
from tuning.cost.estimate import OVERHEAD, SURVEY_SECONDS, WEIGHT_SECONDS
from tuning.cost.flops import Shape, closed_form
from tuning.data.samples import Survey
from tuning.data.sources import spread_over
from tuning.plan.plan import LayerPlan
from tuning.plan.resolve import Resolved, resolve
from tuning.scoring.answers import TEXT

FIGURE_SECONDS = 4.0  # measured on one CPU thread, 2026-11-29
TIMED_STEPS = 5  # of a plan in a round: two to warm up, three timed
_READ = 64  # samples of each source; their mean length is within a few per cent of the overall mean


def estimate_stages(
    config: CompareConfig,
    llava: Llava,
    data: OpenData,
    resolved: Mapping[str, Resolved],
    *,
    remaining: Sequence[str],
    untimed: Sequence[str],
    device: str,
) -> dict[str, float]:
    """Seconds by stage, named as in the manifest's ``timings``; within a factor of two on the calibration's machine.

    Some samples of each source are read. Answers of benchmarks count as short: a run reads the prompt once.

    Args:
        config: The options.
        llava: The model; its weights may have no values.
        data: The sources.
        resolved: The plans that train, by name.
        remaining: The plan of each run that remains, once for each seed.
        untimed: The plans whose steps are timed first.
        device: Where the comparison runs.
    """
    few = OpenData(spread_over(data.train, _READ), {name: spread_over(own, _READ) for name, own in data.eval.items()})
    surveyed = survey_data(few, llava, skip_bad=config.data.skip_bad, preprocess=config.data.preprocess)
    second = OVERHEAD / matmul_speed(device, torch.bfloat16 if is_bf16(config.model) else torch.float32)
    o = config.optimisation
    usable = len(surveyed.train_survey.kept) / len(few.train) * len(data.train)
    steps = o.steps or max(1, round(o.epochs * -(-usable // (o.batch_size * o.grad_accum))))
    step = {
        name: closed_form(
            llava, resolved[name], _shape(surveyed.train_survey, o.batch_size),
            checkpointing=config.run.gradient_checkpointing,
        ).total * second
        for name in {*remaining, *untimed} & resolved.keys()
    }  # fmt: skip
    scoring = _scoring_flops(config, llava, surveyed, data) * second
    weights = sum(parameter.numel() for parameter in llava.model.parameters())
    load = load_seconds(llava)
    runs = 0.0
    for plan in remaining:
        runs += load + scoring
        if plan in step:
            runs += steps * o.grad_accum * step[plan] + (WEIGHT_SECONDS * weights if config.keep_weights else 0.0)
    sources = [data.train, *data.eval.values()]
    return {
        "load and survey": load + (SURVEY_SECONDS * sum(map(len, sources)) if remaining or untimed else 0.0),
        "timing": config.timing_rounds * TIMED_STEPS * sum(step[name] for name in untimed),
        "training and scoring plans": runs,
        "figures": FIGURE_SECONDS,
    }


def plans_to_time(config: CompareConfig, plans: Sequence[LayerPlan], known: Mapping[str, object]) -> list[str]:
    """The plans whose steps take turns with those of ``full``, itself included; none if all are timed."""
    missing = [plan.name for plan in plans if plan.name not in (START, *known)]
    if config.timing_rounds < 1 or not missing:
        return []
    return [plan.name for plan in plans if plan.name in (FULL, *missing)]


def _shape(survey: Survey, batch_size: int) -> Shape:
    """A batch of mean samples."""
    kept = survey.kept
    pictures, labelled = (batch_size * float(counts[kept].mean()) for counts in (survey.pictured, survey.labelled))
    return Shape(batch_size, int(survey.lengths[kept].mean()), round(pictures), round(labelled))


def _scoring_flops(config: CompareConfig, llava: Llava, surveyed: SurveyedData, data: OpenData) -> float:
    """The operations of scoring one model: every condition, ordinary text, and the prompts of the benchmarks."""
    rows = config.optimisation.batch_size
    some = resolve(LayerPlan("none", ("projector",)), llava)  # a forward pass does not depend on what trains
    total = 0.0
    for name, survey in surveyed.eval_surveys.items():
        total += closed_form(llava, some, _shape(survey, rows)).forward / rows * len(data.eval[name])
    ids = llava.tokenizer(TEXT.read_text(encoding="utf-8")).input_ids
    n_words = min(len(ids), int(llava.config.text_config.max_position_embeddings))
    total += closed_form(llava, some, Shape(1, n_words, 0, n_words)).forward
    return total + sum(_prompt_flops(llava, one) for one in data.benchmarks)


def _prompt_flops(llava: Llava, one: OpenBenchmark) -> float:
    """The operations of reading all questions of a benchmark, taken as long as the first one."""
    first = one.questions[0]
    pictures = sum(question.picture is not None for question in one.questions)
    tower = llava.n_image_tokens * sum(weights.numel() for weights in llava.vision_blocks.parameters())
    n_image = llava.n_image_tokens if first.picture is not None else 0
    n_text = len(llava.tokenizer(first.text).input_ids)
    once = prefill(Sizes.of(llava), parse_token_plan("all", llava.n_layers), n_image, n_text)
    return 2.0 * (len(one.questions) * once + pictures * tower)
