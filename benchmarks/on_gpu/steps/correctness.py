"""Every test marked ``gpu``, in its own process: on a CPU all of them are skipped."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.workplace import Workplace

_ROOT = Path(__file__).parents[3]
_TESTS = _ROOT / "tests" / "gpu"
_SECONDS = {"real": 60.0, "small": 20.0}  # of the process, assumed


def plan(place: Workplace, budget: float) -> Work | str:
    """One process of pytest, which is interrupted in time to write its report."""
    if not _TESTS.is_dir():
        return "the tests are not in this installation; run from a checkout"
    settings = {"tests": "tests/gpu"}
    return Work(lambda: run(place.out, budget - 5), settings, fixed=_SECONDS["small" if place.small else "real"])


def run(out: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Counts of outcomes, and the tests that failed.

    Raises:
        RuntimeError: If a test failed, or pytest did not run.
    """
    report = (out / "gpu-tests.xml").resolve()
    report.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", str(_TESTS), "-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
        "-o", "filterwarnings=", "--import-mode=importlib", f"--junitxml={report}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    cut = False
    try:
        said, _ = process.communicate(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        cut = True
        process.send_signal(signal.SIGINT)  # pytest writes its report
        said, _ = process.communicate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found = read_report(report) | {"cut": cut, "last_line": said.strip().splitlines()[-1] if said.strip() else ""}
    yield found
    if found["failed"] or not found["tests"]:
        raise RuntimeError(f"{len(found['failed'])} of {found['tests']} tests failed: {said[-2000:]}")


def read_report(path: Path) -> dict[str, Any]:
    """Numbers of tests, passed and skipped ones, and the failed ones with the end of their message."""
    if not path.is_file():
        return {"tests": 0, "passed": 0, "skipped": 0, "failed": {}}
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = {}
    for case in cases:
        broken = [*case.findall("failure"), *case.findall("error")]
        if broken:
            failed[f"{case.get('classname')}::{case.get('name')}"] = re.sub(r"\s+", " ", broken[0].text or "")[-400:]
    skipped = sum(case.find("skipped") is not None for case in cases)
    times = {str(case.get("name")): float(case.get("time", 0)) for case in cases}
    slowest = dict(sorted(times.items(), key=lambda item: -item[1])[:5])
    return {
        "tests": len(cases), "passed": len(cases) - skipped - len(failed), "skipped": skipped, "failed": failed,
        "slowest": slowest,
    }  # fmt: skip


STEP = Step(
    "correctness", "tests marked gpu: captures, patches, knockouts, token plans and probes, float32 and bfloat16", 1.3,
    plan, needs=("pytest", "hypothesis"),
)  # fmt: skip
