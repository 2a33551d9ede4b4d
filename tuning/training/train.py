"""Train one plan: ``train(llava, resolved, samples, ...)`` checks the options, prepares the model, runs the loop."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from models.llava import Llava
from records.processes import launched
from records.progress import OnProgress, silent
from records.timings import Timings
from tasks.errors import UserError
from tuning.config import Optimisation, RunOptions
from tuning.data.samples import Samples
from tuning.plan.apply import set_checkpointing
from tuning.plan.resolve import Resolved
from tuning.training import checkpoint
from tuning.training.frozen_prefix import KeptPrefix
from tuning.training.torch_compile import check_compiling, compiled
from tuning.training.trainer import PlanTrainer


class Trained(NamedTuple):
    """A finished training run."""

    steps: int
    losses: dict[int, float]
    """Logged training losses by step."""
    step_seconds: tuple[float, ...]
    """Wall-clock seconds of each optimizer step of this process, without the first."""
    data_seconds: tuple[float, ...]
    """Seconds that each of these steps waited for its samples; not part of ``step_seconds``."""
    tokens: int
    """Positions that this process ran through the language model, padding included."""


def train(
    llava: Llava,
    resolved: Resolved,
    samples: Samples,
    *,
    optimisation: Optimisation,
    options: RunOptions,
    folder: Path,
    bf16: bool = False,
    by_modality: bool = True,
    keep_prefix: bool = False,
    eval_every: int = 0,
    facts: Mapping[str, object] | None = None,
    eval_sets: Mapping[str, Samples] | None = None,
    resume: Path | None = None,
    model_bytes: int = 0,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = silent,
    on_trained: Callable[[PlanTrainer], None] | None = None,
    timings: Timings | None = None,
) -> Trained:
    """Train the plan in place; ``apply_plan`` must have been called, and ``folder`` must exist.

    ``facts`` (settings, model and data) are saved with each checkpoint, and a run resumes only from equal facts. With
    ``by_modality``, a batch holds samples with pictures or without, not both. If ``eval_every`` is 0, the only
    evaluation is after the last step. ``on_trained`` is called in every process after the last step, while the model is
    still sharded; the disk must have room for the ``model_bytes`` that it writes. ``timings`` gets the time of steps,
    data, evaluations, checkpoints and saving. Raises ``LossNotFiniteError`` if the
    loss or a gradient is NaN or infinite, and ``UserError`` if the options, samples or checkpoint cannot be used.
    """
    if not len(samples):
        raise UserError("data must have at least one sample that can be trained on, got none. See skipped.csv.")
    if options.compile:
        check_compiling(llava.device.type, keep_prefix=keep_prefix)
    if resume is not None:
        checkpoint.check_resume(resume, dict(facts or {}))
    finished = resume is not None and checkpoint.is_finished(resume)
    checkpoint.check_disk(
        folder, resolved, replace(options, save_every=0) if finished else options, model_bytes=model_bytes
    )
    if resolved.plan.method == "lisa" and launched() > 1:
        # DDP fixes the parameters that require a gradient when it wraps the model.
        raise UserError("lisa must run in one process, got several. Use --method full or lora to share the work.")
    keeper = None
    if keep_prefix and resolved.plan.token_plan != "all":
        raise UserError(
            "keep-prefix must be off under a token plan, got both. The stored prefix is that of plan 'all'."
        )
    if keep_prefix:
        keeper = KeptPrefix(llava, resolved, samples, folder / "prefix", optimisation=optimisation, bf16=bf16)
    first = None
    if options.gradient_checkpointing:
        first = 0 if resolved.plan.method == "lisa" else resolved.first_block  # lisa may draw any of the plan's blocks
    set_checkpointing(llava, first, resolved.first_vision)
    trainer = PlanTrainer(
        llava, resolved, samples, optimisation, options, folder, facts,
        keeper=keeper, bf16=bf16, by_modality=by_modality, eval_every=eval_every, eval_sets=eval_sets,
        on_note=on_note, on_progress=on_progress, timings=timings,
    )  # fmt: skip
    try:
        longest = int(samples.lengths.max())
        with compiled(llava, longest=longest) if options.compile else nullcontext(nullcontext) as trainer.uncompiled:
            trainer.train(resume)
        trainer.uncompiled = nullcontext
        if trainer.eval_sets and not eval_every:
            trainer.evaluate()
        if on_trained is not None:
            with trainer.timings.stage("saving"):
                on_trained(trainer)
    finally:
        set_checkpointing(llava, None)
        llava.model.eval()
    seconds, waited = tuple(trainer.step_seconds[1:]), tuple(trainer.data_seconds[1:])
    return Trained(trainer.step, trainer.losses, seconds, waited, trainer.tokens)
