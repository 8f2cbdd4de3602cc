"""The small part of `transformers.Trainer` that regtune does its own way, and what happens when in a run."""

from __future__ import annotations

import contextlib
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed import DistError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from regtune.config import TrainConfig
from regtune.errors import CheckpointError, ConfigError, TrainingError
from regtune.interfaces import Group
from regtune.models.precision import Precision, autocast
from regtune.progress import steps
from regtune.training.batches import BatchOrder
from regtune.training.checkpoints import STATE, CheckpointStore, read_state, unwritten, write_state
from regtune.training.cpu_dropout import FastCpuDropout
from regtune.training.heap import TRIMMED_EVERY, keep_freed_memory, return_freed_memory
from regtune.training.parameter_groups import parameter_groups

Evaluate = Callable[[Any], Mapping[str, float]]
Claims = Callable[[Any], Sequence[Group]]
"""Parameters of a model that learn at rates of their own; asked when the optimiser is made."""
_LOST = re.compile(r"gloo|nccl|by peer|broken pipe|socket ?timeout", re.IGNORECASE)


class RegisterTrainer(Trainer):
    """`transformers.Trainer` with regtune's batches, parameter groups, precision, evaluation and checkpoints."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        config: TrainConfig,
        order: BatchOrder,
        precision: Precision,
        store: CheckpointStore,
        run_evaluation: Evaluate | None,
        claims: Claims,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.config = config
        self.order = order
        self.precision = precision
        self.run_evaluation = run_evaluation
        self.store = store
        self.claims = claims
        self.rates: dict[str, float] = {}
        """Learning rate of each parameter group in the step that runs."""
        self.stopwatch = Stopwatch()

    @property
    def trained(self) -> Any:
        """The model inside any wrapper."""
        return self.model

    # What a step is

    def get_train_dataloader(self) -> DataLoader:
        """Batches in regtune's order, distributed over the processes by accelerate."""
        loader: DataLoader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=self.config.batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return cast("DataLoader", self.accelerator.prepare(loader))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over regtune's parameter groups."""
        if self.optimizer is None:
            groups = parameter_groups(model or self.trained, self.config, claimed=self.claims(self.trained))
            if not groups:
                raise ConfigError("Every parameter of the model is frozen, so there is nothing to train.")
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.trained)
            self.optimizer = cast("torch.optim.Optimizer", kind(groups, **options))
        return self.optimizer

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Autocast as regtune chose it, and affordable dropout; the model's own `forward` stays untouched."""
        stack = contextlib.ExitStack()
        stack.enter_context(autocast(self.args.device, self.precision))
        if self.args.device.type == "cpu":
            stack.enter_context(FastCpuDropout())
        return stack

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; a loss that is no number stops the run before it reaches the weights."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.require_finite("loss", float(loss), step=self.state.global_step + 1)
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss; a mask goes to models that take one, since images have none that hides anything."""
        self._set_signature_columns_if_needed()
        if "attention_mask" in inputs and "attention_mask" not in (self._signature_columns or ()):
            inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking all parameters in every step costs more than the number is worth."""
        return 0

    # What a log line is

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the registers' learning rate; a gradient that is no number stops the run before the next checkpoint."""
        if "loss" in logs:
            if "registers" in self.rates:
                logs["register_learning_rate"] = self.rates["registers"]
            self.require_finite("gradient norm", logs.get("grad_norm", 0.0), step=self.state.global_step)
        super().log(logs)

    def require_finite(self, what: str, value: float, *, step: int) -> None:
        """Raises TrainingError when a value is NaN or infinite."""
        if math.isfinite(value):
            return
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        rates = ", ".join(f"{group['name']} {group['lr']:.3g}" for group in groups)
        raise TrainingError(
            f"The {what} became {value} at step {step} of {self.state.max_steps} (learning rates: {rates}; precision "
            f"{self.precision}). Try a lower learning_rate or register_learning_rate, a longer warmup_ratio, a smaller "
            f"max_grad_norm, or precision=float32. {self.store.what_is_kept()}"
        )

    # Evaluation and checkpoints

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Runs the caller's evaluation without touching the random state that training goes on with."""
        assert self.run_evaluation is not None
        with self.stopwatch.paused(), preserved_random_state(), torch.no_grad():
            self.trained.eval()
            metrics = {name: float(value) for name, value in self.run_evaluation(self.trained).items()}
            self.trained.train()
        if self.args.metric_for_best_model not in (None, *metrics):
            raise ConfigError(
                f"choose={self.args.metric_for_best_model!r} is not among what evaluate returned: "
                f"{', '.join(sorted(metrics)) or 'nothing'}."
            )
        logged = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(dict(logged))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        seconds, step = self.stopwatch.seconds, self.state.global_step
        with self.stopwatch.paused():
            try:
                self._write_checkpoint(seconds)
            except (OSError, RuntimeError, SafetensorError) as error:
                self.store.discard(step)
                if partner_lost(error):
                    raise
                kept, needed = self.store.what_is_kept(), self.checkpoint_bytes()
                what = f"The checkpoint of step {step}"
                raise unwritten(what, self.store.path(step), error, kept, needed) from error

    def _write_checkpoint(self, seconds: float) -> None:
        step, best = self.state.global_step, self.state.best_global_step
        folder = str(self.store.unfinished(step, needed=self.checkpoint_bytes()))
        self.save_model(folder, _internal_call=True)
        self._save_optimizer_and_scheduler(folder)
        self._save_scaler(folder)
        self._save_rng_state(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(Path(folder, STATE)))
            self.store.seal(step, best_step=best, seconds=seconds)
            newest = self.store.steps()[-self.config.save_total_limit :]
            self.store.keep([*newest, step, *([best] if best is not None else [])])
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The weights and the config alone: no pickled arguments, and no card, since the model isn't finished."""
        if not self.args.should_save:
            return
        if not hasattr(self.trained, "peft_config"):
            type(self.trained).save_pretrained(self.trained, output_dir, state_dict=state_dict)
            return
        learnt = {name: p.detach().contiguous() for name, p in self.trained.named_parameters() if p.requires_grad}
        save_file(learnt, Path(str(output_dir), "model.safetensors"))  # the base stays as it is

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not hasattr(self.trained, "peft_config"):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        learnt = load_file(Path(resume_from_checkpoint, "model.safetensors"))
        missing = {n for n, p in self.trained.named_parameters() if p.requires_grad} ^ set(learnt)
        if missing:
            raise CheckpointError(f"{resume_from_checkpoint} was written by another method: it differs in {missing}.")
        self.trained.load_state_dict(learnt, strict=False)
        return None

    def _load_best_model(self) -> None:
        if hasattr(self.trained, "peft_config"):
            return self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        return super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            for name in ("optimizer", "lr_scheduler"):
                write_state(Path(output_dir, name), getattr(self, name).state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            for name in ("optimizer", "lr_scheduler"):
                getattr(self, name).load_state_dict(read_state(Path(checkpoint, name)))

    def _save_rng_state(self, output_dir: str) -> None:
        write_state(Path(output_dir, f"random_{self.args.process_index}"), _random_state())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "", f"random_{self.args.process_index}")
        if checkpoint is not None and path.with_name(f"{path.name}.json").is_file():  # more processes may have begun
            _set_random_state(read_state(path))

    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: the weights, and two moments for each that is trained."""
        parameters = list(self.trained.parameters())
        return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in parameters)

    def restore_finished(self, checkpoint: Path) -> None:
        """Takes over a run that had come to its end: its history and its last weights."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_from_checkpoint(str(checkpoint))

    def load_best(self) -> None:
        """Puts the best checkpoint's weights into the model; where none is chosen the last ones stay."""
        best = self.state.best_global_step
        if best is not None and best != self.state.global_step:
            self.state.best_model_checkpoint = str(self.store.path(best))
            self._load_best_model()

    def release(self) -> None:
        """Lets go of the optimiser and of what was wrapped around the model, so that both leave memory now."""
        self.model_wrapped = self.trained
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()


