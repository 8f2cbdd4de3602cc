"""MPNet (Song 2020): absolute positions that skip padding, and a relative position bias in every layer."""

from regtune.families._family import LEDGER, Family

MPNET = Family(
    name="MPNet",
    model_types=("mpnet",),
    positions="relative",
    position_offset=2,
    type_embeddings=None,
    attention="attention.attn",
    keys="k",
    values="v",
    attention_out="attention.attn.o",
    norms=("attention.LayerNorm", "output.LayerNorm"),
    lm_head=("lm_head",),
    relevance=LEDGER,
    attention_by="scope",
    position_bias="position_bias",
)
