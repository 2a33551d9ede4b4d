"""``python -m benchmarks.on_gpu``: see ``benchmarks/on_gpu.md``.

python -m benchmarks.on_gpu --minutes 8 --out benchmarks/records/DATE-DEVICE
python -m benchmarks.on_gpu --small --out runs/small     # toy sizes, on a CPU
python -m benchmarks.on_gpu --list
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.on_gpu.preflight import describe, facts_of, warnings_of
from benchmarks.on_gpu.records import Records
from benchmarks.on_gpu.runner import limit_of, run_steps
from benchmarks.on_gpu.step import NOMINAL, Step
from benchmarks.on_gpu.steps import STEPS
from benchmarks.on_gpu.workplace import Workplace, measure_speed
from benchmarks.record import RECORDS


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--minutes", type=float, default=NOMINAL, help="limit of the whole run")
    options.add_argument("--out", type=Path, default=None, help="folder of the records; a killed run continues there")
    options.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step; may be repeated")
    options.add_argument("--list", action="store_true", help="list the steps and stop")
    options.add_argument(
        "--small", action="store_true", help="all steps at toy size, on a CPU unless --device is given"
    )
    options.add_argument("--device", default=None, help="default: cuda, with --small cpu")
    return options


def choose(names: Sequence[str], steps: Sequence[Step]) -> list[Step]:
    """The named steps in their order; all without names."""
    known = [step.name for step in steps]
    for name in names:
        if name not in known:
            raise SystemExit(f"only must be one of {', '.join(known)}, got {name!r}.")
    return [step for step in steps if not names or step.name in names]


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Run the command; 0 if no step failed, 1 if one did, 2 for wrong options."""
    began = time.monotonic()
    given = parser().parse_args(arguments)
    chosen = choose(given.only, steps)
    if given.list:
        for step in chosen:
            print(f"{step.name:15} {limit_of(step, given.minutes):5.0f} s  {step.question}")
        return 0
    if given.minutes <= 0:
        raise SystemExit(f"minutes must be above 0, got {given.minutes:g}.")
    device = given.device or ("cpu" if given.small else "cuda")
    out = given.out or RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-on-gpu{'-small' * given.small}"
    facts = facts_of(device, small=given.small)
    records = Records(out, steps, facts)
    if clash := records.clash():
        raise SystemExit(f"out must be a folder of one size and device, got {clash}. Choose another folder.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        for step in chosen:
            if not records.finished(step.name):
                records.write(step, "not yet run", reason="no CUDA device")
        print(f"not yet run: no CUDA device. {out / 'index.md'} says so. --small runs all steps at toy size on a CPU.")
        return 0
    if not given.small and not device.startswith("cuda"):
        raise SystemExit(f"device must be cuda for steps of real size, got {device!r}. Add --small for a CPU.")
    for line in (*describe(facts), *warnings_of(chosen)):
        print(line, flush=True)
    speed = measure_speed(device, small=given.small)
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in speed.products.items())
    print(f"one product: {rates}; one copy: {speed.copied / 1e9:.3g} GB/s", flush=True)
    place = Workplace(device, given.small, out, speed, log=lambda text: print(text, flush=True))
    good = run_steps(chosen, place, records, minutes=given.minutes, began=began)
    print(f"{time.monotonic() - began:.0f} s in all; records in {out}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
