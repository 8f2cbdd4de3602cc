"""One run from its config to its record, on one page. It knows no task by name."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from regtune.config import DataConfig, RunConfig, TrainConfig, config_hash, to_dict
from regtune.errors import CheckpointError, ConfigError, DataError, shown
from regtune.interfaces import Examples, Floats, Group, Method, Rows, Stage, Task
from regtune.locks import RUN_LOCK, owned
from regtune.methods.used import Used, label_of, methods_of
from regtune.models.precision import best_device, resolve_precision
from regtune.progress import begin_stage, stages
from regtune.recipes import resolved, settings_of
from regtune.records import (
    AGAIN,
    CONFIG_FILE,
    CURVE_FILE,
    RUN_FILE,
    RunRecord,
    checksums,
    load_record,
    machine,
    now,
    read_typed,
    save_record,
    set_name,
    verify,
    versions,
    write_json,
)
from regtune.registers.card import write_card
from regtune.registers.surgery import backbone_of, register_parameters
from regtune.registry import TASKS
from regtune.session import MODEL_DIR, Session, SharedInputs
from regtune.stats.calibration import calibration
from regtune.sweeps.held_out import draw_share
from regtune.training.checkpoints import save_model
from regtune.training.fine_tune import TrainingResult, fine_tune
from regtune.training.parameter_groups import register_group
from regtune.training.trainer import Claims

STAGES = "stages"
"""Folder of a run in which stages before the main one keep their checkpoints."""


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set, cut into rows once and used at every evaluation."""

    given: str
    """As it was named."""
    name: str
    """Its short name in records."""
    examples: Examples
    rows: Rows[Any]


def run_experiment(config: RunConfig, *, progress: bool = True, inputs: SharedInputs | None = None) -> RunRecord:
    """Fine-tunes one model as configured, evaluates it on every evaluation set and records everything.

    A run that was killed continues from its newest checkpoint; a finished one is read, not run again.

    Args:
        config: the run.
        progress: say on standard error how far it is.
        inputs: examples and rows that several runs of this process share.

    Returns:
        The record that `run.json` in `config.output_dir` holds.

    Raises:
        CheckpointError: the run directory belongs to another config.
        ConfigError, DataError, TrainingError, UnsupportedModelError: as the parts that raise them say.
    """
    config, used = resolved(config), methods_of(config)
    count = 4 + len(with_own(used, "before")) + len(with_own(used, "stages")) + len(config.data.eval)
    with owned(config.output_dir, "regtune train"), stages(count, shown=progress):
        return _run(config, used, inputs or SharedInputs())


def _run(config: RunConfig, used: Sequence[Used], inputs: SharedInputs) -> RunRecord:
    began, started = time.perf_counter(), now()
    run_dir, training = config.output_dir, config.training
    fingerprint = config_hash(config)
    if open_run(run_dir, config):
        record = load_record(run_dir)
        verify(run_dir, record, "predictions/")
        return record
    refuse_same_names(config.data.eval)
    begin_stage(f"reading {', '.join(config.data.train)}")
    train = inputs.examples(config.data.train, config, training=True)
    begin_stage(f"opening {config.model}")
    session = build_session(config, inputs)
    model: Any = session.model
    begin_stage(f"tokenizing {len(train):,} examples, and {', '.join(config.data.eval)}")
    sets = _evaluation_sets(config, session, inputs)
    if training.checkpoint == "best":
        learnt, held = draw_share(train, session.reads, training.held_out, seed=training.data_seed)
        train_rows = session.rows(learnt, training=True)
        watched = EvaluationSet("held out", "held_out", held, session.rows(held))
    else:
        learnt, train_rows, watched = train, inputs.rows(train, session, training=True), sets[0]
    write_json(run_dir / CONFIG_FILE, placeless(config))  # only now: a mistyped path must not claim the directory
    for each in used:
        each.method.initialise(session, each.settings, train_rows)
    facts = before_training(session, used, learnt, run_dir)

    def evaluate(candidate: nn.Module) -> Mapping[str, float]:
        on = dataclasses.replace(session, model=candidate)
        return session.reads.figures(on.predict(watched.examples, watched.rows), watched.examples)

    def claims(of: nn.Module) -> list[Group]:
        own = [group for each in used for group in each.method.groups(of, each.settings, training)]
        return [*own, register_group(of, training)]  # a model may have come with registers

    look = _Looks(session, used, train_rows)
    look("start")
    for each in with_own(used, "stages"):
        begin_stage(f"training, {each.method.name} first")
        for stage in each.method.stages(session, each.settings, training):
            facts[stage.name] = run_stage(stage, session, train_rows, claims=claims, folder=run_dir)
            look(stage.name)
    begin_stage(f"training on {len(train_rows):,} rows, {training.epochs:g} epochs")
    result = fine_tune(
        model,
        train_rows,
        training,
        output_dir=run_dir,
        claims=claims,
        max_length=getattr(session.task_settings, "max_length", None),
        evaluate=evaluate,
        choose=session.reads.metrics[0] if training.checkpoint == "best" else None,
        fingerprint=fingerprint,
    )
    look("end")
    _drop(session, used)
    facts |= {name: {**facts.get(name, {}), "seen": moments} for name, moments in look.seen.items()}
    save_model(run_dir / MODEL_DIR, model, session.reader)
    metrics, files = evaluate_sets(session, sets, run_dir)
    write_json(run_dir / CURVE_FILE, list(result.curve))
    rule = _rule(session.reads, training, result, learnt, watched)
    record = RunRecord(
        config=to_dict(config),
        config_hash=fingerprint,
        metrics=metrics,
        training=_training_facts(result) | {"checkpoint": rule} | facts,
        data={"train": data_facts(train, train_rows)} | {s.name: data_facts(s.examples, s.rows) for s in sets},
        parameters=count_parameters(model),
        versions=versions(),
        machine=machine(),
        predictions=files,
        started=started,
        task=config.task,
        methods=[each.describe() for each in used],
        label=label_of(config),
        files=checksums(run_dir, [*_weights(run_dir), *files.values()]),
        seconds=round(time.perf_counter() - began, 2),
    )
    save_record(run_dir, record)
    write_card(run_dir / MODEL_DIR, model)
    if training.push_to_hub:
        backbone_of(model).config.name_or_path = str(run_dir / MODEL_DIR)  # where the card finds its record
        model.push_to_hub(training.push_to_hub)
        session.reader.push_to_hub(training.push_to_hub)
    return record


