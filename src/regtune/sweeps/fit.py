"""Five lines for two lists: `fit` writes them to a file and is `regtune train`; what comes back predicts.

Which fields of a record the lists are, and of a prediction the answer, a task says (`gold`, `guess`, `listed`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, ConfigError, DataError, shown
from regtune.interfaces import Block, Examples, Floats, ShownByBlocks, Task
from regtune.records import RunRecord, write_bytes
from regtune.registry import TASKS
from regtune.session import Session
from regtune.session import open as open_session
from regtune.sweeps.run import run_experiment
from regtune.tasks.labels import names_of

_TRAINING_TEXTS = "training_texts"
"""What the record calls the set: its scores are on what was learnt, and say nothing of other texts."""
_SCORED = 100
"""So many of the training texts are scored for the record."""
_LEFT = shutil.ignore_patterns("checkpoints", ".lock*")
"""What of a run isn't saved."""
FITTED_BY_DEFAULT = TrainConfig(epochs=5.0, learning_rate=2e-4, register_learning_rate=1e-2)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FittedModel(ShownByBlocks):
    """What `fit` gives: a model that predicts, scores and is saved."""

    session: Session
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Labels as they were given, by how the model writes them; none where it learns numbers or words of its own."""
    has_probabilities: bool = False
    """Whether `predict_proba` has something to give."""

    @property
    def classes(self) -> list[Any]:
        """The labels in the order of `predict_proba`'s columns, as they were given.

        Raises:
            ConfigError: the task has no classes.
        """
        if not self.labels:
            raise ConfigError(f"The task {self.session.reads.name} has no classes; use predict.")
        return [self._given(name) for name in names_of(self.session)]

    def predict(self, texts: Iterable[Any]) -> list[Any]:
        """What the model says of each text, as labels were given: a label, a number, a list of labels, an answer.

        A word that a tagger didn't read has the tag None.

        Raises:
            DataError: a text that is none.
        """
        task = self.session.reads
        return [self._given(one.to_json()[task.guess or task.said]) for one in self._predictions(texts)]

    def predict_proba(self, texts: Iterable[Any]) -> Floats:
        """Probabilities `[texts, classes]`, the columns in the order of `classes`; with several labels, each by itself.

        Raises:
            ConfigError: the task gives no probabilities of classes.
            DataError: a text that is none.
        """
        if not self.has_probabilities:
            raise ConfigError(f"The task {self.session.reads.name} gives no probabilities of classes; use predict.")
        rows = [list(one.probabilities.values()) for one in self._predictions(texts)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.classes))

    def score(self, texts: Iterable[Any], labels: Iterable[Any]) -> float:
        """The task's first metric on labelled texts: of one label accuracy, of tags F1 … (`regtune tasks` names them).

        Raises:
            DataError: no texts, lists of different length, or a text or a label that is none.
        """
        task, session = self.session.reads, self.session
        with tempfile.TemporaryDirectory() as folder:
            examples = task.read([str(_written(Path(folder), texts, labels, task))], session.task_settings)
            return task.metrics[0].of(task.score(session.predict(examples), examples))

    def save(self, folder: str | Path) -> Path:
        """Writes the whole run: model, tokenizer, record. `regtune.open`, `predict`, `explain`, `inspect` … take it.

        Raises:
            CheckpointError: there is something in the folder already, or it can't be written.
        """
        place = Path(folder).expanduser()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise CheckpointError(f"{place} exists and is not empty. Name another folder: .save(folder).")
        try:
            shutil.copytree(self._run_dir, place, ignore=_LEFT, dirs_exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{place} can't be written: {error.strerror or error}.") from error
        return place

    def blocks(self) -> list[Block]:
        """What was learnt, from how much, with what."""
        training = self._record.config["training"]
        rows = (
            ("task", self.session.reads.title),
            ("model", self.session.config.model),
            ("registers", self._registers),
            ("learnt from", f"{self._record.data['train']['examples']:,} {self.session.reads.examples}"),
            *((("labels", ", ".join(map(str, self.labels.values()))),) if self.labels else ()),
            ("training", f"{training['epochs']:g} epochs, seed {training['seed']}, {self._record.seconds:.0f} s"),
        )
        return [Block(kind="table", title="Fine-tuned model", columns=("", ""), rows=rows)]

    def __repr__(self) -> str:
        labels = f": {', '.join(map(str, self.labels.values()))}" if self.labels else ""
        return f"<FittedModel {self.session.reads.title}{labels}; {self.session.config.model}, {self._registers}>"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.blocks()))

    @property
    def _registers(self) -> str:
        return f"{self.session.config.registers.num_registers} registers"

    @property
    def _run_dir(self) -> Path:
        assert self.session.run_dir is not None
        return self.session.run_dir

    @property
    def _record(self) -> RunRecord:
        assert self.session.record is not None
        return self.session.record

    def _given(self, said: Any) -> Any:
        if isinstance(said, list):
            return [self._given(one) for one in said]
        return self.labels.get(said, said) if isinstance(said, str) else said

    def _predictions(self, texts: Iterable[Any]) -> list[Any]:
        task, settings = self.session.reads, self.session.task_settings
        records = [task.listed(text) for text in _listed(texts, "texts")]
        items = tuple(task.example({"id": str(i), **one}, settings) for i, one in enumerate(records, 1))
        return self.session.predict(Examples(items=items, names=("texts",))) if items else []


def fit(
    texts: Iterable[Any],
    labels: Iterable[Any],
    *,
    model: str = "minilm",
    num_registers: int = 4,
    task: str = "classify",
    training: TrainConfig = FITTED_BY_DEFAULT,
    progress: bool = False,
) -> FittedModel:
    """Fine-tunes a model with registers on two lists; for all that can be set, use `regtune.train`.

    Example:
        >>> model = regtune.fit(texts, labels)  # doctest: +SKIP
        >>> model.predict(["A stirring film."])  # doctest: +SKIP
        ['good']

    Args:
        texts: a list, an array or a table's column of what is read: texts; tuples of two for pairs of texts; for `tag`
            lists of words; for `images` paths or images of Pillow's; or mappings of what the task's records hold.
        labels: what is to be learnt of each: words or whole numbers; for `regress` numbers; for `multi-label` and `tag`
            lists of labels; for `instruct` answers. `predict` gives them back as they are here.
        model: a hub name, a folder, or `minilm`.
        num_registers: N; 0 is the plain model.
        task: `classify`, `multi-label`, `regress`, `tag`, `instruct`, `images`, or a plugin's that says its `gold`.
        training: rates, epochs, seed and the rest; by default five epochs.
        progress: say on standard error how far it is.

    Raises:
        DataError: no texts, lists of different length, one class alone, or a text or a label that is none.
        ConfigError: a task that doesn't learn from two lists, or a setting that can't be.
        CheckpointError, MissingExtraError: as opening the model.
    """
    texts, labels = _listed(texts, "texts"), _listed(labels, "labels")
    place = Path(tempfile.mkdtemp(prefix="regtune-fit-"))
    try:
        data = str(_written(place, texts, labels, TASKS.get(task)))
        config = RunConfig(
            model=model,
            output_dir=place / "run",
            task=task,
            registers=RegisterConfig(num_registers=num_registers),
            data=DataConfig(train=(data,), eval=(data,), max_eval_examples=_SCORED),
            training=training,
        )
        run_experiment(config, progress=progress)
        session = open_session(config.output_dir)
        probable = hasattr(session.predict(session.sample(limit=1))[0], "probabilities")
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    known = set(names_of(session))
    every = (one for label in labels for one in (label if isinstance(label, (list, tuple)) else [label]))
    written = {name: label for label in every if (name := str(label).strip()) in known}
    fitted = FittedModel(session=session, labels=written, has_probabilities=probable)
    weakref.finalize(fitted, shutil.rmtree, place, ignore_errors=True)
    return fitted


def _written(folder: Path, texts: Iterable[Any], labels: Iterable[Any], task: Task) -> Path:
    """The lists as a file of records that the task reads."""
    gold = task.gold
    if gold is None:
        known = [name for name in TASKS if TASKS.get(name).gold is not None]
        raise ConfigError(
            f"The task {task.name} isn't learnt from two lists; what can be: {', '.join(known)}. "
            f"Write its data into a file: regtune.train(regtune.RunConfig(task={task.name!r}, data=...))."
        )
    given, wanted = _listed(texts, "texts"), _listed(labels, "labels")
    if len(given) != len(wanted):
        raise DataError(f"{len(given):,} texts and {len(wanted):,} labels; give a label for each text.")
    if not given:
        raise DataError("texts is empty; give at least one text.")
    records = [task.listed(text, folder) | {gold: label} for text, label in zip(given, wanted, strict=True)]
    lines = [json.dumps(record, default=_refused) for record in records]
    path = folder / f"{_TRAINING_TEXTS}.jsonl"
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return path


def _listed(values: Iterable[Any], name: str) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise DataError(f"{name} is a {type(values).__name__}; give a list, with an item for each text.")
    return [_plain(value) for value in values]


def _refused(value: Any) -> Any:
    raise DataError(
        f"{shown(value)} is a {type(value).__name__}; texts are words, and labels words or numbers, or lists of them."
    )


def _plain(value: Any) -> Any:
    """A number or an array of numpy's as Python's own."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
