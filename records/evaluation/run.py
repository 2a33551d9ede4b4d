"""Run ``benchmark-eval``: answer every question, write answer and upload files, score, and tabulate.

finished = run_benchmark_eval(EvaluationConfig(benchmarks=("pope=data/pope",)))
finished.results, finished.summary
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.llava import Llava
from models.token_plans.plan import parse_token_plan, recorded_token_plan
from records.evaluation.answering import answer_questions
from records.evaluation.config import JUDGE_LOG, RUN, EvaluationConfig
from records.evaluation.estimate import EvaluationEstimate, estimate_run, own_questions
from records.evaluation.judging import REVIEWS, grade_answers, name_of_judge, open_judge
from records.evaluation.parts import PartFile, read_parts
from records.evaluation.report_table import notes_of, render_summary
from records.evaluation.sources import OpenBenchmark, Skipped, open_benchmarks
from records.evaluation.table import tabulate
from records.manifest import commit, read_manifest
from records.open_model import describe_model, open_model
from records.options import slug
from records.processes import Processes, join_processes, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, check_folder, read_timings, writing
from records.tables import read_results
from tasks.benchmarks.layout.answers import answer_rows
from tasks.benchmarks.layout.rows import json_lines
from tasks.benchmarks.layout.scores import Scores
from tasks.benchmarks.published import PUBLISHED_QUESTIONS, unlike_published


def run_benchmark_eval(
    config: EvaluationConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | EvaluationEstimate | None:
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
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    recorded = recorded_token_plan(config.model.name, llava.n_layers)
    plan = parse_token_plan(config.token_plan or recorded, llava.n_layers)
    data: dict[str, Any] = {one.name: {"digest": one.digest, "n_questions": len(one.questions)} for one in opened}
    data["token_plan"] = plan.text
    resumes = processes.is_main and check_folder(config.folder, {"data": data}, RUN, overwrite=config.overwrite)
    resumes = resumes and not config.overwrite
    estimate = estimate_run(config, llava, opened, plan, device=device, processes=processes, resumes=resumes)
    if config.dry_run:
        return estimate
    on_note(str(estimate))
    labels = {one.name: one.labels_digest for one in opened}
    if resumes:
        for name in _changed_labels(config.folder, labels):
            on_note(f"{name}: its labels changed since the run was scored; the answers are scored anew")
    with run.open(processes, on_note=on_note, model=describe_model(llava), data=data, labels=labels):
        with run.timings.stage("answering"):
            for one in opened:
                _answer(config, llava, one, plan.text, processes, on_progress, on_note)
        processes.wait()
        if not processes.is_main:
            return None
        with run.timings.stage("scoring"):
            scores = {one.name: _write(config, one, on_progress) for one in opened}
        _write_skipped(config.folder, [bad for one in opened for bad in one.skipped])
        results = tabulate(
            scores, {one.name: one.notes for one in opened}, n={one.name: len(one.questions) for one in opened},
            model=config.model.name, token_plan=plan.text, unlike={one.name: _unlike(config, one) for one in opened},
        )  # fmt: skip
        run.finish(results)
    return finished_benchmark_eval(config.folder)


def finished_benchmark_eval(folder: Path) -> FinishedRun:
    """The finished run in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    timings = read_timings(folder, RUN)
    return FinishedRun(folder, results, render_summary(results), notes=notes_of(results), timings=timings)


def _unlike(config: EvaluationConfig, one: OpenBenchmark) -> str:
    """Why the published scores of a benchmark are not comparable with this run's; empty if nothing shows it."""
    if one.name not in PUBLISHED_QUESTIONS:
        return ""
    found = [unlike_published(one.name, one.questions)]
    if config.new_tokens not in (None, one.benchmark.new_tokens):
        found.append(f"answers have at most {config.new_tokens} tokens")
    if config.preprocess != "pad":
        found.append("pictures are not padded to a square")
    if config.judge.is_given and one.benchmark.scored_by == "judge":
        found.append(f"graded by {config.judge.model}")
    return "; ".join(reason for reason in found if reason)


def _changed_labels(folder: Path, labels: Mapping[str, str]) -> list[str]:
    """The benchmarks whose labels are not those with which the finished run in ``folder`` was scored."""
    manifest = read_manifest(folder, RUN) or {}
    before = manifest.get("labels")
    if not manifest.get("finished") or not isinstance(before, dict):
        return []
    return [name for name in labels if before.get(name) != labels[name]]


def _answer(
    config: EvaluationConfig,
    llava: Llava,
    one: OpenBenchmark,
    plan: str,
    processes: Processes,
    on_progress: OnProgress,
    on_note: Callable[[str], None] = lambda line: None,
) -> None:
    """Answer the questions of this rank (batches rank, rank + world, ...) that no process has answered yet."""
    n = len(one.questions)
    done = read_parts(config.folder, one.name, n, on_note=on_note)
    part = PartFile(config.folder, one.name, processes.rank, n)
    mine = own_questions(n, config.batch_size, processes)
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
    reviews = f"{REVIEWS}/{name_of_judge(config.judge.model)}/{one.name}"
    _commit(config.folder, {f"{reviews}/{name}": content for name, content in graded.files.items()})
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
