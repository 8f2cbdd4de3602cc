"""What a diagnosis reads: models with whatever head they were saved with, and questions or plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.analyses.batches import Batch, question_batches, text_batches
from regtune.config import AnswerConfig
from regtune.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError
from regtune.models.loading import load_tokenizer, quiet_transformers, resolve_model
from regtune.models.precision import best_device
from regtune.records import CONFIG_FILE, read_json
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import backbone_of, max_text_length
from regtune.session import MODEL_DIR, open_target
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.examples import QAExample

DEFAULT_DATA = ("embedded:dev",)
_HEADS = {
    "QuestionAnswering": "AutoModelForQuestionAnswering",
    "SequenceClassification": "AutoModelForSequenceClassification",
    "TokenClassification": "AutoModelForTokenClassification",
}


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A model that is being looked at, in float32 and eval mode on the best device."""

    name: str
    model: Any
    tokenizer: Any
    answers: AnswerConfig | None
    """How it answers questions; None for a model that doesn't."""
    run_dir: Path | None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the models read: questions, or else texts."""

    names: tuple[str, ...]
    questions: tuple[QAExample, ...] = ()
    texts: tuple[str, ...] = ()

    def batches(self, patient: Patient, *, max_length: int, batch_size: int) -> list[Batch]:
        """Analysis batches for one model, cut to what it has positions for."""
        limit = text_limit(patient.model)
        length = min(max_length, limit) if limit is not None else max_length
        if self.questions:
            return question_batches(
                self.questions,
                patient.tokenizer,
                max_length=length,
                stride=min(128, length // 3),
                batch_size=batch_size,
            )
        return text_batches(self.texts, patient.tokenizer, max_length=length, batch_size=batch_size)

    def text_numbers(self) -> list[int]:
        """For each example the number of its text: questions about one passage share it."""
        numbers: dict[str, int] = {}
        texts = [question.context for question in self.questions] or list(self.texts)
        return [numbers.setdefault(text, len(numbers)) for text in texts]

    def labels(self) -> dict[str, list[int]]:
        """Global information to probe for: the article where several are named, else the text itself."""
        titles = [question.title for question in self.questions]
        if len(set(titles)) > 1 and all(titles):
            numbers: dict[str, int] = {}
            return {"article": [numbers.setdefault(title, len(numbers)) for title in titles]}
        return {"text": self.text_numbers()}


def read_material(names: Sequence[str], *, limit: int | None) -> Material:
    """Reads questions (SQuAD-format files or names of sets) or plain text (UTF-8, a paragraph a line).

    Args:
        names: as for `load_questions`, or one text file; the embedded questions if none is given.
        limit: use at most so many, spread evenly over the set, so that they come from as many texts as possible.

    Raises:
        DataError: a file that isn't there, can't be read or holds nothing.
        ConfigError: an unknown name, a limit below 1, or text and questions mixed.
    """
    names = tuple(map(str, names)) or DEFAULT_DATA
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1.")
    plain = [name for name in names if is_text_file(name)]
    if not plain:
        questions = load_questions(list(names), for_training=False).examples
        return Material(names=names, questions=tuple(_spread(questions, limit)))
    if len(plain) < len(names):
        raise ConfigError(
            f"{plain[0]} is plain text and {next(name for name in names if name not in plain)} holds questions; "
            "diagnose with one kind at a time."
        )
    texts = [text for name in plain for text in _paragraphs(Path(name))]
    return Material(names=names, texts=tuple(_spread(texts, limit)))


def is_text_file(name: str) -> bool:
    """Whether a name means plain text: it ends in .txt or .text, or is a file that is no JSON."""
    path = Path(name)
    return path.suffix in (".txt", ".text") or (path.is_file() and path.suffix not in (".json", ".gz"))


def _paragraphs(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} holds no text. Give one paragraph a line.")
    return texts


def _spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def open_patient(name: str | Path) -> Patient:
    """Loads a model with the head that it was saved with (or none), in float32: bfloat16 would hide what is looked for.

    Args:
        name: a folder, a hub name, `minilm`, a run directory or a checkpoint in one.

    Raises:
        CheckpointError: no such model, or one without a tokenizer.
        UnsupportedModelError: an encoder-decoder, or no model at all.
    """
    target = open_target(name)
    head = _head(target.model)
    with quiet_transformers():
        try:
            model: Any = from_pretrained(_auto_class(head), resolve_model(target.model))
        except ValueError as error:
            raise CheckpointError(f"{name} can't be loaded: {error}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder ({model.config.model_type}), which has two stacks of blocks. Diagnose an "
            "encoder or a decoder, for example minilm."
        )
    return Patient(
        name=str(name),
        model=model.float().to(best_device()).eval(),
        tokenizer=load_tokenizer(_tokenizer_source(target.model)),
        answers=target.config.answers if head == "QuestionAnswering" else None,
        run_dir=target.run_dir,
    )


def _head(model: str) -> str:
    """The head that a model was saved with; empty for a bare one, or one whose head has no part in a diagnosis."""
    from transformers import PretrainedConfig

    try:
        settings: dict[str, Any] = PretrainedConfig.get_config_dict(resolve_model(model))[0]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model} can't be loaded: {error}") from error
    made_for = " ".join(settings.get("architectures") or [])
    return next((head for head in _HEADS if head in made_for), "")


def _auto_class(head: str) -> Any:
    import transformers

    return getattr(transformers, _HEADS.get(head, "AutoModel"))


def _tokenizer_source(model: str) -> str:
    """Where a model's tokenizer is: a run's checkpoints have none of their own."""
    folder = Path(model)
    run_dir = folder.parent.parent
    if not folder.name.startswith("checkpoint-") or any(folder.glob("tokenizer*")):
        return model
    if (run_dir / MODEL_DIR).is_dir():
        return str(run_dir / MODEL_DIR)
    if (run_dir / CONFIG_FILE).is_file():
        return str(read_json(run_dir / CONFIG_FILE).get("model", model))
    return model


def with_checkpoints(name: str | Path) -> list[str]:
    """A run's checkpoints in the order of training and its final model.

    Raises:
        CheckpointError: not a run, or one that kept no checkpoint.
    """
    folder = Path(name)
    found = sorted(
        (path for path in folder.glob("checkpoints/checkpoint-*") if (path / "config.json").is_file()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    if not found:
        raise CheckpointError(f"{name} holds no checkpoints of a run (checkpoints/checkpoint-STEP).")
    return [str(path) for path in found] + ([str(name)] if (folder / MODEL_DIR).is_dir() else [])


def text_limit(model: Any) -> int | None:
    """Longest text that the model has positions for; None if unlimited or unknown."""
    try:
        return max_text_length(model)
    except UnsupportedModelError:
        positions = getattr(backbone_of(model).config, "max_position_embeddings", None)
        return int(positions) if positions else None
