"""ModernBERT (Warner 2024): rotary positions, and two of three layers attend within a local window only.

Positions come from the length of the input, so they are passed explicitly; the local mask lets registers through.
"""

from regtune.families._family import Family

MODERNBERT = Family(
    name="ModernBERT",
    model_types=("modernbert",),
    positions="rotary",
    norm="embeddings.norm",
    dropout="embeddings.drop",
    layers="layers",
    stack="final_norm",
    local_window="sliding_window",
)
