"""Do the tokens that an explanation stresses agree with those that people marked?

Agreement says whether an explanation looks right to people, not whether it is true to the model: a faithful explanation
of a model that looks at the wrong words agrees with nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from regtune.errors import ConfigError

AGREEMENTS = ("auprc", "f1_own_length", "f1_threshold")
"""What is measured; higher is better for all."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far scores agree with marked tokens; ratios in [0, 1]."""

    auprc: float
    """Average precision; `prevalence` is what random scores reach."""
    f1_own_length: float
    """Token F1 of as many top-scored tokens as are marked (then precision = recall = F1)."""
    f1_threshold: float
    """Token F1 of the tokens that score at least `threshold` times the highest positive score."""
    prevalence: float
    """Share of tokens that are marked."""


def agreement(
    scores: Float64[np.ndarray, " tokens"], marked: Bool[np.ndarray, " tokens"], *, threshold: float = 0.5
) -> Agreement:
    """How far the scores agree with the marked tokens.

    Args:
        scores: of the text's tokens, higher for what matters more; negative ones count as such.
        marked: the tokens that people marked, at least one.
        threshold: share of the highest score from which a token counts as stressed.

    Raises:
        ConfigError: nothing is marked, a score is no number, or a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold} must lie above 0 and at most at 1.")
    precision = average_precision(scores, marked)
    size = int(marked.sum())
    highest = max(float(scores.max()), 0.0)
    stressed = (scores >= threshold * highest) & (scores > 0)
    return Agreement(
        auprc=precision,
        f1_own_length=_top_share(scores, marked, size),
        f1_threshold=token_f1(stressed, marked),
        prevalence=size / len(marked),
    )


def average_precision(scores: Float64[np.ndarray, " tokens"], marked: Bool[np.ndarray, " tokens"]) -> float:
    """Area under the precision-recall curve: the sum over thresholds of (recall gained) × precision.

    Tokens with equal scores pass a threshold together, so their order doesn't matter.

    Raises:
        ConfigError: nothing is marked, or a score is no number.
    """
    if not marked.any():
        raise ConfigError(f"None of the {len(marked)} tokens is marked, so there is nothing to agree with.")
    if not np.isfinite(scores).all():
        raise ConfigError(f"score {scores[~np.isfinite(scores)][0]} is no number.")
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(marked[order])
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # the last token of each group of ties
    found = hits[last]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (last + 1)).sum() / found[-1])


def token_f1(chosen: Bool[np.ndarray, " tokens"], marked: Bool[np.ndarray, " tokens"]) -> float:
    """F1 of chosen against marked tokens; 0 if nothing is chosen."""
    both = int((chosen & marked).sum())
    return 2 * both / (int(chosen.sum()) + int(marked.sum())) if both else 0.0


def _top_share(scores: np.ndarray, marked: np.ndarray, size: int) -> float:
    """Share of marked tokens among the `size` best; tokens that tie for the last places count in equal parts."""
    last = np.sort(scores)[::-1][size - 1]
    above, tied = scores > last, scores == last
    places = size - int(above.sum())
    return (int(marked[above].sum()) + places * float(marked[tied].mean())) / size


def words_to_tokens(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> Bool[np.ndarray, " tokens"]:
    """Which tokens share a character with any of the marked spans.

    Args:
        offsets: half-open character ranges of the tokens; an empty one (a special token) is never marked.
        spans: half-open character ranges that are marked.
    """
    marked = np.zeros(len(offsets), dtype=bool)
    ranges = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    for start, end in spans:
        marked |= (ranges[:, 0] < end) & (ranges[:, 1] > start) & (ranges[:, 1] > ranges[:, 0])
    return marked
