"""The exception tree. Every error of regtune is a `RegtuneError` and says what was wrong and what to do."""

from __future__ import annotations

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

_LONGEST_MESSAGE = 4000
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of the text around them: what is shown is then not what is there."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""Text that does nothing to a terminal: control characters, bidi marks, lone surrogates become `\uXXXX`.

    JSON text stays the same JSON.

    Args:
        text: anything, for example a context or an answer.
        keep: control characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{ord(sign):04x}" if _acts(sign) and sign not in keep else sign for sign in text)


def shown(value: Any, limit: int = 80) -> str:
    """A user's value for a message: quoted as Python would, bounded in length and depth, nothing that acts.

    Args:
        value: anything that was read.
        limit: most characters of a text.
    """
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f"a whole number of about {int(value.bit_length() * 0.3)} digits"
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = limit
    try:
        if isinstance(value, str):
            left_out = len(value) - limit
            return repr(value) if left_out <= 0 else f"{value[:limit]!r}… ({left_out} characters more)"
        return printable(brief.repr(value), keep="")
    except Exception:  # a value whose own repr fails (an integer of 5,000 digits) must not hide what was wrong with it
        return f"<{type(value).__name__}>"


def _acts(sign: str) -> bool:
    return sign in _BIDI or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")


def bounded(text: str) -> str:
    """A message whose middle is left out where it is too long: its start says what was wrong, its end what to do."""
    whole = printable(text[: _LONGEST_MESSAGE + 1])
    if len(text) <= _LONGEST_MESSAGE >= len(whole):
        return whole
    start, end = _LONGEST_MESSAGE * 3 // 4, _LONGEST_MESSAGE // 4
    left_out = f" … ({max(len(text), len(whole)) - _LONGEST_MESSAGE} characters left out) … "
    return whole[:start] + left_out + printable(text[-end:])[-end:]


class RegtuneError(Exception):
    """Base of all errors that regtune raises on purpose; the command line prints it and exits with 1.

    Its text has at most a few thousand characters and nothing in it acts on a terminal, whatever a file held.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(bounded(one) if isinstance(one, str) else one for one in args))


class ConfigError(RegtuneError, ValueError):
    """A configuration that cannot work; the command line exits with 2."""


class UnknownNameError(ConfigError):
    """A name that is in none of regtune's tables; the message suggests the nearest ones."""


class UnsupportedModelError(RegtuneError, TypeError):
    """A model whose architecture, or whose state, registers cannot be added to."""


class InputError(RegtuneError, ValueError):
    """Inputs of a forward pass that registers cannot join, or a pass that can't be told from another."""


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

    def __init__(self, package: str, extra: str, purpose: str, *, also: str = "") -> None:
        """`also` is a command that has to follow."""
        install = f"pip install 'regtune[{extra}]'" + (f" && {also}" if also else "")
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: {install}")


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
    return UnknownNameError(f"Unknown {kind} {shown(name)}.{hint} Available: {', '.join(names)}.")
