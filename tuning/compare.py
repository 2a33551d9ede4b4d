"""Several plans from the same start, on the same data in the same order: ``run_compare`` writes ``compare.csv``.

Each plan and seed is a run of its own in the comparison's folder, finished once its answers are written; a comparison
that was killed goes on with the next. Retention is a plan's score over full tuning's, resampled together.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from models.llava import Llava, load
from records.errors import BadInput, refusing
from records.html import run_html
from records.manifest import RunKind, difference, new_manifest, read_manifest, write_atomically, write_manifest
from records.options import plain
from records.processes import own_device
from records.progress import OnProgress, shown_progress
from tasks.questions import CHANCE
from tasks.scenes import Split
from tuning.apply import apply_plan
from tuning.checkpoint import last_checkpoint
from tuning.config import Optimisation, Running, check_numbers
from tuning.data import Samples, Survey, Writing, survey
from tuning.evaluate import collator, model_inputs, score_answers, text_log_likelihood
from tuning.layers import format_layers, parse_layers
from tuning.output import write_json
from tuning.plan import LayerPlan, Lora, Resolved, resolve
from tuning.report_table import render_table
from tuning.retention import summarise
from tuning.rivals import default_plans
from tuning.sources import SceneMix, SceneQuestions, Source
from tuning.timing import measure_plans
from tuning.trainer import train

KIND = RunKind("layerwise-finetune compare")
START, FULL = "start", "full"
CONDITIONS = ("seen", "unseen", "text")
_ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class CompareConfig:
    """One comparison.

    Args:
        model: Where every plan starts.
        reference: A tuned model that is scored beside them, or None.
        plans: Names of the default plans to run; all of them where it is empty.
        band: The middle band as a layer spec; 6-16 of 32, scaled, where it is None.
        train: Components that train beside the layers of every partial plan.
        lora_rank: Of the LoRA plans; alpha is twice it.
        seeds: Of the order of data; every plan is run with each.
        scenes: Scenes trained on.
        score_scenes: Scenes scored, for each condition.
        optimisation: Its seed is replaced by each of ``seeds``.
        lora_lr: Peak learning rate of factors.
        running: As for a single run.
        timing_rounds: Rounds in which every plan's step is timed in one process; 0 for none.
        out: The folder.
    """

    model: str = "smol-stage1"
    reference: str | None = None
    plans: tuple[str, ...] = ()
    band: str | None = None
    train: tuple[str, ...] = ("projector",)
    lora_rank: int = 32
    seeds: tuple[int, ...] = (0,)
    scenes: int = 4000
    score_scenes: int = 100
    optimisation: Optimisation = field(default_factory=Optimisation)
    lora_lr: float = 2e-4
    running: Running = field(default_factory=Running)
    timing_rounds: int = 3
    out: Path = Path("runs/compare")

    @property
    def settings(self) -> dict[str, Any]:
        """What must agree for the comparison to be resumed; more plans and seeds may be added."""
        added = ("out", "running", "optimisation", "plans", "seeds", "timing_rounds", "reference")
        described = {name: plain(value) for name, value in asdict(self).items() if name not in added}
        return {**described, **asdict(self.optimisation), "bf16": self.running.bf16}


class _Data(NamedTuple):
    """What every plan is trained and scored on, surveyed once: a tokenizer decides it, and all plans have the same."""

    mix: Source
    found: Survey
    questions: dict[str, tuple[Source, Survey]]

    @staticmethod
    def surveyed(config: "CompareConfig", llava: Llava) -> "_Data":
        mix = SceneMix(config.scenes)
        questions: dict[str, tuple[Source, Survey]] = {}
        for condition in CONDITIONS:
            split: Split = "unseen" if condition == "unseen" else "test"
            source = SceneQuestions(config.score_scenes, split=split, text=condition == "text")
            questions[condition] = source, survey(llava, source, Writing())
        return _Data(mix, survey(llava, mix, Writing()), questions)


class Compared(NamedTuple):
    """A finished comparison."""

    folder: Path
    table: pd.DataFrame
    figures: tuple[Path, ...]

    def _repr_html_(self) -> str:
        """For notebooks: the main numbers, cost against retention where it was drawn, and where the files are."""
        figure = self.figures[-1] if self.figures else None
        return run_html(render_table(self.table), figure=figure, folder=self.folder)


def run_compare(
    config: CompareConfig,
    *,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress | None = None,
) -> Compared:
    """Trains and scores every plan with every seed, and writes the table and the figures.

    Args:
        config: The comparison.
        on_note: Called with each line for the reader.
        on_progress: Told how it goes, as (stage, newly done, total); None shows it where this is a notebook.

    Raises:
        BadInput: If a plan is unknown, ``full`` is missing, or the folder holds another comparison.
    """
    on_progress = on_progress or shown_progress()
    with refusing(ValueError):
        device = own_device(config.running.device)
    config = replace(config, running=replace(config.running, device=device))
    _open(config)
    with refusing(ValueError, OSError):
        llava = load(config.model, device=device, dtype=torch.float32)
    plans = chosen_plans(config, llava)
    resolved = {plan.name: resolve(plan, llava) for plan in plans if plan.name != START}
    costs = _timed(config, llava, resolved, on_note)
    on_note(f"{len(plans)} plans, {len(config.seeds)} seeds, in {config.out}")
    data = _Data.surveyed(config, llava)
    for seed in config.seeds:
        for plan in plans:
            _run_one(config, plan, seed, data, on_note)
            on_progress("training and scoring plans", 1, len(plans) * len(config.seeds))
    if config.reference is not None:
        _score_reference(config, config.reference, data, on_note)
    table = compare_table(config.out, plans, costs, n_layers=llava.n_layers, reference=config.reference)
    write_atomically(config.out / "compare.csv", table.to_csv(index=False).encode())
    return Compared(config.out, table, _draw(config.out, table))


def chosen_plans(config: CompareConfig, llava: Llava) -> list[LayerPlan]:
    """The plans that a comparison runs, in their order.

    Raises:
        BadInput: If a name is unknown, or ``full``, which everything is compared with, is left out.
    """
    band = None if config.band is None else parse_layers(config.band, llava.n_layers)
    lora = Lora(config.lora_rank, 2 * config.lora_rank)
    plans = [
        plan if plan.name in (START, FULL, "projector only") else replace(plan, train=config.train)
        for plan in default_plans(llava.n_layers, band=band, lora=lora)
    ]
    if not config.plans:
        return plans
    known = {plan.name: plan for plan in plans}
    for name in config.plans:
        if name not in known:
            raise BadInput(f"plan must be one of {', '.join(known)}, got {name!r}. Pick from them.")
    if FULL not in config.plans:
        raise BadInput(f"plans must hold 'full', which the others are compared with, got {', '.join(config.plans)}.")
    return [plan for plan in plans if plan.name in config.plans]


def _open(config: CompareConfig) -> None:
    counts = {"scenes": config.scenes, "score-scenes": config.score_scenes, "lora-rank": config.lora_rank}
    check_numbers(config.optimisation, config.running, counts=counts)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise BadInput(f"seeds must be different numbers, at least one, got {list(config.seeds)}.")
    folder = config.out
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"out must be a folder, got the file {str(folder)!r}. Choose another name.")
    manifest = new_manifest(KIND, config.settings)
    if folder.is_dir() and any(folder.iterdir()):
        with refusing(ValueError):
            old = read_manifest(folder, KIND)
        if old is None:
            raise BadInput(f"out must be empty or a comparison, got {str(folder)!r}. Choose another folder.")
        differing = difference(old, manifest)
        if differing is not None:
            raise BadInput(
                f"out must hold the same comparison or none, got one in {str(folder)!r} that differs: {differing}. "
                "Choose another folder with --out."
            )
    with refusing(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, manifest)


def _slug(plan: str, seed: int) -> str:
    return f"{plan.replace(' ', '-').lower()}-seed{seed}"


def _run_one(config: CompareConfig, plan: LayerPlan, seed: int, data: _Data, on_note: Callable[[str], None]) -> None:
    """Trains and scores one plan with one seed, unless its answers are there."""
    folder = config.out / "runs" / _slug(plan.name, 0 if plan.name == START else seed)
    if (folder / _ANSWERS).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with refusing(ValueError, OSError):
        llava = load(config.model, device=config.running.device, dtype=torch.float32, validate=False)  # it was before
    facts: dict[str, Any] = {"plan": plan.name, "seed": seed, "steps": 0}
    if plan.name != START:
        resolved = resolve(plan, llava)
        apply_plan(llava, resolved, seed=seed, low_precision=config.running.bf16)
        rate = config.lora_lr if plan.method == "lora" else config.optimisation.lr
        samples = Samples(llava, data.mix, data.found, Writing())
        on_note(f"{plan.name}, seed {seed}: {resolved.trained:,} of {resolved.total:,} train")
        trained = train(
            llava,
            resolved,
            samples,
            optimisation=replace(config.optimisation, lr=rate, seed=seed),
            running=config.running,
            folder=folder,
            facts={"settings": config.settings, "plan": plan.to_dict(), "seed": seed, "model": llava.weight_hash},
            resume=last_checkpoint(folder),
            on_note=lambda line: on_note(f"{plan.name}, seed {seed}: {line}"),
        )
        facts |= {"steps": trained.steps, "losses": {str(step): loss for step, loss in trained.losses.items()}}
    answers, words = _score(config, llava, data)
    write_json(folder / "run.json", {**facts, "text_log_likelihood": words})
    write_atomically(folder / _ANSWERS, answers.to_parquet(index=False))
    for leftover in folder.glob("checkpoint-*"):  # the answers are what a comparison keeps
        shutil.rmtree(leftover)
    on_note(f"{plan.name}, seed {seed}: {_line(answers, words)}")


def _score(config: CompareConfig, llava: Llava, data: _Data) -> tuple[pd.DataFrame, float]:
    """The answers under every condition, one row each, and the log-likelihood of ordinary text."""
    low = torch.autocast(llava.device.type, dtype=torch.bfloat16, enabled=config.running.bf16)
    tables = []
    with low:
        for condition, (questions, found) in data.questions.items():
            samples = Samples(llava, questions, found, Writing())
            answers = score_answers(llava, samples, batch_size=config.optimisation.batch_size)
            tables.append(answers.assign(condition=condition))
        words = text_log_likelihood(llava)
    return pd.concat(tables, ignore_index=True), words


def _line(answers: pd.DataFrame, words: float) -> str:
    means = answers.groupby("condition", sort=False)["right"].mean()
    return ", ".join(f"{name} {float(score):.3f}" for name, score in means.items()) + f", text {words:.3f} nats a token"


def _score_reference(config: CompareConfig, name: str, data: _Data, on_note: Callable[[str], None]) -> None:
    folder = config.out / "runs" / _slug(f"reference {name.rsplit('/', 1)[-1]}", 0)
    if (folder / _ANSWERS).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with refusing(ValueError, OSError):
        llava = load(name, device=config.running.device, dtype=torch.float32)
    answers, words = _score(config, llava, data)
    facts = {"plan": f"reference {name.rsplit('/', 1)[-1]}", "seed": 0, "steps": 0, "text_log_likelihood": words}
    write_json(folder / "run.json", facts)
    write_atomically(folder / _ANSWERS, answers.to_parquet(index=False))
    on_note(f"{name}: {_line(answers, words)}")


def _timed(
    config: CompareConfig,
    llava: Llava,
    plans: dict[str, Resolved],
    on_note: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """What a step of each plan costs, all in this process; read from ``costs.json`` where they were measured before."""
    path = config.out / "costs.json"
    known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    if config.timing_rounds < 1 or known.keys() >= plans.keys():
        return known
    writing = Writing()
    few = SceneMix(max(config.optimisation.batch_size, 1), text_share=0.0)
    samples = Samples(llava, few, survey(llava, few, writing), writing)
    batch = collator(llava)([samples[index] for index in range(len(samples))])
    given = {name: value for name, value in batch.items() if name not in ("owner", "sample")}
    on_note(f"timing {len(plans)} plans, {config.timing_rounds} rounds")
    costs = measure_plans(
        llava, plans, model_inputs(given, llava), rounds=config.timing_rounds, bf16=config.running.bf16
    )
    described = {name: cost.to_dict() for name, cost in costs.items()}
    write_json(path, described)
    return described


def compare_table(
    folder: Path,
    plans: Sequence[LayerPlan],
    costs: dict[str, dict[str, Any]],
    *,
    n_layers: int,
    reference: str | None = None,
) -> pd.DataFrame:
    """The table of the finished runs in ``folder``, one row for each plan, condition and question family.

    ``plan, layers, train, method, trainable``; ``flops_ratio`` (counted), ``closed_form_ratio``, ``step_time_ratio``,
    all to full tuning and NaN where nothing was timed; ``peak_memory`` and ``optimizer_bytes`` of a step; then the
    columns of ``tuning.retention.summarise``: ``lower`` and ``upper`` are the interval of ``retention``.

    ``layers`` holds plain numbers and ranges, whatever the plan's spec was; the last block is always named so that the
    model's depth can be read off ``full``.

    Raises:
        BadInput: If full tuning has not finished with any seed.
    """
    answers: list[pd.DataFrame] = []
    words: list[dict[str, Any]] = []
    for path in sorted((folder / "runs").glob(f"*/{_ANSWERS}")):
        facts = json.loads((path.parent / "run.json").read_text())
        answers.append(pd.read_parquet(path).assign(plan=facts["plan"], seed=int(facts["seed"])))
        words.append({"plan": facts["plan"], "seed": int(facts["seed"]), "value": float(facts["text_log_likelihood"])})
    if not any(word["plan"] == FULL for word in words):
        raise BadInput(f"compare must have a finished run of 'full', got none in {str(folder)!r}. Start it again.")
    guessed = {str(family): share for family, share in CHANCE.items()}
    scores = summarise(pd.concat(answers, ignore_index=True), pd.DataFrame(words), full=FULL, chance=guessed)
    names = [plan.name for plan in plans]
    numbers = {plan.name: _numbers(plan, n_layers) for plan in plans}
    if reference is not None:
        names.append(f"reference {reference.rsplit('/', 1)[-1]}")
    described = {plan.name: replace(plan, layers=numbers[plan.name]) for plan in plans}
    full = costs.get(FULL)
    rows: list[dict[Any, Any]] = []
    for name in names:
        own = _plan_columns(name, described.get(name), costs.get(name), full)
        rows += [{**own, **row} for row in scores[scores["plan"] == name].drop(columns="plan").to_dict("records")]
    return pd.DataFrame(rows)


def _numbers(plan: LayerPlan, n_layers: int) -> str:
    layers = parse_layers(plan.layers, n_layers)
    return f"0-{n_layers - 1}" if len(layers) == n_layers else format_layers(layers, n_layers)


def _plan_columns(
    name: str, plan: LayerPlan | None, cost: dict[str, Any] | None, full: dict[str, Any] | None
) -> dict[str, Any]:
    """What is the same in all rows of a plan."""

    def ratio(first: str, second: str | None = None) -> float | None:
        if cost is None or full is None or cost[first] is None:
            return None
        own = cost[first] + (cost[second] if second else 0)
        return float(own / (full[first] + (full[second] if second else 0)))

    return {
        "plan": name,
        "layers": plan.layers if plan else "",
        "train": ",".join(plan.train) if plan else "",
        "method": plan.method if plan and plan.name != START else "",
        "trainable": 0 if cost is None else cost["trainable"],
        "flops_ratio": ratio("flops_forward", "flops_backward"),
        "closed_form_ratio": ratio("closed_form_forward", "closed_form_backward"),
        "step_time_ratio": ratio("step_seconds_median"),
        "peak_memory": None if cost is None else cost["peak_memory"],
        "optimizer_bytes": None if cost is None else cost["bytes_optimizer"],
    }


def _draw(folder: Path, table: pd.DataFrame) -> tuple[Path, ...]:
    import matplotlib.pyplot as plt

    from figures.accuracy_by_family import draw_accuracy
    from figures.cost_retention import draw_cost_retention
    from figures.plan_diagram import draw_plan_diagram
    from figures.retention import draw_retention
    from figures.style import Panels, figure_of, save_figure

    drawn: dict[str, Panels] = {
        "accuracy_by_family": draw_accuracy(table),
        "retention": draw_retention(table),
        "plans": draw_plan_diagram(table),
    }
    overall = table[(table["family"] == "all") & (table["condition"] == "seen")]
    if (overall["flops_ratio"].notna() & overall["retention"].notna()).any():  # none if full tuning is never right
        drawn["cost_against_retention"] = draw_cost_retention(table)
    paths = []
    for name, panels in drawn.items():
        paths.append(save_figure(panels, folder / "figures" / name).png)
        plt.close(figure_of(panels))
    return tuple(paths)
