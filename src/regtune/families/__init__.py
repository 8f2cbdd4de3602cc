"""The table of supported architectures: one declarative file each."""

from __future__ import annotations

from typing import Any

from regtune.errors import UnsupportedModelError
from regtune.families._family import Family
from regtune.families.albert import ALBERT
from regtune.families.bert import BERT
from regtune.families.deberta_v2 import DEBERTA_V2
from regtune.families.distilbert import DISTILBERT
from regtune.families.electra import ELECTRA
from regtune.families.modernbert import MODERNBERT
from regtune.families.mpnet import MPNET
from regtune.families.roberta import ROBERTA, XLM_ROBERTA

FAMILIES: tuple[Family, ...] = (
    ALBERT,
    BERT,
    DEBERTA_V2,
    DISTILBERT,
    ELECTRA,
    MODERNBERT,
    MPNET,
    ROBERTA,
    XLM_ROBERTA,
)


def family_of(config: Any) -> Family:
    """The family that a Hugging Face model config belongs to.

    Raises:
        UnsupportedModelError: the architecture is in no family, or in a variant that registers don't fit.
    """
    model_type = getattr(config, "model_type", None)
    for family in FAMILIES:
        if model_type in family.model_types:
            _refuse_variants(family, config)
            return family
    known = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    raise UnsupportedModelError(f"Registers are not supported for model_type={model_type!r}. Supported: {known}.")


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
