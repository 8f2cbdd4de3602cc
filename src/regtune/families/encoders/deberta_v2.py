"""DeBERTa-v2 and v3 (He 2021): distances between tokens instead of positions; the embeddings multiply by the mask.

The large v2 models convolve over neighbours after the first layer (`encoder.conv`); registers are led around it.
Keys and queries of distances are weights to the relevance rules, as rotary angles are: they get none of their own.
"""

from regtune.families._family import LEDGER, Family

DEBERTA_V2 = Family(
    name="DeBERTa-v2",
    model_types=("deberta-v2",),
    positions="relative",
    keys="key_proj",
    values="value_proj",
    embeddings_mask="mask",
    mixing=("encoder.conv",),
    unsupported=(("z_steps", 1, "the enhanced mask decoder runs layers behind the encoder, where registers are gone"),),
    relevance=LEDGER,
    attention_by="scope",
)
