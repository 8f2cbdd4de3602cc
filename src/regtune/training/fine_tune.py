"""The one entry to training: `fine_tune` runs `transformers.Trainer` and leaves the model trained."""

from __future__ import annotations

import atexit
import contextlib
import math
import pickle
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from regtune.config import TrainConfig
from regtune.errors import CheckpointError, TrainingError
from regtune.interfaces import Metric, Rows
from regtune.models.loading import quiet_transformers
from regtune.models.precision import has_bfloat16, resolve_precision
from regtune.registers.surgery import find_decoder_registers, num_registers
from regtune.training.batches import BatchOrder, Collator, check_rows
from regtune.training.checkpoints import Checkpoint, CheckpointStore
from regtune.training.cpu_dropout import recomputed_alike
from regtune.training.parameter_groups import register_group
from regtune.training.trainer import Claims, Evaluate, RegisterTrainer, RunFlow, partner_lost

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training run did; the weights are in the model that was given."""

    steps: int
    epochs: float
    seconds: float
    """Training time in seconds, evaluations and checkpoints left out; interrupted parts are counted."""
    text_tokens: int
    """Tokens trained on: padding and registers are not counted."""
    tokens_per_second: float
    curve: list[dict[str, int | float]]
    """Per logged step: step, epoch, loss, learning_rate, register_learning_rate, grad_norm, and metrics where known."""
    best_step: int | None
    best_metrics: dict[str, float]
    peak_memory_bytes: int
    resumed_from: int | None
    device: str
    precision: str
    warnings: list[str] = field(default_factory=list)


def fine_tune(
    model: Any,
    rows: Rows[Any],
    config: TrainConfig,
    *,
    output_dir: Path,
    max_length: int | None,
    evaluate: Evaluate | None = None,
    choose: Metric | None = None,
    claims: Claims | None = None,
    fingerprint: str,
) -> TrainingResult:
    """Fine-tunes a model in place and leaves the last weights in it, or those of the checkpoint that scored best.

    A run that was killed continues from its newest complete checkpoint when called again with the same arguments, and
    ends with the same weights as one that was never killed. Under torchrun or accelerate every process calls this.

    Args:
        model: a Hugging Face model (or one inside peft's) whose head gives a loss for the rows' labels.
        rows: what to train on; labels count the text's own positions.
        config: how to train.
        output_dir: the run directory; checkpoints go to its `checkpoints` folder.
        max_length: longest row in text positions; None where rows have the length that the model reads.
        evaluate: scores the model (in evaluation mode, no autocast) and returns named numbers; None trains without.
        choose: which of these chooses the checkpoint; None keeps the last weights. Never choose on a set that is
            reported afterwards.
        claims: which parameters learn at rates of their own; by default the registers, at `register_learning_rate`.
        fingerprint: identifies the configuration; a folder with another one is refused.

    Raises:
        DataError: no rows, or one that is too long.
        CheckpointError: `output_dir` belongs to another configuration.
        TrainingError: NaN, full disk, out of memory or another process gone; the message says what to try.
    """
    check_rows(rows, max_length)
    store = CheckpointStore(output_dir / "checkpoints", fingerprint=fingerprint)
    arguments = _arguments(config, store.root, choose)
    said = f"batch_size={config.batch_size}, max_length={max_length}, num_registers={num_registers(model)}"
    of_decoder = find_decoder_registers(model)
    said += f", decoder_registers={of_decoder.num_registers}" if of_decoder is not None else ""
    with quiet_transformers(), _explained(arguments, store, said), _prepared(model, config, arguments.device):
        with arguments.main_process_first(local=False):
            store.open()
        checkpoint = store.newest()
        notes = list(store.skipped)
        precision = resolve_precision(config.precision, arguments.device)
        if precision == "bfloat16" and not has_bfloat16(arguments.device):
            notes.append(f"precision=bfloat16 is only emulated on this {arguments.device.type}; try float32 here.")
        step_rows = config.batch_size * config.gradient_accumulation_steps * arguments.world_size
        steps_per_epoch = math.ceil(len(rows) / step_rows)
        grouped = config.batching == "length_grouped"
        order = BatchOrder(rows.lengths, step_rows, data_seed=config.data_seed, group=grouped)
        trainer = RegisterTrainer(
            model,
            arguments,
            config=config,
            order=order,
            precision=precision,
            run_evaluation=evaluate,
            claims=claims or (lambda of: [register_group(of, config)]),
            store=store,
            train_dataset=range(len(rows)),
            data_collator=Collator(rows, order.padded.tolist() if grouped else [max_length] if max_length else ()),
        )
        flow = RunFlow(trainer, steps_per_epoch=steps_per_epoch)
        trainer.add_callback(flow)
        trainer.stopwatch.before = checkpoint.seconds if checkpoint else 0.0
        try:
            if checkpoint is not None and checkpoint.step >= math.ceil(config.epochs * steps_per_epoch):
                trainer.restore_finished(store.path(checkpoint.step))
            else:
                trainer.train(resume_from_checkpoint=str(store.path(checkpoint.step)) if checkpoint else None)
        finally:
            flow.close()
        trainer.load_best()
        trainer.release()
    return _result(trainer, checkpoint, notes)


@contextlib.contextmanager
def _prepared(model: Any, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Switches the model to the attention and memory settings of the run; afterwards it is ready for inference."""
    if config.attention != "auto":
        model.set_attn_implementation(config.attention)
    use_cache = getattr(model.config, "use_cache", None)
    if config.gradient_checkpointing:
        on_cpu = device.type == "cpu"
        model.activation_checkpointing_enable(
            {"use_reentrant": False, **({"context_fn": recomputed_alike} if on_cpu else {})}
        )
    try:
        yield
    finally:
        if config.gradient_checkpointing:
            model.activation_checkpointing_disable()
        if use_cache is None:
            model.config.__dict__.pop("use_cache", None)
        else:
            model.config.use_cache = use_cache
        model.eval()


@contextlib.contextmanager
def _explained(arguments: TrainingArguments, store: CheckpointStore, said: str) -> Iterator[None]:
    """Turns what torch raises into a sentence for a person: no memory, another process gone, a checkpoint with code."""
    try:
        yield
    except TrainingError:
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise TrainingError(
                f"Out of memory on {arguments.device} with {said}. Try a smaller batch_size with more "
                f"gradient_accumulation_steps, or gradient_checkpointing=true. {store.what_is_kept()}"
            ) from error
        if partner_lost(error):
            raise TrainingError(
                f"Process {arguments.process_index} of {arguments.world_size} (counted from 0) can't reach another one "
                "any more and stops: that one was killed, ran out of memory or failed, which its own output tells. "
                "Start the same command again, in all processes: it continues from the last checkpoint. "
                f"{store.what_is_kept()}"
            ) from error
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"A checkpoint in {store.root} holds more than numbers and is not loaded, because a pickle can run "
            f"any code. Delete that folder to start afresh. ({str(error).splitlines()[0]})"
        ) from error


