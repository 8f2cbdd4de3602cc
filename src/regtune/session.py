"""The one door: `open` makes a `Session` of a finished run or of a model in a folder, on the hub, or `minilm`.

Nobody else opens models. One rule each for the data type (float32, or what is asked for), the device (the accelerator
if there is one), the head (the one that the model was saved with), the sample (`Session.sample`) and the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regtune.config import DataConfig, RunConfig
from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError, shown
from regtune.families import family_of
from regtune.families._family import Family
from regtune.interfaces import Attached, Batch, Examples, Modality, Rows, Task
from regtune.models.loading import (
    adapter_settings,
    base_of_adapter,
    load_config,
    load_image_processor,
    load_tokenizer,
    quiet_transformers,
    resolve_model,
)
from regtune.models.precision import Precision, autocast, best_device, device_of
from regtune.models.safety import read_model_config
from regtune.progress import each
from regtune.recipes import config_from_dict, settings_of
from regtune.records import (
    AGAIN,
    CONFIG_FILE,
    RUN_FILE,
    RunRecord,
    is_local,
    load_record,
    read_json,
    read_typed,
    verify,
)
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import accepted_arguments, backbone_of, max_text_length, register_positions
from regtune.registry import TASKS
from regtune.rows.reading import read_sets
from regtune.rows.texts import PlainText, is_text_file, read_paragraphs, text_rows
from regtune.typed import hints_of

MODEL_DIR = "model"
_READER_FILES = ("tokenizer*", "vocab*", "*processor_config.json")
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
Attention = Literal["auto", "sdpa", "eager"]
DataType = Literal["float32", "bfloat16", "float16", "float64", "auto"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model and, where it comes from a run directory, that run."""

    name: str
    model: str
    """The folder or hub name that holds the model."""
    run_dir: Path | None = None
    record: RunRecord | None = None
    """None for a model that isn't in a run directory."""

    @cached_property
    def config(self) -> RunConfig:
        """The run's config; for a plain model the defaults, with the task that its head is for."""
        if self.record is None:
            task = task_for(_model_config(self.model))
            return RunConfig(model=self.model, task=RunConfig.task if task is None else task.name)
        return config_from_dict(self.record.config, f"{self.run_dir}/{RUN_FILE}")


