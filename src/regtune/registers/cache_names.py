"""What transformers calls a model's cache of keys and values: `past_key_values`, and from 5.24 on `cache`.

Nothing else in regtune knows. Hooks run before transformers translates the old name, so they meet either.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers.masking_utils import create_masks_for_generate


def cache_argument(called: Callable[..., Any]) -> str | None:
    """What a function calls the cache among its parameters; None: it names none."""
    parameters = inspect.signature(called).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


CACHE = cache_argument(create_masks_for_generate) or "cache"
"""What the installed transformers calls it, as an argument of models and of `generate` and in what they return."""

_NAMES = tuple(dict.fromkeys((CACHE, "past_key_values")))


def given_cache(named: Mapping[str, Any]) -> Any:
    """The cache among arguments, by whichever name the caller used; None: there is none."""
    return next((named[name] for name in _NAMES if named.get(name) is not None), None)


def put_cache(named: dict[str, Any], cache: Any, name: str | None) -> None:
    """Puts a cache among arguments, in place, by what the function that takes them calls it, and by no other name."""
    for other in _NAMES:
        named.pop(other, None)
    named[name or CACHE] = cache
