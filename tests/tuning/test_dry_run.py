"""``--dry-run`` of every command answers for 7B and 13B models quickly and in little memory, and runs no model."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from models.llava import Llava
from models.loading.configs import config_of
from models.loading.load import load
from models.loading.processors import offline_processor
from records.open_model import open_model
from records.options import ModelOptions
from tests.conftest import tiny_config
from tests.tuning.conftest import samples_of
from tuning.config import DataOptions, PlanOptions, TuningConfig
from tuning.cost.estimate import Estimate
from tuning.data.scene_mix import SceneMix
from tuning.plan.connector import is_linear, with_connector
from tuning.plan.plan import LayerPlan
from tuning.plan.resolve import resolve
from tuning.run import run_tuning

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "probe-sweep": ["probes.cli"],
    "patch-sweep": ["interventions.cli", "--op", "patch"],
    "layerwise-finetune": ["tuning.cli"],
    "compare": ["tuning.cli", "compare"],
}
# A command on one model after the other in a process of its own: after each, the process's peak memory in bytes and
# its processor seconds so far.
MEASURED = """
import importlib, resource, sys
module, models, *words = sys.argv[1:]
for model in models.split(","):
    importlib.import_module(module).main([*words, "--model", model, "--dry-run"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("USED", used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), used.ru_utime + used.ru_stime)
"""


def measured(command: str, models: Sequence[str], folder: Path) -> list[tuple[str, float, float]]:
    """The output of each dry run in ``folder``, the peak memory in GB and the processor seconds since the start."""
    module, *words = COMMANDS[command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A process inherits the peak memory of the one that it is forked from, so a small shell stands between.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", MEASURED, module, ",".join(models), *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(.*?)^USED (\S+) (\S+)$", done.stdout, re.DOTALL | re.MULTILINE)
    return [(output, float(memory) / 1e9, float(seconds)) for output, memory, seconds in found]


@pytest.fixture(scope="module")
def folder_13b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 13B checkpoint folder without its weights."""
    folder = tmp_path_factory.mktemp("big") / "llava-13b"
    config = config_of("llava-1.5-13b")
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    offline_processor(config).save_pretrained(folder)
    return folder


# Processor seconds, since the machine may be busy; wall time on a free core is no more. Starting Python with torch and
# transformers takes about half.
@pytest.mark.parametrize("command", COMMANDS)
def test_a_published_size_takes_seconds_and_no_memory(command: str, folder_13b: Path, tmp_path: Path) -> None:
    models = ("random:llava-1.5-7b", str(folder_13b))
    before = 0.0
    runs = measured(command, models, tmp_path)
    assert len(runs) == len(models)
    for output, gigabytes, seconds in runs:
        assert gigabytes < 1.5
        assert seconds - before < 20
        assert output
        before = seconds
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_read_on_meta_without_its_weights(folder_13b: Path) -> None:
    big = load(folder_13b, device="meta", attn="eager")
    assert {p.device.type for p in big.model.parameters()} == {"meta"}
    assert (big.n_layers, big.d_model, big.dtype, big.attention) == (40, 5120, torch.float32, "eager")
    wide = open_model(ModelOptions(str(folder_13b), dtype="bfloat16"), device="cpu", seed=0, weights=False)
    assert (wide.dtype, wide.device.type) == (torch.bfloat16, "meta")
    saved = json.loads((folder_13b / "config.json").read_text())
    (folder_13b / "config.json").write_text(json.dumps({**saved, "dtype": "float16"}))
    of_gpu = open_model(ModelOptions(str(folder_13b)), device="cuda:0", seed=0, weights=False)
    on_cpu = open_model(ModelOptions(str(folder_13b)), device="cpu", seed=0, weights=False)
    assert (of_gpu.dtype, on_cpu.dtype) == (torch.float16, torch.float32)
    (folder_13b / "config.json").write_text(json.dumps(saved))


def test_shapes_on_meta_are_those_of_the_loaded_model(base: Path) -> None:
    whole, shapes = load(base), load(base, device="meta")
    assert {n: t.shape for n, t in whole.model.state_dict().items()} == {
        n: t.shape for n, t in shapes.model.state_dict().items()
    }
    plan = LayerPlan("1-2")
    assert resolve(plan, shapes).to_dict() == resolve(plan, whole).to_dict()


@pytest.mark.parametrize("connector", ["linear", "mlp"])
def test_a_new_connector_is_the_same_on_meta(connector: str) -> None:
    small, shapes = (with_connector(_tiny(on), connector, seed=0) for on in ("cpu", "meta"))  # type: ignore[arg-type]
    assert is_linear(small) == is_linear(shapes) == (connector == "linear")


def _tiny(device: str) -> Llava:
    return load(tiny_config(), device=device)


def test_the_estimate_on_meta_is_that_of_the_loaded_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TuningConfig(ModelOptions(str(base)), PlanOptions("1"), DataOptions(scenes=6), dry_run=True)
    on_meta = run_tuning(config)
    monkeypatch.setattr("tuning.run.open_model", lambda options, **_: load(base))
    loaded = run_tuning(config)
    assert isinstance(on_meta, Estimate) and isinstance(loaded, Estimate)
    assert str(on_meta).rpartition("time ")[0] == str(loaded).rpartition("time ")[0]
    assert (on_meta.flops, on_meta.memory, on_meta.steps) == (loaded.flops, loaded.memory, loaded.steps)


def test_a_dry_run_reads_some_of_many_samples_and_scales_the_steps(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.run._ESTIMATED_FROM", 16)
    few = run_tuning(TuningConfig(ModelOptions(str(base)), PlanOptions("1"), DataOptions(scenes=64), dry_run=True))
    assert isinstance(few, Estimate)
    assert len(few.survey.lengths) == 16
    assert "(read from 64)" in str(few)
    assert few.steps == 8
    every = samples_of(load(base), SceneMix(64))
    assert few.survey.lengths.mean() == pytest.approx(every.lengths.mean(), rel=0.2)
