"""DistilBERT (Sanh 2019): BERT's embeddings without token types; the stack is called `transformer`."""

from regtune.families._family import LEDGER, Family

DISTILBERT = Family(
    name="DistilBERT",
    model_types=("distilbert",),
    positions="absolute",
    type_embeddings=None,
    layers="transformer.layer",
    stack="transformer",
    attention="attention",
    keys="k_lin",
    values="v_lin",
    attention_out="attention.out_lin",
    feed_forward_in="ffn.lin1",
    feed_forward_out="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
    lm_head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    relevance=(*LEDGER, "chefer"),
)
