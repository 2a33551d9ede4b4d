"""The estimate of ``benchmark-eval``: what is left, divided over the processes."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.llava import Llava
from models.loading.load import load
from models.token_plans.plan import parse_token_plan
from records.evaluation import estimate as estimating
from records.evaluation import run as evaluation
from records.evaluation.config import EvaluationConfig
from records.evaluation.estimate import EvaluationEstimate, estimate_run
from records.evaluation.parts import PartFile
from records.evaluation.run import run_benchmark_eval
from records.evaluation.sources import open_benchmarks
from records.options import ModelOptions
from records.processes import Processes
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tasks.errors import UserError


@pytest.fixture(scope="module")
def tiny() -> Llava:
    """The model ``random:tiny``, loaded once."""
    return load("random:tiny", seed=0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluationConfig:
    """A run about three scenes, on a device whose speed is known."""
    monkeypatch.setattr(estimating, "matmul_speed", lambda device, dtype: 1e6)
    write_pope(tmp_path / "pope", scene_pictures(3, size=28), ending="?")
    return EvaluationConfig(
        ModelOptions("random:tiny"), (f"pope={tmp_path / 'pope'}",), batch_size=4, new_tokens=2, out=tmp_path / "run"
    )


def dry(config: EvaluationConfig, tiny: Llava) -> EvaluationEstimate:
    found = run_benchmark_eval(replace(config, dry_run=True), llava=tiny)
    assert isinstance(found, EvaluationEstimate)
    return found


class KilledError(Exception):
    """A run that is killed."""


def killed_after(batches: int, config: EvaluationConfig, tiny: Llava) -> None:
    seen: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == batches:
            raise KilledError

    with pytest.raises(KilledError):
        run_benchmark_eval(config, llava=tiny, on_progress=kill)


def test_questions_that_are_answered_do_not_count_before_and_in_a_dry_run(
    config: EvaluationConfig, tiny: Llava
) -> None:
    fresh = dry(config, tiny)
    n = int(fresh.work.split()[0])
    assert fresh.work == f"{n} questions of pope"
    killed_after(2, config, tiny)
    left = dry(config, tiny)
    assert left.work == f"{n - 8} of {n} questions of pope are left"
    assert left.stages["answering"] == pytest.approx(fresh.stages["answering"] * (n - 8) / n)
    notes: list[str] = []
    run_benchmark_eval(config, llava=tiny, on_note=notes.append)
    assert notes == [str(left)]
    none = dry(config, tiny)
    assert (none.work, none.stages["answering"]) == (f"0 of {n} questions of pope are left", 0.0)
    assert dry(replace(config, overwrite=True), tiny) == fresh, "an overwritten run answers all of them"
    (config.out or Path()).joinpath("parts", "pope.0.jsonl").unlink()
    assert dry(config, tiny) == fresh


def test_processes_divide_the_work_and_the_slowest_one_counts(config: EvaluationConfig, tiny: Llava) -> None:
    opened, plan = open_benchmarks(config), parse_token_plan("all", tiny.n_layers)
    n = len(opened[0].questions)

    def estimate(world: int, *, resumes: bool = False) -> EvaluationEstimate:
        return estimate_run(config, tiny, opened, plan, device="cpu", processes=Processes(0, world), resumes=resumes)

    alone, both = estimate(1), estimate(2)
    assert both.work == f"{n} questions of pope, in 2 processes"
    first = sum(index // 4 % 2 == 0 for index in range(n))
    whole = alone.stages["answering"]
    assert both.stages["answering"] == pytest.approx(whole * max(first, n - first) / n)
    assert config.out is not None
    config.out.mkdir()
    # All that the first of two processes would answer is answered: the second one is as slow as before.
    PartFile(config.out, "pope", 0, n).add({index: "yes" for index in range(n) if index // 4 % 2 == 0})
    left = estimate(2, resumes=True)
    assert left.work == f"{n - first} of {n} questions of pope are left, in 2 processes"
    assert left.stages["answering"] == pytest.approx(whole * (n - first) / n)
    assert estimate(2) == both


def test_the_estimate_is_from_answers_of_one_word_to_the_longest(config: EvaluationConfig, tiny: Llava) -> None:
    short, long = (dry(replace(config, new_tokens=new), tiny) for new in (2, 200))
    assert short.stages == long.stages and short.longest == pytest.approx(short.seconds)
    assert long.longest > short.longest
    assert "(answers of one word; up to " in str(long) and "judge" not in str(long)
    assert "the judge is not counted" in str(replace(long, is_judged=True))


def test_a_dry_run_of_other_questions_is_an_error_as_the_run_is(config: EvaluationConfig, tiny: Llava) -> None:
    killed_after(1, config, tiny)
    questions = Path(config.benchmarks[0].partition("=")[2]) / "llava_pope_test.jsonl"
    questions.write_text(questions.read_text().replace("Is there", "Do you see"))
    for dry_run in (True, False):
        with pytest.raises(UserError, match=r"a run in .* that differs: data\.pope"):
            run_benchmark_eval(replace(config, dry_run=dry_run), llava=tiny)
    assert evaluation.own_questions(5, 2, Processes()) == [0, 1, 2, 3, 4]
