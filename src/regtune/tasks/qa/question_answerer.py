"""Asking a trained model questions in Python: what transformers' question-answering pipeline was."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, overload

from regtune.errors import DataError
from regtune.interfaces import Examples
from regtune.session import Session, fitted
from regtune.session import open as open_session
from regtune.tables import Column, Table
from regtune.tasks.qa.answers import Prediction

READY = "minilm-questions"
"""The adapter for English questions that comes with regtune."""


class QuestionAnswerer:
    """Answers questions about contexts of any length.

    Example:
        >>> answerer = QuestionAnswerer()  # doctest: +SKIP
        >>> answerer(question="Who built it?", context="It was built by Ada.").text  # doctest: +SKIP
        'Ada'
    """

    def __init__(self, name: str | Path | Session = READY, **settings: Any) -> None:
        """Opens a model that answers questions, with or without registers.

        Args:
            name: a run directory, a folder, a hub name, or a session that is open already; by default the adapter for
                English questions that comes with regtune.
            settings: in place of the run's own: `top_k`, `max_answer_tokens`, `null_answers`, `max_length`, `stride`, …
                Questions may fill half of a window.

        Raises:
            CheckpointError: no such model, or one without a question-answering head.
            ConfigError: a setting that can't be.
            MissingExtraError: the default without the `demo` extra.
        """
        session = name if isinstance(name, Session) else open_session(name, task="qa")
        own = session.task_settings
        shorter = session.reads.shortened(own, settings.get("max_length", own.max_length))
        wanted = fitted(dataclasses.replace(shorter, **settings), session)
        if "max_question_length" not in settings:
            wanted = dataclasses.replace(wanted, max_question_length=wanted.max_length // 2)
        self.session = dataclasses.replace(session, task_settings=wanted)

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> QuestionAnswerer:
        """The same by transformers' word: opens a run's `model` folder, any other folder or a hub name."""
        return cls(name, **settings)

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
        task, settings = self.session.reads, self.session.task_settings
        items = tuple(
            task.example({"id": str(number), "question": asked, "context": text}, settings)
            for number, (asked, text) in enumerate(zip(questions, contexts, strict=True))
        )
        predictions = self.session.predict(Examples(items=items, names=("asked",))) if items else []
        cut = [number for number, prediction in enumerate(predictions, 1) if prediction.question_cut]
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(predictions)} questions were longer than {settings.max_question_length} tokens "
                f"and were cut (number {', '.join(map(str, cut[:5]))}{' …' if len(cut) > 5 else ''}).",
                stacklevel=2,
            )
        return predictions[0] if isinstance(question, str) else predictions


def ask(name: str, question: str, context: str, *, top_k: int = 5) -> Prediction:
    """One question about one context, to a run's model or any question-answering model.

    Args:
        name: a run directory, a folder, a hub name or `minilm-questions`, the adapter that comes with regtune.
        question: the question.
        context: the text that holds the answer, of any length.
        top_k: how many answers; their length and "no answer" are as in the run's own settings.

    Returns:
        A `Prediction`.

    Raises:
        CheckpointError: no such model, or one without a question-answering head.
        DataError: an empty question or context.
    """
    return QuestionAnswerer(name, top_k=top_k)(question=question, context=context)


def answers_text(prediction: Prediction) -> str:
    """The answers best first, with their share of all that the model could have said."""
    spans = [(span.text, span.probability) for span in prediction.n_best]
    if prediction.null_probability is not None:
        spans.append(("(no answer)", prediction.null_probability))
        spans.sort(key=lambda pair: -pair[1])
    columns = (Column("probability", ".3f"), Column("answer", align="left"))
    return Table(columns=columns, rows=tuple((probability, text) for text, probability in spans)).text
