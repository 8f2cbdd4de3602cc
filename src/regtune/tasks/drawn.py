"""A small set of drawn images: one shape each, on a plain ground. Made from a seed when it is read; nothing is stored.

They are for tests, examples and a first try, not for measuring anything: a model tells them apart soon.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import numpy as np

SHAPES: Final = ("circle", "cross", "square", "triangle")
SETS: Final = {"embedded:train": (0, 96), "embedded:dev": (1, 32)}
"""Seed and number of images of each set."""
_SIZE = 48


def drawn_images(name: str) -> Iterator[tuple[str, str, bytes]]:
    """The id, the label and the PNG file of every image of a set, labels in turn."""
    seed, count = SETS[name]
    for index in range(count):
        shape = SHAPES[index % len(SHAPES)]
        yield f"{name}/{shape}-{index}", shape, _drawn(shape, np.random.default_rng([seed, index]))


def _drawn(shape: str, random: np.random.Generator) -> bytes:
    from PIL import Image, ImageDraw

    dark = tuple(random.integers(0, 90, 3).tolist())
    light = tuple(random.integers(165, 256, 3).tolist())
    ground, ink = (dark, light) if random.random() < 0.5 else (light, dark)
    image = Image.new("RGB", (_SIZE, _SIZE), ground)
    radius = int(random.integers(10, 17))
    x, y = random.integers(radius + 2, _SIZE - radius - 2, 2).tolist()
    box = (x - radius, y - radius, x + radius, y + radius)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse(box, fill=ink)
    elif shape == "square":
        draw.rectangle(box, fill=ink)
    elif shape == "triangle":
        draw.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=ink)
    else:
        draw.line([box[:2], box[2:]], fill=ink, width=6)
        draw.line([(box[0], box[3]), (box[2], box[1])], fill=ink, width=6)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
