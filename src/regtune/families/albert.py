"""ALBERT (Lan 2020): narrow embeddings, and one group of layers run at every depth."""

from regtune.families._family import Family

ALBERT = Family(
    name="ALBERT",
    model_types=("albert",),
    positions="absolute",
    layers="encoder.albert_layer_groups",
    shared_layers=True,
)
