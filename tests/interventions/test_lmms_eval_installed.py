"""lmms-eval 0.7.3 in an environment of its own, in which the task on scenes of ``test_lmms_eval`` runs.

The environment sees the packages of this one, so nothing large is installed, torch stays as it is, and lmms-eval's pins
change nothing here. It is kept in ``~/.cache/laccolith-tests``. ``LACCOLITH_LMMS_EVAL_PYTHON`` names the Python of
another environment that has lmms-eval.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
VERSION = "0.7.3"
GIVEN = "LACCOLITH_LMMS_EVAL_PYTHON"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "laccolith-tests"
# What the core of lmms-eval and its llava_hf import. None of these needs torch, and torchvision is imported by neither.
IMPORTED = (
    "aiohttp", "av<16", "datasets", "decord", "evaluate", "jsonlines", "loguru", "openai", "pytablewriter",
    "python-dotenv", "pytz", "requests", "sacrebleu", "tenacity", "wandb",
)  # fmt: skip
UNREACHABLE = (
    "No matching distribution found",
    "Could not find a version",
    "NewConnectionError",
    "Max retries exceeded",
)


def environment() -> Path:
    """The Python of the environment, which is made first if it is not there yet; skips without a package index."""
    if given := os.environ.get(GIVEN):
        return Path(given)
    ours = sysconfig.get_paths()["purelib"]
    key = hashlib.sha256(repr((ours, sys.version, VERSION, IMPORTED)).encode()).hexdigest()[:12]
    folder = CACHE / f"lmms-eval-{VERSION}-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{folder.name}.lock"):
        if complete.is_file():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "laccolith-tests.pth").write_text(f"{ours}\n")
        kept = ("torch", "transformers", "numpy")
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in kept))
        install = [python, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "30", "-c", constraints]
        done = subprocess.run(
            [*install, "--no-deps", f"lmms-eval=={VERSION}"], capture_output=True, text=True, check=False
        )
        if done.returncode and any(text in done.stderr for text in UNREACHABLE):
            pytest.skip(f"pip reaches no index with lmms-eval {VERSION}: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        done = subprocess.run([*install, *IMPORTED], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not list(own.glob("torch*")), "torch is that of this environment"
        complete.touch()
    return python


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)
def test_the_task_on_scenes_gives_our_answers_item_by_item_in_lmms_eval() -> None:
    python = environment()
    found = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('lmms-eval'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == VERSION
    name = "test_a_task_on_scenes_gives_the_same_answers_through_llava_hf_and_our_entry_point"
    test = ROOT / "tests" / "interventions" / f"test_lmms_eval.py::{name}"
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "--timeout=3000", str(test)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
