"""ELECTRA (Clark 2020): small ones project narrow embeddings to the hidden width after the embeddings module.

Registers have the embeddings' width and pass through the same projection.
"""

from regtune.families._family import LEDGER, Family

ELECTRA = Family(
    name="ELECTRA",
    model_types=("electra",),
    positions="absolute",
    widen="embeddings_project",
    lm_head=("generator_predictions", "generator_lm_head"),
    relevance=(*LEDGER, "chefer"),
)
