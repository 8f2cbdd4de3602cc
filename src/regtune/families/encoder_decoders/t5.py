"""T5 (Raffel 2020) and mT5 (Xue 2021): an encoder and a decoder; distances between tokens instead of positions.

Registers join the encoder. Distances are counted along the sequence, so they stand directly beside each text.
"""

import dataclasses

from regtune.families._family import Family

T5 = Family(
    name="T5",
    model_types=("t5",),
    leading=0,
    encoder="encoder",
    decoder="decoder",
    cross_attention="layer.1.EncDecAttention",
    positions="relative",
    word_embeddings="embed_tokens",
    position_embeddings=None,
    type_embeddings=None,
    embeddings="embed_tokens",
    norm=None,
    dropout=None,
    layers="block",
    stack="final_layer_norm",
    final_norm="final_layer_norm",
    attention="layer.0.SelfAttention",
    keys="k",
    values="v",
    attention_out="layer.0.SelfAttention.o",
    feed_forward_in=None,  # wi, or wi_1 where units are gated
    feed_forward_out="layer.1.DenseReluDense.wo",
    norms=("layer.0.layer_norm", "layer.1.layer_norm"),
    lm_head=("decoder.final_layer_norm", "lm_head"),
    head_scaled="scale_decoder_outputs",
    rms_norm=True,
    position_bias="position_bias",
)
MT5 = dataclasses.replace(T5, name="mT5", model_types=("mt5",), head_scaled=None)