def _drop(session: Session, used: Sequence[Used]) -> None:
    """Takes off what was there for training alone."""
    for each in used:
        if each.method.dropped:
            session.attached[each.method.name].detach()


class _Looks:
    """What methods look at while they train, moment by moment."""

    def __init__(self, session: Session, used: Sequence[Used], rows: Rows[Any]) -> None:
        made = {each.method.name: each.method.watch(session, each.settings, rows) for each in used}
        self.watches = {name: watch for name, watch in made.items() if watch is not None}
        self.seen: dict[str, dict[str, Any]] = {name: {} for name in self.watches}

    def __call__(self, moment: str) -> None:
        for name, watch in self.watches.items():
            self.seen[name][moment] = watch()


def before_training(
    session: Session, used: Sequence[Used], examples: Examples, folder: Path
) -> dict[str, Mapping[str, Any]]:
    """What methods learn without labels, and by the method's name what the record says of it."""
    facts: dict[str, Mapping[str, Any]] = {}
    for each in with_own(used, "before"):
        begin_stage(f"before training: {each.method.title}")
        found = each.method.before(session, each.settings, examples, folder)
        if found is not None:
            facts[each.method.name] = found
    return facts


def with_own(used: Sequence[Used], part: str) -> list[Used]:
    """The methods that have a `before`, or `stages`, of their own."""
    return [each for each in used if getattr(type(each.method), part) is not getattr(Method, part)]


def run_stage(stage: Stage, session: Session, rows: Rows[Any], *, claims: Claims, folder: Path) -> dict[str, Any]:
    """A stage of training before the main one, in its own folder; it goes on after a kill."""
    config = session.config
    training = dataclasses.replace(config.training, epochs=stage.epochs, learning_rate=stage.learning_rate)
    waiting = [p for name, p in session.model.named_parameters() if p.requires_grad and not stage.learns(name, p)]
    for parameter in waiting:
        parameter.requires_grad_(False)
    try:
        result = fine_tune(
            session.model,
            rows,
            training,
            output_dir=folder / STAGES / stage.name,
            max_length=getattr(session.task_settings, "max_length", None),
            claims=claims,
            fingerprint=f"{config_hash(config)}-{stage.name}",
        )
    finally:
        for parameter in waiting:
            parameter.requires_grad_(True)
    return {"steps": result.steps, "seconds": result.seconds, "curve": list(result.curve)}


def _weights(run_dir: Path) -> list[str]:
    files = sorted((run_dir / MODEL_DIR).glob("*.safetensors"))
    return [file.relative_to(run_dir).as_posix() for file in files]


def _rule(
    task: Task, training: TrainConfig, result: TrainingResult, learnt: Examples, watched: EvaluationSet
) -> dict[str, Any]:
    """Which weights were kept, and by what."""
    if training.checkpoint == "last":
        return {"rule": "last", "step": result.steps}
    return {
        "rule": "best",
        "step": result.best_step,
        "metric": task.metrics[0].name,
        "on": "examples held out of the training data",
        "held_out": len(watched.examples),
        "trained_on": len(learnt),
    }


