"""Folds by name: `fold:3/10:A|B` is the third of ten folds of the sets A and B, `fold:not-3/10:A|B` all but that one.

What belongs together is never split: examples of one group, and examples with the same text. Which fold an example is
in depends on the pooled sets, the number of folds and their seed, and on nothing of a model or a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from regtune.errors import ConfigError, DataError, shown

PREFIX = "fold:"
_NAME = re.compile(r"fold:(?:all|(not-)?(\d{1,4})/(\d{1,4})(?:,seed=(\d{1,10}))?):(.+)", re.DOTALL)
_FORM = "fold:NUMBER/COUNT[,seed=NUMBER]:SET|SET ..., with not- before the number for all folds but that one"
_BETWEEN = "|"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A part of pooled sets."""

    sets: tuple[str, ...]
    number: int = 0
    """From 1 to `count`; 0 stands for the whole pool."""
    count: int = 1
    seed: int = 0
    rest: bool = False
    """All folds but that one: what its model learns from."""

    @property
    def name(self) -> str:
        """The name that `fold_of` reads.

        Raises:
            ConfigError: the name of a set holds what stands between sets.
        """
        odd = next((each for each in self.sets if _BETWEEN in each), None)
        if odd is not None:
            raise ConfigError(
                f"The set {shown(odd)} has a {_BETWEEN!r} in its name, which folds can't have. Rename it."
            )
        which = f"{'not-' if self.rest else ''}{self.number}/{self.count}{f',seed={self.seed}' if self.seed else ''}"
        return f"{PREFIX}{which if self.number else 'all'}:{_BETWEEN.join(self.sets)}"

    @property
    def pool(self) -> str:
        """The name of all folds together."""
        return Fold(sets=self.sets).name


def fold_of(name: str) -> Fold | None:
    """The fold that a data set's name stands for; None for any other name, and for one that no fold can have."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    rest, number, count, seed, plain = found.groups()
    sets = tuple(plain.split(_BETWEEN))
    if number is None:
        return Fold(sets=sets)
    fold = Fold(sets=sets, number=int(number), count=int(count), seed=int(seed or 0), rest=rest is not None)
    return fold if 1 <= fold.number <= fold.count and fold.count > 1 else None


def fold_named(name: str) -> Fold:
    """The same, strictly.

    Raises:
        ConfigError: it isn't of that form, or a set in it is empty or a fold itself.
    """
    fold = fold_of(name)
    if fold is None or not all(fold.sets) or any(PREFIX in each for each in fold.sets):
        raise ConfigError(f"{shown(name)} must be written {_FORM}.")
    return fold


def deal(keys: Sequence[Sequence[Hashable]], strata: Sequence[str], count: int, *, seed: int) -> list[int]:
    """The fold of each example, from 1 to `count`.

    Examples that share a key are in one fold, directly or through others. These clusters are dealt in an order that the
    seed draws, each to the fold with the fewest examples of its stratum and, of such, with the fewest of all.

    Args:
        keys: of each example, what it may share with others.
        strata: of each example, for example its class; a cluster has its first example's.
        count: number of folds.
        seed: of the order.

    Raises:
        DataError: fewer clusters than folds.
    """
    import numpy as np

    clusters = _clusters(keys)
    sizes, kind = Counter(clusters), dict(zip(reversed(clusters), reversed(strata), strict=True))
    names = list(sizes)
    if len(names) < count:
        raise DataError(
            f"{count} folds need {count} groups of examples at least (passages, documents, different texts), and there "
            f"are {len(names)} in {len(keys):,} examples. Set folds to {len(names)} or less, or pool more data."
        )
    of_kind, total, fold = Counter[tuple[str, int]](), Counter[int](), dict[int, int]()
    for index in np.random.default_rng([seed, len(names)]).permutation(len(names)):
        name = names[index]
        place = min(range(1, count + 1), key=lambda one: (of_kind[kind[name], one], total[one], one))
        fold[name] = place
        of_kind[kind[name], place] += sizes[name]
        total[place] += sizes[name]
    return [fold[name] for name in clusters]


def _clusters(keys: Sequence[Sequence[Hashable]]) -> list[int]:
    """The cluster of each example: the first example that it is connected with."""
    parent = list(range(len(keys)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[Hashable, int] = {}
    for index, own in enumerate(keys):
        for key in own:
            one, other = root(first.setdefault(key, index)), root(index)
            parent[max(one, other)] = min(one, other)
    return [root(index) for index in range(len(keys))]
