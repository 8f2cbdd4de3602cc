"""NomicBERT (Nussbaum 2024): BERT's embeddings without positions, rotary ones, gated units, LayerNorms behind."""

from regtune.families._family import LEDGER, Family

NOMIC_BERT = Family(
    name="NomicBERT",
    model_types=("nomic_bert",),
    positions="rotary",
    position_embeddings=None,
    layers="layers",
    stack="layers",
    attention="self_attn",
    keys="k_proj",
    values="v_proj",
    attention_out="self_attn.o_proj",
    feed_forward_in="mlp.up_proj",
    feed_forward_out="mlp.down_proj",
    norms=("post_attention_layernorm", "post_mlp_layernorm"),
    relevance=LEDGER,
    gated="mlp",
)
