"""Promises that aren't kept, gathered, so that one check tells all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from regtune.config import to_dict
from regtune.errors import RegtuneError
from regtune.typed import typed


class BrokenInvariantError(RegtuneError):
    """A promise that isn't kept, with what was measured."""


class Broken:
    """The promises of one thing that were found broken so far."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.found: list[str] = []

    def require(self, holds: bool, sentence: str) -> bool:
        """Notes the sentence unless the promise holds; says whether it does."""
        if not holds:
            self.found.append(sentence)
        return holds

    @contextmanager
    def trying(self, step: str) -> Iterator[None]:
        """Whatever is raised inside breaks the promise that the step works."""
        try:
            yield
        except Exception as error:  # what is checked is somebody's code
            self.found.append(f"{step}: {type(error).__name__}: {error}")

    def declared(self, noun: Any, settings: Any) -> None:
        """What all nouns have: a name, a title, and settings that are a frozen dataclass which YAML can hold."""
        self.require(
            bool(noun.name) and isinstance(noun.title, str) and bool(noun.title), "it needs a name and a title"
        )
        kind = noun.settings
        frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
        if self.require(frozen, f"settings must be a frozen dataclass; {kind!r} is none"):
            with self.trying("settings"):
                again = typed(kind, json.loads(json.dumps(to_dict(settings))), "settings")
                self.require(again == settings, f"settings come back from YAML as {again}; they were {settings}")

    def tell(self) -> None:
        """Raises what was found."""
        if self.found:
            raise BrokenInvariantError(f"{self.what} breaks {len(self.found)} promises:\n" + "\n".join(self.found))
