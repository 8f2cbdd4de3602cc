"""The known architectures: one declarative file each, and those of plugins (`regtune.registry`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families._family import Family
from regtune.registry import FAMILIES

_REFUSALS = {
    "registers": "Registers are not supported for model_type={}.",
    "relevance": "There are no relevance rules for model_type={}.",
    "parts": "It isn't known where model_type={} keeps its parts.",
}


def known_families() -> Iterator[Family]:
    """Every family: built in first, then those from outside.

    Raises:
        ConfigError: one from outside claims a `model_type` that another has.
    """
    claimed: dict[str, str] = {}
    for name in FAMILIES:
        family: Family = FAMILIES.get(name)
        for model_type in family.model_types:
            if claimed.setdefault(model_type, name) != name:
                raise ConfigError(
                    f"The family {name!r} ({FAMILIES.origin(name)}) claims model_type={model_type!r}, which is "
                    f"{claimed[model_type]!r}'s. Take it out of its model_types."
                )
        yield family


def find_family(config: Any) -> Family | None:
    """The family of a Hugging Face config's `model_type`, whatever it supports; None if there is none."""
    model_type = getattr(config, "model_type", None)
    return next((family for family in known_families() if model_type in family.model_types), None)


def family_of(config: Any, need: Literal["registers", "relevance", "parts"] = "registers") -> Family:
    """The family that a Hugging Face model config belongs to.

    Args:
        config: of a model or its backbone.
        need: what is wanted of it: `registers`, `relevance` rules, or where its `parts` are.

    Raises:
        UnsupportedModelError: the architecture is in no family that has this, or in a variant that registers don't fit.
    """
    family = find_family(config)
    if family is None or not _has(family, need):
        known = ", ".join(f"{one.name} ({', '.join(one.model_types)})" for one in known_families() if _has(one, need))
        refusal = _REFUSALS[need].format(repr(getattr(config, "model_type", None)))
        reason = f" It is refused because {family.refusal}." if need == "registers" and family is not None else ""
        remedy = " `regtune doctor MODEL` looks for it in the model and writes a family file." if family is None else ""
        raise UnsupportedModelError(f"{refusal}{reason}{remedy} Supported: {known}.")
    if need == "registers":
        refuse_variants(family, config)
    return family


def _has(family: Family, need: str) -> bool:
    return {"parts": True, "registers": family.refusal is None, "relevance": bool(family.relevance)}[need]


def refuse_variants(family: Family, config: Any) -> None:
    """Refuses configurations of a family that registers don't fit.

    Raises:
        UnsupportedModelError: which setting, and why.
    """
    if getattr(config, "is_decoder", False) and not family.causal:
        raise UnsupportedModelError(
            f"This {family.name} has is_decoder=True; registers are supported in encoders. Set is_decoder=False."
        )
    if family.causal and not getattr(config, "is_causal", True):
        raise UnsupportedModelError(
            f"This {family.name} has is_causal=False, so registers would see the text and the text its own future."
        )
    for attribute, limit, reason in family.unsupported:
        value = getattr(config, attribute, limit)
        exact = isinstance(limit, str)
        if value is not None and (value != limit if exact else value > limit):
            needed = f"{attribute}={limit!r}" if exact else f"{attribute} <= {limit}"
            raise UnsupportedModelError(
                f"This {family.name} has {attribute}={value!r}; registers need {needed}: {reason}."
            )
