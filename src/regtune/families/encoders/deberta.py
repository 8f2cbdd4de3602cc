"""DeBERTa (He 2020), the first version: one projection for queries, keys and values, and no convolution."""

import dataclasses

from regtune.families.encoders.deberta_v2 import DEBERTA_V2

DEBERTA = dataclasses.replace(
    DEBERTA_V2,
    name="DeBERTa",
    model_types=("deberta",),
    keys=None,
    values=None,
    mixing=(),
    unsupported=(),
    relevance=(),
)