def open_run(run_dir: Path, config: RunConfig) -> bool:
    """Whether a run directory holds this config's finished run; an unfinished one or a new one is fine, too."""
    path = run_dir / CONFIG_FILE
    if path.is_file():
        found = read_typed(path, dict[str, Any], remedy=AGAIN, wrong=CheckpointError)
        different = sorted(_differences(found, placeless(config)))
        if different:
            raise CheckpointError(
                f"{run_dir} holds a run of another config; different: {', '.join(different)}. "
                "Choose another --output-dir, or remove that folder."
            )
    elif run_dir.exists() and any(not path.name.startswith(RUN_LOCK) for path in run_dir.iterdir()):
        raise CheckpointError(f"{run_dir} is not empty and is no run directory. Choose another --output-dir.")
    return (run_dir / RUN_FILE).is_file()


def placeless(config: RunConfig) -> dict[str, Any]:
    """What `config.json` in a run directory says: every setting but the place."""
    return to_dict(dataclasses.replace(config, output_dir=Path(".")))


def refuse_same_names(names: Sequence[str]) -> None:
    """Refuses evaluation sets that a record could not tell apart."""
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
        return [] if old == new else [f"{prefix or 'all'} ({shown(old)} there, {shown(new)} now)"]
    found: list[str] = []
    for key in old.keys() | new.keys():
        found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found


def build_session(config: RunConfig, inputs: SharedInputs | None = None) -> Session:
    """The model with its registers, on the best device, as the run starts to train it.

    The head is made before the registers, so runs that differ in N alone start from the same head.
    """
    from transformers import set_seed

    inputs = inputs or SharedInputs()
    task: Task = TASKS.get(config.task)
    used = methods_of(config)
    facts = task.prepare(inputs.examples(config.data.train, config, training=True), settings_of(config))
    set_seed(config.training.seed)
    session = inputs.start(config, facts)
    for each in used:
        session.attached[each.method.name] = each.method.attach(session, each.settings)
    limit = session.text_limit
    if limit is not None and config.data.max_length > limit:
        raise ConfigError(
            f"data.max_length={config.data.max_length} is more than the {limit} text tokens that {config.model} has "
            f"positions for beside {config.registers.num_registers} registers. Set --data.max-length {limit} or less."
        )
    session.model.to(best_device())
    session.precision = resolve_precision(config.training.precision, session.device)
    return session


def evaluation_set(name: str, session: Session, inputs: SharedInputs) -> EvaluationSet:
    """Reads one evaluation set and cuts it into rows."""
    examples = inputs.examples([name], session.config, training=False)
    return EvaluationSet(name, set_name(name), examples, inputs.rows(examples, session))


def _evaluation_sets(config: RunConfig, session: Session, inputs: SharedInputs) -> list[EvaluationSet]:
    """Those of a run; where one that nobody named can't be used, the error says that it is the default."""
    try:
        return [evaluation_set(name, session, inputs) for name in config.data.eval]
    except DataError as error:
        if config.data.eval != DataConfig.eval or config.data.train == DataConfig.train:
            raise
        default = ", ".join(DataConfig.eval)
        raise DataError(f"{error} No evaluation set was named, so it is {default}: set data.eval.") from error


def evaluate_sets(
    session: Session, sets: Sequence[EvaluationSet], folder: Path
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Figures of each set and its calibration, and files under `predictions/` with each prediction and its scores."""
    metrics: dict[str, dict[str, float]] = {}
    files: dict[str, str] = {}
    for part in sets:
        begin_stage(f"predicting {len(part.examples):,} examples of {part.name}")
        predictions = session.predict(part.examples, part.rows)
        columns: Mapping[str, Floats] = session.reads.score(predictions, part.examples)
        metrics[part.name] = session.reads.figures(predictions, part.examples)
        metrics[part.name] |= calibration(session.reads.choices(predictions, part.examples))
        file = Path("predictions") / f"{part.name}.json.gz"
        rows = [
            prediction.to_json() | {name: float(column[index]) for name, column in columns.items()}
            for index, prediction in enumerate(predictions)
        ]
        write_json(folder / file, rows)
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


def data_facts(examples: Examples, rows: Rows[Any]) -> dict[str, Any]:
    """The account of a set for a record: what was read, left out and cut, with `lines` that say it to a person."""
    counts = {"examples": len(examples), "rows": len(rows)}
    return counts | dict(examples.facts) | dict(rows.facts) | {"lines": [*examples.notes, *rows.notes]}


def data_lines(data: Mapping[str, Any]) -> list[str]:
    """What a record's `data` has to say to a person, a line each behind the name of its set."""
    return [f"{name}: {line}" for name, facts in data.items() for line in facts.get("lines", ())]
