"""Every method of the registry, and where it was seen to work.

`support.json` is written by `tests/methods/conformance.py`, which trains, saves, opens and scores each method
on tiny models; nobody types it.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regtune.config import to_dict
from regtune.errors import MissingExtraError
from regtune.methods.used import clash
from regtune.registry import METHODS
from regtune.tables import Table

SUPPORT = Path(__file__).parent / "support.json"
WORKS = "works"


def list_methods(name: str | None = None) -> tuple[Table, ...]:
    """Every method: what it changes, what it costs, when to use it, and the families on which it works.

    Args:
        name: one method, with its settings and the reasons where it doesn't work.

    Raises:
        UnknownNameError: no such method.
    """
    if name is not None:
        return _one(name, METHODS.get(name))
    rows, works, kinds = [], [], _kinds()
    for each in METHODS:
        try:
            method = METHODS.get(each)
            rows.append((each, method.title, method.costs, method.use))
        except MissingExtraError as error:
            rows.append((each, str(error), "", ""))
        works.append((each, *(_verdict(each, kind) for kind in kinds)))
    note = (
        "yes: trained, saved, opened and scored on a tiny model, with each task tried, alone and with "
        "registers. Why not: regtune methods NAME"
    )
    return (
        Table(columns=("method", "changes", "costs", "use it"), rows=tuple(rows)),
        Table(columns=("method", *kinds), rows=tuple(works), caption="Works on", notes=(note,)),
    )


def _one(name: str, method: Any) -> tuple[Table, ...]:
    settings = [(field, json.dumps(value)) for field, value in to_dict(method.settings()).items()]
    said = [(kind, task, text) for kind, tasks in _support().get(name, {}).items() for task, text in tasks.items()]
    told = (("changes", method.title), ("costs", method.costs), ("use it", method.use))
    return (
        Table(columns=("", ""), rows=told),
        Table(columns=("", ""), rows=tuple(settings), caption="Settings and their defaults"),
        Table(columns=("", "", ""), rows=tuple(said), caption="Tried on"),
        *_excluded(name, method),
    )


def _excluded(name: str, method: Any) -> Iterator[Table]:
    """Which methods can't be in one run with it, and why; no table where all can."""
    found: dict[str, list[str]] = {}
    for other in METHODS:
        with contextlib.suppress(MissingExtraError):
            each = METHODS.get(other)
            mine, its = clash(method, each), clash(each, method)
            if other != name and (mine or its):
                found.setdefault(f"{name} {mine}." if mine else f"Each of them {its}.", []).append(other)
    if found:
        rows = tuple((", ".join(others), why) for why, others in found.items())
        yield Table(columns=("", ""), rows=rows, caption="Not in one run with")


def _kinds() -> tuple[str, ...]:
    return tuple(next(iter(_support().values()), {}))


def _verdict(method: str, kind: str) -> str:
    """`yes`; what of it works; or `no`."""
    said = _support().get(method, {}).get(kind, {})
    good = [task for task, text in said.items() if text == WORKS]
    if not said:
        return "not tried"
    return "yes" if len(good) == len(said) else ", ".join(good) or "no"


@functools.cache
def _support() -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = json.loads(SUPPORT.read_text(encoding="utf-8"))["cells"]
    return found
