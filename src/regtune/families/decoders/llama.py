"""Llama (Touvron 2023): a decoder with rotary positions, grouped keys, gated units and RMSNorms in front."""

from regtune.families._family import LEDGER, Family

LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    positions="rotary",
    causal=True,
    word_embeddings="embed_tokens",
    position_embeddings=None,
    type_embeddings=None,
    embeddings="embed_tokens",
    norm=None,
    dropout=None,
    layers="layers",
    stack="norm",
    final_norm="norm",
    attention="self_attn",
    keys="k_proj",
    values="v_proj",
    attention_out="self_attn.o_proj",
    feed_forward_in="mlp.up_proj",
    feed_forward_out="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    lm_head=("model.norm", "lm_head"),
    relevance=LEDGER,
    gated="mlp",
    rms_norm=True,
)
