"""What a run or a search holds out of its training examples: whole groups, each stratum by its share.

Groups and strata are the task's (`Task.group`, `Task.stratum`): passages, documents; classes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container

import numpy as np

from regtune.errors import ConfigError, DataError
from regtune.interfaces import Examples, Task


def draw_share(examples: Examples, task: Task, share: float, *, seed: int) -> tuple[Examples, Examples]:
    """Examples to learn from, and at least `share` of them held out, drawn by the seed.

    Raises:
        ConfigError: all examples belong to one group, which can't be split.
    """
    sizes, strata = _groups(examples, task)
    if len(sizes) < 2:
        raise ConfigError(
            f"checkpoint=best needs training examples of at least two texts, and there are {len(sizes)}. Train with "
            "--training.checkpoint last."
        )
    names = list(sizes)
    drawn = [names[index] for index in np.random.default_rng([seed, len(names)]).permutation(len(names))]
    held, count = set[str](), 0
    for name in _spread(drawn, strata)[:-1]:
        held.add(name)
        count += sizes[name]
        if count >= share * len(examples):
            break
    return _parts(examples, task, held)


def every_group(examples: Examples, task: Task, number: int) -> tuple[Examples, Examples]:
    """Examples without every `number`-th group, and those groups, counted through stratum by stratum.

    Raises:
        DataError: nothing would be left to train on, or to hold out.
    """
    sizes, strata = _groups(examples, task)
    places = {stratum: place for place, stratum in enumerate(dict.fromkeys(strata.values()))}
    kin = Counter(strata.values())
    ordered = sorted(sizes, key=lambda name: places[strata[name]])
    held = {name for name in ordered[::number] if kin[strata[name]] > 1}  # of a single one there is nothing to learn
    if not held:
        raise DataError(
            f"The search needs training examples of at least two texts (with labels: two of one label), and "
            f"{', '.join(examples.names)} has {len(sizes)}. Name a larger training set first under training_sets."
        )
    return _parts(examples, task, held)


def _groups(examples: Examples, task: Task) -> tuple[Counter[str], dict[str, str]]:
    """How many examples each group has, in order of appearance, and its first example's stratum."""
    sizes, strata = Counter[str](), dict[str, str]()
    for example in examples.items:
        group = task.group(example)
        sizes[group] += 1
        strata.setdefault(group, task.stratum(example))
    return sizes, strata


def _spread(order: list[str], strata: dict[str, str]) -> list[str]:
    """The groups in an order of which every beginning has about the same share of each stratum."""
    total, seen, place = Counter(strata.values()), Counter[str](), dict[str, float]()
    for name in order:
        place[name] = (seen[strata[name]] + 0.5) / total[strata[name]]
        seen[strata[name]] += 1
    return sorted(order, key=place.__getitem__)


def _parts(examples: Examples, task: Task, held: Container[str]) -> tuple[Examples, Examples]:
    parts = []
    for inside in (False, True):
        items = tuple(example for example in examples.items if (task.group(example) in held) == inside)
        parts.append(dataclasses.replace(examples, items=items))
    return parts[0], parts[1]
