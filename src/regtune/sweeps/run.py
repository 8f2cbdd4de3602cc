"""One run from its config to its record, on one page."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from regtune.config import RunConfig, config_hash, to_dict
from regtune.errors import CheckpointError, ConfigError
from regtune.methods.used import methods_of
from regtune.methods.warm_up import WarmUpSettings, warm_up
from regtune.models.precision import best_device, device_of, resolve_precision
from regtune.records import (
    CONFIG_FILE,
    CURVE_FILE,
    RUN_FILE,
    RunRecord,
    load_record,
    machine,
    now,
    read_json,
    save_record,
    versions,
    write_json,
)
from regtune.registers.surgery import (
    max_text_length,
    register_parameters,
)
from regtune.session import Session
from regtune.sweeps.grid import set_name
from regtune.sweeps.shared_inputs import SharedInputs, tokenise
from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.data.squad import SquadData
from regtune.tasks.qa.metrics.qa_metrics import QuestionScores
from regtune.tasks.qa.metrics.scoring import score_set
from regtune.tasks.qa.predict import answer_questions
from regtune.tasks.qa.windows import WindowSet
from regtune.training.checkpoints import save_model
from regtune.training.fine_tune import TrainingResult, fine_tune

MODEL_DIR = "model"


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set, tokenised once and used at every evaluation."""

    given: str
    """As it was named for `load_questions`."""
    name: str
    """Its short name in records."""
    data: SquadData
    windows: WindowSet


def run_experiment(config: RunConfig, *, progress: bool = True, inputs: SharedInputs | None = None) -> RunRecord:
    """Fine-tunes one model as configured, evaluates it on every evaluation set and records everything.

    A run that was killed continues from its newest checkpoint; a finished one is read, not run again.

    Args:
        config: the run.
        progress: show progress bars.
        inputs: tokenised data and base weights that several runs of this process share.

    Returns:
        The record that `run.json` in `config.output_dir` holds.

    Raises:
        CheckpointError: the run directory belongs to another config.
        ConfigError, DataError, TrainingError, UnsupportedModelError: as the parts that raise them say.
    """
    began, started = time.perf_counter(), now()
    run_dir = config.output_dir
    fingerprint = config_hash(config)
    if open_run(run_dir, config):
        return load_record(run_dir)
    refuse_same_names(config.data.eval)
    inputs = inputs or SharedInputs()
    model, tokenizer = build_model(config, inputs)
    train, train_windows = inputs.questions(config.data.train, config, model, for_training=True)
    sets = [
        EvaluationSet(name, set_name(name), *inputs.questions([name], config, model, for_training=False))
        for name in config.data.eval
    ]
    write_json(run_dir / CONFIG_FILE, resolved(config))  # only now: a mistyped path must not claim the directory
    texts = [example.context for example in train.examples]
    warmed = None
    for used in methods_of(config):
        if isinstance(used.settings, WarmUpSettings):
            warmed = warm_up(model, texts, tokenizer, settings=used.settings, config=config, folder=run_dir)

    def evaluate(candidate: nn.Module) -> Mapping[str, float]:
        predictions = predict(candidate, sets[0], tokenizer, config, progress=progress)
        return score(predictions, sets[0], config)[1]

    result = fine_tune(
        model,
        train_windows.windows,
        config.training,
        output_dir=run_dir,
        pad_token_id=tokenizer.pad_token_id,
        max_length=config.data.max_length,
        evaluate=evaluate,
        fingerprint=fingerprint,
    )
    save_model(run_dir / MODEL_DIR, model, tokenizer)
    metrics, files = evaluate_sets(model, sets, tokenizer, config, run_dir, progress=progress)
    write_json(run_dir / CURVE_FILE, list(result.curve))
    record = RunRecord(
        config=to_dict(config),
        config_hash=fingerprint,
        metrics=metrics,
        training=_training_facts(result) | ({"warm_up": warmed} if warmed else {}),
        data={"train": data_facts(train, train_windows)} | {s.name: data_facts(s.data, s.windows) for s in sets},
        parameters=count_parameters(model),
        versions=versions(),
        machine=machine(),
        predictions=files,
        started=started,
        seconds=round(time.perf_counter() - began, 2),
    )
    save_record(run_dir, record)
    if config.training.push_to_hub:
        model.push_to_hub(config.training.push_to_hub)
        tokenizer.push_to_hub(config.training.push_to_hub)
    return record


def open_run(run_dir: Path, config: RunConfig) -> bool:
    """Whether a run directory holds this config's finished run; an unfinished one or a new one is fine, too.

    Raises:
        CheckpointError: it belongs to another config.
    """
    path = run_dir / CONFIG_FILE
    if path.is_file():
        found = read_json(path)
        different = sorted(_differences(found, resolved(config)))
        if different:
            raise CheckpointError(
                f"{run_dir} holds a run of another config; different: {', '.join(different)}. "
                "Choose another --output-dir, or remove that folder."
            )
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise CheckpointError(f"{run_dir} is not empty and is no run directory. Choose another --output-dir.")
    return (run_dir / RUN_FILE).is_file()


