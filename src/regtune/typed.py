"""Typed values: dataclasses that refuse what can't be, and plain values (YAML, JSON) made into dataclasses by cattrs.

A field says what it can be in its annotation and nowhere else: `Annotated[float, Range(0, 1)]`, `Literal["a", "b"]`.
Constructor, recipe, flag and record are all held to that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from cattrs import Converter
from cattrs.cols import homogenous_tuple_structure_factory, list_structure_factory, mapping_structure_factory
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from regtune.errors import ConfigError, RegtuneError, UnknownNameError, shown, unknown_name

T = TypeVar("T")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Range:
    """The least and the largest value that a number may have; NaN lies in no range."""

    least: int | float
    most: int | float
    above: bool = False
    """The least value itself is left out."""
    below: bool = False
    """The largest value itself is left out."""

    def __contains__(self, value: int | float) -> bool:
        return (self.least < value if self.above else self.least <= value) and (
            value < self.most if self.below else value <= self.most
        )

    def __str__(self) -> str:
        left, right = "(" if self.above else "[", ")" if self.below else "]"
        ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.least, self.most)]
        if not (self.above or self.below):
            return f"from {ends[0]} to {ends[1]}"
        return f"in {left}{ends[0]}, {ends[1]}{right}"


class Checked:
    """A dataclass whose fields are held to their annotations when it is made; `section` is its name in messages."""

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.section = section

    def __post_init__(self) -> None:
        """Raises `ConfigError` with the value and what is allowed."""
        kind: Any = type(self)
        for name, hint in hints_of(kind).items():
            value = getattr(self, name)
            wrong = problem(hint, value) or ("" if _finite(value) else "finite and below 1.8e308")
            self.require(not wrong, name, f"must be {wrong}.")

    def require(self, condition: bool, name: str, rest: str) -> None:
        """Raises `ConfigError` with the field, its value and the rest of a sentence unless the condition holds."""
        if not condition:
            prefix = f"{self.section}." if self.section else ""
            raise ConfigError(f"{prefix}{name}={shown(getattr(self, name))} {rest}")


def _finite(value: Any) -> bool:
    """No NaN, infinity or endless row of digits, wherever in it: no setting means one, and JSON has none."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """A dataclass's field names and full annotations."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def problem(hint: Any, value: Any) -> str:  # noqa: C901, PLR0911 (a line for each kind of annotation)
    """What a value would have to be to fit an annotation; empty if it does."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [each for each in arguments[1:] if isinstance(each, Range)]
        wrong = problem(arguments[0], value)
        if ranges and (wrong or (value is not None and value not in ranges[0])):
            return f"{_WORDS.get(arguments[0], 'a number')} {ranges[0]}"
        return wrong
    if origin in (Union, types.UnionType):
        found = [problem(option, value) for option in arguments]
        return "" if "" in found else " or ".join(each for each in found if each != "unset")
    if hint is type(None):
        return "" if value is None else "unset"
    if origin is Literal:
        right = any(value == each and type(value) is type(each) for each in arguments)
        return "" if right else f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        if not isinstance(value, tuple) or any(problem(arguments[0], item) for item in value):
            return f"a list, each item {problem(arguments[0], object())}"
        return ""
    if origin in (dict, Mapping):
        fits = isinstance(value, Mapping) and not any(problem(arguments[1], item) for item in value.values())
        return "" if fits else "names, each with what is its own"
    if isinstance(hint, type) and hint in _WORDS:
        return (
            ""
            if _fits(hint, value)
            else _WORDS[hint] + (" without NUL that UTF-8 can hold" if _odd_text(value) else "")
        )
    if isinstance(hint, type) and issubclass(hint, Checked):
        return "" if isinstance(value, hint) else f"a {hint.__name__}"
    return ""  # mappings and records are their owner's business


def _fits(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and not _odd_text(value)


def _odd_text(value: Any) -> bool:
    """Lone surrogates and NUL: no file name, no terminal and no UTF-8 file can hold them."""
    text = str(value) if isinstance(value, (str, Path)) else ""
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


class _WrongError(ValueError):
    """A plain value that isn't what its field wants."""

    def __init__(self, value: Any, wanted: str) -> None:
        super().__init__(f"is {'empty' if value is None else shown(value)}, but must be {wanted}.")


def _scalar(value: Any, hint: Any) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1's text 2e-5, and the record's "NaN" and "Infinity"
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is Path and isinstance(value, str):
        value = Path(value)
    if hint is str and isinstance(value, str):  # what may be in a text is its owner's business
        return value
    if wrong := problem(hint, value):
        raise _WrongError(value, wrong)
    try:
        return float(value) if hint is float else value
    except OverflowError:
        raise _WrongError(value, "a number below 1.8e308") from None


def _literal(value: Any, hint: Any) -> Any:
    if problem(hint, value):
        raise unknown_name(
            "value", str(value)[:100] if isinstance(value, str) else shown(value), map(str, get_args(hint))
        )
    return value


