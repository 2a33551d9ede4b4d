"""Run ``inference-cost``: every plan on every question, the times, table and figure.

finished = run_inference_cost(InferenceConfig(plans="all,leave@16"))
finished.results, finished.figures[0]
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

import figures
from interventions.token_plans.config import RUN, InferenceConfig
from interventions.token_plans.from_run import plan_from_run
from interventions.token_plans.quality import COLUMNS, score_batch
from interventions.token_plans.questions import SCENES, Questions, load_questions
from interventions.token_plans.report_table import render_summary
from interventions.token_plans.table import tabulate
from interventions.token_plans.timing import measure
from models.inputs import prepare
from models.llava import Llava
from models.token_plans.cost import Sizes, prefill
from models.token_plans.plan import TokenPlan, parse_token_plan, parse_token_plans, recorded_token_plan
from records.manifest import commit
from records.open_model import describe_model, load_seconds, open_model, token_seconds
from records.processes import Processes, join_processes, matmul_speed, own_device
from records.progress import OnProgress, PartProgress, ProgressBars
from records.run import FinishedRun, Run, read_timings, writing
from records.tables import read_results
from records.timings import describe_estimate
from tasks.checksums import is_whole
from tasks.errors import UserError

# Time over that of the products, measured on smol and one CPU thread, 2026-11-29: of answers, which end before the
# last new token, and of timed runs, which do not.
OVERHEAD, TIMED_OVERHEAD = 1.3, 2.3
FIGURE_SECONDS = 1.5


@dataclass(frozen=True)
class InferenceEstimate:
    """The size of a run: numbers of questions and plans, and its time by stage, as in the manifest's ``timings``."""

    n_questions: int
    n_plans: int
    stages: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run, within a factor of two on the machine of the calibration."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        return f"{self.n_questions} questions under {self.n_plans} token plans, {describe_estimate(self.stages)}"


