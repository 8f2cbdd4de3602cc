"""ModernBERT (Warner 2024): rotary positions, and two of three layers attend within a local window only.

Positions come from the length of the input, so they are passed explicitly; the local mask lets registers through.
"""

from regtune.families._family import LEDGER, Family

MODERNBERT = Family(
    name="ModernBERT",
    model_types=("modernbert",),
    positions="rotary",
    local_window="sliding_window",
    word_embeddings="embeddings.tok_embeddings",
    position_embeddings=None,
    type_embeddings=None,
    norm="embeddings.norm",
    dropout="embeddings.drop",
    layers="layers",
    stack="final_norm",
    final_norm="final_norm",
    attention="attn",
    keys=None,
    values=None,
    attention_out="attn.Wo",
    feed_forward_in="mlp.Wi",
    gate_in_front=True,
    feed_forward_out="mlp.Wo",
    norms=("attn_norm", "mlp_norm"),
    lm_head=("model.final_norm", "head", "decoder"),
    relevance=LEDGER,
    gated="mlp",
    single_precision=True,  # its rotary positions turn queries and keys in float32
)