def _arguments(config: TrainConfig, root: Path, choose: Metric | None) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(root),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.data_seed,
        logging_strategy="steps",
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=10**9,
        metric_for_best_model=None if choose is None else choose.name,
        greater_is_better=None if choose is None else choose.higher_is_better,
        include_num_input_tokens_seen="non_padding",
        optim="adamw_torch_fused",
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # nn.DataParallel would copy the modules without their hooks
    if arguments.world_size > 1:
        atexit.register(_leave_process_group)  # without it torch aborts processes that end
    return arguments


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _result(trainer: RegisterTrainer, checkpoint: Checkpoint | None, notes: list[str]) -> TrainingResult:
    state = trainer.state
    curve = _curve(state.log_history)
    best = state.best_global_step
    chosen = next((point for point in curve if point["step"] == best), {})
    known = {key.removeprefix("eval_") for entry in state.log_history for key in entry if key.startswith("eval_")}
    seconds = trainer.stopwatch.seconds
    return TrainingResult(
        steps=state.global_step,
        epochs=state.epoch or 0.0,
        seconds=seconds,
        text_tokens=int(state.num_input_tokens_seen),
        tokens_per_second=state.num_input_tokens_seen / max(seconds, 1e-9),
        curve=curve,
        best_step=best,
        best_metrics={key: value for key, value in chosen.items() if key in known},
        peak_memory_bytes=_peak_memory(trainer.args.device),
        resumed_from=checkpoint.step if checkpoint else None,
        device=str(trainer.args.device),
        precision=trainer.precision,
        warnings=notes,
    )


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, int | float]]:
    """Log lines of one step joined to one point."""
    points: dict[int, dict[str, int | float]] = {}
    wanted = ("epoch", "loss", "learning_rate", "register_learning_rate", "grad_norm")
    for entry in history:
        found = {
            key.removeprefix("eval_"): float(v) for key, v in entry.items() if key in wanted or key.startswith("eval_")
        }
        if len(found) > 1:
            points.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    return [points[step] for step in sorted(points)]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # it has no `resource` module
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
