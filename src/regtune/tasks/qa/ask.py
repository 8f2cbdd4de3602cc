"""Asking a model one question, and showing what it says."""

from __future__ import annotations

import dataclasses

from regtune.session import open as open_session
from regtune.tables import Column, Table
from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.question_answerer import QuestionAnswerer


def ask(name: str, question: str, context: str, *, top_k: int = 5) -> Prediction:
    """One question about one context, to a run's model or any question-answering model.

    Args:
        name: a run directory, a folder or a hub name.
        question: the question.
        context: the text that holds the answer, of any length.
        top_k: how many answers; their length and "no answer" are as in the run's own settings.

    Returns:
        A `Prediction`.

    Raises:
        CheckpointError: no such model, or one without a question-answering head.
        DataError: an empty question or context.
    """
    session = open_session(name, task="qa")
    answerer = QuestionAnswerer(
        session.model,
        session.reader,
        config=dataclasses.replace(session.config.answers, top_k=top_k),
        max_length=session.config.data.max_length,
        stride=session.config.data.stride,
    )
    return answerer(question=question, context=context)


def answers_text(prediction: Prediction) -> str:
    """The answers best first, with their share of all that the model could have said."""
    spans = [(span.text, span.probability) for span in prediction.n_best]
    if prediction.null_probability is not None:
        spans.append(("(no answer)", prediction.null_probability))
        spans.sort(key=lambda pair: -pair[1])
    columns = (Column("probability", ".3f"), Column("answer", align="left"))
    return Table(columns=columns, rows=tuple((probability, text) for text, probability in spans)).text
