"""Labels: as data write them, as a model's config names them, and the sentences about those that can't be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from regtune.errors import DataError, shown

if TYPE_CHECKING:
    from regtune.session import Session


def names_of(session: Session) -> list[str]:
    """The model's labels, in the order of its logits."""
    table = session.model.config.id2label
    return [str(table[index]) for index in range(len(table))]


def number_of(label: str, names: Sequence[str]) -> int:
    """The number of a label, as it is written or as transformers calls one without a name; -1 for an unknown one."""
    for written in (label, f"LABEL_{label}"):
        if written in names:
            return names.index(written)
    return -1


def known_number(label: str, names: Sequence[str], whose: str) -> int:
    """The number of a label; raises `DataError` for one that the model doesn't know. `whose` is its id."""
    found = number_of(label, names)
    if found < 0:
        raise DataError(
            f"{whose} has the label {shown(label)}, which the model doesn't know: its labels are {', '.join(names)}. "
            "Add examples of it to the training data, or leave it out."
        )
    return found


def label_of(value: Any, place: str, names: Sequence[str], what: str = "label") -> str:
    """A label as it is written: a word, or a whole number (by its name, where `names` has one); else a `DataError`."""
    if value is None or isinstance(value, (float, dict, list)) or not str(value).strip():
        raise DataError(f"{place}: the {what} is {shown(value)}; a word or a whole number is needed.")
    label = str(value).strip()
    return names[int(label)] if label.isdecimal() and int(label) < len(names) else label


def in_order(found: Iterable[str], first: Sequence[str] = ()) -> list[str]:
    """The labels `first` that were found, as they stand, then the others: numbers in their order, else the alphabet's.

    Raises:
        DataError: fewer than two were found.
    """
    every = set(found)
    if len(every) < 2:
        raise DataError(
            f"The training data have {len(every)} label{'s' * (len(every) != 1)} "
            f"({', '.join(sorted(every)) or 'none'}); a classifier needs at least two."
        )
    names = [name for name in first if name in every]
    rest = every - set(names)
    numbers = all(name.lstrip("-").isdecimal() for name in rest)
    return names + sorted(rest, key=(lambda name: (int(name), name)) if numbers else (lambda name: (0, name)))


def joined_by(labels: Iterable[str]) -> tuple[str, str] | None:
    """A sign that seems to stand between several labels in one, and such a label; None where it doesn't seem so.

    It does where a part is a label too, or is part of two: `cold|loud` beside `cold`.
    """
    every = sorted(set(labels))
    for sign in _SIGNS:
        held = [label for label in every if sign in label]
        parts = Counter(part.strip() for label in held for part in set(label.split(sign)))
        if any(part and (count > 1 or part in every) for part, count in parts.items()):
            return sign, held[0]
    return None


_SIGNS = (",", ";", "|")


def label_table(names: Sequence[str]) -> dict[str, Any]:
    """What a model's config says of its labels, in the order of its logits."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def all_labelled(items: Sequence[Any], labels: Sequence[Any], text: Callable[[Any], str], *, training: bool) -> bool:
    """Whether every item has a label (None is none); `text` says what an item is.

    Raises:
        DataError: some have and some haven't, or in training one hasn't.
    """
    missing = [item for item, label in zip(items, labels, strict=True) if label is None]
    if missing and (training or len(missing) < len(items)):
        raise DataError(f"{missing[0].id} has no label ({shown(text(missing[0]))}); give it one or leave it out.")
    return not missing
