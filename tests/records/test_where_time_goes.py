"""Every command stores where its seconds went in its manifest, by stage, and prints it in one line at its end."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from probes.activations.capture_run import run_capture
from probes.activations.config import CaptureConfig, CapturedSites
from probes.config import DataOptions, ProbeOptions, SweepConfig
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.run import run_geometry_sweep
from probes.lenses.config import CorpusOptions, LensConfig, TrainConfig, TrainDataOptions
from probes.lenses.config import DataOptions as LensData
from probes.lenses.sweep import run_lens_sweep
from probes.lenses.training_run import run_lens_training
from probes.sweep import run_sweep
from probes.transfer.config import TransferConfig
from probes.transfer.sweep import run_transfer
from records.evaluation.config import EvaluationConfig
from records.evaluation.run import run_benchmark_eval
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tests.scripted_server import scripted_server
from tests.test_layout import MODULES, ROOT
from tests.tuning.instructions.test_generate import captions, good  # noqa: F401 - a fixture
from tuning.instructions.config import GenerateConfig, ServerOptions
from tuning.instructions.generate import run_generate
from tuning.mix.config import MixConfig
from tuning.mix.mix import run_mix

TINY = ModelOptions("random:tiny")


def stages(finished: Any) -> list[str]:
    """The names of the stages in the manifest; the printed line is about the same seconds."""
    assert isinstance(finished, FinishedRun)
    seconds = json.loads((finished.folder / "manifest.json").read_text())["timings"]
    assert finished.timings and all(value >= 0 for value in seconds.values())
    return list(seconds)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A capture of pictures and captions, with a random model."""
    config = CaptureConfig(
        TINY, DataOptions(limit=90, transfer="none"), "both", CapturedSites(("resid_post",), "0,1"),
        out=tmp_path_factory.mktemp("capture") / "run",
    )  # fmt: skip
    finished = run_capture(config)
    assert isinstance(finished, FinishedRun)
    return finished


def test_a_capture_and_the_sweeps_over_it(both: FinishedRun, checkpoint: Path, tmp_path: Path) -> None:
    assert stages(both) == ["load", "capturing", "checking", "other"]
    config = CaptureConfig(
        ModelOptions(str(checkpoint)), DataOptions(limit=4, transfer="none"), sites=CapturedSites(("resid_post",), "0"),
        random_init=True, out=tmp_path / "random",
    )  # fmt: skip
    assert stages(run_capture(config)) == ["load", "capturing", "capturing the random model", "checking", "other"]
    geometry = GeometryConfig(
        both.folder, rank=(2, 4), largest=8, k=5, mutual_k=4, draws=4, shuffles=19, out=tmp_path / "geometry"
    )
    expected = ["reading activations", "measuring", "mapping layers", "tables", "figures", "other"]
    assert stages(run_geometry_sweep(geometry)) == expected
    transfer = TransferConfig(both.folder, out=tmp_path / "transfer", folds=2)
    assert stages(run_transfer(transfer)) == ["fitting probes", "figures", "other"]
    probing = ProbeOptions(targets=("count",), folds=2, controls=False)
    sweep = SweepConfig(probing=probing, activations=both.folder, out=tmp_path / "stored")
    assert stages(run_sweep(sweep)) == ["fitting probes", "figures", "other"]


def test_lenses(tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    known = {"orange": "picture", "yellow": "question", "green": "letter", "blue": "word", "purple": "phrase"}
    words.write_text(json.dumps({colour: [word] for colour, word in known.items()}))
    for lenses, first in ((("logit",), []), (("latent",), ["indexing"])):
        config = LensConfig(
            TINY, LensData(limit=3), lenses, "0,1", CorpusOptions(corpus_tokens=60), "colour", words, shown=1,
            out=tmp_path / lenses[0],
        )  # fmt: skip
        assert stages(run_lens_sweep(config)) == ["load", *first, "reading", "tables", "figures", "other"]
    of_kind = {
        "tuned": ["training", "scoring"], "jacobian": ["Jacobians", "scoring"], "latent": ["indexing"],
    }  # fmt: skip
    for kind, expected in of_kind.items():
        training = TrainConfig(
            TINY, kind, None, TrainDataOptions(limit=2, eval_limit=2), CorpusOptions(corpus_tokens=40),  # type: ignore[arg-type]
            steps=2, batch_size=2, out=tmp_path / f"train-{kind}",
        )  # fmt: skip
        assert stages(run_lens_training(training)) == ["load", *expected, "other"]


def test_a_benchmark(tmp_path: Path) -> None:
    write_pope(tmp_path / "pope", scene_pictures(2, size=28), ending="?")
    config = EvaluationConfig(TINY, (f"pope={tmp_path / 'pope'}",), new_tokens=2, out=tmp_path / "run")
    assert stages(run_benchmark_eval(config)) == ["load", "answering", "scoring", "other"]


def test_instruction_data(captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with scripted_server(good) as server:
        config = GenerateConfig(captions, model="m", server=ServerOptions(url=server.url), out=tmp_path / "made")
        assert stages(run_generate(config)) == ["asking", "checking replies", "other"]
    row = {"question": "What is it?", "answer": "A dog.", "image": "1.jpg"}
    (tmp_path / "vqa.jsonl").write_text(json.dumps(row))
    mix = MixConfig(parts=(f"vqav2={tmp_path / 'vqa.jsonl'}",), out=tmp_path / "mix")
    assert stages(run_mix(mix)) == ["reading parts", "writing", "table", "other"]


def test_every_command_hands_on_its_timings() -> None:
    """A finished run without them would print no line."""
    without = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "FinishedRun"
        and not any(keyword.arg == "timings" for keyword in node.keywords)
    ]
    assert not without
