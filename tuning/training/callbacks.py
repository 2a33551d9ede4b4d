"""What happens around the steps of a training run: when to log, score, save and stop, and how long steps take."""

import json
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuning.data.samples import Samples
from tuning.plan.apply import draw_blocks
from tuning.training.sharding import describe

if TYPE_CHECKING:
    from tuning.training.trainer import PlanTrainer

LOG = "log.jsonl"


class Flow(TrainerCallback):
    """Decides when to log, save, evaluate and stop, as Trainer's own callback does, and saves after the last step."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Logs at the first, every n-th and the last step; saves every m-th and the last; stops after the last."""
        step = state.global_step
        last = step >= state.max_steps
        control.should_log = step == 1 or step % args.logging_steps == 0 or last
        control.should_save = args.save_strategy != "no" and (step % args.save_steps == 0 or last)
        control.should_training_stop = last
        return control


class Watch(TrainerCallback):
    """The log file, the lines for the reader, evaluation on the way, LISA's draws, the kept prefix's second epoch."""

    def __init__(self, trainer: "PlanTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says how a sharded model is shared, and where a resumed run goes on; forgets what will be done again."""
        self._trainer.forget()
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)  # by now a sharded model is
        self._trainer.on_progress("training", state.global_step, state.max_steps)
        line = describe(self._trainer.llava.model)
        if line is not None and state.is_world_process_zero:
            self._trainer.on_note(line)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads the kept prefix from now on, once it is whole."""
        keeper, samples = self._trainer.keeper, self._trainer.train_dataset
        assert isinstance(samples, Samples)
        if keeper is not None and all(keeper.has(index) for index in range(len(samples))):
            samples.read_prefix(keeper.read)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Under LISA, draws the blocks of this step."""
        trainer = self._trainer
        if trainer.resolved.plan.method != "lisa":
            return
        draw_blocks(trainer.llava, trainer.resolved, step=state.global_step, seed=trainer.optimisation.seed)
        optimizer = trainer.plain_optimizer()
        for parameter in list(optimizer.state):
            if not parameter.requires_grad:
                del optimizer.state[parameter]  # what rests keeps no moments: that is LISA's saving

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where words alone taught the projector nothing, nothing moves."""
        self._trainer.rest_where_nothing_was_taught()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Scores the evaluation sets when it is time."""
        trainer = self._trainer
        trainer.on_progress("training", 1, state.max_steps)
        every = trainer.running.eval_every
        if trainer.eval_sets and every and (state.global_step % every == 0 or state.global_step >= state.max_steps):
            wanted = control.should_log
            trainer.evaluate()
            control.should_log = wanted  # Trainer takes the line of the evaluation for that of the loss

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a line to the log file and hands one to the reader."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        entry = {"step": state.global_step, "epoch": round(float(state.epoch or 0), 4), **logs}
        line = json.dumps({key: _plain(value) for key, value in entry.items()})
        with self._trainer.on_disk(), (self._trainer.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        shown = " ".join(f"{key} {value:.4g}" for key, value in logs.items() if isinstance(value, int | float))
        self._trainer.on_note(f"step {state.global_step}/{state.max_steps} {shown}")


class Clock(TrainerCallback):
    """How long optimizer steps take and wait for their samples, saving and scoring left out; the last of callbacks."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waited: list[float] = []
        self.tokens = 0
        self._began = self._free = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first samples are asked for."""
        self._free = _now()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock: the samples of the step are there."""
        self._began = _now()
        self.waited.append(self._began - self._free)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops it, before anything is logged or saved."""
        self.seconds.append(_now() - self._began)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The next samples are asked for from here on, unless something is logged or saved."""
        self._free = _now()

    on_log = on_save = on_step_end


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _plain(value: object) -> object:
    return float(value) if isinstance(value, int | float | Tensor) and not isinstance(value, bool) else value
