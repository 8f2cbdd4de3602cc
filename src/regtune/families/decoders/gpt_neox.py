"""GPT-NeoX (Black 2022) and Pythia: rotary positions in a part of each head, LayerNorms in front."""

from regtune.families._family import LEDGER, Family

GPT_NEOX = Family(
    name="GPT-NeoX",
    model_types=("gpt_neox",),
    positions="rotary",
    causal=True,
    word_embeddings="embed_in",
    position_embeddings=None,
    type_embeddings=None,
    embeddings="emb_dropout",
    norm=None,
    dropout=None,
    layers="layers",
    stack="final_layer_norm",
    final_norm="final_layer_norm",
    attention="attention",
    keys=None,
    values=None,
    attention_out="attention.dense",
    feed_forward_in="mlp.dense_h_to_4h",
    feed_forward_out="mlp.dense_4h_to_h",
    norms=("input_layernorm", "post_attention_layernorm"),
    lm_head=("gpt_neox.final_layer_norm", "lm_head"),
    relevance=LEDGER,
)
