"""DistilBERT (Sanh 2019): BERT's embeddings without token types; the stack is called `transformer`."""

from regtune.families._family import Family

DISTILBERT = Family(
    name="DistilBERT",
    model_types=("distilbert",),
    positions="absolute",
    layers="transformer.layer",
    stack="transformer",
)
