"""BART (Lewis 2020) and Marian (Junczys-Dowmunt 2018): an encoder and a decoder, absolute positions.

Registers join the encoder: BART's behind the LayerNorm of its embeddings, Marian's, which has none, among the words.
"""

import dataclasses

from regtune.families._family import Family

_WHOLE = (("encoder_layerdrop", 0.0, "a last layer that is left out would leave them in the sequence"),)
BART = Family(
    name="BART",
    model_types=("bart",),
    encoder="encoder",
    decoder="decoder",
    cross_attention="encoder_attn",
    positions="absolute",
    word_embeddings="embed_tokens",
    position_embeddings="embed_positions",
    type_embeddings=None,
    embeddings="layernorm_embedding",
    masks_first=True,
    norm="layernorm_embedding",
    dropout=None,
    layers="layers",
    stack="layers",
    attention="self_attn",
    keys="k_proj",
    values="v_proj",
    attention_out="self_attn.out_proj",
    feed_forward_in="fc1",
    feed_forward_out="fc2",
    norms=("self_attn_layer_norm", "final_layer_norm"),
    lm_head=("lm_head",),
    head_bias="final_logits_bias",
    unsupported=_WHOLE,
)
MARIAN = dataclasses.replace(
    BART,
    name="Marian",
    model_types=("marian",),
    leading=0,
    embeddings="embed_tokens",
    word_scale="embed_scale",
    masks_first=False,
    norm=None,
)
