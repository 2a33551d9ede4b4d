"""Two processes of a launcher capture, measure and read lenses together, and write what one process writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = '''
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

out, words = Path(sys.argv[1]), Path(sys.argv[2])
tiny, quiet = ModelOptions("random:tiny"), {"on_progress": lambda *about: None}
sites = CapturedSites(("resid_post",), "0,1", ("image", "caption", "last"))
data = DataOptions(limit=70, transfer="none")
run_capture(CaptureConfig(tiny, data, "both", sites, batch_size=2, out=out / "activations"), **quiet)
run_geometry_sweep(GeometryConfig(
    out / "activations", tokens=("image=caption",), rank=(2, 4), largest=8, k=5, mutual_k=3, draws=4, shuffles=19,
    out=out / "geometry",
), **quiet)
run_lens_sweep(LensConfig(
    tiny, LensData(limit=9, split="test"), layers="1", target="colour", words=words, controls=False, shown=2,
    out=out / "lens",
), **quiet)
'''  # fmt: skip


def test_two_processes_capture_measure_and_read_what_one_does(tmp_path: Path) -> None:
    script, words = tmp_path / "three.py", tmp_path / "words.json"
    script.write_text(SCRIPT)
    pairs = {"orange": "picture", "yellow": "question", "green": "letter", "blue": "word", "purple": "phrase"}
    words.write_text(json.dumps({colour: [word] for colour, word in pairs.items()}))
    launcher = [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    for name, before in (("two", launcher), ("one", [])):
        command = [sys.executable, *before, str(script), str(tmp_path / name), str(words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    both = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*")
         if path.is_file() and path.suffix in (".safetensors", ".parquet", ".csv")}
        for name in ("one", "two")
    ]  # fmt: skip
    assert len(list((tmp_path / "two" / "activations" / "activations").rglob("*.safetensors"))) > 2
    assert len(list((tmp_path / "two" / "geometry" / "layers").glob("*.safetensors"))) == 2
    assert len(list((tmp_path / "two" / "lens" / "shards").glob("model-scores-*"))) > 1
    assert both[0] == both[1]
