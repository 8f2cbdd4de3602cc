"""ViT (Dosovitskiy 2021): images in patches, [CLS] in front, absolute positions, norms in front of layers."""

from regtune.families._family import LEDGER, Family

VIT = Family(
    name="ViT",
    model_types=("vit",),
    inputs=("pixel_values",),
    positions="absolute",
    word_embeddings="embeddings.patch_embeddings",
    position_embeddings=None,
    type_embeddings=None,
    norm=None,
    dropout=None,
    layers="layers",
    stack="layernorm",
    final_norm="layernorm",
    attention="attention",
    keys="k_proj",
    values="v_proj",
    attention_out="attention.o_proj",
    feed_forward_in="mlp.fc1",
    feed_forward_out="mlp.fc2",
    norms=("layernorm_before", "layernorm_after"),
    lm_head=(),
    assembled="embeddings.dropout",
    relevance=LEDGER,
)
