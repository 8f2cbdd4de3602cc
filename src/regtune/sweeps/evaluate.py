"""Scoring a model that exists on any evaluation sets, by language."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regtune.config import RunConfig, to_dict
from regtune.interfaces import Metric, Task
from regtune.locks import owned
from regtune.models.precision import resolve_precision
from regtune.progress import begin_stage, stages
from regtune.recipes import settings_of
from regtune.records import now, versions, write_json
from regtune.registry import TASKS
from regtune.rows.reading import language_of_set
from regtune.session import Session, SharedInputs, Target, open_target
from regtune.session import open as open_session
from regtune.stats.comparison import shown
from regtune.sweeps.scored import faults
from regtune.tables import Table

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """One evaluation set's scores; `language` is empty where unknown."""

    name: str
    data: str
    """The name or file that was given."""
    language: str
    examples: int
    """Scored ones."""
    metrics: dict[str, float]
    predictions: str
    """The file with every example's prediction, relative to the evaluation's folder."""
    account: dict[str, Any] = field(default_factory=dict)
    """How many examples were read, left out, mended, converted and cut, and which; `lines` say it in words."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found and wrote."""

    model: str
    task: str
    settings: dict[str, Any]
    """The task's."""
    sets: tuple[SetScores, ...]
    averages: dict[str, dict[str, float]] = field(default_factory=dict)
    """Means over sets of several languages: over all of them and, as TyDi QA reports, over the non-English ones."""
    versions: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    notes: tuple[str, ...] = ()
    """What is wrong with the run's own predictions and metrics."""


def evaluate(
    name: str,
    data: Sequence[str] = (),
    *,
    config: RunConfig | None = None,
    output_dir: Path | None = None,
    progress: bool = True,
) -> tuple[Evaluation, Path]:
    """Scores a run's model, or any model with a task's head, on evaluation sets.

    Args:
        name: a run directory, a folder or a hub name.
        data: what the task reads; the config's evaluation sets if none are given.
        config: settings of the task and the data; by default the run's own.
        output_dir: gets `evaluation.json` and `predictions/`; `evaluation` in the run directory, or `runs/evaluation`.
        progress: say on standard error how far it is.

    Returns:
        The scores, and the path of `evaluation.json`.

    Raises:
        CheckpointError: no such model, one without a head, or another process that evaluates into the folder.
        ConfigError: two sets with the same short name, or settings that don't fit the model.
        DataError: as reading the sets.
    """
    from regtune.sweeps.run import data_facts, evaluate_sets, evaluation_set, refuse_same_names

    target = open_target(name)
    config = config or target.config
    names = tuple(data) or config.data.eval
    refuse_same_names(names)
    folder = output_dir or (target.run_dir / "evaluation" if target.run_dir else Path("runs/evaluation"))
    with owned(folder, "regtune evaluate"):
        with stages(2 + len(names), shown=progress):
            begin_stage(f"opening {name}")
            session = _open(target, config)
            languages = {each: language_of_set(session.reads, each) for each in names}
            inputs = SharedInputs()
            begin_stage(f"reading and tokenizing {', '.join(names)}")
            parts = {each: evaluation_set(each, session, inputs) for each in names}
            metrics, files = evaluate_sets(session, list(parts.values()), folder)
        sets = tuple(
            SetScores(
                name=part.name,
                data=each,
                language=languages[each],
                examples=len(part.examples),
                metrics=metrics[part.name],
                predictions=files[part.name],
                account=data_facts(part.examples, part.rows),
            )
            for each, part in parts.items()
        )
        found = Evaluation(
            model=target.model,
            task=session.reads.name,
            settings=to_dict(session.task_settings) | {"max_examples": config.data.max_eval_examples},
            sets=sets,
            averages=language_averages(sets, [metric.name for metric in session.reads.metrics]),
            versions=versions(),
            finished=now(),
            notes=tuple(faults(target.run_dir, target.record)) if target.run_dir and target.record else (),
        )
        return found, write_json(folder / EVALUATION_FILE, dataclasses.asdict(found))


def _open(target: Target, config: RunConfig) -> Session:
    """The session of a model under other settings than its own, cut to what it has positions for."""
    task, attention = target.config.task, config.training.attention
    session = open_session(target.name, task=task, settings=settings_of(config, TASKS.get(task)), attention=attention)
    settings = config.settings if config.task == task else {}
    session.config = dataclasses.replace(config, task=task, settings=settings)
    session.flags = True
    session.precision = resolve_precision(config.training.precision, session.device)
    return session


def language_averages(sets: Sequence[SetScores], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics averaged over sets (each counts once, as in TyDi QA), where they have several languages."""
    known = [part for part in sets if part.language]
    if len({part.language for part in known}) < 2:
        return {}
    groups = {"all languages": known, "non-English": [part for part in known if part.language != "en"]}
    return {
        name: {metric: sum(part.metrics[metric] for part in group) / len(group) for metric in metrics}
        for name, group in groups.items()
    }


def evaluation_text(found: Evaluation) -> str:
    """The table that a person reads, and below it what was left out, mended, converted or cut."""
    task: Task = TASKS.get(found.task)
    every = [*task.metrics, *(Metric(name=name, title=title, columns=()) for name, title in task.titles.items())]
    columns = [metric for metric in every if any(metric.name in part.metrics for part in found.sets)]
    rows = [(part.name, part.language or "?", _of(part), *_cells(part.metrics, columns)) for part in found.sets]
    rows += [(f"mean, {name}", "", "", *_cells(metrics, columns)) for name, metrics in found.averages.items()]
    notes = [f"{part.name}: {line}" for part in found.sets for line in part.account.get("lines", ())]
    notes += [f"The run's own record: {note}" for note in found.notes]
    head = ("set", "language", task.examples, *(metric.title for metric in columns))
    return Table(columns=head, rows=tuple(rows), notes=tuple(notes)).text


def _of(part: SetScores) -> str:
    """Scored examples, of how many where some are missing."""
    read = part.account.get("read", part.examples)
    return f"{part.examples} of {read}" if read > part.examples else str(part.examples)


def _cells(metrics: Mapping[str, float], columns: Sequence[Metric]) -> list[str]:
    return [shown(metric, metrics[metric.name]) if metric.name in metrics else "" for metric in columns]
