"""Exact match and F1 as the official scripts compute them, for each question and on average.

All scores are ratios in [0, 1]; the scripts print percent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from regtune.errors import DataError, unknown_name
from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.metrics.normalise import MLQA_ARTICLES, normalize_answer, normalize_answer_mlqa
from regtune.tasks.qa.metrics.question_scores import (
    LanguageRow,
    QuestionScores,
    by_language,
    check_examples,
    tydi_average,
    worst_variant,
)
from regtune.tasks.qa.metrics.squad_v2 import SquadV2Scores, score_squad_v2

__all__ = [
    "METRICS",
    "LanguageRow",
    "QuestionScores",
    "SquadV2Scores",
    "answer_texts",
    "by_language",
    "exact_match_score",
    "f1_score",
    "metric_by_name",
    "score_mlqa",
    "score_questions",
    "score_squad_v2",
    "tydi_average",
    "worst_variant",
]

Normaliser = Callable[[str], str]
Metric = Callable[[Mapping[str, str], Sequence[QAExample]], QuestionScores]


def exact_match_score(prediction: str, gold: str, *, normalise: Normaliser = normalize_answer) -> float:
    """1 if both answers are equal after normalisation, else 0 (`exact_match_score` of evaluate-v1.1.py)."""
    return float(normalise(prediction) == normalise(gold))


def f1_score(prediction: str, gold: str, *, normalise: Normaliser = normalize_answer) -> float:
    """Harmonic mean of precision and recall over the words that both answers share, counted with repetition.

    Two answers without any word in common score 0, so two that both normalise to nothing ("A" and ".") score 0 although
    their exact match is 1. Source: `f1_score` of the official evaluate-v1.1.py.
    """
    return _f1(normalise(prediction).split(), normalise(gold).split())


def _f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    shared = sum((Counter(prediction) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_questions(
    predictions: Mapping[str, str], examples: Sequence[QAExample], *, normalise: Normaliser = normalize_answer
) -> QuestionScores:
    """Scores each question as SQuAD v1.1 does: the best match over its gold answers; no prediction scores 0.

    TyDi QA GoldP and XQuAD use the same rules for all their languages. Predictions of other questions are not looked
    at. Source: `evaluate` of the official evaluate-v1.1.py (Rajpurkar et al. 2016, arXiv 1606.05250).

    Args:
        predictions: a text for each question's id.
        examples: the questions with their gold answers, at least one each.
        normalise: what answers go through before they are compared.

    Raises:
        DataError: no examples, duplicate ids, or a question without gold answers.
    """
    check_examples(examples)
    without = next((example.id for example in examples if not example.answers), None)
    if without is not None:
        raise DataError(
            f"Question {without!r} has no gold answer, which SQuAD v1.1's metric cannot score. "
            "Use score_squad_v2 for questions that may have none."
        )
    exact, f1 = np.zeros(len(examples)), np.zeros(len(examples))
    for position, example in enumerate(examples):
        if example.id not in predictions:
            continue
        predicted = normalise(predictions[example.id])
        golds = [normalise(text) for text in {answer.text for answer in example.answers}]
        exact[position] = predicted in golds
        words = predicted.split()
        f1[position] = max(_f1(words, gold.split()) for gold in golds)
    missing = tuple(example.id for example in examples if example.id not in predictions)
    return QuestionScores(ids=tuple(e.id for e in examples), exact_match=exact, f1=f1, missing=missing)


def score_mlqa(predictions: Mapping[str, str], examples: Sequence[QAExample], *, language: str) -> QuestionScores:
    """Scores each question as MLQA does: SQuAD v1.1's rules with `normalize_answer_mlqa` for the answers' language.

    The answers' language is the context's, whatever the question's. Source: the official mlqa_evaluation_v1.py (Lewis
    et al. 2020, arXiv 1910.07475).

    Args:
        predictions: a text for each question's id.
        examples: the questions with their gold answers.
        language: ar, de, en, es, hi, vi or zh.

    Raises:
        UnknownNameError: another language.
        DataError: as `score_questions`.
    """
    if language not in MLQA_ARTICLES:
        raise unknown_name("MLQA language", language, MLQA_ARTICLES)
    return score_questions(predictions, examples, normalise=partial(normalize_answer_mlqa, language=language))


def answer_texts(predictions: Iterable[Prediction]) -> dict[str, str]:
    """The predicted text of each question's id.

    Raises:
        DataError: two predictions have the same id.
    """
    texts: dict[str, str] = {}
    for prediction in predictions:
        if prediction.id in texts:
            raise DataError(f"There are two predictions with the id {prediction.id!r}; ids must be unique.")
        texts[prediction.id] = prediction.text
    return texts


def _squad_v2(predictions: Mapping[str, str], examples: Sequence[QAExample]) -> QuestionScores:
    return score_squad_v2(predictions, examples).questions


METRICS: dict[str, Metric] = {
    "squad": score_questions,
    "squad_v2": _squad_v2,
    "tydiqa": score_questions,
    "xquad": score_questions,
    **{f"mlqa.{language}": partial(score_mlqa, language=language) for language in MLQA_ARTICLES},
}
"""Every metric by name; each takes texts by id and examples, and gives scores by question."""


def metric_by_name(name: str) -> Metric:
    """Looks a metric up.

    Raises:
        UnknownNameError: there is none of that name; the message lists those that exist.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
