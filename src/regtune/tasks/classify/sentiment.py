"""A small sentiment classifier to measure explanations on: MiniLM with N registers, fine-tuned on SST-2 in minutes.

Trained like regtune's question-answering models (`RegisterTrainer`: parameter groups, affordable dropout, bfloat16
where the processor has it, batches of similar length). No checkpoint is chosen: the last weights count, so that dev
accuracy is not what selected them. A cell is one (N, seed); a finished one is read, an interrupted one starts again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from regtune.analyses.faithfulness.inputs import SENTIMENT_FILE
from regtune.config import RegisterConfig, TrainConfig, config_hash, to_dict
from regtune.errors import CheckpointError, ConfigError
from regtune.models.loading import load_tokenizer, quiet_transformers, resolve_model
from regtune.models.precision import resolve_precision
from regtune.records import machine, now, read_json, versions, write_json
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import add_registers, register_positions
from regtune.session import MODEL_DIR
from regtune.tasks.classify.sentences import LABELS, Sentence, read_sentiment, sentiment_file
from regtune.tasks.classify.sentiment_batches import SentenceCollator, accuracy, coded_sentences
from regtune.training.batches import BatchOrder, length_multiple
from regtune.training.checkpoints import CheckpointStore, save_model
from regtune.training.memory import EVERY, return_freed_memory
from regtune.training.trainer import RegisterTrainer

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SentimentConfig:
    """How a sentiment classifier is made."""

    model: str = "minilm"
    """A hub name, a local folder, or `minilm`."""
    registers: RegisterConfig = field(default_factory=lambda: RegisterConfig(num_registers=0))
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=2.0, batch_size=32, learning_rate=2e-4, register_learning_rate=1e-2, warmup_ratio=0.1
        )
    )
    """`evals_per_epoch` and `save_total_limit` have no meaning here."""
    max_length: int = 128
    """Longest sentence in tokens; longer ones are cut."""
    max_steps: int | None = None
    """Stop after so many steps (a rehearsal)."""
    max_sentences: int | None = None
    """Use only the first so many sentences of each file (a rehearsal)."""

    def __post_init__(self) -> None:
        for name in ("max_length", "max_steps", "max_sentences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1.")


def train_sentiment(
    num_registers: int,
    seed: int,
    data_folder: str | Path,
    output_dir: str | Path,
    *,
    config: SentimentConfig | None = None,
) -> dict[str, Any]:
    """Trains one classifier and writes `model/` and, last of all, `sentiment.json` into its folder.

    Args:
        num_registers: N; 0 for none.
        seed: of new weights, dropout and the order of the sentences.
        data_folder: holds SST-2's files (`regtune.tasks.classify.sentences`).
        output_dir: the cell's folder.
        config: everything else; its number of registers and its seeds are replaced.

    Returns:
        The record: `metrics` (accuracy on dev and test), `config`, `training`, `data`, `versions`,
        `machine`, `seconds`.

    Raises:
        CheckpointError: the folder holds a cell of another config.
        DataError: SST-2's files are missing or broken.
        TrainingError: the loss is no number.
    """
    base = config or SentimentConfig()
    config = dataclasses.replace(
        base,
        registers=dataclasses.replace(base.registers, num_registers=num_registers),
        training=dataclasses.replace(base.training, seed=seed, data_seed=seed),
    )
    folder = Path(output_dir)
    finished = _finished(folder, config)
    if finished is not None:
        return finished
    began, started = time.perf_counter(), now()
    splits = {
        split: read_sentiment(sentiment_file(Path(data_folder), split))[: config.max_sentences]
        for split in ("train", "dev", "test")
    }
    model, tokenizer = build_classifier(config)
    facts = _train(model, tokenizer, splits["train"], config, folder)
    save_model(folder / MODEL_DIR, model, tokenizer)
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "sentiment",
        "num_registers": num_registers,
        "seed": seed,
        "config": to_dict(config),
        "config_hash": config_hash(config),
        "metrics": {
            split: {"accuracy": accuracy(model, tokenizer, splits[split], max_length=config.max_length)}
            for split in ("dev", "test")
        },
        "training": facts,
        "data": {split: len(sentences) for split, sentences in splits.items()},
        "versions": versions(),
        "machine": machine(),
        "started": started,
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_json(folder / SENTIMENT_FILE, record)
    return record


def build_classifier(config: SentimentConfig) -> tuple[Any, Any]:
    """The model with a new head and its registers, and its tokenizer; both drawn from the seed.

    Raises:
        CheckpointError: the model can't be loaded for classification.
    """
    from transformers import AutoModelForSequenceClassification

    attention = None if config.training.attention == "auto" else config.training.attention
    tokenizer = load_tokenizer(config.model, needs=("pad",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        try:
            with quiet_transformers():
                source = resolve_model(config.model)
                model: Any = from_pretrained(AutoModelForSequenceClassification, source, attn_implementation=attention)
        except ValueError as error:
            raise CheckpointError(f"{config.model} can't be loaded for classification: {error}") from error
        if model.config.num_labels != len(LABELS):
            raise CheckpointError(f"{config.model} has a head for {model.config.num_labels} classes; 2 are needed.")
        model.config.id2label = dict(enumerate(LABELS))
        model.config.label2id = {name: label for label, name in enumerate(LABELS)}
        ids = {"sep_token_id": tokenizer.sep_token_id, "mask_token_id": tokenizer.mask_token_id}
        add_registers(model, config.registers, **ids)
    return model, tokenizer


def _finished(folder: Path, config: SentimentConfig) -> dict[str, Any] | None:
    path = folder / SENTIMENT_FILE
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path)
    if record.get("config_hash") != config_hash(config) or record.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder} holds a classifier of another config (hash {record.get('config_hash')}, this one has "
            f"{config_hash(config)}). Choose another output_dir, or delete that folder."
        )
    return record


def _train(
    model: Any, tokenizer: Any, sentences: Sequence[Sentence], config: SentimentConfig, folder: Path
) -> dict[str, Any]:
    coded = coded_sentences(sentences, tokenizer, config.max_length - register_positions(model))
    arguments = _arguments(config, folder)
    order = BatchOrder(
        [len(one["input_ids"]) for one in coded],
        config.training.batch_size,
        data_seed=config.training.data_seed,
        group=config.training.batching == "length_grouped",
    )
    precision = resolve_precision(config.training.precision, arguments.device)
    with quiet_transformers():
        trainer = RegisterTrainer(
            model,
            arguments,
            config=config.training,
            order=order,
            precision=precision,
            store=CheckpointStore(folder / "checkpoints", fingerprint=config_hash(config)),
            run_evaluation=None,
            train_dataset=coded,
            data_collator=SentenceCollator(
                int(tokenizer.pad_token_id or 0), multiple_of=length_multiple(arguments.device)
            ),
        )
        trainer.add_callback(_EachEpoch(trainer))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "steps": trainer.state.global_step,
        "seconds": round(trainer.stopwatch.seconds, 2),
        "text_tokens": int(trainer.state.num_input_tokens_seen),
        "precision": precision,
        "losses": [round(float(loss), 5) for loss in losses],
    }
    trainer.release()
    model.eval()
    return facts


class _EachEpoch(TrainerCallback):
    """Chooses the order of the epoch that begins, and keeps time and memory."""

    def __init__(self, trainer: RegisterTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Starts the clock."""
        self.trainer.stopwatch.start()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Chooses the order."""
        self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Gives memory back that oneDNN keeps for lengths long gone."""
        if args.device.type == "cpu" and state.global_step % EVERY == 0:
            return_freed_memory()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stops the clock."""
        self.trainer.stopwatch.stop()


def _arguments(config: SentimentConfig, folder: Path) -> TrainingArguments:
    training, cuda = config.training, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=training.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=training.warmup_ratio,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        data_seed=training.data_seed,
        logging_strategy="steps",
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        include_num_input_tokens_seen="non_padding",
        optim="adamw_torch_fused",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
    )
