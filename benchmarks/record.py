"""Shared parts of the benchmarks: options, alternating timing, facts about the machine, and the dated record.

A record is a JSON file and a Markdown file in ``benchmarks/records``, named by date, benchmark, model and device.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from models.llava import Llava

RECORDS = Path(__file__).parent / "records"
DTYPES = ("float32", "bfloat16", "float16")
Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One side of a comparison."""

    question: str
    side: str
    median: float
    """Seconds, or MiB of memory, over the repeats."""
    low: float
    high: float
    repeats: int
    ratio: float
    """``median`` divided by the median of the side ``against``."""
    against: str
    model: str = ""
    difference: float | None = None
    """Largest absolute difference of logits from the reference; None if not compared."""


def options(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed repeats")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    return parser


class Simulation(NamedTuple):
    """What the command line of a simulation says."""

    trials: int
    size: str
    """``quick`` or ``full``, or the part, for the record's name."""
    out: Path
    """The folder of the record."""
    parts: tuple[str, ...]
    """The parts to run."""


def simulation(description: str | None, trials: int, *, parts: Sequence[str] = ()) -> Simulation:
    """Parse the command line of a simulation; ``parts`` can be run alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    if parts:
        parser.add_argument("--part", choices=parts, help="run this part alone")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    given = parser.parse_args()
    part = given.part if parts else None
    size = "-".join(word for word in (part, "quick" if given.quick else None if part else "full") if word)
    return Simulation(trials // 10 if given.quick else trials, size, given.out, (part,) if part else tuple(parts))


def command() -> str:
    """The command line of this process."""
    return " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def compare(question: str, sides: Mapping[str, Run], against: str, repeats: int, *, warm_up: int = 1) -> list[Row]:
    """Time all sides in turn ``repeats`` times, after ``warm_up`` rounds that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    device = torch.accelerator.is_available()
    for turn in range(warm_up + repeats):
        for name, run in sides.items():
            if device:
                torch.accelerator.synchronize()
            start = time.perf_counter()
            run()
            if device:
                torch.accelerator.synchronize()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return [
        Row(question, name, medians[name], min(ts), max(ts), repeats, medians[name] / medians[against], against)
        for name, ts in times.items()
    ]


def installed(package: str) -> str:
    """The version of a package, or ``absent``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def machine(device: str) -> dict[str, object]:
    """Hardware, versions and commit; ``device`` is ``cpu`` or ``cuda``, and ``not_run`` is set if it is missing."""
    on_gpu = device.startswith("cuda")
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts: dict[str, object] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu and torch.cuda.is_available() else device,
        "commit": done.stdout.strip() if done.returncode == 0 else "uncommitted",
        "load_average": os.getloadavg()[0],
        **{name: installed(name) for name in ("torch", "transformers", "scikit-learn", "nnsight", "transformer-lens")},
    }
    return facts if torch.cuda.is_available() or not on_gpu else {**facts, "not_run": "no CUDA device."}


def model_facts(llava: Llava, *, batch: int) -> dict[str, object]:
    """The size of the model."""
    return {
        "dtype": str(llava.dtype).removeprefix("torch."),
        "model": llava.id,
        "layers": llava.n_layers,
        "d_model": llava.d_model,
        "image_tokens": llava.n_image_tokens,
        "batch": batch,
    }


def peak_memory() -> float:
    """The peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the peak of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def heading(title: str, facts: Mapping[str, object]) -> list[str]:
    """The first lines of a record in Markdown: title, date, command and facts."""
    lines = [f"# {title}, {datetime.now(UTC):%Y-%m-%d}", "", f"`{command()}`", ""]
    return lines + [f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items()]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table in Markdown, after an empty line."""
    cells = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(map(str, row)) + " |" for row in cells)]


def write_rows(folder: Path, name: str, title: str, rows: Sequence[Row], facts: Mapping[str, object]) -> Path:
    """Write and print the record of a comparison with ``write_record``."""
    cells = (
        (r.model, r.question, r.side, f"{r.median:.4g}", f"{r.low:.4g}", f"{r.high:.4g}", r.repeats, f"{r.ratio:.3f}",
         r.against, "" if r.difference is None else f"{r.difference:.1e}")
        for r in rows
    )  # fmt: skip
    header = ("model", "question", "side", "median", "lowest", "highest", "n", "ratio", "to", "max. difference")
    note = (
        "Times in seconds, memory in MiB. Ratios are of medians; sides took turns in one process. Differences are the "
        "largest absolute ones of logits from those of engine full, over the first cells."
    )
    record = {"command": command(), "machine": facts, "rows": [asdict(row) for row in rows]}
    return write_record(folder, name, record, "\n".join([*heading(title, facts), *table(header, cells), "", note]))


def write_record(folder: Path, name: str, record: object, text: str) -> Path:
    """Write the record as JSON and Markdown, print the Markdown, and return the path without a suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = name.translate(str.maketrans("/: ", "---"))
    stem = folder / f"{datetime.now(UTC):%Y-%m-%d}-{clean}"
    stem.with_name(stem.name + ".json").write_text(json.dumps(record, indent=1) + "\n")  # names may hold dots
    stem.with_name(stem.name + ".md").write_text(text.rstrip() + "\n")
    print(text)
    return stem
