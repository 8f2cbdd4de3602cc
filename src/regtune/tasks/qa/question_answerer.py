"""A trained model that answers questions in Python: what transformers' question-answering pipeline was."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from regtune.config import AnswerConfig
from regtune.errors import DataError, shown
from regtune.models.loading import load_tokenizer, resolve_model
from regtune.models.precision import best_device, device_of, resolve_precision
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import max_text_length, register_positions
from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.predict import answer_questions
from regtune.tasks.qa.windows import fitting, make_windows


class QuestionAnswerer:
    """Answers questions about contexts of any length.

    Example:
        >>> answerer = QuestionAnswerer.from_pretrained("runs/latest/model")  # doctest: +SKIP
        >>> answerer(question="Who built it?", context="It was built by Ada.").text  # doctest: +SKIP
        'Ada'
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        config: AnswerConfig | None = None,
        max_length: int = 384,
        stride: int = 128,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
    ) -> None:
        """Wraps a question-answering model, with or without registers, and its fast tokenizer.

        Args:
            model: a model whose output has `start_logits` and `end_logits`.
            tokenizer: a fast Hugging Face tokenizer.
            config: how many answers, how long, and whether "no answer" is allowed.
            max_length: longest window in text tokens; cut to what the model's positions allow.
            stride: overlap of two windows in tokens; cut to a third of a window that had to be cut.
            precision: float32 gives the same numbers everywhere; `auto` takes bfloat16 where it is native.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config or AnswerConfig()
        limit = max_text_length(model)
        self.max_length = max_length if limit is None else min(max_length, limit)
        fitted, self.max_question_length = fitting(self.max_length, stride, self.max_length)
        self.stride = stride if self.max_length == max_length else fitted
        self.precision = resolve_precision(precision, device_of(model))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> QuestionAnswerer:
        """Loads a model and its tokenizer from a run's `model` folder, any folder, or the hub.

        Args:
            name: the folder or repository.
            device: where to run; the accelerator if there is one.
            trust_remote_code: run code from the repository; off unless asked for.
            settings: as the constructor's.

        Raises:
            CheckpointError: the model can't be loaded.
        """
        from transformers import AutoModelForQuestionAnswering

        source = resolve_model(name)
        model = from_pretrained(AutoModelForQuestionAnswering, source, trust_remote_code=trust_remote_code)
        model.to(torch.device(device) if device is not None else best_device())
        return cls(model, load_tokenizer(name, trust_remote_code=trust_remote_code, needs=("pad", "sep")), **settings)

    @overload
    def __call__(self, *, question: str, context: str) -> Prediction: ...

    @overload
    def __call__(self, *, question: list[str], context: str | list[str]) -> list[Prediction]: ...

    def __call__(self, *, question: str | list[str], context: str | list[str]) -> Prediction | list[Prediction]:
        """Answers one question, or a list of them about one context or a list of contexts.

        A question longer than half a window is cut; a warning says how many were, and `Prediction.question_cut` which.

        Returns:
            A `Prediction` (text, n-best with probabilities and character offsets), or a list of them.

        Raises:
            DataError: an empty question or context, or lists of different length.
        """
        questions = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise DataError(
                f"{len(questions)} questions and {len(contexts)} contexts; give as many of each, or one context."
            )
        examples = [self._example(index, *pair) for index, pair in enumerate(zip(questions, contexts, strict=True))]
        predictions = self.answer(examples) if examples else []
        cut = [number for number, prediction in enumerate(predictions, 1) if prediction.question_cut]
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(predictions)} questions were longer than {self.max_question_length} tokens and "
                f"were cut (number {', '.join(map(str, cut[:5]))}{' …' if len(cut) > 5 else ''}).",
                stacklevel=2,
            )
        return predictions[0] if isinstance(question, str) else predictions

    def answer(self, examples: Sequence[QAExample], *, progress: bool = False) -> list[Prediction]:
        """Answers examples that have ids already, in order; long questions are cut (`Prediction.question_cut`)."""
        found = make_windows(
            examples,
            self.tokenizer,
            max_length=self.max_length,
            stride=self.stride,
            max_question_length=self.max_question_length,
            on_long_question="truncate",
            extra_positions=register_positions(self.model),
            for_training=False,
        )
        cut = set(found.truncated_questions)
        predictions = answer_questions(
            self.model,
            found.windows,
            examples,
            config=self.config,
            pad_token_id=self.tokenizer.pad_token_id,
            precision=self.precision,
            progress=progress,
        )
        return [dataclasses.replace(one, question_cut=True) if one.id in cut else one for one in predictions]

    @staticmethod
    def _example(index: int, question: str, context: str) -> QAExample:
        for name, text in (("question", question), ("context", context)):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{name} {index + 1} is empty ({shown(text)}); there is nothing to read.")
        return QAExample(id=str(index), question=question, context=context, answers=())
