"""Annotations checked at each call: by jaxtyping where there are arrays, elsewhere by beartype alone, which is fast."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from types import SimpleNamespace

import jaxtyping
from beartype import BeartypeConf, beartype

_jaxtyped = jaxtyping.jaxtyped
_beartyped = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def check(package: str) -> None:
    """Has every function and dataclass of a package checked that is imported from now on."""
    jaxtyping.jaxtyped = _checked  # what the hook's decorators call
    jaxtyping.install_import_hook(package, "beartype.beartype")


def _checked(*, typechecker):
    return functools.partial(_wrapped, typechecker=typechecker)


def _wrapped(item, *, typechecker):
    if inspect.isclass(item):
        made = vars(item).get("__init__")
        if dataclasses.is_dataclass(item) and made is not None and not hasattr(made, "__wrapped__"):
            item.__init__ = _wrapped(made, typechecker=typechecker)
        return item
    if not inspect.isfunction(item):
        return _jaxtyped(item, typechecker=typechecker)
    annotated = {name: _resolved(value, item.__globals__) for name, value in item.__annotations__.items()}
    typed = None

    @functools.wraps(item)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal typed
        if jaxtyping.config.jaxtyping_disable:
            return item(*args, **kwargs)
        if typed is None:  # made at the first call: most functions have none in a process
            typed = _typed(item, annotated, typechecker)
        return typed(*args, **kwargs)

    return call


def _typed(function, annotated, typechecker):
    as_written, function.__annotations__ = function.__annotations__, annotated
    try:
        if any(map(_has_array, annotated.values())):
            return _jaxtyped(function, typechecker=typechecker)
        return _beartyped(function)
    finally:
        function.__annotations__ = as_written


def _resolved(annotation, names):
    """Like jaxtyping, `Any` for a name that isn't there yet, or that only type checkers import."""
    own = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(own, names, include_extras=True)["it"]
    except Exception:  # whatever an annotation raises
        return typing.Any


def _has_array(annotation) -> bool:
    if isinstance(annotation, list):  # the arguments of a Callable
        return any(map(_has_array, annotation))
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_array, typing.get_args(annotation)))