@dataclass(kw_only=True, eq=False)
class Session:
    """A model that was opened once and is asked about itself once; every command works on one."""

    name: str
    """As it was named: a run directory, a folder, a hub name."""
    model: Any
    reader: Any
    """Its tokenizer or image processor."""
    task: Task | None = None
    """The task of its head; None for a model without one."""
    task_settings: Any = None
    config: RunConfig = field(default_factory=RunConfig)
    """Of the run that it comes from, or the defaults."""
    run_dir: Path | None = None
    record: RunRecord | None = None
    """Of the run that it comes from."""
    precision: Precision = "float32"
    """Of forward passes."""
    attached: dict[str, Attached] = field(default_factory=dict)
    """What a run that is being trained has put onto the model, by the method's name."""
    flags: bool = False
    """Whether messages call settings by the flags of `regtune evaluate`, or as a recipe does."""

    def setting(self, name: str) -> str:
        """How one of `task_settings` is called in messages."""
        shared = name in hints_of(DataConfig)
        if self.flags:
            return f"--{'' if shared else 'settings.'}{name.replace('_', '-')}"
        return f"{'data' if shared else 'settings'}.{name}"

    @property
    def family(self) -> Family:
        """Where its architecture keeps its parts.

        Raises:
            UnsupportedModelError: the architecture is in no table.
        """
        return family_of(backbone_of(self.model).config)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @property
    def text_limit(self) -> int | None:
        """Longest text that the model has positions for beside its registers; None if unlimited or unknown."""
        try:
            return max_text_length(self.model)
        except UnsupportedModelError:
            positions = getattr(backbone_of(self.model).config, "max_position_embeddings", None)
            return int(positions) if positions else None

    @property
    def reads(self) -> Task:
        """The task that reads data sets for it: its own or, for a model without a head, the first for what it reads."""
        if self.task is not None:
            return self.task
        every: Iterator[Task] = (TASKS.get(name) for name in TASKS)
        return next(task for task in every if task.modality == self.modality)

    @property
    def modality(self) -> Modality:
        """Whether it reads texts or images."""
        return modality_of(self.model)

    @cached_property
    def accepted(self) -> frozenset[str]:
        """Arguments of the model's `forward`."""
        return accepted_arguments(self.model)

    # What it reads

    def sample(self, names: Sequence[str] = (), limit: int | None = None) -> Examples:
        """The examples that everything measured on this model sees, in this order: the one rule.

        At most `limit` of a set, spread evenly over it, so that they come from as many texts as possible.

        Args:
            names: data sets of the task, or text files with a paragraph a line; by default the run's first evaluation
                set.
            limit: None takes all.

        Raises:
            ConfigError: a limit below 1, or text files and data sets mixed.
            DataError: as reading them.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit} must be at least 1.")
        names = tuple(map(str, names)) or self.config.data.eval[:1]
        own_files = self.modality == "image" or (self.task is not None and self.task.reads_text)
        plain = [] if own_files else list(filter(is_text_file, names))
        if plain and len(plain) < len(names):
            other = next(name for name in names if name not in plain)
            raise ConfigError(f"{plain[0]} is plain text and {other} is a data set; give one kind at a time.")
        found = read_paragraphs(names) if plain else read_sets(self.reads, names, self._settings)
        if limit is None or len(found) <= limit:
            return found
        return dataclasses.replace(found, items=tuple(found.items[index] for index in spread_over(len(found), limit)))

    def rows(self, examples: Examples, *, training: bool = False) -> Rows[Any]:
        """The rows of examples, as the model's task cuts them."""
        if examples.items and isinstance(examples.items[0], PlainText):
            length = min(self._settings.max_length, self.text_limit or self._settings.max_length)
            return text_rows([item.text for item in examples.items], self.reader, max_length=length)
        return self.reads.rows(examples, self, training=training)

    def batches(self, rows: Rows[Any], *, batch_size: int = 16) -> list[Batch]:
        """Batches of similar length, the longest first: the model's inputs, labels, `example` and `Rows.roles`."""
        found = []
        for indices in by_length(rows, batch_size):
            chosen = [rows.rows[index] for index in indices]
            found.append(rows.batch(indices) | rows.roles(chosen))
        return found

    # The forward pass

    def forward(self, batch: Mapping[str, Tensor], *, labels: bool = False, **options: Any) -> Any:
        """The model's output for what its `forward` takes of a batch, in the session's precision.

        Args:
            batch: from `Rows.batch` or `batches`; what the model doesn't take is left out.
            labels: pass labels on, so that the output has a loss.
            options: more arguments of `forward`.
        """
        given = {
            name: value.to(self.device)
            for name, value in batch.items()
            if name in self.accepted and (labels or name not in self.reads.labels)
        }
        with autocast(self.device, self.precision):
            return self.model(**given, **options)

    def outputs(self, rows: Rows[Any]) -> Iterator[tuple[Sequence[int], Any]]:
        """Row indices and the model's outputs for them, batch after batch, in evaluation mode."""
        size = getattr(self.task_settings, "batch_size", 32)
        training = self.model.training
        self.model.eval()
        try:
            for indices in each(list(by_length(rows, size)), "batches"):
                with torch.inference_mode():
                    found = self.forward(rows.collate([rows.rows[index] for index in indices], None))
                yield indices, found
        finally:
            self.model.train(training)

    def predict(self, examples: Examples, rows: Rows[Any] | None = None) -> list[Any]:
        """One `Prediction` an example, in their order.

        Raises:
            CheckpointError: the model has no head for a task.
        """
        if self.task is None:
            raise CheckpointError(_headless(self.name, self.model.config.architectures, self.reads))
        rows = self.rows(examples) if rows is None else rows
        return self.task.decode(rows, self.outputs(rows), examples, self)

    @property
    def _settings(self) -> Any:
        return self.task_settings if self.task_settings is not None else self.reads.settings()


