"""Data sets by name as examples, for every command: a task reads them, and `noise:` before a name perturbs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from regtune import folds
from regtune.errors import ConfigError, DataError, shown, unknown_name
from regtune.interfaces import Examples, Task
from regtune.noise import DISTRACTORS, PREFIX, Change, Noise, copy_id, noise_of, sentences_of, split_name


def read_sets(
    task: Task, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
) -> Examples:
    """The examples of data sets, as `Task.read` gives them, perturbed where a name says so.

    Where a set stands beside its perturbed self, the ids of the perturbed one get their noise behind them.

    A fold (`regtune.folds`) is read with all the sets that it is a part of, always as training data, which its
    examples are in the other folds; so all folds are parts of the same whole. A limit then counts the fold's own.

    Raises:
        ConfigError: noise that can't be, or that the task has no text for; a fold that can't be, or beside other sets.
        DataError: as reading does, and for an id that two sets have; fewer groups of examples than folds.
    """
    folded = next((name for name in names if name.startswith(folds.PREFIX)), None)
    if folded is not None:
        if len(names) > 1:
            raise ConfigError(f"{shown(folded)} stands for all its sets and can't stand beside others; name it alone.")
        return _part(task, folds.fold_named(folded), settings, limit)
    parsed = [(name, *noise_of(name)) for name in names]
    if all(noise is None for _, noise, _ in parsed):
        return task.read(names, settings, limit=limit, training=training)
    parts: list[Examples] = []
    for noise, chosen in groupby(parsed, key=lambda one: one[1]):
        given = list(chosen)
        left = None if limit is None else limit - sum(map(len, parts))
        if left == 0:
            break
        found = task.read([plain for _, _, plain in given], settings, limit=left, training=training)
        parts.append(found if noise is None else perturbed(task, found, noise))
        parts[-1] = replace(parts[-1], names=tuple(name for name, _, _ in given))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _part(task: Task, fold: folds.Fold, settings: Any, limit: int | None) -> Examples:
    """The examples of a fold, or of all others."""
    pool = read_sets(task, fold.sets, settings, training=True)
    if not fold.number:
        return replace(pool, names=(fold.name,), items=pool.items[:limit])
    keys = [_kinship(task, example) for example in pool.items]
    strata = [task.stratum(example) for example in pool.items]
    places = folds.deal(keys, strata, fold.count, seed=fold.seed)
    chosen = (fold.number,) if not fold.rest else tuple(set(range(1, fold.count + 1)) - {fold.number})
    items = tuple(item for item, place in zip(pool.items, places, strict=True) if place in chosen)
    which = f"all folds but {fold.number}" if fold.rest else f"fold {fold.number}"
    note = f"{which} of {fold.count}: {len(items):,} of {len(pool):,} pooled {task.examples}"
    return replace(pool, names=(fold.name,), items=items[:limit], notes=(*pool.notes, note))


def _kinship(task: Task, example: Any) -> list[tuple[str, str]]:
    """What keeps an example in one fold with others: its group, and its text but for case and white space."""
    text = " ".join(task.text(example).split()).casefold()
    return [("group", task.group(example)), *([("text", text)] if text else ())]


def files_of(name: str) -> tuple[str, ...]:
    """The files, or names of sets, behind the name of a set, of one with noise, or of a fold."""
    fold = folds.fold_of(name)
    return tuple(split_name(each)[1] for each in (fold.sets if fold else (name,)))


def perturbed(task: Task, examples: Examples, noise: Noise) -> Examples:
    """The same examples with noise in their texts; `facts` and `notes` say how much changed.

    Raises:
        ConfigError: the task has no text that may change, no such field, or none for sentences of other examples.
        DataError: there are no other texts whose sentences could be put in.
    """
    unknown = [name for name in noise.fields if name not in task.perturbs]
    if not task.perturbs:
        why = "it reads images" if task.modality == "image" else "its labels belong to single words or tokens"
        raise ConfigError(f"{task.title} has no text that noise may change: {why}.")
    if unknown:
        raise unknown_name(f"text of {task.title} for in=:", unknown[0], task.perturbs)
    sentences: dict[str, list[tuple[str, str]]] = {}
    if DISTRACTORS in dict(noise.strengths):
        if not task.distracted:
            raise ConfigError(
                f"distractors: {task.title} has no text that sentences of other examples can be put into without "
                "making its labels wrong. Take another kind of noise."
            )
        texts = dict.fromkeys(getattr(example, task.distracted) for example in examples.items)
        sentences[task.distracted] = [(text, sentence) for text in texts for sentence in sentences_of(text)]
    change = Change(noise=noise, sentences=sentences)
    items = []
    for example in examples.items:
        change.id = str(example.id)
        items.append(task.perturb(example, change))
    facts = {"noise": {kind: {"changed": change.changed[kind], "of": count} for kind, count in change.seen.items()}}
    return replace(
        examples, items=tuple(items), notes=(*examples.notes, change.note), facts={**examples.facts, **facts}
    )


def language_of_set(task: Task, name: str) -> str:
    """`Task.language` of the set that a name stands for, noise or not; of a fold, where its sets have the same one."""
    found = {task.language(each) for each in files_of(name)}
    return found.pop() if len(found) == 1 else ""


def _joined(parts: Sequence[Examples]) -> Examples:
    items: dict[str, Any] = {}
    names = tuple(name for part in parts for name in part.names)
    for part in parts:
        noisy = part.names[0].startswith(PREFIX)
        for example in part.items:
            copied = noisy and example.id in items
            item = replace(example, id=copy_id(example.id, part.names[0])) if copied else example
            if item.id in items:
                raise DataError(f"The id {shown(item.id)} is in two of the sets {', '.join(names)}. Name each once.")
            items[item.id] = item
    return Examples(
        items=tuple(items.values()),
        names=names,
        skipped=tuple(one for part in parts for one in part.skipped),
        notes=tuple(note for part in parts for note in part.notes),
        facts=_sum([part.facts for part in parts]),
    )


def _sum(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts added up and lists put together, name by name."""
    found: dict[str, Any] = {}
    for one in facts:
        for name, value in one.items():
            if name not in found:
                found[name] = value
            elif isinstance(value, Mapping):
                found[name] = _sum([found[name], value])
            else:
                found[name] = found[name] + value
    return found
