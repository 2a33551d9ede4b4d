"""Training one plan: ``train(llava, resolved, samples, ...)`` on Hugging Face's Trainer and accelerate.

The optimizer holds exactly the planned parameters. Checkpoints hold them, the optimizer's state, the schedule and the
random states, so a killed run ends with the weights of an uninterrupted one. A loss that is no number stops the run
before the weights are touched.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState

from models.llava import Llava
from records.processes import launched
from records.progress import OnProgress, silent
from tasks.errors import UserError
from tuning.config import Optimisation, Running
from tuning.data.samples import FAILED, GroupedSampler, Samples
from tuning.plan.apply import planned_parameters, set_checkpointing
from tuning.plan.resolve import Resolved
from tuning.scoring.answers import collator, model_inputs
from tuning.scoring.evaluations import add_rows, in_log, score_sets, table_of
from tuning.training import checkpoint, sharding
from tuning.training.callbacks import Clock, Flow, Watch
from tuning.training.frozen_prefix import KeptPrefix, keep_prefix
from tuning.training.loss import only_learned
from tuning.training.no_gradient import add_nothing, drop_zeros, taking_part
from tuning.training.optimizer import adamw, cosine_behind_rise
from tuning.training.resuming import check_disk, check_resume, forget_after, is_finished
from tuning.training.torch_compile import check_compiling, compiled, is_compiled
from tuning.training.trainer_arguments import training_arguments

_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "module.")


class LossNotFiniteError(UserError):
    """The loss or the gradient became NaN or infinite; the weights are those of the step before."""


class Trained(NamedTuple):
    """What a run ended with.

    Args:
        steps: Optimizer steps done in all.
        losses: Logged training losses by step.
        step_seconds: Wall-clock of each optimizer step of this process's life, the first one left out.
        data_seconds: What each of them waited for its samples before, which ``step_seconds`` leaves out.
        tokens: Positions run through the language model in these steps by this process, padding included.
    """

    steps: int
    losses: dict[int, float]
    step_seconds: tuple[float, ...]
    data_seconds: tuple[float, ...]
    tokens: int


def train(
    llava: Llava,
    resolved: Resolved,
    samples: Samples,
    *,
    optimisation: Optimisation,
    running: Running,
    folder: Path,
    facts: Mapping[str, object] | None = None,
    eval_sets: Mapping[str, Samples] | None = None,
    resume: Path | None = None,
    model_bytes: int = 0,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = silent,
    on_trained: "Callable[[PlanTrainer], None] | None" = None,
) -> Trained:
    """Trains the plan in place.

    Args:
        llava: The plan must be applied (``apply_plan``).
        resolved: The plan.
        samples: What is trained on.
        optimisation: How weights move.
        running: How the run goes about it.
        folder: Checkpoints, the log and the table of evaluations go here; it must exist.
        facts: What must agree for a checkpoint to be resumed (settings, model, data).
        eval_sets: Samples to score on the way, by name.
        resume: A checkpoint to go on from; None to start.
        model_bytes: Of what ``on_trained`` writes, for which the disk must have room.
        on_note: Called with each line for the reader.
        on_progress: Told the steps, as (stage, newly done, total).
        on_trained: Called by every process once the last step is done, before anything is taken apart.

    Raises:
        LossNotFiniteError: If the loss or a gradient is NaN or infinite; the message names the step.
        UserError: If there are no samples, the checkpoint belongs to another run, the disk cannot hold a checkpoint, or
            the plan has no frozen prefix to keep.
    """
    if not len(samples):
        raise UserError("data must have at least one sample that can be trained on, got none. See skipped.csv.")
    compiling = is_compiled(resolved.plan, asked=running.compile)
    if compiling:
        check_compiling(running.device, keep_prefix=running.keep_prefix)
    if resume is not None:
        check_resume(resume, dict(facts or {}))
    finished = resume is not None and is_finished(resume)
    check_disk(folder, resolved, replace(running, save_every=0) if finished else running, model_bytes=model_bytes)
    if resolved.plan.method == "lisa" and launched() > 1:
        # What requires a gradient is fixed once processes share it: blocks drawn later would drift apart.
        raise UserError("lisa must run in one process, got several. Use --method full or lora to share the work.")
    keeper = None
    if running.keep_prefix:
        keeper = keep_prefix(llava, resolved, samples, folder / "prefix", optimisation=optimisation, running=running)
    first = resolved.first_block if running.gradient_checkpointing else None
    if resolved.plan.method == "lisa" and first is not None:
        first = 0  # any of the plan's blocks may be drawn
    set_checkpointing(llava, first, resolved.first_vision)
    trainer = PlanTrainer(llava, resolved, samples, optimisation, running, folder, facts or {}, keeper)
    trainer.eval_sets, trainer.on_note, trainer.on_progress = dict(eval_sets or {}), on_note, on_progress
    try:
        if resume is not None and finished:
            trainer.take_up(resume)  # Trainer would go one step further
        else:
            if running.compile and not compiling:
                on_note("LoRA is not compiled: its blocks run as written")
            longest = int(samples.lengths.max())
            with compiled(llava, longest=longest) if compiling else nullcontext(nullcontext) as trainer.as_written:
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        trainer.as_written = nullcontext
        if trainer.eval_sets and not running.eval_every:
            trainer.evaluate()
        if on_trained is not None:
            on_trained(trainer)
    finally:
        set_checkpointing(llava, None)
        llava.model.eval()
    losses = {int(entry["step"]): float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry}
    clock = trainer.clock
    seconds, waited = tuple(clock.seconds[1:]), tuple(clock.waited[1:])
    return Trained(int(trainer.state.global_step), losses, seconds, waited, clock.tokens)


class PlanTrainer(Trainer):
    """Hugging Face's Trainer with this project's optimizer, order of data, checkpoints and log."""

    def __init__(
        self,
        llava: Llava,
        resolved: Resolved,
        samples: Samples,
        optimisation: Optimisation,
        running: Running,
        folder: Path,
        facts: Mapping[str, object],
        keeper: KeptPrefix | None,
    ) -> None:
        self.llava, self.resolved, self.keeper = llava, resolved, keeper
        self.optimisation, self.running, self.facts = optimisation, running, dict(facts)
        self.folder = folder
        self.eval_sets: dict[str, Samples] = {}
        self.on_note: Callable[[str], None] = lambda line: None
        self.on_progress: OnProgress = silent
        self.as_written: Callable[[], AbstractContextManager[None]] = nullcontext  # blocks that may be compiled
        self.clock = Clock()
        self._frozen_names = set(planned_parameters(llava, resolved))
        # A batch of text alone gives projector and tower no gradient.
        self._texts_feed_nothing = resolved.below_blocks and not bool(samples.pictured.all())
        arguments = training_arguments(optimisation, running, folder, find_unused=self._texts_feed_nothing)
        super().__init__(
            model=llava.model,
            args=arguments,
            train_dataset=samples,
            data_collator=collator(llava),
        )
        self.callback_handler.callbacks = []  # Trainer's own print to stdout; what remains is ours
        for callback in (Flow(), Watch(self), self.clock):
            self.add_callback(callback)

    def create_accelerator_and_postprocess(self) -> None:
        """Trainer's accelerator, which shards on CPUs too where FSDP was asked for."""
        super().create_accelerator_and_postprocess()  # type: ignore[no-untyped-call, unused-ignore]
        self.is_fsdp_enabled = sharding.set_up(self.accelerator, self.llava)

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedSampler:
        group = self.optimisation.batch_size * self.optimisation.grad_accum * self.args.world_size
        assert isinstance(self.train_dataset, Samples)
        sampler = GroupedSampler(
            self.train_dataset,
            group=group,
            seed=self.optimisation.seed,
            by_modality=self.running.by_modality,
            even=self.is_fsdp_enabled,
        )
        if not len(sampler):
            raise UserError(f"data must fill a step of {group} samples under FSDP, got fewer of each kind. Add some.")
        return sampler

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """AdamW over the planned parameters alone: the projector and the tower at their rate, the rest at theirs."""
        if self.optimizer is None:
            named, fused = self._planned(model), not self.is_fsdp_enabled
            self.optimizer = adamw(named, self.resolved, self.optimisation, fused=fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """A cosine to zero behind a linear rise."""
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None
            rate = cosine_behind_rise(self.optimisation.warmup, num_training_steps)
            self.lr_scheduler = LambdaLR(getattr(chosen, "optimizer", chosen), rate)
            self._created_lr_scheduler = True
        assert isinstance(self.lr_scheduler, LambdaLR)
        return self.lr_scheduler

    def compute_loss(  # type: ignore[override, unused-ignore]  # outputs are never asked for
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean loss over learned tokens; from the kept prefix on where there is one."""
        batch = dict(inputs)
        if FAILED in batch:
            raise batch[FAILED]
        batch.pop("owner")
        samples, prefix = batch.pop("sample"), batch.pop("prefix", None)
        self.clock.tokens += batch["input_ids"].numel()
        lengths = (batch["input_ids"] != -1).sum(1)
        assert isinstance(self.train_dataset, Samples)
        own = torch.tensor([int(self.train_dataset.lengths[int(i)]) for i in samples])
        lengths = torch.minimum(lengths.cpu(), own)
        batch = model_inputs(batch, self.llava)

        def run(given: dict[str, Any]) -> Tensor:
            inside = self._texts_feed_nothing and not self.is_fsdp_enabled  # FSDP: behind the forward, on the shards
            part = taking_part(self.llava.model, lambda: self._planned().values()) if inside else nullcontext()
            with only_learned(self.llava, given) as inputs, part:
                loss: Any = super(PlanTrainer, self).compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            if not loss.requires_grad and torch.is_grad_enabled():
                sharding.reshard(self.llava.model)  # no backward will, and the optimizer knows the shards
                loss = add_nothing(loss, self._planned().values())
            assert isinstance(loss, Tensor)
            return loss

        if self.keeper is None:
            return run(batch)
        if prefix is None:
            with self.on_disk(), self.keeper.writing(samples, lengths):
                return run(batch)
        batch.pop("input_ids")
        with self.keeper.from_here():
            return run({**batch, "inputs_embeds": prefix.to(self.llava.device, self._residual_dtype())})

    def rest_where_nothing_was_taught(self) -> None:
        """Before the optimizer's step: where words alone taught the projector nothing, nothing moves."""
        if self._texts_feed_nothing:
            drop_zeros(self._planned().values())

    def _residual_dtype(self) -> torch.dtype:
        return next(iter(self.llava.model.get_input_embeddings().parameters())).dtype

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward; refuses to go on from a loss that is no number."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise self._not_finite("loss", float(loss))
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = sharding.as_number(super()._clip_grad_norm(model))  # type: ignore[no-untyped-call, unused-ignore]
        if norm is not None and not math.isfinite(norm):
            raise self._not_finite("norm of the gradient", norm)
        return norm

    def _not_finite(self, what: str, value: float) -> LossNotFiniteError:
        last = checkpoint.last_checkpoint(self.folder)
        kept = f"The last good checkpoint is {last.name}" if last else "No checkpoint had been written yet"
        return LossNotFiniteError(
            f"{what} must be finite, got {value} at step {self.state.global_step + 1}. {kept}; lower --lr and start "
            "again."
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: Trainer's own count ignores what is frozen and what the vision tower does; see ``tuning.cost.measure``."""
        return 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores every evaluation set; the first process writes ``evaluations.csv`` and the log."""
        step = self.state.global_step
        with self.compute_loss_context_manager(), self.as_written():
            answers = score_sets(self.llava, self.eval_sets, step=step, model=self.model)
        sharding.reshard(self.llava.model)
        if not answers or not self.args.should_save:
            return {}
        rows = table_of(answers, self.eval_sets, step=step)
        with self.on_disk():
            add_rows(self.folder, rows)
        metrics = in_log(rows)
        self.log({f"eval/{key}": value for key, value in metrics.items()})
        return metrics

    def _planned(self, model: nn.Module | None = None) -> dict[str, nn.Parameter]:
        """The planned parameters by the names they have without wrappers."""
        named: dict[str, nn.Parameter] = {}
        assert self.model is not None
        for name, parameter in (model or self.model).named_parameters():
            bare = name
            for wrapper in _WRAPPERS:
                bare = bare.replace(wrapper, "")
            if bare in self._frozen_names:
                named[bare] = parameter
        return named

    def take_up(self, resume: Path) -> None:
        """The state of a run that has done its last step, without another one."""
        self._load_from_checkpoint(str(resume))
        self.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
        self.forget()

    def forget(self) -> None:
        """Drops from log and table what lies behind the step that this run goes on from."""
        if self.args.should_save:
            forget_after(self.folder, self.state.global_step, evaluations=not self.running.eval_every)

    @contextmanager
    def on_disk(self) -> Iterator[None]:
        """Around what writes into the run's folder: a disk that is full becomes a sentence."""
        try:
            yield
        except (OSError, SafetensorError) as error:  # safetensors has a name of its own for a full disk
            last = checkpoint.last_checkpoint(self.folder)
            raise UserError(
                f"checkpoint must fit on the disk, got {error} at step {self.state.global_step}. "
                f"Make room and resume from {last.name if last else 'the start'}."
            ) from error

    def full_tensors(self) -> dict[str, Tensor]:
        """The planned tensors, gathered from all processes where they are sharded; every process must call this."""
        return sharding.gathered(self._planned(), keep=bool(self.args.should_save))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.on_disk():
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        target = self.folder / f"checkpoint-{self.state.global_step}"
        fresh = checkpoint.partial_of(target)
        if self.args.should_save:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        checkpoint.write_random(fresh / f"random-{self.args.process_index}.safetensors")
        weights, optimizer = self.full_tensors(), self.plain_optimizer()
        state = checkpoint.optimizer_tensors(optimizer, {id(p): n for n, p in self._planned().items()})
        state = sharding.gathered(state, keep=bool(self.args.should_save))
        if self.args.should_save:
            checkpoint.write_weights(fresh / "weights.safetensors", weights)
            checkpoint.write_optimizer(fresh, optimizer, state)
            assert self.lr_scheduler is not None
            steps = {"last_epoch": self.lr_scheduler.last_epoch, "_step_count": self.lr_scheduler._step_count}
            (fresh / "schedule.json").write_text(json.dumps({**steps, "lr": self.lr_scheduler.get_last_lr()}))
            (fresh / "run.json").write_text(json.dumps(self.facts))
            self.state.save_to_json(str(fresh / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint.finish(target, keep=self.running.keep)
        self.accelerator.wait_for_everyone()

    def plain_optimizer(self) -> Optimizer:
        """The optimizer without what accelerate wraps around it."""
        found: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        assert isinstance(found, Optimizer)
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.read_weights_into(Path(resume_from_checkpoint) / "weights.safetensors", self._planned())

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            super()._load_optimizer_and_scheduler(checkpoint_folder)
            return
        folder = Path(checkpoint_folder)
        checkpoint.read_optimizer(folder, self.plain_optimizer(), {id(p): n for n, p in self._planned().items()})
        saved = json.loads((folder / "schedule.json").read_text())
        assert self.lr_scheduler is not None
        self.lr_scheduler.last_epoch, self.lr_scheduler._step_count = saved["last_epoch"], saved["_step_count"]
        self.lr_scheduler._last_lr = saved["lr"]

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        path = Path(checkpoint_folder) / f"random-{self.args.process_index}.safetensors"
        if path.is_file():
            checkpoint.read_random(path)
        else:
            super()._load_rng_state(checkpoint_folder)
