"""The records of a run: one JSON file for each step, written atomically, and an index in Markdown."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.on_gpu.step import Step
from benchmarks.record import table
from records.manifest import write_atomically

Status = Literal["done", "running", "cut", "failed", "skipped", "not yet run"]
NOT_YET: Literal["not yet run"] = "not yet run"


class Records:
    """The folder of a run's records. All steps of a folder have one device and one size."""

    def __init__(self, folder: Path, steps: Sequence[Step], facts: Mapping[str, Any]) -> None:
        self.folder, self._steps, self._facts = folder, steps, dict(facts)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of a step."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        """The record of a step; its status is ``not yet run`` if there is none."""
        path = self.path(name)
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"status": NOT_YET}
        return found

    def clash(self) -> str | None:
        """How the finished records differ from this run in size or device; None if they do not."""
        for step in self._steps:
            if self.finished(step.name):
                before = self.read(step.name)["machine"]
                for fact in ("size", "device"):
                    if before.get(fact) != self._facts.get(fact):
                        return f"{fact} {before.get(fact)!r} of {step.name}, this run has {self._facts.get(fact)!r}"
        return None

    def finished(self, name: str) -> bool:
        """Whether a step is done and need not run again."""
        return bool(self.read(name)["status"] == "done")

    def write(self, step: Step, status: Status, **facts: Any) -> None:
        """Write the record of a step and the index."""
        record = {
            "step": step.name, "question": step.question, "status": status,
            "written": datetime.now(UTC).isoformat(timespec="seconds"), **facts, "machine": self._facts,
        }  # fmt: skip
        write_atomically(self.path(step.name), (json.dumps(record, indent=1, default=str) + "\n").encode())
        self.write_index()

    def write_index(self) -> None:
        """Write ``index.md``: the state of every step, and the facts of the machine."""
        rows = []
        for step in self._steps:
            record = self.read(step.name)
            seconds, estimate = record.get("seconds"), record.get("estimate", {}).get("seconds")
            rows.append(
                (step.name, step.question, record["status"], record.get("reason", ""),
                 *("" if value is None else f"{value:.1f}" for value in (seconds, estimate)))
            )  # fmt: skip
        lines = ["# Measurements on a GPU", "", *(f"- {key.replace('_', ' ')}: {v}" for key, v in self._facts.items())]
        lines += table(("step", "question", "status", "reason", "seconds", "estimate (s)"), rows)
        write_atomically(self.folder / "index.md", ("\n".join(lines) + "\n").encode())