def run_inference_cost(
    config: InferenceConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | InferenceEstimate | None:
    """Measure what token plans cost and keep, or resume a run that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the estimate, and with the evidence of plans that are chosen from a run.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If the settings, the data or the model cannot be used.

    Example:
        >>> from interventions.token_plans.config import QuestionOptions
        >>> from records.options import ModelOptions
        >>> config = InferenceConfig(ModelOptions("random:tiny"), QuestionOptions(limit=7), "leave@2", dry_run=True)
        >>> run_inference_cost(config).n_plans
        2
    """
    on_progress = on_progress or ProgressBars()
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    questions = load_questions(config.questions, seed=config.seed)
    device = own_device(config.model.device)
    processes = join_processes(device)
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    plans, notes = choose_plans(config.plans, llava.n_layers, recorded_token_plan(config.model.name, llava.n_layers))
    if config.questions.spec == SCENES:
        questions = load_questions(config.questions, seed=config.seed, size=llava.image_size)
    _check_pictured(questions)
    estimate = _estimate(config, llava, questions, plans, device)
    if config.dry_run:
        return estimate
    for note in (str(estimate), *notes):
        on_note(note)
    data = {"name": questions.name, "digest": questions.digest, "n_questions": len(questions.examples)}
    about = {"model": describe_model(llava), "data": data | {"plans": [plan.text for plan in plans]}}
    with run.open(processes, on_note=on_note, **about):
        with run.timings.stage("answering"):
            _run_batches(config, llava, questions, plans, processes, on_progress, on_note)
        processes.wait()
        if not processes.is_main:
            return None
        if not run.is_finished:
            with run.timings.stage("timing"):
                times = _times(config, llava, questions, plans, on_progress)
            batches = enumerate(_batches(config, questions))
            found = [_read(config.folder, number, len(batch) * len(plans)) for number, batch in batches]
            answers = pd.concat(found, ignore_index=True)
            with writing(config.folder):
                commit(config.folder / "answers.parquet", answers.to_parquet(index=False))
            run.finish(
                tabulate(answers, times, plans, Sizes.of(llava), model=config.model.name, itemsize=llava.dtype.itemsize)
            )
            with run.drawing(), writing(config.folder):
                figures.drawn_figures(config.folder, again=True)
    return finished_inference_cost(config.folder)


def finished_inference_cost(folder: Path) -> FinishedRun:
    """The finished run in ``folder``, with its figures drawn; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    with writing(folder):
        drawn = figures.drawn_figures(folder)
    return FinishedRun(folder, results, render_summary(results), drawn, timings=read_timings(folder, RUN))


def choose_plans(
    text: str | None, n_layers: int, recorded: str = "all"
) -> tuple[tuple[TokenPlan, ...], tuple[str, ...]]:
    """The plans of the settings, ``all`` first, and the evidence of those chosen from runs.

    ``recorded`` is the plan that the model was trained under; it is added if no plans are given.

    Example:
        >>> [plan.text for plan in choose_plans("leave@2", 4)[0]]
        ['all', 'leave@2']
    """
    if text is None:
        half, quarter = n_layers // 2, max(1, n_layers // 4)
        text = ",".join(
            (
                f"leave@{half}", f"freeze:{half}-{n_layers - 1}", f"enter@{quarter}", f"keep:0.5@{quarter}:attention",
                f"keep:0.5@{quarter}:random@0", f"keep:0.5@{quarter}:uniform", f"{quarter}-{half}:hide",
                f"{quarter}-{half}:freeze",
            )
        )  # fmt: skip
        if recorded not in ("all", *text.split(",")):
            text = f"{recorded},{text}"
    pieces, notes = [], []
    for piece in text.split(","):
        if piece.strip().startswith("auto:"):
            chosen = plan_from_run(Path(piece.strip().removeprefix("auto:")), n_layers)
            notes.append(chosen.evidence)
            piece = chosen.text
        pieces.append(piece)
    found = parse_token_plans(",".join(pieces), n_layers)
    rest = tuple(plan for plan in found if not plan.is_all)
    return (parse_token_plan("all", n_layers), *rest), tuple(notes)


def _check_pictured(questions: Questions) -> None:
    for index in range(len(questions.examples)):
        if not questions.examples[index].pictures:
            name = questions.examples[index].id
            raise UserError(f"question must have a picture, got none in {name!r}. A token plan changes image tokens.")


def _estimate(
    config: InferenceConfig, llava: Llava, questions: Questions, plans: Sequence[TokenPlan], device: str
) -> InferenceEstimate:
    """Two prefills of every question under every plan, its decoding steps, the vision tower, and the timed rounds."""
    n = len(questions.examples)
    sizes, second = Sizes.of(llava), 2 / matmul_speed(device, llava.dtype)  # of a multiply-add
    prompt = prepare(llava, [questions.examples[0]], preprocess=config.questions.preprocess).layout[0]
    n_image = sum(span.stop - span.start for span in prompt.images)
    n_text = prompt.prompt_stop - n_image
    head = llava.config.text_config.vocab_size * llava.d_model
    tower = len(prompt.images) * llava.n_image_tokens * sum(p.numel() for p in llava.vision_blocks.parameters())
    once = {plan: second * (prefill(sizes, plan, n_image, n_text) + head + tower) for plan in plans}
    rows = min(n, config.batch_size)
    step = token_seconds(llava, rows, second=second, device=device)
    n_batches = -(-n // config.batch_size)
    answering = sum(2 * n * each + n_batches * config.new_tokens * step for each in once.values())
    timing = (config.rounds + 1) * sum(rows * each + config.new_tokens * step for each in once.values())
    stages = {
        "load": load_seconds(llava),
        "answering": OVERHEAD * answering,
        "timing": TIMED_OVERHEAD * timing if config.rounds else 0.0,
        "figures": FIGURE_SECONDS,
    }
    return InferenceEstimate(n, len(plans), stages)


def _batches(config: InferenceConfig, questions: Questions) -> list[range]:
    n = len(questions.examples)
    return [range(at, min(at + config.batch_size, n)) for at in range(0, n, config.batch_size)]


def _run_batches(
    config: InferenceConfig,
    llava: Llava,
    questions: Questions,
    plans: Sequence[TokenPlan],
    processes: Processes,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> None:
    """Score and write every batch of this rank (rank, rank + world, ...) that has no complete file yet."""
    batches = _batches(config, questions)
    owned = range(processes.rank, len(batches), processes.world)
    total = len(plans) * sum(len(batches[number]) for number in owned)
    for number in owned:
        batch = batches[number]
        part = PartProgress(on_progress, "answering under each plan", size=len(batch) * len(plans), total=total)
        if _read(config.folder, number, len(batch) * len(plans)).empty:
            if (path := _path(config.folder, number)).is_file():
                on_note(f"{path.relative_to(config.folder)} is damaged: its questions are answered again")
            examples = [questions.examples[index] for index in batch]
            found = score_batch(
                llava, plans, examples, new_tokens=config.new_tokens, preprocess=config.questions.preprocess,
                on_plan=partial(part.add, len(batch)),
            )  # fmt: skip
            with writing(config.folder):
                path.parent.mkdir(exist_ok=True)
                commit(path, found.to_parquet(index=False))
        part.finish()


def _times(
    config: InferenceConfig, llava: Llava, questions: Questions, plans: Sequence[TokenPlan], on_progress: OnProgress
) -> pd.DataFrame:
    """The times of all plans on the first batch; none if ``rounds`` is 0."""
    if not config.rounds:
        return pd.DataFrame()
    first = [questions.examples[index] for index in _batches(config, questions)[0]]
    inputs = prepare(llava, first, preprocess=config.questions.preprocess)
    times = measure(
        llava, plans, inputs, rounds=config.rounds, new_tokens=config.new_tokens,
        on_round=lambda: on_progress("timing", 1, config.rounds + 1),
    )  # fmt: skip
    with writing(config.folder):
        commit(config.folder / "times.parquet", times.to_parquet(index=False))
    return times


def _path(folder: Path, number: int) -> Path:
    return folder / "batches" / f"{number:05d}.parquet"


def _read(folder: Path, number: int, n_rows: int) -> pd.DataFrame:
    """The rows of a batch; empty if it has no file as it was written."""
    if not is_whole(_path(folder, number)):
        return pd.DataFrame()
    try:
        found = pd.read_parquet(io.BytesIO(_path(folder, number).read_bytes()))
    except (OSError, ValueError):
        return pd.DataFrame()
    return found if tuple(found.columns) == COLUMNS and len(found) == n_rows else pd.DataFrame()