def open(  # noqa: A001 - `regtune.open`
    name: str | Path,
    *,
    task: str | Task | None = None,
    settings: Any = None,
    dtype: DataType = "float32",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    attention: Attention = "auto",
    trust_remote_code: bool = False,
) -> Session:
    """Opens a model with the head that it was saved with, in evaluation mode, with its tokenizer.

    Args:
        name: a run directory, a checkpoint in one, a model's folder, a hub name or `minilm`.
        task: refuse a model without this task's head; by default the run's task, or the one that the head is for.
        settings: the task's, by default the run's; cut to what the model has positions for.
        dtype: of the weights; `auto` leaves them as they were saved.
        device: the accelerator if there is one.
        precision: of forward passes (bfloat16 autocast).
        attention: implementation of attention.
        trust_remote_code: run code from the model's repository; off unless asked for.

    Raises:
        CheckpointError: no such model, one without a tokenizer, or one without the head that is needed.
        MissingExtraError: `minilm` without the `demo` extra.
    """
    target = open_target(name)
    described = _model_config(target.model)
    architectures, config = _architectures(target.model), target.config
    if task is not None:
        chosen: Task | None = TASKS.get(task) if isinstance(task, str) else task
        assert chosen is not None
        if architectures and not any(has_head(one, chosen.head) for one in architectures):
            raise CheckpointError(_headless(target.model, architectures, chosen))
    elif target.record is not None:
        chosen = TASKS.get(config.task)
    else:
        chosen = task_for(described)
    head = own_head(target.model) if chosen is None else chosen.head
    model = load_model(head, target.model, attention=attention, trust_remote_code=trust_remote_code)
    if dtype != "auto":
        model.to(getattr(torch, dtype))
    session = Session(
        name=str(name),
        model=model.to(torch.device(device) if device is not None else best_device()).eval(),
        reader=load_reader(
            _reader_source(target.model),
            modality_of(model),
            trust_remote_code=trust_remote_code,
            needs=() if chosen is None else chosen.needs,
        ),
        task=chosen,
        config=config,
        run_dir=target.run_dir,
        record=target.record,
        precision=precision,
    )
    session.task_settings = fitted(settings_of(config, session.reads) if settings is None else settings, session)
    return session


def around(model: Any, reader: Any) -> Session:
    """A session on a model that somebody else opened, and its tokenizer."""
    kind, config = type(model).__name__, getattr(model, "config", None)
    known = {name: getattr(config, name, None) for name in ("problem_type", "id2label")}
    task = task_for({"architectures": [kind], **known})
    session = Session(name=kind, model=with_one_option(model), reader=reader, task=task)
    session.task_settings = fitted(session.reads.settings(), session)
    return session


def session_of(model: object) -> Session:
    """A session on whatever names a model: itself, a folder, a hub name, or a pair of a model and its tokenizer.

    Raises:
        ConfigError: it is none of these.
        CheckpointError: no such model.
    """
    if isinstance(model, Session):
        return model
    if isinstance(model, (str, Path)):
        return open(model)
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        return around(*model)
    raise ConfigError(
        f"The model is {type(model).__name__} {shown(model)}; give a folder, a hub name, a Session, or a pair of a "
        "model and its tokenizer."
    )


def modality_of(model: Any) -> Modality:
    """Whether a model reads texts or images."""
    return "image" if getattr(model, "main_input_name", "") == "pixel_values" else "text"


def load_reader(
    name: str | Path,
    modality: Modality,
    *,
    trust_remote_code: bool = False,
    needs: tuple[Literal["pad", "sep"], ...] = (),
) -> Any:
    """A model's tokenizer, or its image processor. Raises as `load_tokenizer` and `load_image_processor`."""
    if modality == "image":
        return load_image_processor(name, trust_remote_code=trust_remote_code)
    return load_tokenizer(name, trust_remote_code=trust_remote_code, needs=needs)


def task_for(config: Mapping[str, Any]) -> Task | None:
    """The task that a model's head is for, by its config; None if there is none.

    Where several tasks have the head, its `problem_type` tells them apart; without one, a single label is a number.
    """
    architectures, labels = config.get("architectures") or (), config.get("id2label") or {}
    problem = config.get("problem_type") or ("regression" if len(labels) == 1 else "single_label_classification")
    every = [TASKS.get(each) for each in TASKS]
    tasks = [each for each in every if any(has_head(one, each.head) for one in architectures)]
    return next((each for each in tasks if each.problem_type == problem), next(iter(tasks), None))


def own_head(name: str) -> str:
    """The class that a model was saved from, which has its head, where transformers knows it."""
    import transformers

    known = (getattr(transformers, one, None) for one in _architectures(name))
    model = (one for one in known if isinstance(one, type) and issubclass(one, transformers.PreTrainedModel))
    return next((one.__name__ for one in model), "AutoModel")


