"""Tiny random models that read images: offline, milliseconds each."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

_SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 8,
}
_WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES: dict[str, dict] = {
    "vit": {},
    "deit": {"architectures": ["DeiTForImageClassification"]},  # the Auto class has two to choose from
    "dinov2": {"mlp_ratio": 2},
    "siglip_vision_model": {},
    "clip_vision_model": {},
}
WITHOUT_CLS = {"siglip_vision_model"}
RED, BLUE = (200, 30, 30), (30, 30, 200)
LEADING = {"vit": 1, "deit": 2, "dinov2": 1, "siglip_vision_model": 0, "clip_vision_model": 1}


def tiny_model(family: str, head: str = "image-classification", attention: str = "eager", seed: int = 0, **changes):
    """A random model in eval mode for images of 24 x 24 pixels; weights are large enough for differences to show."""
    sizes = {**_SIZE, **FAMILIES[family], **changes}
    labels = {"num_labels": 3}
    if head == "image-classification" and family.endswith("_vision_model"):
        whole = family.removesuffix("_vision_model")
        config = AutoConfig.for_model(whole, vision_config=sizes, text_config=_WORDS, **labels)
    else:
        config = AutoConfig.for_model(family, **sizes, **labels)
    torch.manual_seed(seed)
    made = AutoModelForImageClassification if head == "image-classification" else AutoModel
    model = made.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1)
            elif parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def images(*, batch: int = 3, size: tuple[int, int] = (24, 24), seed: int = 1) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))}


def save_tiny(folder: Path, family: str = "vit", head: str = "image-classification", **model) -> Path:
    """A model folder with its image processor, as `save_pretrained` leaves it."""
    tiny_model(family, head, **model).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def folder_of(place: Path, classes=("cat", "dog"), count: int = 3, size: tuple[int, int] = (24, 24)) -> Path:
    """`place/LABEL/NUMBER.png`, each label of one colour."""
    for number, label in enumerate(classes):
        (place / label).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, (RED, BLUE)[number % 2]).save(place / label / f"{index}.png")
    return place
