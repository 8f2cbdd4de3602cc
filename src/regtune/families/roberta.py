"""RoBERTa (Liu 2019) and XLM-R (Conneau 2020): positions start at padding_idx + 1 and skip padding.

Registers join behind the embeddings, which have then numbered the text from `input_ids` alone.
"""

import dataclasses

from regtune.families._family import LEDGER, Family

ROBERTA = Family(
    name="RoBERTa",
    model_types=("roberta",),
    positions="absolute",
    position_offset=2,
    lm_head=("lm_head",),
    relevance=(*LEDGER, "chefer"),
)
XLM_ROBERTA = dataclasses.replace(ROBERTA, name="XLM-R", model_types=("xlm-roberta",))