def fitted(settings: Any, session: Session) -> Any:
    """The settings with texts no longer than the model has positions for."""
    limit = session.text_limit
    return settings if limit is None else session.reads.shortened(settings, limit)


def spread_over(count: int, most: int) -> list[int]:
    """At most `most` of so many indices, evenly spread."""
    return list(range(count)) if count <= most else [index * count // most for index in range(most)]


def by_length(rows: Rows[Any], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, the longest first."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    order = sorted(range(len(rows)), key=lambda index: -rows.lengths[index])
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


# A new model for a run


class SharedInputs:
    """What runs of one process share instead of making it again: tokenizers, examples, and all rows that were made.

    A run that takes its inputs from here ends with the same bits as one that doesn't.
    """

    def __init__(self) -> None:
        self._readers: dict[str, Any] = {}
        self._given: dict[str, Examples] = {}
        self._examples: dict[str, Examples] = {}
        self._rows: dict[str, Rows[Any]] = {}

    def put(self, name: str, examples: Examples) -> None:
        """Names examples that are in no file, so that a run of this process finds them as a data set."""
        self._given[name] = examples

    def examples(self, names: Sequence[str], config: RunConfig, *, training: bool) -> Examples:
        """The examples of data sets, or those that were `put` under the name. Raises as reading does."""
        task, settings = TASKS.get(config.task), settings_of(config)
        limit = config.data.max_train_examples if training else config.data.max_eval_examples
        key = repr((config.task, tuple(names), settings, limit, training))
        if key not in self._examples and names and names[0] in self._given:
            found = self._given[names[0]]
            self._examples[key] = dataclasses.replace(found, items=found.items[:limit])
        elif key not in self._examples:
            self._examples[key] = read_sets(task, names, settings, limit=limit, training=training)
        return self._examples[key]

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[Any]:
        """The rows of examples that came from here, as the session's task cuts them. Raises as cutting does."""
        model = (session.config.model, register_positions(session.model), dict(session.model.config.label2id or {}))
        key = repr((id(examples), model, session.config.task, session.task_settings, training))
        if key not in self._rows:
            self._rows[key] = session.rows(examples, training=training)
        return self._rows[key]

    def start(self, config: RunConfig, facts: Mapping[str, Any] | None = None) -> Session:
        """A session on a fresh model to be trained, with a head drawn from torch's random state where it has none.

        `facts` are `Task.prepare` of the training data.
        """
        task: Task = TASKS.get(config.task)
        trusted = config.trust_remote_code == config.model
        if not trusted:
            _require_head(config.model, task)
        if config.model not in self._readers:
            self._readers[config.model] = load_reader(
                config.model, task.modality, trust_remote_code=trusted, needs=task.needs
            )
        return Session(
            name=config.model,
            model=load_model(
                task.head,
                config.model,
                attention=config.training.attention,
                trust_remote_code=trusted,
                facts=facts,
            ).float(),
            reader=self._readers[config.model],
            task=task,
            task_settings=settings_of(config),
            config=config,
        )


def load_model(
    head: str,
    name: str | Path,
    *,
    attention: Attention = "auto",
    trust_remote_code: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Any:
    """A model with a head of one's choice, drawn from torch's random state where the checkpoint has none.

    For those that put a head on themselves (a new run, a warm-up, the doctor); everybody else takes `open`.

    Args:
        head: an Auto class, by its name.
        name: a folder, a hub name or `minilm`.
        attention: implementation of attention.
        trust_remote_code: run code from the model's repository.
        facts: go into the model's config; a head that they don't fit is made anew.
    """
    import transformers

    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    if facts:
        options |= {**facts, "ignore_mismatched_sizes": True}
    options["trust_remote_code"] = trust_remote_code
    folder = resolve_model(name)
    with quiet_transformers():  # the report on the new head's weights is expected, not news
        if adapter_settings(folder) is not None:
            from regtune.registers.in_peft import load_adapted

            return with_one_option(load_adapted(getattr(transformers, head), folder, **options))
        return with_one_option(from_pretrained(getattr(transformers, head), folder, **options))


def with_one_option(model: Any) -> Any:
    """The model; one for multiple choice takes plain rows `[rows, seq]` too, each an option alone: `[rows, 1, seq]`.

    So that whatever is measured on rows of tokens can be measured on options. Its logits are then `[rows, 1]`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if has_head(type(inner).__name__, "AutoModelForMultipleChoice"):
        inner.register_forward_pre_hook(_add_options, with_kwargs=True)
    return model


def _add_options(_model: Any, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, {name: value.unsqueeze(1) if _is_row(name, value) else value for name, value in given.items()}


def _is_row(name: str, value: Any) -> bool:
    return name in _BY_TOKEN and isinstance(value, Tensor) and value.dim() == 2


def _require_head(name: str, task: Task) -> None:
    """Refuses a task whose head transformers has for no model of this kind: texts for a model of images, say.

    Raises:
        CheckpointError: it hasn't; a task that the model can have is named.
    """
    import transformers

    config = load_config(resolve_model(name))

    def fits(one: Task) -> bool:
        return type(config) in getattr(transformers, one.head)._model_mapping

    if not fits(task):
        others = [each for each in TASKS if fits(TASKS.get(each))]
        instead = f"Train it for another: --task {others[0]}" if others else "Take another model"
        read = {"text": "texts", "image": "images"}[task.modality]
        raise CheckpointError(
            f"{name} is a {config.model_type}, for which there is no head for {task.title} ({task.head}). {instead}, "
            f"or take a model that reads {read} for {task.name}."
        )


def has_head(architecture: str, head: str) -> bool:
    """Whether a model class, by its name, has the head of an Auto class."""
    kind = head.removeprefix("AutoModel")
    names = {"ForCausalLM": ("ForCausalLM", "LMHeadModel"), "": ()}.get(kind, (kind,))
    return architecture.endswith(names)


def _headless(model: str, architectures: Sequence[str] | None, task: Task) -> str:
    return (
        f"{model} is a {(architectures or ['model without a head'])[0]} and has no head for {task.title}, so its "
        f"answers would be random. Fine-tune it first: regtune train --model {model}"
        + (f" --task {task.name}" if task.name != RunConfig.task else "")
    )


def _model_config(model: str) -> dict[str, Any]:
    return dict(read_model_config(resolve_model(model)))


def _architectures(model: str) -> list[str]:
    return list(_model_config(model).get("architectures") or [])


def _reader_source(model: str) -> str:
    """Where a model's tokenizer is: checkpoints of a run have none of their own, and adapters may have none."""
    folder = Path(resolve_model(model))
    run_dir = folder.parent.parent
    if any(any(folder.glob(files)) for files in _READER_FILES):
        return model
    if not folder.name.startswith("checkpoint-"):
        return model if adapter_settings(folder) is None else base_of_adapter(folder)
    if (run_dir / MODEL_DIR).is_dir():
        return str(run_dir / MODEL_DIR)
    if (run_dir / CONFIG_FILE).is_file():
        return str(read_typed(run_dir / CONFIG_FILE, dict[str, Any], remedy=AGAIN).get("model", model))
    return model


# What was named


def open_target(name: str | Path) -> Target:
    """Finds out what was named, without loading it; a run's own `model` folder belongs to its run.

    Raises:
        CheckpointError: a run that isn't finished, or a folder that is neither a run nor a model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if is_local(str(name)):
            raise CheckpointError(f"{name} doesn't exist: no such run directory or model folder.")
        return Target(name=str(name), model=str(name))
    run_dir = folder.parent if folder.name == MODEL_DIR and (folder.parent / RUN_FILE).is_file() else folder
    if (run_dir / RUN_FILE).is_file():
        record = load_record(run_dir)
        if (run_dir / MODEL_DIR).is_dir():
            verify(run_dir, record, f"{MODEL_DIR}/")
        return Target(name=str(name), model=str(run_dir / MODEL_DIR), run_dir=run_dir, record=record)
    if is_run_config(folder / CONFIG_FILE):
        raise CheckpointError(
            f"{name} holds a run that isn't finished ({RUN_FILE} is missing). Continue it with the same "
            f"`regtune train` command; its config is in {folder / CONFIG_FILE}."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name} is neither a run directory nor a model: it holds no {RUN_FILE} and no config.json."
        )
    return Target(name=str(name), model=str(folder))


def is_run_config(path: Path) -> bool:
    """Whether a `config.json` is regtune's and not a model's."""
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and {"registers", "training"} <= content.keys()
