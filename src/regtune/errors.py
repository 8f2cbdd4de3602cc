"""The exception tree. Every error of regtune is a `RegtuneError` and says what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RegtuneError(Exception):
    """Base of all errors that regtune raises on purpose; the command line prints it and exits with 1."""


class ConfigError(RegtuneError, ValueError):
    """A configuration that cannot work; the command line exits with 2."""


class UnknownNameError(ConfigError):
    """A name that is in none of regtune's tables; the message suggests the nearest ones."""


class UnsupportedModelError(RegtuneError, TypeError):
    """A model whose architecture, or whose state, registers cannot be added to."""


class DataError(RegtuneError, ValueError):
    """A data file or a record in it that is not what it claims to be."""


class EvaluationError(RegtuneError, ValueError):
    """Logits, windows and questions that don't belong together, or logits that are not numbers."""


class CheckpointError(RegtuneError):
    """A saved model, register file or run directory that cannot be used."""


class TrainingError(RegtuneError, RuntimeError):
    """Training stopped for a reason that a person has to act on (NaN loss, full disk, memory)."""


class MissingExtraError(RegtuneError, ImportError):
    """An optional dependency is missing; the message says which extra brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install 'regtune[{extra}]'")


def unknown_name(kind: str, name: str, available: Iterable[str]) -> UnknownNameError:
    """Builds the error for a wrong name: what was asked for, the nearest match and all that exist.

    Args:
        kind: what the name names, for example "data set".
        name: the name that was not found.
        available: every name that would have been accepted.
    """
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownNameError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names)}.")
