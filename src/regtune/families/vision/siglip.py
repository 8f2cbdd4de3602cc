"""SigLIP's vision tower (Zhai 2023): patches alone, without [CLS]; a pooling head attends to them."""

from regtune.families._family import LEDGER, Family

SIGLIP = Family(
    name="SigLIP (vision)",
    model_types=("siglip_vision_model",),
    inputs=("pixel_values",),
    leading=0,
    positions="absolute",
    word_embeddings="embeddings.patch_embedding",
    position_embeddings="embeddings.position_embedding",
    type_embeddings=None,
    norm=None,
    dropout=None,
    layers="encoder.layers",
    stack="encoder",
    final_norm="post_layernorm",
    attention="self_attn",
    keys="k_proj",
    values="v_proj",
    attention_out="self_attn.out_proj",
    feed_forward_in="mlp.fc1",
    feed_forward_out="mlp.fc2",
    norms=("layer_norm1", "layer_norm2"),
    lm_head=(),
    pooling="mean",
    relevance=LEDGER,
)
