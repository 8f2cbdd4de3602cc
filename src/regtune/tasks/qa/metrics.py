"""Exact match and F1 as the official scripts compute them: SQuAD v1.1 and v2.0, TyDi QA GoldP, XQuAD, MLQA.

All scores are ratios in [0, 1]; the scripts print percent.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError, unknown_name
from regtune.interfaces import Floats
from regtune.tasks.qa.examples import QAExample

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HAN = re.compile("([\u4e00-\u9fa5])")

MLQA_ARTICLES: Mapping[str, re.Pattern[str] | None] = {
    "ar": re.compile("ال"),  # the prefix "al-", wherever it stands, as in the official script
    "de": re.compile(r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "en": _ENGLISH_ARTICLES,
    "es": re.compile(r"\b(un|una|unos|unas|el|la|los|las)\b"),
    "hi": None,
    "vi": re.compile(r"\b(của|là|cái|chiếc|những)\b"),
    "zh": None,
}
"""What MLQA takes for articles in each of its languages."""


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no a/an/the, single spaces.

    In this order, so "A.M." is kept as "am". Source: `normalize_answer` of the official evaluate-v1.1.py (Rajpurkar et
    al. 2016), which v2.0, TyDi QA GoldP and XQuAD share, for all languages.
    """
    return " ".join(_ENGLISH_ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split())


def normalize_answer_mlqa(text: str, language: str) -> str:
    """MLQA's normalisation: lower case, no Unicode punctuation, no articles of the language, single spaces.

    Each Chinese character becomes a word of its own (`zh`). Source: `normalize_answer` of the official
    mlqa_evaluation_v1.py (Lewis et al. 2020).

    Args:
        text: an answer.
        language: the answers' language: ar, de, en, es, hi, vi or zh.

    Raises:
        UnknownNameError: for any other language.
    """
    if language not in MLQA_ARTICLES:
        raise unknown_name("MLQA language", language, MLQA_ARTICLES)
    kept = "".join(character for character in text.lower() if not _is_punctuation(character))
    articles = MLQA_ARTICLES[language]
    if articles is not None:
        kept = articles.sub(" ", kept)
    if language == "zh":
        kept = _HAN.sub(r" \1 ", kept)
    return " ".join(kept.split())


@lru_cache(maxsize=4096)
def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P") or character in string.punctuation


def score_answers(texts: Sequence[str], examples: Sequence[QAExample], *, mlqa: str = "") -> dict[str, Floats]:
    """Each question's best match over its gold answers, for exact match and F1 apart.

    Where every question has an answer the rules are v1.1's (arXiv 1606.05250): F1 is the harmonic mean of precision and
    recall over the words that two answers share, counted with repetition, and 0 where they share none, so that "A" and
    "." match exactly and have F1 0. Where one has none they are v2.0's (arXiv 1806.03822): the empty answer is right
    for a question without one, gold answers that normalise to nothing are left out (the empty one is gold where none is
    left), and F1 is 1 where both answers have no words.

    Args:
        texts: the predicted answers, "" for no answer.
        examples: the questions, in the same order.
        mlqa: MLQA's rules for answers in this language (its context's; arXiv 1910.07475), instead of SQuAD's.

    Returns:
        `exact_match` and `f1`, `[questions]`.

    Raises:
        DataError: no question, or another number of texts.
        UnknownNameError: a language that MLQA doesn't have.
    """
    if not examples or len(texts) != len(examples):
        raise DataError(
            f"There are {len(texts)} answers for {len(examples)} questions; give one for each, at least one."
        )
    v2 = any(not example.answers for example in examples)

    def pair(text: str, example: QAExample) -> tuple[float, float]:
        said, *golds = (
            normalize_answer_mlqa(one, mlqa) if mlqa and not v2 else normalize_answer(one)
            for one in (text, *{answer.text for answer in example.answers})
        )
        if v2:
            golds = [gold for gold in golds if gold] or [""]
        return float(said in golds), max(_f1(said.split(), gold.split(), empty_is_right=v2) for gold in golds)

    exact, f1 = np.array([pair(*one) for one in zip(texts, examples, strict=True)], dtype=np.float64).T
    return {"exact_match": exact, "f1": f1}


def _f1(prediction: Sequence[str], gold: Sequence[str], *, empty_is_right: bool) -> float:
    if empty_is_right and not (prediction and gold):
        return float(prediction == gold)
    shared = sum((Counter(prediction) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def by_answerability(scores: Mapping[str, Floats], examples: Sequence[QAExample]) -> dict[str, float]:
    """SQuAD v2.0's means over questions with (`HasAns_*`) and without an answer (`NoAns_*`), where there are such."""
    has_answer = np.array([bool(example.answers) for example in examples])
    return {
        f"{kind}_{name}": float(scores[column][chosen].mean())
        for kind, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer))
        if chosen.any()
        for name, column in (("exact", "exact_match"), ("f1", "f1"))
    }


def best_thresholds(
    texts: Sequence[str], differences: npt.ArrayLike, examples: Sequence[QAExample]
) -> dict[str, float]:
    """The best mean that a threshold on the null difference would have given, and that threshold.

    Starts with nothing answered and answers one question more at a time, the smallest difference first, as
    `find_best_thresh` of the official evaluate-v2.0.py does; equal differences one after the other (in the examples'
    order here). Of equally good thresholds the first is kept, or 0 if answering nothing is best.

    Args:
        texts: the best spans (`Prediction.best_text`), not texts that a threshold has emptied already.
        differences: null score - best span's score, `[questions]`.
        examples: the questions.

    Returns:
        `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`.

    Raises:
        DataError: a difference is NaN.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if np.isnan(differences).any():
        raise DataError(f"The null difference of {examples[int(np.isnan(differences).argmax())].id!r} is NaN.")
    has_answer = np.array([bool(example.answers) for example in examples])
    answered = np.array([bool(text) for text in texts])
    order = np.argsort(differences, kind="stable")
    found: dict[str, float] = {}
    for name, scores in zip(("exact", "f1"), score_answers(texts, examples).values(), strict=True):
        gains = np.where(has_answer, scores, -answered.astype(np.float64))[order]
        running = np.cumsum(np.concatenate([[float((~has_answer).sum())], gains]))
        best = int(np.argmax(running))
        threshold = float(differences[order[best - 1]]) if best else 0.0
        found |= {f"best_{name}": float(running[best]) / len(examples), f"best_{name}_thresh": threshold}
    return found
