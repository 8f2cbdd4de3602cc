"""What happens when in a run: evaluations, checkpoints, each epoch's order, how far it is."""

# ruff: noqa: ARG002 - transformers fixes the signatures of callbacks

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from regtune.progress import steps
from regtune.training.memory import EVERY, return_freed_memory
from regtune.training.trainer import RegisterTrainer

Progress = Callable[[int, int, float | None], None]


class RunFlow(TrainerCallback):
    """Says when to evaluate and save, which epoch's order is due, and how far training has come."""

    def __init__(self, trainer: RegisterTrainer, *, steps_per_epoch: int, on_progress: Progress | None) -> None:
        self.trainer = trainer
        self.steps_per_epoch = steps_per_epoch
        parts = trainer.config.evals_per_epoch
        self.due = {max(1, round(steps_per_epoch * part / parts)) for part in range(1, parts + 1)}
        self.on_progress = on_progress
        self.inside = ExitStack()
        self.tell: Callable[[int, str], None] = lambda *_: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock and the count of steps."""
        self.trainer.stopwatch.start()
        self.tell = self.inside.enter_context(steps(state.max_steps, "steps", done=state.global_step))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Chooses the order of the epoch that begins or is resumed."""
        self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the learning rates of the step."""
        assert self.trainer.optimizer is not None
        self.trainer.rates = {group["name"]: float(group["lr"]) for group in self.trainer.optimizer.param_groups}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Asks for a log line, an evaluation and a checkpoint where they are due."""
        if args.device.type == "cpu" and state.global_step % EVERY == 0:
            return_freed_memory()
        within = (state.global_step - 1) % self.steps_per_epoch + 1
        if within in self.due or state.global_step >= state.max_steps:
            control.should_log = control.should_save = True
            control.should_evaluate = self.trainer.run_evaluation is not None
        self._show(state)
        return control

    def _show(self, state: TrainerState) -> None:
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        if self.on_progress is not None and state.is_world_process_zero:
            self.on_progress(state.global_step, state.max_steps, loss)
        self.tell(state.global_step, "" if loss is None else f"loss {loss:.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops the clock."""
        self.close()

    def close(self) -> None:
        """Stops the clock and the count, however training ended."""
        self.trainer.stopwatch.stop()
        self.inside.close()
