"""DeiT (Touvron 2021): ViT with a second token in front, which learned from a teacher."""

from dataclasses import replace

from regtune.families.vision.vit import VIT

DEIT = replace(VIT, name="DeiT", model_types=("deit",), leading=2)