def _only(kind: type, words: str, factory: Callable[..., Any]) -> Callable[[Any], Any]:
    """A cattrs hook for containers that refuses other containers first, where cattrs would make do with them."""

    def hook(hint: Any) -> Any:
        build = factory(hint, _CONVERTER)

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, kind):
                raise _WrongError(value, words)
            return build(value, hint)

        return structure

    return hook


def _dataclass(kind: Any, converter: Converter) -> Any:
    return make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True)


def _origin(hint: Any) -> Any:
    return get_origin(hint)


def _named_tuple(kind: Any) -> Callable[[Any, Any], Any]:
    hints = get_type_hints(kind, include_extras=True)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(hints):
            raise _WrongError(value, f"a list of {len(hints)}: {', '.join(hints)}")
        return kind(*(_CONVERTER.structure(one, hint) for one, hint in zip(value, hints.values(), strict=True)))

    return structure


_CONVERTER = Converter(detailed_validation=True, forbid_extra_keys=True)
for _kind in _WORDS:
    _CONVERTER.register_structure_hook(_kind, _scalar)
_CONVERTER.register_structure_hook_func(lambda hint: _origin(hint) is Literal, _literal)
_CONVERTER.register_structure_hook_func(
    lambda hint: _origin(hint) in (Union, types.UnionType) and {*get_args(hint)} == {float, str, type(None)}, _scalar
)
for _match, _hook in (
    (lambda hint: _origin(hint) is tuple, _only(list, "a list, like [a, b]", homogenous_tuple_structure_factory)),
    (lambda hint: _origin(hint) is list, _only(list, "a list", list_structure_factory)),
    (
        lambda hint: _origin(hint) in (dict, Mapping),
        _only(dict, "a mapping with settings of its own", mapping_structure_factory),
    ),
    (lambda hint: isinstance(hint, type) and hasattr(hint, "_fields"), _named_tuple),
    (
        lambda hint: isinstance(hint, type) and dataclasses.is_dataclass(hint),
        _only(dict, "a mapping with settings of its own", _dataclass),
    ),
):
    _CONVERTER.register_structure_hook_factory(_match, _hook)


@overload
def typed(kind: type[T], value: Any, where: Path | str, *, wrong: type[RegtuneError] = ..., remedy: str = ...) -> T: ...
@overload
def typed(
    kind: object, value: Any, where: Path | str, *, wrong: type[RegtuneError] = ..., remedy: str = ...
) -> Any: ...
def typed(
    kind: Any, value: Any, where: Path | str, *, wrong: type[RegtuneError] = ConfigError, remedy: str = ""
) -> Any:
    """Makes plain values (of a YAML or JSON file) into what an annotation names; nothing is guessed or converted.

    Args:
        kind: a dataclass, or any annotation of them: `list[Row]`, `dict[str, float]`.
        value: plain values.
        where: the file, for the message.
        wrong: the error to raise.
        remedy: what to do about it, the message's last sentence.

    Raises:
        ConfigError, or what `wrong` names: an unknown or missing name, a value of the wrong type or out of its range;
            the message has the file, the field's path and the value.
    """
    try:
        made: Any = _CONVERTER.structure(value, kind)
        return made
    except Exception as error:  # cattrs groups whatever its hooks and the constructors raise
        path, cause = _first(error, "")
        if isinstance(cause, ForbiddenExtraKeysError):
            key = min(map(str, cause.extra_fields))
            prefix = f"{path}." if path else ""
            known = {f"{prefix}{name}" for name in hints_of(cause.cl)}
            sentence = str(unknown_name(f"setting in {where}:", f"{prefix}{key[:100]}", known))
            kind_of_error: type[RegtuneError] = UnknownNameError if wrong is ConfigError else wrong
        else:
            sentence, kind_of_error = f"{where}: {_sentence(path, cause)}", wrong
            if isinstance(cause, UnknownNameError) and str(cause).startswith("Unknown value "):
                rest = str(cause).removeprefix("Unknown value ")
                sentence = f"Unknown value for {path} in {where}: {rest}"
                kind_of_error = UnknownNameError if wrong is ConfigError else wrong
        raise kind_of_error(f"{sentence} {remedy}".strip()) from error


def _first(error: BaseException, path: str) -> tuple[str, BaseException]:
    """The first single error in cattrs' groups, and where it is; a wrong name comes before what follows from it."""
    for note in getattr(error, "__notes__", ()):
        step = getattr(note, "name", "") if isinstance(note, AttributeValidationNote) else ""
        if isinstance(note, IterableValidationNote):
            path += f"[{note.index}]" if isinstance(note.index, int) else f".{str(note.index)[:100]}"
        path += f".{step}" if step else ""
    if isinstance(error, BaseValidationError):
        inner = sorted(error.exceptions, key=lambda each: not isinstance(each, ForbiddenExtraKeysError))
        return _first(inner[0], path)
    return path.lstrip("."), error


def _sentence(path: str, cause: BaseException) -> str:
    if isinstance(cause, _WrongError):
        return f"{path or 'the whole'} {cause}"
    if isinstance(cause, KeyError):
        return f"{path} is missing."
    return str(cause)
