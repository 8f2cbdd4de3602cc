"""The table of known architectures: one declarative file each."""

from __future__ import annotations

from typing import Any, Literal

from regtune.errors import UnsupportedModelError
from regtune.families._family import Family
from regtune.families.albert import ALBERT
from regtune.families.bert import BERT
from regtune.families.deberta_v2 import DEBERTA_V2
from regtune.families.distilbert import DISTILBERT
from regtune.families.electra import ELECTRA
from regtune.families.gpt2 import GPT2
from regtune.families.llama import LLAMA
from regtune.families.modernbert import MODERNBERT
from regtune.families.mpnet import MPNET
from regtune.families.qwen import QWEN2, QWEN3
from regtune.families.roberta import ROBERTA, XLM_ROBERTA

FAMILIES: tuple[Family, ...] = (
    ALBERT,
    BERT,
    DEBERTA_V2,
    DISTILBERT,
    ELECTRA,
    GPT2,
    LLAMA,
    MODERNBERT,
    MPNET,
    QWEN2,
    QWEN3,
    ROBERTA,
    XLM_ROBERTA,
)

_REFUSALS = {
    "registers": "Registers are not supported for model_type={}.",
    "relevance": "There are no relevance rules for model_type={}.",
    "parts": "It isn't known where model_type={} keeps its parts.",
}


def find_family(config: Any) -> Family | None:
    """The family of a Hugging Face config's `model_type`, whatever it supports; None if there is none."""
    model_type = getattr(config, "model_type", None)
    return next((family for family in FAMILIES if model_type in family.model_types), None)


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
        known = ", ".join(f"{one.name} ({', '.join(one.model_types)})" for one in FAMILIES if _has(one, need))
        refusal = _REFUSALS[need].format(repr(getattr(config, "model_type", None)))
        raise UnsupportedModelError(f"{refusal} Supported: {known}.")
    if need == "registers":
        _refuse_variants(family, config)
    return family


def _has(family: Family, need: str) -> bool:
    return need == "parts" or bool(getattr(family, need))


def _refuse_variants(family: Family, config: Any) -> None:
    if getattr(config, "is_decoder", False):
        raise UnsupportedModelError(
            f"This {family.name} has is_decoder=True; registers are supported in encoders. Set is_decoder=False."
        )
    for attribute, limit, reason in family.unsupported:
        value = getattr(config, attribute, limit)
        if value > limit:
            raise UnsupportedModelError(
                f"This {family.name} has {attribute}={value}; registers need {attribute} <= {limit}: {reason}."
            )
