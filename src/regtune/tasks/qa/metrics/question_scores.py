"""Scores of single questions, which statistics need, and what is made of them: averages, languages, worst variants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from regtune.errors import DataError
from regtune.tasks.qa.examples import QAExample

TYDI_LANGUAGES = (
    "arabic",
    "bengali",
    "english",
    "finnish",
    "indonesian",
    "japanese",
    "korean",
    "russian",
    "swahili",
    "telugu",
    "thai",
)
_VARIANT = re.compile(r"-high-conf(-turk\d+)?$")


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionScores:
    """Exact match and F1 of each question, as ratios in [0, 1], in the examples' order."""

    ids: tuple[str, ...]
    exact_match: Float64[np.ndarray, " questions"]
    f1: Float64[np.ndarray, " questions"]
    missing: tuple[str, ...] = ()
    """Questions without a prediction; they scored 0."""

    def summary(self) -> dict[str, float]:
        """The averages over questions, as ratios in [0, 1]."""
        return {"exact_match": float(self.exact_match.mean()), "f1": float(self.f1.mean())}

    def select(self, positions: Sequence[int]) -> QuestionScores:
        """The scores of some of the questions."""
        chosen = list(positions)
        ids = tuple(self.ids[position] for position in chosen)
        missing = tuple(name for name in self.missing if name in set(ids))
        return QuestionScores(ids=ids, exact_match=self.exact_match[chosen], f1=self.f1[chosen], missing=missing)


def check_examples(examples: Sequence[QAExample]) -> None:
    """Refuses what no metric can be computed for.

    Raises:
        DataError: no examples at all, or ids that are not unique (they are named).
    """
    if not examples:
        raise DataError("There are 0 questions to score; give at least one example.")
    seen: set[str] = set()
    duplicates = [e.id for e in examples if e.id in seen or seen.add(e.id)]  # type: ignore[func-returns-value]
    if duplicates:
        raise DataError(
            f"{len(set(duplicates))} ids belong to more than one question, so predictions cannot be told apart: "
            f"{_some(sorted(set(duplicates)))}. Make the ids unique."
        )


class LanguageRow(NamedTuple):
    """One line of a per-language table."""

    language: str
    questions: int
    exact_match: float
    f1: float


def tydi_language(question_id: str) -> str:
    """The language that a TyDi QA id starts with, as in `english-588...-2`.

    Raises:
        DataError: the id starts with no language of TyDi QA.
    """
    language = question_id.partition("-")[0]
    if language not in TYDI_LANGUAGES:
        raise DataError(
            f"The id {question_id!r} doesn't start with a language of TyDi QA ({', '.join(TYDI_LANGUAGES)}) and a "
            "hyphen. Say with `language_of` which language each question has."
        )
    return language


def by_language(
    scores: QuestionScores, language_of: Mapping[str, str] | Callable[[str], str] = tydi_language
) -> list[LanguageRow]:
    """Averages for each language, sorted by language.

    Args:
        scores: of questions in several languages.
        language_of: each id's language, as a mapping or a function; TyDi QA's ids say it themselves.

    Raises:
        DataError: an id whose language is not known.
    """
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(scores.ids):
        if callable(language_of):
            language = language_of(name)
        elif name in language_of:
            language = language_of[name]
        else:
            raise DataError(f"`language_of` has no language for the question {name!r}; add it.")
        groups.setdefault(language, []).append(position)
    return [
        LanguageRow(language, len(members), **scores.select(members).summary())
        for language, members in sorted(groups.items())
    ]


def tydi_average(rows: Sequence[LanguageRow], *, english: str = "english") -> LanguageRow:
    """TyDi QA's figure: the average over the languages other than English, each language counting the same.

    Source: Clark et al. 2020 (arXiv 2003.05002) and the task's evaluation rules for GoldP.

    Raises:
        DataError: English is the only language.
    """
    others = [row for row in rows if row.language != english]
    if not others:
        languages = [row.language for row in rows]
        raise DataError(f"TyDi QA's average leaves {english} out, and there is no other language in {languages}.")
    return LanguageRow(
        language=f"average without {english}",
        questions=sum(row.questions for row in others),
        exact_match=float(np.mean([row.exact_match for row in others])),
        f1=float(np.mean([row.f1 for row in others])),
    )


def adversarial_base_id(question_id: str) -> str:
    """The id of the original question: a `-high-conf` or `-high-conf-turk0` at the end is cut off (AddSent)."""
    return _VARIANT.sub("", question_id)


def worst_variant(scores: QuestionScores, base_id: Callable[[str], str] = adversarial_base_id) -> QuestionScores:
    """Scores each question by the variant with the lowest F1; the unchanged question counts only if it has no variant.

    Exact match is that variant's too; of equally bad variants the first one counts. Source: Jia and Liang 2017
    (arXiv 1707.07328), AddSent, and their evaluation script. (A variant without a prediction scores 0 here; the script
    leaves it out.)

    Args:
        scores: of original questions and variants together; every id is unique.
        base_id: gives the original question's id for a variant's id, and an original's own id for itself.

    Returns:
        One score for each original question, in the order in which they first occur.
    """
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(scores.ids):
        groups.setdefault(base_id(name), []).append(position)
    chosen = list(_worst(scores, groups))
    worst = scores.select(chosen)
    missing = tuple(
        base for base, position in zip(groups, chosen, strict=True) if scores.ids[position] in scores.missing
    )
    return QuestionScores(ids=tuple(groups), exact_match=worst.exact_match, f1=worst.f1, missing=missing)


def _worst(scores: QuestionScores, groups: Mapping[str, list[int]]) -> Iterator[int]:
    for base, members in groups.items():
        variants = [position for position in members if scores.ids[position] != base] or members
        yield min(variants, key=lambda position: float(scores.f1[position]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
