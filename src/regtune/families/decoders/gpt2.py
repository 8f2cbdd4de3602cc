"""GPT-2 (Radford 2019): a decoder with absolute positions; its linear layers keep their weights transposed."""

from regtune.families._family import LEDGER, Family

GPT2 = Family(
    name="GPT-2",
    model_types=("gpt2",),
    positions="absolute",
    causal=True,
    word_embeddings="wte",
    position_embeddings="wpe",
    type_embeddings=None,  # looked up in the table of words
    embeddings="drop",
    norm=None,
    dropout=None,
    layers="h",
    stack="ln_f",
    final_norm="ln_f",
    attention="attn",
    keys=None,
    values=None,
    attention_out="attn.c_proj",
    feed_forward_in="mlp.c_fc",
    feed_forward_out="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    lm_head=("transformer.ln_f", "lm_head"),
    unsupported=(("add_cross_attention", False, "registers are for decoders without an encoder"),),
    relevance=LEDGER,
)
