"""Two processes of a launcher capture, measure and read lenses together, and write what one process writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from probes.activations.capture_run import run_capture
from probes.activations.config import CaptureConfig, CapturedSites
from probes.config import DataOptions
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.run import run_geometry_sweep
from probes.lenses.config import DataOptions as LensData
from probes.lenses.config import LensConfig
from probes.lenses.sweep import run_lens_sweep
from records.options import ModelOptions

WORDS = {"orange": "picture", "yellow": "question", "green": "letter", "blue": "word", "purple": "phrase"}
ROOT = Path(__file__).parents[2]


def quiet(stage: str, done: int, total: int) -> None:
    """No progress."""


def run_all(out: Path, words: Path) -> None:
    """A capture of both conditions, the geometry of its activations, and a lens, of tiny random models."""
    tiny, sites = ModelOptions("random:tiny"), CapturedSites(("resid_post",), "0,1", ("image", "caption", "last"))
    data = DataOptions(limit=70, transfer="none")  # a shard has 64 examples
    run_capture(
        CaptureConfig(tiny, data, "both", sites, batch_size=8, out=out / "activations"), on_progress=quiet
    )  # fmt: skip
    run_geometry_sweep(
        GeometryConfig(
            out / "activations", tokens=("image=caption",), rank=(2, 4), largest=8, k=5, mutual_k=3, draws=4,
            shuffles=19, out=out / "geometry",
        ), on_progress=quiet,
    )  # fmt: skip
    run_lens_sweep(
        LensConfig(
            tiny, LensData(limit=9, split="test"), layers="1", target="colour", words=words, controls=False, shown=2,
            out=out / "lens",
        ), on_progress=quiet,
    )  # fmt: skip


def test_two_processes_capture_measure_and_read_what_one_does(tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps({colour: [word] for colour, word in WORDS.items()}))
    launcher = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
        "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", __name__,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "two"), str(words)], env=environment, cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_all(tmp_path / "one", words)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*")
         if path.suffix in (".safetensors", ".parquet", ".csv")}
        for name in ("one", "two")
    )  # fmt: skip
    shards = [path for path in two if path.parts[1:2] == ("activations",)]
    assert len({path.name for path in shards}) == 2  # one for each process
    assert len([path for path in two if path.parts[:2] == ("geometry", "layers")]) == 2
    assert len([path for path in two if path.name.startswith("model-scores-")]) > 1
    assert one == two


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), Path(sys.argv[2]))
