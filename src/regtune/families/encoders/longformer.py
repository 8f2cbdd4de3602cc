"""Longformer (Beltagy 2020): named so that it is refused with the reason; what looks inside finds its parts."""

from regtune.families._family import Family

LONGFORMER = Family(
    name="Longformer",
    model_types=("longformer",),
    positions="absolute",
    position_offset=2,
    lm_head=("lm_head",),
    refusal="each token sees a window of neighbours, counted by place, and the few that global_attention_mask names: "
    "registers would fall out of the window, and which tokens are global is the caller's to say",
)
