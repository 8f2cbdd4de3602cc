"""RoBERTa (Liu 2019), XLM-R (Conneau 2020) and CamemBERT (Martin 2020).

Positions start at padding_idx + 1 and skip padding.
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
CAMEMBERT = dataclasses.replace(ROBERTA, name="CamemBERT", model_types=("camembert",))
XLM_ROBERTA = dataclasses.replace(ROBERTA, name="XLM-R", model_types=("xlm-roberta",))
