"""Run ``benchmark-eval``: answer every question, write answer and upload files, score, and tabulate.

finished = run_benchmark_eval(EvaluationConfig(benchmarks=("pope=data/pope",)))
finished.results, finished.summary
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.inputs import prepare
from models.llava import Llava
from models.token_plans.cost import Sizes, prefill
from models.token_plans.plan import TokenPlan, parse_token_plan, recorded_token_plan
from records.evaluation.answering import answer_questions
from records.evaluation.config import JUDGE_LOG, RUN, EvaluationConfig
from records.evaluation.judging import grade_answers, open_judge
from records.evaluation.parts import PartFile, read_parts
from records.evaluation.report_table import notes_of, render_summary
from records.evaluation.sources import OpenBenchmark, Skipped, open_benchmarks
from records.evaluation.table import tabulate
from records.manifest import commit
from records.open_model import describe_model, open_model
from records.options import slug
from records.processes import Processes, join_processes, matmul_speed, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, writing
from records.tables import read_results
from records.timings import LowerBound
from tasks.benchmarks.layout.answers import answer_rows
from tasks.benchmarks.layout.rows import json_lines
from tasks.benchmarks.layout.scores import Scores


def run_benchmark_eval(
    config: EvaluationConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | LowerBound | None:
    """Answer the questions of benchmarks and score the answers, or resume a run that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the estimate.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If the settings, the files or the model cannot be used.

    Example:
        >>> import tempfile
        >>> from records.options import ModelOptions
        >>> from tasks.benchmarks.layout.make_pope import pope_files, scene_pictures, write_pope
        >>> folder = Path(tempfile.mkdtemp()) / "pope"
        >>> write_pope(folder, scene_pictures(2, size=28))
        >>> config = EvaluationConfig(ModelOptions("random:tiny"), (f"pope={folder}",), dry_run=True)
        >>> run_benchmark_eval(config).work.partition(" ")[2]
        'questions of pope'
    """
    on_progress = on_progress or ProgressBars()
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    opened = open_benchmarks(config)
    config.judge.check(any(one.benchmark.scored_by == "judge" for one in opened))
    if config.judge.is_given:
        open_judge(config.judge, None).close()  # checks address, key and limit
    device = own_device(config.model.device)
    processes = join_processes(device)
    llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    recorded = recorded_token_plan(config.model.name, llava.n_layers)
    plan = parse_token_plan(config.token_plan or recorded, llava.n_layers)
    estimate = _estimate(config, llava, opened, plan, device)
    if config.dry_run:
        return estimate
    on_note(str(estimate))
    data = {one.name: {"digest": one.digest, "n_questions": len(one.questions)} for one in opened}
    with run.open(processes, model=describe_model(llava), data=data | {"token_plan": plan.text}):
        for one in opened:
            _answer(config, llava, one, plan.text, processes, on_progress)
        processes.wait()
        if not processes.is_main:
            return None
        scores = {one.name: _write(config, one, on_progress) for one in opened}
        _write_skipped(config.folder, [bad for one in opened for bad in one.skipped])
        results = tabulate(
            scores, {one.name: one.notes for one in opened}, n={one.name: len(one.questions) for one in opened},
            model=config.model.name, token_plan=plan.text,
        )  # fmt: skip
        run.finish(results)
    return finished_benchmark_eval(config.folder)


def finished_benchmark_eval(folder: Path) -> FinishedRun:
    """The finished run in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    return FinishedRun(folder, results, render_summary(results), notes=notes_of(results))


def _estimate(
    config: EvaluationConfig, llava: Llava, opened: Sequence[OpenBenchmark], plan: TokenPlan, device: str
) -> LowerBound:
    """The prefill of every question, taken as long as the first one of its benchmark, and the vision tower."""
    tower = llava.n_image_tokens * sum(weights.numel() for weights in llava.vision_blocks.parameters())
    total = 0.0
    for one in opened:
        prompt = prepare(llava, [one.questions[0].example(0)], preprocess=config.preprocess).layout[0]
        pictures = sum(question.picture is not None for question in one.questions)
        n_image = sum(span.stop - span.start for span in prompt.images)
        once = prefill(Sizes.of(llava), plan, n_image, prompt.prompt_stop - n_image)
        total += len(one.questions) * once + pictures * tower
    n, names = sum(len(one.questions) for one in opened), ", ".join(one.name for one in opened)
    return LowerBound(f"{n} questions of {names}", 2 * total / matmul_speed(device, llava.dtype))


def _answer(
    config: EvaluationConfig,
    llava: Llava,
    one: OpenBenchmark,
    plan: str,
    processes: Processes,
    on_progress: OnProgress,
) -> None:
    """Answer the questions of this rank (batches rank, rank + world, ...) that no process has answered yet."""
    n = len(one.questions)
    part = PartFile(config.folder, one.name, processes.rank, n)
    done = read_parts(config.folder, one.name, n)
    mine = [i for i in range(n) if i // config.batch_size % processes.world == processes.rank]
    left = [i for i in mine if i not in done]
    if len(left) < len(mine):
        on_progress(one.name, len(mine) - len(left), len(mine))
    new_tokens = config.new_tokens or one.benchmark.new_tokens
    for answers in answer_questions(
        llava, one.questions, left, batch_size=config.batch_size, new_tokens=new_tokens, token_plan=plan,
        preprocess=config.preprocess,
    ):  # fmt: skip
        part.add(answers)
        on_progress(one.name, len(answers), len(mine))


def _write(config: EvaluationConfig, one: OpenBenchmark, on_progress: OnProgress) -> Scores:
    """Write the answer file and the upload files of a benchmark, have it graded; return its scores."""
    found = read_parts(config.folder, one.name, len(one.questions))
    texts = [found[index] for index in range(len(one.questions))]
    rows = answer_rows(one.questions, texts, slug(config.model.name))
    files = {f"answers/{one.name}.jsonl": json_lines(rows)}
    uploads = one.benchmark.module.write_submission(one.questions, texts, one.source)
    files |= {f"uploads/{one.name}/{name}": content for name, content in uploads.items()}
    _commit(config.folder, files)
    if not (config.judge.is_given and one.benchmark.scored_by == "judge"):
        return one.benchmark.module.score(one.questions, texts)
    ids = [row["answer_id"] for row in rows]
    with open_judge(config.judge, config.folder / JUDGE_LOG) as client:
        graded = grade_answers(client, config.judge.model, one.benchmark, one.questions, texts, ids, on_progress)
    _commit(config.folder, {f"reviews/{one.name}/{name}": content for name, content in graded.files.items()})
    return graded.scores


def _commit(folder: Path, files: Mapping[str, bytes]) -> None:
    with writing(folder):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            commit(path, content)


def _write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    if not skipped:
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Skipped._fields)
    writer.writerows(skipped)
    with writing(folder):
        commit(folder / "skipped.csv", text.getvalue().encode())