def resolved(config: RunConfig) -> dict[str, Any]:
    """What `config.json` in a run directory says: every setting but the place."""
    return to_dict(dataclasses.replace(config, output_dir=Path(".")))


def refuse_same_names(names: Sequence[str]) -> None:
    """Refuses evaluation sets that a record could not tell apart.

    Raises:
        ConfigError: two of them have the same short name.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(set_name(name), name)
        if other != name:
            raise ConfigError(
                f"{other!r} and {name!r} would both be recorded as {set_name(name)!r}. Rename a file, or evaluate them "
                "one after the other."
            )


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{prefix or 'all'} ({old!r} there, {new!r} now)"]
    found: list[str] = []
    for key in old.keys() | new.keys():
        found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found


def build_model(config: RunConfig, inputs: SharedInputs | None = None) -> tuple[Any, Any]:
    """The model with its registers, on the best device, and its tokenizer.

    The head is made before the registers, so runs that differ in N alone start from the same head.
    """
    from transformers import set_seed

    inputs = inputs or SharedInputs()
    tokenizer = inputs.tokenizer(config)
    set_seed(config.training.seed)
    model = inputs.model(config)
    session = Session(name=config.model, model=model, reader=tokenizer)
    for used in methods_of(config):
        used.method.attach(session, used.settings)
    limit = max_text_length(model)
    if limit is not None and config.data.max_length > limit:
        raise ConfigError(
            f"data.max_length={config.data.max_length} is more than the {limit} text tokens that {config.model} has "
            f"positions for beside {config.registers.num_registers} registers. Set --data.max-length {limit} or less."
        )
    return model.to(best_device()), tokenizer


def load_evaluation_set(name: str, tokenizer: Any, model: nn.Module, config: RunConfig) -> EvaluationSet:
    """Reads and tokenises one evaluation set; settings are called as `regtune evaluate` has them."""
    data = load_questions(
        [name],
        on_bad_record=config.data.on_bad_record,
        max_examples=config.data.max_eval_examples,
        for_training=False,
    )
    flags = {key: f"--{key.replace('_', '-')}" for key in ("max_length", "stride", "max_question_length")}
    windows = tokenise(data, tokenizer, model, config, for_training=False, called=flags)
    return EvaluationSet(name, set_name(name), data, windows)


def predict(
    model: nn.Module, part: EvaluationSet, tokenizer: Any, config: RunConfig, *, progress: bool = False
) -> list[Prediction]:
    """The model's answers to an evaluation set, in the precision it was trained in."""
    return answer_questions(
        model,
        part.windows.windows,
        part.data.examples,
        config=config.answers,
        pad_token_id=tokenizer.pad_token_id,
        precision=resolve_precision(config.training.precision, device_of(model)),
        progress=progress,
    )


def score(
    predictions: Sequence[Prediction], part: EvaluationSet, config: RunConfig
) -> tuple[QuestionScores, dict[str, float]]:
    """Each question's scores and the set's figures, by the official rules of its kind (`score_set`)."""
    threshold = config.answers.null_threshold
    return score_set(part.given, predictions, part.data.examples, null_threshold=threshold)


def evaluate_sets(
    model: nn.Module,
    sets: Sequence[EvaluationSet],
    tokenizer: Any,
    config: RunConfig,
    run_dir: Path,
    *,
    progress: bool = False,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Metrics of each set, and the files under `predictions/` with every question's n-best and scores."""
    metrics: dict[str, dict[str, float]] = {}
    files: dict[str, str] = {}
    for part in sets:
        predictions = predict(model, part, tokenizer, config, progress=progress)
        scores, metrics[part.name] = score(predictions, part, config)
        file = Path("predictions") / f"{part.name}.json.gz"
        rows = [
            prediction.to_json() | {"exact_match": float(em), "f1": float(f1)}
            for prediction, em, f1 in zip(predictions, scores.exact_match, scores.f1, strict=True)
        ]
        write_json(run_dir / file, rows)
        files[part.name] = file.as_posix()
    return metrics, files


def count_parameters(model: nn.Module) -> dict[str, int]:
    """All parameters, the trainable ones and the registers'."""
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "registers": sum(p.numel() for p in register_parameters(model)),
    }


def _training_facts(result: TrainingResult) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "curve"}


def data_facts(data: SquadData, windows: WindowSet) -> dict[str, Any]:
    """The account of a set for a record: what was read, left out, mended, converted and cut, with `lines` to print."""
    return data.facts | windows.accounting | {"lines": [*data.lines, *windows.lines]}


def data_lines(data: Mapping[str, Any]) -> list[str]:
    """What a record's `data` has to say to a person, a line each behind the name of its set."""
    return [f"{name}: {line}" for name, facts in data.items() for line in facts.get("lines", ())]
