"""SQuAD v2.0's metric: questions that may have no answer, and the threshold that would have been best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from regtune.errors import DataError
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.metrics.normalise import normalize_answer
from regtune.tasks.qa.metrics.question_scores import QuestionScores, check_examples


class BestThreshold(NamedTuple):
    """The best average that a threshold on the null difference would have given (a ratio), and that threshold."""

    score: float
    threshold: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SquadV2Scores:
    """Scores of each question, which of them have an answer, and the best thresholds if null differences were given."""

    questions: QuestionScores
    has_answer: Bool[np.ndarray, " questions"]
    best_exact: BestThreshold | None = None
    best_f1: BestThreshold | None = None

    def summary(self) -> dict[str, float]:
        """The official script's figures under its own names, as ratios in [0, 1] where the script gives percent.

        `HasAns_*` and `NoAns_*` are there where such questions are, `best_*` where null differences were given.
        """
        exact, f1 = self.questions.exact_match, self.questions.f1
        figures = {"exact": float(exact.mean()), "f1": float(f1.mean()), "total": float(len(exact))}
        for name, chosen in (("HasAns", self.has_answer), ("NoAns", ~self.has_answer)):
            if chosen.any():
                figures[f"{name}_exact"] = float(exact[chosen].mean())
                figures[f"{name}_f1"] = float(f1[chosen].mean())
                figures[f"{name}_total"] = float(chosen.sum())
        for name, best in (("exact", self.best_exact), ("f1", self.best_f1)):
            if best is not None:
                figures |= {f"best_{name}": best.score, f"best_{name}_thresh": best.threshold}
        return figures


def score_squad_v2(
    predictions: Mapping[str, str],
    examples: Sequence[QAExample],
    *,
    null_differences: Mapping[str, float] | None = None,
    null_threshold: float | None = None,
) -> SquadV2Scores:
    """Scores predictions by the rules of the official evaluate-v2.0.py (Rajpurkar et al. 2018, arXiv 1806.03822).

    A question without gold answers is right if the prediction is empty. Gold answers that normalise to nothing are left
    out; if none is left, the empty answer is the gold one. Where one answer has no words, F1 is 1 if neither has any.

    The search for the best threshold answers each question with its prediction while its null difference is at most the
    threshold and with nothing above it, so give it the best spans (`Prediction.best_text`), not texts that a threshold
    has emptied already. As in the script, equal differences are taken one after the other (in the examples' order here)
    and the first of equally good thresholds is kept, or 0 if answering nothing is best.

    Args:
        predictions: a text for each question's id, "" for no answer.
        examples: the questions.
        null_differences: for each id the null score - the best span's score (`Prediction.null_difference`); the
            script's "na_prob", though any number will do that is larger where an answer is less likely.
        null_threshold: if given, questions with a larger difference count as unanswered (the script's
            `--na-prob-thresh`); without it predictions count as they are.

    Raises:
        DataError: no examples, duplicate ids, a question without prediction (the script cannot finish either), or
            without a null difference, or one that is NaN; a threshold without differences.
    """
    check_examples(examples)
    if null_threshold is not None and null_differences is None:
        raise DataError(f"null_threshold={null_threshold} needs null_differences to compare with; give both.")
    for name, mapping in (("prediction", predictions), ("null difference", null_differences)):
        missing = [example.id for example in examples if mapping is not None and example.id not in mapping]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(examples)} questions have no {name}, for example {missing[0]!r}; "
                "SQuAD v2.0 scores all questions. Give an empty text for no answer."
            )
    pairs = [_score(predictions[example.id], example) for example in examples]
    exact, f1 = np.array(pairs, dtype=np.float64).T
    has_answer = np.array([bool(example.answers) for example in examples])
    best_exact = best_f1 = None
    if null_differences is not None:
        differences = np.array([null_differences[example.id] for example in examples], dtype=np.float64)
        if np.isnan(differences).any():
            raise DataError(f"The null difference of {examples[int(np.isnan(differences).argmax())].id!r} is NaN.")
        answered = np.array([bool(predictions[example.id]) for example in examples])
        best_exact = _best_threshold(exact, differences, has_answer, answered)
        best_f1 = _best_threshold(f1, differences, has_answer, answered)
        if null_threshold is not None:
            emptied = differences > null_threshold
            exact, f1 = (np.where(emptied, ~has_answer, scores).astype(np.float64) for scores in (exact, f1))
    questions = QuestionScores(ids=tuple(example.id for example in examples), exact_match=exact, f1=f1)
    return SquadV2Scores(questions=questions, has_answer=has_answer, best_exact=best_exact, best_f1=best_f1)


def _score(prediction: str, example: QAExample) -> tuple[float, float]:
    """Exact match and F1 over the gold answers (`get_raw_scores` of evaluate-v2.0.py)."""
    predicted = normalize_answer(prediction)
    golds = [gold for gold in map(normalize_answer, {answer.text for answer in example.answers}) if gold] or [""]
    return float(predicted in golds), max(squad_v2_f1(predicted.split(), gold.split()) for gold in golds)


def squad_v2_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two lists of normalised words; where one is empty, 1 if both are (`compute_f1` of evaluate-v2.0.py)."""
    if not prediction or not gold:
        return float(prediction == gold)
    shared = sum((Counter(prediction) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def _best_threshold(
    scores: Float64[np.ndarray, " questions"],
    differences: Float64[np.ndarray, " questions"],
    has_answer: Bool[np.ndarray, " questions"],
    answered: Bool[np.ndarray, " questions"],
) -> BestThreshold:
    """Starts with nothing answered and answers one question more at a time (`find_best_thresh` of evaluate-v2.0.py)."""
    order = np.argsort(differences, kind="stable")
    gains = np.where(has_answer, scores, -answered.astype(np.float64))[order]
    running = np.cumsum(np.concatenate([[float((~has_answer).sum())], gains]))
    best = int(np.argmax(running))
    threshold = float(differences[order[best - 1]]) if best else 0.0
    return BestThreshold(score=float(running[best]) / len(scores), threshold=threshold)
