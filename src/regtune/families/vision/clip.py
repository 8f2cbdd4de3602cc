"""CLIP's vision tower (Radford 2021): [CLS] in front, and a LayerNorm behind the embeddings, which registers join."""

from dataclasses import replace

from regtune.families.vision.siglip import SIGLIP

CLIP = replace(
    SIGLIP,
    name="CLIP (vision)",
    model_types=("clip_vision_model",),
    leading=1,
    assembled="embeddings",
    embeddings="pre_layrnorm",
    norm="pre_layrnorm",
)
