"""Scoring a model that exists on any evaluation sets, by language."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regtune.config import RunConfig, to_dict
from regtune.locks import owned
from regtune.models.precision import resolve_precision
from regtune.progress import begin_stage, stages
from regtune.records import now, versions, write_json
from regtune.registry import TASKS
from regtune.session import Session, SharedInputs, Target, fitted, open_target, settings_of
from regtune.session import open as open_session
from regtune.sweeps.scored import faults
from regtune.tables import Table

EVALUATION_FILE = "evaluation.json"
_COLUMNS = {
    "exact_match": "EM",
    "f1": "F1",
    "HasAns_exact": "HasAns EM",
    "HasAns_f1": "HasAns F1",
    "NoAns_exact": "NoAns EM",
    "NoAns_f1": "NoAns F1",
    "best_exact": "best EM",
    "best_f1": "best F1",
}
"""Metrics that the table shows where a set has them, all ratios in [0, 1] (shown in percent)."""


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """One evaluation set's scores; `language` is empty where unknown."""

    name: str
    data: str
    """The name or file that was given."""
    language: str
    questions: int
    """Scored questions."""
    metrics: dict[str, float]
    predictions: str
    """The file with every question's n-best, relative to the evaluation's folder."""
    account: dict[str, Any] = field(default_factory=dict)
    """How many questions were read, left out, mended, converted and cut, and which; `lines` say it in words."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found and wrote."""

    model: str
    settings: dict[str, Any]
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
    """Scores a run's model, or any question-answering model, on evaluation sets.

    Args:
        name: a run directory, a folder or a hub name.
        data: SQuAD-format files or names like `xquad:de`; the config's evaluation sets if none are given.
        config: how to cut windows and pick answers; by default the run's own settings, but long questions are cut.
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
    config = config or _that_stops_at_no_question(target.config)
    names = tuple(data) or config.data.eval
    refuse_same_names(names)
    folder = output_dir or (target.run_dir / "evaluation" if target.run_dir else Path("runs/evaluation"))
    with owned(folder, "regtune evaluate"):
        with stages(2 + len(names), shown=progress):
            begin_stage(f"opening {name}")
            session = _open(target, config)
            languages = {each: session.reads.language(each) for each in names}
            inputs = SharedInputs()
            begin_stage(f"reading and tokenizing {', '.join(names)}")
            parts = {each: evaluation_set(each, session, inputs) for each in names}
            metrics, files = evaluate_sets(session, list(parts.values()), folder)
        config = session.config
        sets = tuple(
            SetScores(
                name=part.name,
                data=each,
                language=languages[each],
                questions=len(part.examples),
                metrics=metrics[part.name],
                predictions=files[part.name],
                account=data_facts(part.examples, part.rows),
            )
            for each, part in parts.items()
        )
        settings = {key: value for key, value in to_dict(config).items() if key in ("data", "answers")}
        settings["data"] = {
            k: v for k, v in settings["data"].items() if k not in ("train", "eval", "max_train_examples")
        }
        found = Evaluation(
            model=target.model,
            settings=settings,
            sets=sets,
            averages=language_averages(sets, [metric.name for metric in session.reads.metrics]),
            versions=versions(),
            finished=now(),
            notes=tuple(faults(target.run_dir, target.record)) if target.run_dir and target.record else (),
        )
        return found, write_json(folder / EVALUATION_FILE, dataclasses.asdict(found))


def _open(target: Target, config: RunConfig) -> Session:
    """The session of a model under other settings than its own, cut to what it has positions for."""
    known = config.task if target.record is not None else None
    session = open_session(target.name, task=known, attention=config.training.attention)
    if session.task is None:
        session = open_session(target.name, task=config.task)  # says that there is no head for it
    session.task_settings = fitted(settings_of(config, session.reads), session)
    config = dataclasses.replace(config, task=session.reads.name)
    names = [each.name for each in dataclasses.fields(config.data) if hasattr(session.task_settings, each.name)]
    used: dict[str, Any] = {name: getattr(session.task_settings, name) for name in names}
    session.config = dataclasses.replace(config, data=dataclasses.replace(config.data, **used))
    session.called = "--{}"
    session.precision = resolve_precision(config.training.precision, session.device)
    return session


def _that_stops_at_no_question(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, on_long_question="truncate"))


def language_averages(
    sets: Sequence[SetScores], metrics: Sequence[str] = ("exact_match", "f1")
) -> dict[str, dict[str, float]]:
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
    """The table that a person reads, ratios in percent, and below it what was left out, mended, converted or cut."""
    titles = titles_of() | _COLUMNS
    columns = [key for key in titles if any(key in part.metrics for part in found.sets)]
    rows = [(part.name, part.language or "?", _of(part), *_cells(part.metrics, columns)) for part in found.sets]
    rows += [(f"mean, {name}", "", "", *_cells(metrics, columns)) for name, metrics in found.averages.items()]
    notes = [f"{part.name}: {line}" for part in found.sets for line in part.account.get("lines", ())]
    notes += [f"The run's own record: {note}" for note in found.notes]
    head = ("set", "language", "questions", *(titles[key] for key in columns))
    return Table(columns=head, rows=tuple(rows), notes=tuple(notes)).text


def _of(part: SetScores) -> str:
    """Scored questions, of how many where some are missing."""
    read = part.account.get("questions_read", part.questions)
    return f"{part.questions} of {read}" if read > part.questions else str(part.questions)


def titles_of() -> dict[str, str]:
    """Every metric's title by its name."""
    return {metric.name: metric.title for task in TASKS for metric in TASKS.get(task).metrics}


def _cells(metrics: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    return [f"{100 * metrics[key]:.1f}" if key in metrics else "" for key in columns]