def partner_lost(error: BaseException) -> bool:
    """Whether torch says that another process of a distributed training can't be reached any more."""
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return several and (isinstance(error, DistError) or _LOST.search(str(error)) is not None)


class Stopwatch:
    """Training time in seconds, evaluations and checkpoints left out, interrupted parts of the run included."""

    def __init__(self) -> None:
        self.before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Training goes on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Training stands still."""
        self.before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Time so far."""
        return self.before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        self.stop()
        yield
        self.start()


class RunFlow(TrainerCallback):
    """Says when to evaluate and save, which epoch's order is due, and how far training has come."""

    def __init__(self, trainer: RegisterTrainer, *, steps_per_epoch: int) -> None:
        self.trainer = trainer
        self.steps_per_epoch = steps_per_epoch
        parts = trainer.config.evals_per_epoch
        self.due = {max(1, round(steps_per_epoch * part / parts)) for part in range(1, parts + 1)}
        self.inside = contextlib.ExitStack()
        self.tell: Callable[[int, str], None] = lambda *_: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock and the count of steps."""
        if args.device.type == "cpu":
            keep_freed_memory()
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
        """Asks for a log line, an evaluation and a checkpoint where they are due, and says how far it is."""
        if args.device.type == "cpu" and state.global_step % TRIMMED_EVERY == 0:
            return_freed_memory()
        within = (state.global_step - 1) % self.steps_per_epoch + 1
        if within in self.due or state.global_step >= state.max_steps:
            control.should_log = control.should_save = True
            control.should_evaluate = self.trainer.run_evaluation is not None
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        self.tell(state.global_step, "" if loss is None else f"loss {loss:.3f}")
        return control

    def close(self) -> None:
        """Stops the clock and the count, however training ended."""
        self.trainer.stopwatch.stop()
        self.inside.close()


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Gives Python's, numpy's and torch's random states back as they were."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)
