"""The nouns as types: what a task, a method and an analysis promise, and the small types that they share.

A new task, method or analysis is one file that fills in one of these protocols and registers itself
(`regtune.registry`). Nothing else in the package knows its name.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from regtune.errors import ConfigError, DataError, MissingExtraError
from regtune.noise import Change, split_copy
from regtune.tables import WIDTH, Column, Table

if TYPE_CHECKING:
    from regtune.config import TrainConfig
    from regtune.session import Session

RowT = TypeVar("RowT")
Floats = npt.NDArray[np.float64]
Batch = dict[str, Tensor]
"""Tensors of one batch: what the model's `forward` takes (labels among them), by argument name."""
Need = Literal["attention", "labels", "registers", "head"]
"""What an analysis can't do without: attention weights, gold labels, registers, the task's trained head."""
Modality = Literal["text", "image"]
"""What a model reads: texts through a tokenizer, or images through an image processor."""


# Tasks


def first_column(means: Floats) -> Floats:
    """The value of a metric that is the mean of one column."""
    value: Floats = means[..., 0]
    return value


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure that is computed from sums over examples, so that one bootstrap serves all.

    `Task.score` gives columns, one row an example. The metric's value is a function of the *means* of its columns over
    examples: exact match, F1 and accuracy are the mean of one; entity F1 is 2·tp / (2·tp + fp + fn); perplexity is
    exp(nats / tokens); all of them are functions of ratios, for which means and sums are the same.
    """

    name: str
    """In records, for example `f1`."""
    title: str
    """For a person, for example `F1`."""
    columns: tuple[str, ...]
    """Which columns of `Task.score`; `gold:*` stands for all that begin so, in the order in which they were given."""
    value: Callable[[Floats], Floats] = first_column
    """`[..., columns]` to `[...]`."""
    higher_is_better: bool = True
    scale: float = 100.0
    """A person reads the value times this."""
    unit: str = "points"
    bounds: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value that can be; also of each example's column where there is one alone."""
    delta: float = 0.01
    """Largest difference that does not matter, unless a person names another."""

    def rank(self, value: float) -> float:
        """A number that is larger where the value is better, whichever way the metric goes."""
        return value if self.higher_is_better else -value

    def of(self, scores: Mapping[str, npt.ArrayLike]) -> float:
        """The metric of all examples.

        Args:
            scores: what `Task.score` gave: column to one number an example.
        """
        return float(self.value(self.select(scores).mean(axis=0)))

    def select(self, scores: Mapping[str, npt.ArrayLike]) -> Floats:
        """The metric's columns, `[examples, columns]`.

        Raises:
            ConfigError: the scores have no such column.
        """
        names: list[str] = []
        for name in self.columns:
            found = [each for each in scores if each == name or (name[-1] == "*" and each.startswith(name[:-1]))]
            if not found:
                raise ConfigError(f"{self.title} needs the column {name!r}; there are {', '.join(scores) or 'none'}.")
            names += found
        return np.stack([np.asarray(scores[name], dtype=np.float64) for name in names], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What was read: each item has a unique text `id`."""

    items: tuple[Any, ...]
    names: tuple[str, ...]
    """The sets, as they were named."""
    skipped: tuple[Any, ...] = ()
    """Records that were left out, each with where and why; `str()` of one is a sentence."""
    notes: tuple[str, ...] = ()
    """What was done to the data, for a person, with counts: left out, converted ids, mended offsets."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for the record."""

    @property
    def ids(self) -> tuple[str, ...]:
        """In order."""
        return tuple(str(item.id) for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@dataclass(frozen=True, kw_only=True)
class Rows(Generic[RowT]):
    """Examples as a model reads them. An example can have several rows (the windows of a long text)."""

    rows: Sequence[RowT]
    lengths: Sequence[int]
    """Positions of each row that are real (tokens or patches; no padding, no registers); of several texts together, the
    longest one's."""
    example: Sequence[int]
    """Index of the example that each row comes from."""
    collate: Callable[[Sequence[RowT], int | None], Batch]
    """Rows to tensors, `attention_mask` `[rows, seq]` among them, padded on the right to the longest or to the length
    that is given; images all have one length and aren't padded."""
    roles: Callable[[Sequence[RowT]], Batch]
    """What analyses need besides, for the same rows padded alike: `token_classes` `[rows, seq]`
    (`regtune.rows.token_classes`) and, where there is text, `offset_mapping` `[rows, seq, 2]`."""
    pictures: Callable[[Sequence[RowT]], npt.NDArray[np.uint8]] | None = None
    """Of images: what the model sees of rows, for a person, `[rows, height, width, 3]`."""
    main: Sequence[int] | None = None
    """The row that shows each example best (the window that holds its answer); None where each has one row."""
    notes: tuple[str, ...] = ()
    """What was cut, for a person."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts for the record: rows, truncated texts, ..."""

    def __len__(self) -> int:
        return len(self.rows)

    def one_each(self) -> Rows[RowT]:
        """One row an example: `main`."""
        return self if self.main is None else self.only(self.main)

    def only(self, indices: Sequence[int]) -> Rows[RowT]:
        """Some of the rows; they keep their examples' numbers."""
        lengths, example = ([part[index] for index in indices] for part in (self.lengths, self.example))
        return replace(self, rows=[self.rows[index] for index in indices], lengths=lengths, example=example, main=None)

    def batch(self, indices: Sequence[int], *, pad_to: int | None = None) -> Batch:
        """The tensors of some rows, with `example` `[rows]`."""
        made = self.collate([self.rows[index] for index in indices], pad_to)
        return made | {"example": _numbers([self.example[index] for index in indices])}


def _numbers(values: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(list(values))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a model says of one example, and what an explanation of that is about."""

    text: str | None = None
    """The answer or label; None where there is nothing to be said in words."""
    probability: float | None = None
    span: tuple[int, int] | None = None
    """Half-open range of characters of the example's text, where the answer is a part of it."""
    tokens: tuple[int, int] | None = None
    """Its tokens, both ends inclusive."""
    row: int = 0
    """The row that shows it."""
    targets: Mapping[str, Any] = field(default_factory=dict)
    """Targets by name, beyond those that every head has (`regtune.rows.targets`)."""
    default: tuple[str, ...] = ()
    """Names of what is explained where nobody asks for something; empty leaves it to the head."""
    only: bool = False
    """Whether that is explained whatever is asked for."""
    notes: tuple[str, ...] = ()
    """What has to be known to read the scores."""


@runtime_checkable
class Prediction(Protocol):
    """What a model says of one example."""

    id: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, `id` among them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Published:
    """What somebody has published of registers on a task, for a report to hold its runs against."""

    metric: str
    label: str
    """In a figure's legend."""
    points: tuple[tuple[int, float], ...]
    """Number of registers, and the metric as a person reads it."""
    note: str
    """Where the points come from, and how good they are; stands beneath the figure."""
    gain: float | None = None
    """The gain that is claimed, if one is."""
    claim: str = ""
    """The claim as the subject of a sentence: "A gain of two points, as …,"."""


class Task:
    """What is learnt: examples → rows → outputs → predictions → scores.

    A task overrides what it needs; only `read`, `rows`, `decode` and `score` have no default.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """In a few words, for lists."""
    head: ClassVar[str]
    """The Auto class that makes its model, for example `AutoModelForQuestionAnswering`."""
    problem_type: ClassVar[str | None] = None
    """That of its model's config, where several tasks have one head."""
    settings: ClassVar[type]
    """A frozen dataclass: `settings` in YAML and the flags `--settings.NAME`. `Session.task_settings` holds one. Fields
    that `DataConfig` has too (`max_length`, `on_bad_record`) take its values; `batch_size` is that of inference."""
    modality: ClassVar[Modality] = "text"
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ()
    """Special tokens that a tokenizer must have."""
    labels: ClassVar[tuple[str, ...]] = ("labels",)
    """Arguments of the model's `forward` from which it makes a loss."""
    reads_text: ClassVar[bool] = False
    """Whether a file that is no JSON can be a data set of the task; otherwise it is plain text, a paragraph a line."""
    metrics: ClassVar[tuple[Metric, ...]]
    """The first one is the headline, and chooses a checkpoint where one is chosen."""
    titles: ClassVar[Mapping[str, str]] = {}
    """What a person calls figures beside the metrics (ratios, see `figures`); others are for the record alone."""
    examples: ClassVar[str] = "examples"
    """What a person calls its examples, in the plural."""
    said: ClassVar[str] = "label"
    """The field of a prediction that says it in words."""
    gold: ClassVar[str | None] = None
    """The field of a JSON-lines record with what is to be learnt, where a list can hold that (`regtune.fit`)."""
    guess: ClassVar[str] = ""
    """The field of a prediction that is of the kind of `gold`, where that isn't the one that says it in words."""
    given: ClassVar[tuple[str, ...]] = ("text",)
    """What a person gives to be predicted: fields of the mapping that `example` reads."""
    perturbs: ClassVar[tuple[str, ...]] = ()
    """Texts of an example that noise may change, by field; none where labels belong to words or tokens."""
    under_noise: ClassVar[str] = ""
    """What has to be known to read its scores at several strengths of noise."""
    distracted: ClassVar[str] = ""
    """The one of them that sentences of other examples can be put into without making labels wrong."""
    published: ClassVar[tuple[Published, ...]] = ()
    """What has been published of registers on this task."""

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads data sets by name or path, strictly; in training every example needs a label.

        Raises:
            DataError: the file, the record and what to do.
        """
        raise NotImplementedError

    def prepare(self, examples: Examples, settings: Any) -> Mapping[str, Any]:
        """What the model's config has to know of the training data: `id2label`, `label2id`; empty for most."""
        del examples, settings
        return {}

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[Any]:
        """The rows of all examples; with labels where the examples have them."""
        raise NotImplementedError

    def decode(
        self, rows: Rows[Any], outputs: Iterable[tuple[Sequence[int], Any]], examples: Examples, session: Session
    ) -> list[Any]:
        """One `Prediction` an example, in their order.

        Args:
            rows: what the model read.
            outputs: pairs of row indices and the model's outputs for them, batch after batch, in any order.
            examples: the examples.
            session: the model, for its settings and its reader.
        """
        raise NotImplementedError

    def score(self, predictions: Sequence[Any], examples: Examples) -> Mapping[str, Floats]:
        """Columns by name, one row an example; what `metrics` are computed from."""
        raise NotImplementedError

    def figures(self, predictions: Sequence[Any], examples: Examples) -> dict[str, float]:
        """All that the record says of a set: the metrics, and whatever else is known of it, by name."""
        scores = self.score(predictions, examples)
        return {metric.name: metric.of(scores) for metric in self.metrics}

    def choices(self, predictions: Sequence[Any], examples: Examples) -> list[tuple[Floats, int]]:
        """What calibration is measured on, see `regtune.stats.calibration.Choice`; empty where nothing is chosen."""
        return []

    def shortened(self, settings: Any, limit: int) -> Any:
        """Settings whose rows have at most `limit` tokens."""
        return replace(settings, max_length=limit) if getattr(settings, "max_length", 0) > limit else settings

    def language(self, name: str) -> str:
        """ISO 639-1 code of a data set, empty where unknown."""
        del name
        return ""

    def perturb(self, example: Any, change: Change) -> Any:
        """The example with noise in its texts; a task whose labels are places in a text keeps them right."""
        texts = {name: getattr(example, name) for name in self.perturbs}
        return replace(example, **{name: change(name, text)[0] for name, text in texts.items() if text})

    def group(self, example: Any) -> str:
        """Examples of one group are never split between training and held-out data: a passage, a document."""
        return split_copy(str(example.id))

    def stratum(self, example: Any) -> str:
        """What a held-out part keeps the shares of: the class, where each example has one."""
        return ""

    def text(self, example: Any) -> str:
        """The text that an example is about."""
        return str(example.text)

    def described(self, example: Any) -> tuple[str, tuple[str, ...]]:
        """What a person is shown of an example: its text, and what would be right."""
        label = getattr(example, "label", None)
        return self.text(example), () if label is None else (str(label),)

    def example(self, record: Mapping[str, Any], settings: Any) -> Any:
        """An example without labels from what a person gives to be predicted: `{"text": ...}` and the like.

        Raises:
            DataError: the fields that are missing, and which there are.
        """
        raise NotImplementedError

    def listed(self, item: Any, folder: Path | None = None) -> dict[str, Any]:
        """The record of one item of a list (`regtune.fit`): a mapping, a tuple of what is `given`, or the first of it.

        Args:
            item: of the list.
            folder: of the file that the record goes into, in JSON types; None where `example` reads it at once.

        Raises:
            DataError: more parts than the task reads, or something that can't be kept.
        """
        del folder
        if isinstance(item, Mapping):
            return dict(item)
        parts = item if isinstance(item, tuple) else (item,)
        if len(parts) > len(self.given):
            raise DataError(
                f"An item of texts has {len(parts)} parts; the task {self.name} reads {', '.join(self.given)}."
            )
        return dict(zip(self.given, parts, strict=False))

    def records(self, path: Path) -> list[Mapping[str, Any]] | None:
        """What a file or folder holds to be predicted, each as `example` takes it; None: it is read as texts are."""
        del path
        return None

    def explained(self, example: Any, session: Session) -> Any:
        """The example that an explanation is about: this one, or the part of it that the model answers with."""
        del session
        return example

    def shown(self, rows: Rows[Any], examples: Examples, session: Session) -> Shown:
        """What the model says of one example, for an explanation: its label or text, unless a task knows more.

        Args:
            rows: of the one example.
            examples: it alone.
            session: the model.
        """
        said = session.predict(examples, rows)[0].to_json()
        value = said.get(self.said)
        text = f"{value:.4g}" if isinstance(value, float) else None if value is None else str(value)
        cut = rows.facts.get("truncated_texts")
        notes = (f"Only the first {rows.lengths[0]} tokens of the text were read.",) if cut else ()
        return Shown(text=text, probability=(said.get("probabilities") or {}).get(text), notes=notes)


# Methods


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that learn at one rate."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of training that comes before the main one, on the same rows and with the same loss."""

    name: str
    epochs: float
    learning_rate: float
    learns: Callable[[str, nn.Parameter], bool]
    """Which of the trainable parameters learn in it, by name."""


class Attached:
    """A method on a model. As it stands here it is one that changed nothing and has no weights."""

    def detach(self) -> None:
        """The model as it was before."""

    def disabled(self) -> AbstractContextManager[None]:
        """A context in which the model computes as if the method were not there, bit for bit."""
        return nullcontext()

    def save(self, folder: Path) -> None:
        """Writes the method's own weights and settings."""


class Method:
    """How a model is changed and trained. Methods compose: an arm is a list of them.

    A method overrides what it needs: one without `groups` has no rates of its own, one without `stages` trains in one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """What it changes, in a few words, for lists."""
    costs: ClassVar[str] = ""
    """What it costs, for lists."""
    use: ClassVar[str] = ""
    """When to use it, for lists."""
    settings: ClassVar[type]
    """A frozen dataclass; flags, YAML and the label in tables come from it."""
    base: ClassVar[Literal["learns", "later", "frozen", "kept", "moved", "changed"]] = "learns"
    """What becomes of the base model's weights: they learn; they learn after a first stage; they are frozen; they are
    kept, with an adapter beside them that is saved alone; they move before the training that all arms share; or what is
    computed with them changes, so that the model must be saved whole."""
    dropped: ClassVar[bool] = False
    """Whether it acts in training steps alone: it is detached before the model is saved; inference is as without it."""

    def attach(self, session: Session, settings: Any) -> Attached:
        """Changes the model in place.

        Raises:
            UnsupportedModelError: the model can't have it, and why.
        """
        return Attached()

    def initialise(self, session: Session, settings: Any, rows: Rows[Any]) -> None:
        """Sets start values from training rows; asked at every start of a run, also of one that goes on."""

    def watch(self, session: Session, settings: Any, rows: Rows[Any]) -> Callable[[], Mapping[str, Any]] | None:
        """Something to look at when training starts, behind each stage and at its end, on training rows.

        Returns:
            What the record says of that moment under the method's name; None: there is nothing to look at.
        """
        return None

    def groups(self, model: nn.Module, settings: Any, training: TrainConfig) -> list[Group]:
        """The method's own parameters and their rates; what no method claims learns at `training.learning_rate`.

        Asked when the optimiser is made, since FSDP replaces parameters before that.
        """
        return []

    def before(self, session: Session, settings: Any, examples: Examples, folder: Path) -> Mapping[str, Any] | None:
        """Trains on texts or images alone, before anything is learnt from labels; goes on after a kill.

        Args:
            session: the model with all methods attached.
            settings: the method's.
            examples: those of training, whose labels are not for it; `session.reads.text` is the text of one.
            folder: the run directory.

        Returns:
            What the run's record says of it, under the method's name.
        """
        return None

    def leftovers(self) -> tuple[str, ...]:
        """Files that `before` leaves in the run directory and that a finished run doesn't need."""
        return ()

    def stages(self, session: Session, settings: Any, training: TrainConfig) -> tuple[Stage, ...]:
        """Stages of training before the main one."""
        return ()

    def label(self, settings: Any) -> str:
        """For tables: `registers, N = 8`, `LoRA, r = 16`."""
        return self.name


# Analyses


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of a page: drawn by terminal, report and explorer alike, none of which knows the analysis."""

    kind: Literal["figure", "table", "text"]
    title: str
    text: str = ""
    """What it shows and how it is counted; the whole of a text block."""
    columns: tuple[str | Column, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    """Of a table (`regtune.tables`); None is an empty cell."""
    draw: Callable[[Any], None] | None = None
    """Of a figure: draws on a matplotlib `Axes`."""
    html: str | None = None
    """Of a figure that is better as HTML (an overlay on text); made safe by its maker."""
    data: Any = None
    """What the block was made of, as plain JSON types, for export."""
    name: str = ""
    """Of its file, where it is a table or a figure; one is made up if it has none."""
    folded: bool = False
    """Whether a page shows its title alone until it is opened."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The lines of `text`."""
        return tuple(filter(None, self.text.split("\n")))

    @property
    def table(self) -> Table:
        """The table of a table block, with its notes."""
        return Table(name=self.name, caption=self.title, columns=self.columns, rows=self.rows, notes=self.notes)

    def __str__(self) -> str:
        if self.kind == "table":
            return self.table.text
        if not self.text:
            return f"{self.title}\n{'=' * len(self.title)}"
        return "\n".join([self.title, *(textwrap.fill(line, WIDTH) for line in self.text.split("\n"))])


class ShownByBlocks:
    """A result that a notebook shows by its blocks, as pages draw them."""

    def blocks(self) -> list[Block]:
        """What a person sees of it."""
        raise NotImplementedError

    def _repr_html_(self) -> str | None:
        """For notebooks; None (its `repr` is shown) without the `report` extra."""
        draw = importlib.import_module("regtune.report.rendering")  # a room above this one, so it is found by name
        try:
            html: str = draw.fragment(self.blocks())
        except MissingExtraError:
            return None
        return html


class Analysis:
    """Something measured inside a model."""

    name: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[type]
    needs: ClassVar[frozenset[Need]] = frozenset()
    by_default: ClassVar[bool] = True
    """Whether it is measured where no part is named; not where it takes minutes."""

    def measure(self, session: Session, rows: Rows[Any], examples: Examples, settings: Any) -> Mapping[str, Any]:
        """Measures one model on the rows.

        Returns:
            The content of its record: JSON types, arrays and dataclasses. Under `measures` are the headline numbers, by
            which two models are compared: measure name to one number, or None, for each of `examples.ids`, or to the
            numbers of some by their index; under `titles` what a person calls them.
        """
        raise NotImplementedError

    def blocks(self, content: Mapping[str, Any]) -> Iterable[Block]:
        """What a person sees of it, made from the record's content (plain JSON types) with `measures` and `titles`."""
        raise NotImplementedError
