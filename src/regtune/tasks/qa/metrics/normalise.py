"""What two answers must share to count as equal: the official normalisations of SQuAD and of MLQA."""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache

from regtune.errors import unknown_name

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HAN = re.compile("([\u4e00-\u9fa5])")

MLQA_ARTICLES: dict[str, re.Pattern[str] | None] = {
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
