"""The training loop of one plan, on accelerate (one process, DDP or FSDP); ``tuning.training.train`` calls it.

The optimizer holds exactly the planned parameters. A run that is killed and resumed ends with the weights of an
uninterrupted one. A loss or gradient that is NaN or infinite stops the run before a weight changes.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.llava import Llava
from records.progress import OnProgress, PartProgress, silent
from records.timings import Timings
from tasks.errors import UserError, is_full
from tuning.config import Optimisation, RunOptions
from tuning.data.labels import IGNORED
from tuning.data.samples import FAILED, Samples
from tuning.data.step_order import StepOrder
from tuning.plan.apply import draw_blocks, planned_parameters
from tuning.plan.resolve import Resolved
from tuning.scoring.answers import collator, model_inputs
from tuning.scoring.evaluation_table import add_rows, in_log, score_sets, table_of, trim_rows
from tuning.training import checkpoint, sharding
from tuning.training.accelerator import make_accelerator
from tuning.training.frozen_prefix import KeptPrefix
from tuning.training.log import add_to_log, trim_log
from tuning.training.loss import head_at_labels, under_token_plan
from tuning.training.no_gradient import drop_zero_gradients, with_zero_gradients, zero_gradients_in_forward
from tuning.training.optimizer import make_adamw, make_schedule


class LossNotFiniteError(UserError):
    """The loss or the gradient became NaN or infinite; the weights are unchanged since the step before."""


class PlanTrainer:
    """The training loop of one plan and its state. Arguments: see ``train``; ``keeper`` stores the frozen prefix."""

    def __init__(
        self,
        llava: Llava,
        resolved: Resolved,
        samples: Samples,
        optimisation: Optimisation,
        options: RunOptions,
        folder: Path,
        facts: Mapping[str, object] | None = None,
        *,
        keeper: KeptPrefix | None = None,
        bf16: bool = False,
        by_modality: bool = True,
        eval_every: int = 0,
        eval_sets: Mapping[str, Samples] | None = None,
        on_note: Callable[[str], None] = lambda line: None,
        on_progress: OnProgress = silent,
        timings: Timings | None = None,
    ) -> None:
        self.timings = timings or Timings()
        self.llava, self.resolved, self.samples, self.keeper = llava, resolved, samples, keeper
        self.optimisation, self.options, self.folder, self.facts = optimisation, options, folder, dict(facts or {})
        self.eval_every, self.eval_sets = eval_every, dict(eval_sets or {})
        self.on_note, self.on_progress = on_note, on_progress
        self.uncompiled: Callable[[], AbstractContextManager[None]] = nullcontext  # blocks run without torch.compile
        self.step, self.tokens = 0, 0
        self.losses: dict[int, float] = {}
        self.step_seconds: list[float] = []
        self.data_seconds: list[float] = []
        # A text-only batch produces no gradient in projector and tower.
        self._may_lack_gradient = resolved.below_blocks and not bool(samples.pictured.all())
        self.accelerator = make_accelerator(str(llava.device), bf16=bf16, find_unused=self._may_lack_gradient)
        self.is_sharded = sharding.prepare_fsdp(self.accelerator, llava)
        set_seed(optimisation.seed)
        self._loader = self.accelerator.prepare(self._make_loader(by_modality=by_modality))
        self._steps_in_epoch = math.ceil(len(self._loader) / optimisation.grad_accum)
        self.steps = optimisation.steps or math.ceil(optimisation.epochs * self._steps_in_epoch)
        self.optimizer = make_adamw(self.planned(), resolved, optimisation, fused=not self.is_sharded)
        self._model, self._prepared_optimizer = self.accelerator.prepare(llava.model, self.optimizer)
        self.schedule = make_schedule(self.optimizer, optimisation, self.steps)
        self._loss_sum, self._logged_step = torch.zeros((), device=self.accelerator.device), 0

    def _make_loader(self, *, by_modality: bool) -> "DataLoader[dict[str, Any]]":
        batch_size = self.optimisation.batch_size
        batches = self.optimisation.grad_accum * self.accelerator.num_processes
        group = batch_size * batches
        self._sampler = StepOrder(
            self.samples.lengths, self.samples.pictured, group=group, batches=batches, seed=self.optimisation.seed,
            by_modality=by_modality, even=self.is_sharded, grouping=self.optimisation.grouping,
        )  # fmt: skip
        if not len(self._sampler):
            raise UserError(f"data must fill a step of {group} samples under FSDP, got fewer of each kind. Add some.")
        return DataLoader(
            self.samples,
            batch_size=batch_size,
            sampler=self._sampler,
            collate_fn=collator(self.llava),
            num_workers=self.options.workers,
            # Whatever the program's start method is: a spawned worker would get a pickled copy of the model.
            multiprocessing_context="fork" if self.options.workers else None,
            pin_memory=self.accelerator.device.type != "cpu",
        )

    def train(self, resume: Path | None = None) -> None:
        """Run all remaining steps, from the checkpoint ``resume`` if it is given."""
        if resume is not None:
            self._load(resume)
        if self.accelerator.is_main_process:  # the resumed run writes later rows again
            trim_rows(self.folder, self.step)
            trim_log(self.folder, self.step, evaluations=not self.eval_every)
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)  # measured once the model is sharded
        accum = self.optimisation.grad_accum
        self.on_progress("training", self.step * accum, self.steps * accum)  # in micro-batches
        if self.is_sharded:
            self.on_note(sharding.describe(self.llava.model))
        while self.step < self.steps:
            self._run_epoch(*divmod(self.step, self._steps_in_epoch), resume)
            resume = None

    def _run_epoch(self, epoch: int, done: int, resume: Path | None) -> None:
        """Finish an epoch of which ``done`` steps are done; random states are read from ``resume``."""
        if self.keeper is not None and all(self.keeper.has(index) for index in range(len(self.samples))):
            self.samples.read_prefix(self.keeper.read)
        accum = self.optimisation.grad_accum
        loader: Any = skip_first_batches(self._loader, done * accum) if done else self._loader
        loader.set_epoch(epoch)
        self._sampler.set_epoch(epoch)
        if resume is not None and not done:
            checkpoint.read_random(resume, self.accelerator.process_index)
        batches = iter(loader)
        for index in range(done, self._steps_in_epoch):
            asked = _now()
            with self.timings.stage("data"):
                own = list(islice(batches, accum))
            if resume is not None and done:
                # Starting the loader draws a number, which the uninterrupted run drew before the checkpoint.
                checkpoint.read_random(resume, self.accelerator.process_index)
                resume = None
            began = _now()
            self.data_seconds.append(began - asked)
            with self.timings.stage("steps"):
                norm, rate = self._take_step(own)
            self.step_seconds.append(_now() - began)
            batches_seen = min((index + 1) * accum, len(self._loader))
            self._after_step(epoch + batches_seen / len(self._loader), norm, rate)
            if self.step >= self.steps:
                return

    def _take_step(self, batches: Sequence[dict[str, Any]]) -> tuple[float, float]:
        """One optimizer step on ``batches``; returns the norm of the gradient and the learning rate."""
        for batch in batches:
            if FAILED in batch:
                raise batch[FAILED]
        if self.resolved.plan.method == "lisa":
            draw_blocks(self.llava, self.resolved, step=self.step, seed=self.optimisation.seed)
            for parameter in [p for p in self.optimizer.state if not p.requires_grad]:
                del self.optimizer.state[parameter]  # frozen blocks keep no moments, so LISA saves memory
        counts = [(batch["labels"][:, 1:] != IGNORED).sum() for batch in batches]
        whole: Any = self.accelerator.gather(torch.stack(counts).sum())
        n_labels = [whole.sum()] * len(batches)
        if self.optimisation.loss_mean == "micro-batch":
            share = len(batches) * self.accelerator.num_processes
            n_labels = [count.clamp(min=1) * share for count in counts]
        self._model.train()
        accum = self.optimisation.grad_accum
        part = PartProgress(self.on_progress, "training", size=accum, total=self.steps * accum)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self._model):
                loss = self.compute_loss(batch, n_labels[index])
                self._check_finite("loss", float(loss.detach()))
                self.accelerator.backward(loss)
            self._loss_sum += loss.detach()
            if not is_last:
                part.add(1)
        largest = self.optimisation.clip or math.inf
        norm = sharding.as_number(self.accelerator.clip_grad_norm_(self._model.parameters(), largest))
        self._check_finite("norm of the gradient", norm)
        if self._may_lack_gradient:
            drop_zero_gradients(self.planned().values())
        self._prepared_optimizer.step()
        self._prepared_optimizer.zero_grad()
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.step += 1
        part.finish()
        return norm, rate

    def compute_loss(self, batch: Mapping[str, Any], n_labels: Tensor) -> Tensor:
        """The summed loss of a batch, divided by ``n_labels``: the labelled tokens of the step, or their equivalent."""
        self.tokens += batch["input_ids"].numel()
        given = {name: value for name, value in batch.items() if name not in ("owner", "sample", "prefix")}
        inputs = model_inputs(given, self.llava)
        with ExitStack() as stack:
            if self.keeper is not None and "prefix" in batch:
                stack.enter_context(self.keeper.blocks_above())
                inputs.pop("input_ids")
                dtype = next(iter(self.llava.model.get_input_embeddings().parameters())).dtype
                inputs["inputs_embeds"] = batch["prefix"].to(self.llava.device, dtype)
            elif self.keeper is not None:
                lengths = torch.as_tensor(self.samples.lengths)[batch["sample"].cpu()]
                stack.enter_context(self.on_disk())
                stack.enter_context(self.keeper.writing(batch["sample"], lengths))
            stack.enter_context(under_token_plan(self.llava, self.resolved.plan.token_plan, batch))
            inputs = stack.enter_context(head_at_labels(self.llava, inputs))
            if self._may_lack_gradient and not self.is_sharded:  # under FSDP this is done below
                stack.enter_context(zero_gradients_in_forward(self.llava.model, lambda: self.planned().values()))
            loss: Tensor = self._model(**inputs, num_items_in_batch=n_labels).loss
        loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        if not loss.requires_grad and torch.is_grad_enabled():
            sharding.reshard(self.llava.model)  # usually done by the backward pass; the optimizer holds shards
            loss = with_zero_gradients(loss, self.planned().values())
        return loss

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            last = checkpoint.last_checkpoint(self.folder)
            kept = f"The last checkpoint is {last.name}" if last else "There is no checkpoint yet"
            raise LossNotFiniteError(
                f"{what} must be finite, got {value} at step {self.step + 1}. {kept}; lower --lr and start again."
            )

    def _after_step(self, epoch: float, norm: float, rate: float) -> None:
        """Log, evaluate and save at the set intervals and after the last step."""
        options, step, is_last = self.options, self.step, self.step >= self.steps
        if step == 1 or step % options.log_every == 0 or is_last:
            mean = float(self.accelerator.gather(self._loss_sum[None]).mean()) / (step - self._logged_step)  # type: ignore[union-attr, unused-ignore]
            self.losses[step] = mean
            self._loss_sum.zero_()
            self._logged_step = step
            self._log({"epoch": round(epoch, 4), "loss": mean, "grad_norm": norm, "learning_rate": rate})
        if self.eval_sets and self.eval_every and (step % self.eval_every == 0 or is_last):
            self.evaluate()
        if options.save_every and (step % options.save_every == 0 or is_last):
            with self.on_disk(), self.timings.stage("checkpoints"):
                self._save()

    def _log(self, values: Mapping[str, int | float]) -> None:
        if self.accelerator.is_main_process:
            with self.on_disk():
                add_to_log(self.folder, {"step": self.step, **values})
            shown = " ".join(f"{key} {value:.4g}" for key, value in values.items())
            self.on_note(f"step {self.step}/{self.steps} {shown}")

    def evaluate(self) -> None:
        """Score every evaluation set; rank 0 writes ``evaluations.csv`` and the log."""
        with self.uncompiled(), self.timings.stage("evaluations"):
            answers = score_sets(
                self.llava, self.eval_sets, step=self.step, token_plan=self.resolved.plan.token_plan,
                on_progress=self.on_progress,
            )  # fmt: skip
        sharding.reshard(self.llava.model)
        if answers and self.accelerator.is_main_process:
            rows = table_of(answers, self.eval_sets, step=self.step)
            with self.on_disk():
                add_rows(self.folder, rows)
            self._log({f"eval/{key}": value for key, value in in_log(rows).items()})

    def planned(self) -> dict[str, nn.Parameter]:
        """The planned parameters by name."""
        return planned_parameters(self.llava, self.resolved)

    def full_tensors(self) -> dict[str, Tensor]:
        """The planned tensors on the CPU, gathered from all processes; every process must call this."""
        return sharding.gathered(self.planned(), keep=self.accelerator.is_main_process)

    @contextmanager
    def on_disk(self) -> Iterator[None]:
        """Re-raise errors of writing to the run directory as ``UserError``."""
        try:
            yield
        except (OSError, SafetensorError) as error:  # safetensors raises its own error when the disk is full
            last = checkpoint.last_checkpoint(self.folder)
            must, advice = ("fit on the disk", "Make room") if is_full(error) else ("be writable", "Correct this")
            raise UserError(
                f"checkpoint must {must}, got {error} at step {self.step}. "
                f"{advice} and resume from {last.name if last else 'the start'}."
            ) from error

    def _save(self) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        target, is_main = self.folder / f"checkpoint-{self.step}", self.accelerator.is_main_process
        try:
            self._write(target, is_main=is_main)
        except BaseException:
            shutil.rmtree(checkpoint.partial_of(target), ignore_errors=True)
            raise

    def _write(self, target: Path, *, is_main: bool) -> None:
        fresh = checkpoint.partial_of(target)
        if is_main:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        checkpoint.write_random(fresh, self.accelerator.process_index, self._loss_sum)
        weights = self.full_tensors()
        state = sharding.gathered(checkpoint.optimizer_tensors(self.optimizer, self._names()), keep=is_main)
        if is_main:
            progress = {"step": self.step, "steps": self.steps, "losses": self.losses, "logged_step": self._logged_step}
            checkpoint.write_weights(fresh, weights, {**progress, "schedule": self.schedule.state_dict()}, self.facts)
            checkpoint.write_optimizer(fresh, self.optimizer, state)
        self.accelerator.wait_for_everyone()
        if is_main:
            checkpoint.finish(target, keep=self.options.keep)
        self.accelerator.wait_for_everyone()

    def _load(self, resume: Path) -> None:
        """Read everything but the random states."""
        state = checkpoint.read_state(resume)
        with checkpoint.reading(resume):
            checkpoint.read_weights_into(resume / "weights.safetensors", self.planned())
            checkpoint.read_optimizer(resume, self.optimizer, self._names())
            self.schedule.load_state_dict(state["schedule"])
            loss_sum = checkpoint.read_loss_sum(resume, self.accelerator.process_index)
        self.step = int(state["step"])
        self.losses = {int(step): float(loss) for step, loss in state["losses"].items()}
        # The next logged loss is a mean that begins before the checkpoint.
        self._logged_step = int(state.get("logged_step", self.step))
        self._loss_sum.copy_(loss_sum)

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.planned().items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
