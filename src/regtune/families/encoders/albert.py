"""ALBERT (Lan 2020): narrow embeddings, and one group of layers run at every depth."""

from regtune.families._family import LEDGER, Family

ALBERT = Family(
    name="ALBERT",
    model_types=("albert",),
    positions="absolute",
    widen="encoder.embedding_hidden_mapping_in",
    layers="encoder.albert_layer_groups.*.albert_layers",
    attention="attention",
    attention_out="attention.dense",
    feed_forward_in="ffn",
    feed_forward_out="ffn_output",
    norms=("attention.LayerNorm", "full_layer_layer_norm"),
    lm_head=("predictions",),
    shared_layers=True,
    relevance=(*LEDGER, "chefer"),
)
