"""Copies of a picture, moved and mirrored, and what a model says of their patches, read where the picture has them.

After PH-Reg (Chen et al. 2025, arXiv 2505.21501): artefacts of patches differ from copy to copy, what patches show
doesn't, so a mean over copies, each put back to its place, is cleaner than any of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Moves(NamedTuple):
    """How one copy of each picture is made: it is moved first, and then mirrored."""

    down: Int[Tensor, " batch"]
    """The copy's first row of pixels is this row of the picture; it may lie outside."""
    right: Int[Tensor, " batch"]
    """The same of columns."""
    mirrored: Bool[Tensor, " batch"]
    """Whether left and right change places."""


def draw_moves(count: int, size: tuple[int, int], shift: float, generator: torch.Generator) -> Moves:
    """Moves for so many pictures, drawn one by one.

    Args:
        count: pictures.
        size: height and width in pixels.
        shift: the longest way as a share of height and of width; whole pixels of it are equally likely.
        generator: what is drawn from; every second copy or so is mirrored.
    """
    most = [int(shift * side) for side in size]
    down, right = (torch.randint(-one, one + 1, (count,), generator=generator) for one in most)
    return Moves(down, right, torch.rand(count, generator=generator) < 0.5)


def moved(
    pixels: Float[Tensor, "batch channels height width"], moves: Moves
) -> Float[Tensor, "batch channels height width"]:
    """The copies: pixel for pixel the picture's own; where one reaches beyond the picture, its edge goes on."""
    height, width = pixels.shape[-2:]
    columns = torch.arange(width).expand(len(pixels), width)
    columns = torch.where(moves.mirrored[:, None], width - 1 - columns, columns) + moves.right[:, None]
    rows = torch.arange(height) + moves.down[:, None]
    rows, columns = (one.clamp(0, side - 1).to(pixels.device) for one, side in ((rows, height), (columns, width)))
    batch = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def put_back(
    states: Float[Tensor, "batch rows columns hidden"], moves: Moves, size: tuple[int, int], patch: tuple[int, int]
) -> tuple[Float[Tensor, "batch rows columns hidden"], Bool[Tensor, "batch rows columns"]]:
    """States of the copies' patches, read where the patches of the picture are: between four of them, by distance.

    Args:
        states: what a model says of each patch of the copies.
        moves: how the copies were made.
        size: height and width of the picture in pixels.
        patch: height and width of a patch.

    Returns:
        The states, and which patches of the picture are in the copy as a whole; of others they are 0.
    """
    upright = torch.zeros_like(moves.mirrored)
    down = _weights(states.shape[1], moves.down, upright, size[0], patch[0]).to(states)
    across = _weights(states.shape[2], moves.right, moves.mirrored, size[1], patch[1]).to(states)
    found = torch.einsum("bir,bjc,brch->bijh", down, across, states)
    return found, (down.sum(-1)[:, :, None] * across.sum(-1)[:, None, :]) > 0


def _weights(
    count: int, move: Int[Tensor, " batch"], mirrored: Bool[Tensor, " batch"], side: int, patch: int
) -> Float[Tensor, "batch own copied"]:
    """How much of each of a copy's rows (or columns) of patches makes one of the picture's.

    The middle of patch i is at (i + 1/2) patch in the picture, `move` less in the copy, and as far from its other end
    where it is mirrored. In units of patches it lies between the middles of two, or on one: each counts by how near it
    is.
    """
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) * patch - move[:, None]
    middle = torch.where(mirrored[:, None], side - middle, middle)
    place = middle / patch - 0.5
    inside = (place >= 0) & (place <= count - 1)
    near = (1 - (place[..., None] - torch.arange(count)).abs()).clamp(min=0)
    return near * inside[..., None]
