"""Which official metric an evaluation set is scored by, and the figures that a record keeps of it."""

from __future__ import annotations

from collections.abc import Sequence

from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.data.sources import dataset_info
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.metrics.qa_metrics import QuestionScores, answer_texts, score_mlqa, score_questions
from regtune.tasks.qa.metrics.squad_v2 import score_squad_v2


def score_set(
    name: str, predictions: Sequence[Prediction], examples: Sequence[QAExample]
) -> tuple[QuestionScores, dict[str, float]]:
    """Scores a set by the rules of its kind: SQuAD v2.0 where questions without an answer occur, MLQA's own, or v1.1.

    Args:
        name: the set as it was named for `load_questions`.
        predictions: one for each question; where "no answer" won, its text is empty already.
        examples: the questions.

    Returns:
        Each question's scores, and the set's figures (ratios): `exact_match` and `f1` always; for v2.0 also
        `HasAns_*`, `NoAns_*` and, where null scores are known, `best_*`.

    Raises:
        DataError: as the metrics do.
    """
    if any(not example.answers for example in examples):
        return _score_v2(predictions, examples)
    texts = answer_texts(predictions)
    if name.startswith("mlqa:"):
        scores = score_mlqa(texts, examples, language=dataset_info(name).language)
    else:
        scores = score_questions(texts, examples)
    return scores, scores.summary()


def _score_v2(
    predictions: Sequence[Prediction], examples: Sequence[QAExample]
) -> tuple[QuestionScores, dict[str, float]]:
    scores = score_squad_v2(answer_texts(predictions), examples)
    figures = scores.summary()
    differences = {p.id: p.null_difference for p in predictions if p.null_difference is not None}
    if differences:
        best = score_squad_v2({p.id: p.best_text for p in predictions}, examples, null_differences=differences)
        figures |= {key: value for key, value in best.summary().items() if key.startswith("best_")}
    figures = {key: value for key, value in figures.items() if not key.endswith("total")}
    return scores.questions, {"exact_match": figures.pop("exact")} | figures
