"""Before a run goes on: whether the checkpoint is its own, whether the disk has room, what is forgotten."""

import json
import shutil
from pathlib import Path

from records.manifest import write_atomically
from tasks.errors import UserError
from tuning.config import Running
from tuning.plan.resolve import Resolved
from tuning.scoring.evaluations import trim_rows
from tuning.training import checkpoint
from tuning.training.callbacks import LOG

# Bytes of a checkpoint for each trained number: the weight and AdamW's two moments in float32.
_CHECKPOINT_BYTES = 12


def check_resume(path: Path, facts: dict[str, object]) -> None:
    """Passes if a checkpoint was written by a run with these facts.

    Raises:
        UserError: If it is no checkpoint or belongs to another run; the message names what differs.
    """
    if not (path / "run.json").is_file():
        raise UserError(
            f"resume must name a checkpoint folder, got {str(path)!r}. See the run's folder for checkpoint-N."
        )
    saved = {"processes": 1, **checkpoint.facts(path)}
    for key, value in json.loads(json.dumps(facts)).items():
        if saved.get(key) != value:
            name, before, after = _differing(key, saved.get(key), value)
            raise UserError(
                f"resume must go on with the same run, got another {name}: it was {before!r}, is {after!r}. "
                "Start anew in another folder, or give the run's own settings."
            )


def _differing(key: str, before: object, after: object) -> tuple[str, object, object]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return _differing(f"{key}.{name}", before.get(name), after.get(name))
    return key, before, after


def check_disk(folder: Path, resolved: Resolved, running: Running, *, model_bytes: int = 0) -> None:
    """Passes if the disk has room for the checkpoints of a run, less those that it has already, and for its model.

    Args:
        folder: Of the run.
        resolved: The plan.
        running: How many checkpoints stay.
        model_bytes: Of what is written once training is done.

    Raises:
        UserError: If it has not.
    """
    there = sum(file.stat().st_size for file in folder.glob("checkpoint-*/*") if file.is_file())
    one = resolved.trained * _CHECKPOINT_BYTES if running.save_every else 0
    # The new one is written before the old one goes.
    needed = max(one, one * (running.keep + 1) - there) + model_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{running.keep + 1} checkpoints and the model" if model_bytes else f"{running.keep + 1} checkpoints"
        raise UserError(
            f"out must have room for {what if one else 'the model'}, got {free / 1e9:.1f} GB free of "
            f"{needed / 1e9:.1f} GB needed. Make room{', or use --save-every 0' if one else ''}."
        )


def forget_after(folder: Path, step: int, *, evaluations: bool = False) -> None:
    """Drops what an interrupted run logged and found after ``step``, for it will do so again; all of it after step 0.

    Args:
        folder: Of the run.
        step: That the run goes on from.
        evaluations: Whether those at the very step are done again, too.
    """
    trim_rows(folder, step)
    path = folder / LOG
    if path.is_file():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _stays(line, step, evaluations)]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


def _stays(line: str, step: int, evaluations: bool) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False  # cut off when the process died or the disk was full
    again = entry["step"] == step and evaluations and any(key.startswith("eval/") for key in entry)
    return step > 0 and bool(entry["step"] <= step) and not again


def is_finished(resume: Path) -> bool:
    """Whether a checkpoint is that of a run's last step."""
    path = resume / "trainer_state.json"
    if not path.is_file():
        return False
    state = json.loads(path.read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"] > 0)
