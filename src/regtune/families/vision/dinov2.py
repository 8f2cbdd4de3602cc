"""DINOv2 (Oquab 2023): a ViT with scaled residual branches; Darcet 2024 gave it registers behind [CLS].

With the same weights, four registers `after_cls` make it transformers' `Dinov2WithRegistersModel`; that class resizes
positions for other image sizes differently (with antialiasing).
"""

from dataclasses import replace

from regtune.families.vision.vit import VIT

DINOV2 = replace(
    VIT,
    name="DINOv2",
    model_types=("dinov2",),
    layers="encoder.layer",
    stack="encoder",
    norms=("norm1", "norm2"),
    feed_forward_in="mlp.fc1|up_proj",  # of the largest models, whose units are gated
    feed_forward_out="mlp.fc2|down_proj",
    gated="mlp",
    pooling="both",
)
