"""Copies of pictures: pixels and places against loops, and states that come back exactly where they were."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.methods.picture_copies import Moves, draw_moves, moved, put_back
from regtune.methods.self_distil import averaged_pictures
from regtune.registers.surgery import add_registers, backbone_of
from tiny_images import FAMILIES, LEADING, images, tiny_model


def moves(*each):
    down, right, mirrored = zip(*each, strict=True)
    return Moves(torch.tensor(down), torch.tensor(right), torch.tensor(mirrored))


SOME = moves((0, 0, False), (3, -5, True), (-9, 0, False), (0, 2, True), (8, 16, True), (-24, 30, False))


def test_a_copy_shows_the_picture_from_another_pixel_on_then_mirrored_and_its_edge_goes_on():
    pixels = images(batch=len(SOME.down), size=(24, 32))["pixel_values"]
    found = moved(pixels, SOME)
    for number, (down, right, mirrored) in enumerate(zip(*(one.tolist() for one in SOME), strict=True)):
        for row in range(24):
            for column in range(32):
                y, x = row + down, (31 - column if mirrored else column) + right
                expected = pixels[number, :, min(max(y, 0), 23), min(max(x, 0), 31)]
                assert torch.equal(found[number, :, row, column], expected)


@pytest.mark.parametrize("size", [(24, 32), (26, 37)])
def test_states_are_read_between_the_four_patches_around_a_patchs_middle(size):
    """The middle of each patch of the picture is followed into the copy, where the states around it are mixed."""
    patch, rows, columns = (8, 8), size[0] // 8, size[1] // 8
    states = torch.randn(len(SOME.down), rows, columns, 5, generator=torch.Generator().manual_seed(0))
    found, seen = put_back(states, SOME, size, patch)
    for number, (down, right, mirrored) in enumerate(zip(*(one.tolist() for one in SOME), strict=True)):
        for i in range(rows):
            for j in range(columns):
                y, x = 8 * i + 4 - down, 8 * j + 4 - right
                x = size[1] - x if mirrored else x
                inside = 4 <= y <= 8 * rows - 4 and 4 <= x <= 8 * columns - 4
                assert bool(seen[number, i, j]) == inside
                expected = torch.zeros(5)
                if inside:
                    top, left = math.floor((y - 4) / 8), math.floor((x - 4) / 8)
                    lower, further = (y - 4) / 8 - top, (x - 4) / 8 - left
                    for r, upright in ((top, 1 - lower), (top + 1, lower)):
                        for c, across in ((left, 1 - further), (left + 1, further)):
                            if upright * across:
                                expected += upright * across * states[number, r, c]
                assert torch.allclose(found[number, i, j], expected, atol=1e-6)


def local_model(family):
    """Every state is a function of the pixels at its place alone, left and right being the same to it."""
    model = tiny_model(family, "none")
    backbone = backbone_of(model)
    table = family_of(backbone.config)
    with torch.no_grad():
        for projection in modules_at(backbone, *table.within_layers(table.attention_out)):
            projection.weight.zero_()
            projection.bias.zero_()
        for name, parameter in backbone.named_parameters():
            if "position" in name:
                parameter.zero_()
            elif parameter.dim() == 4:  # the convolution that makes patches
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
    return backbone


WHOLE = [
    moves((8 * a, 8 * b, m), (-8 * b, 8 * a, not m)) for a in (-1, 0, 1) for b in (-2, 0, 1) for m in (True, False)
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_sees_places_alone_gets_exactly_its_own_states_back(family):
    backbone = local_model(family)
    pixels = images(batch=2)["pixel_values"]
    with torch.no_grad():
        own = backbone(pixel_values=pixels)[0]
    assert own.shape[1] == LEADING[family] + 9
    assert (own[:, -1] - own[:, -2]).abs().max() > 0.1
    for each in (WHOLE, [SOME_WHOLE]):
        target, known = averaged_pictures(backbone, pixels, each)
        assert (target - own)[known].abs().max() < 1e-5
        assert not target[~known].any()
    target, known = averaged_pictures(backbone, pixels, WHOLE)
    assert known.all()


SOME_WHOLE = moves((8, 0, False), (0, -8, True))


def test_what_a_copy_doesnt_show_has_no_target_from_it():
    backbone = local_model("vit")
    _, known = averaged_pictures(backbone, images(batch=2)["pixel_values"], [SOME_WHOLE])
    assert known[:, 0].all()
    assert known[0, 1:].unflatten(0, (3, 3)).tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert known[1, 1:].unflatten(0, (3, 3)).tolist() == [[True, True, False]] * 3


def test_between_patches_a_slope_of_brightness_comes_back_exactly():
    """A patch's mean is linear in its place then, which is what mixing by distance is exact for."""
    down, across = torch.arange(40.0)[:, None], torch.arange(48.0)
    picture = (2 * down - 3 * across + 7).expand(6, 1, 40, 48)
    small = moves((3, -5, False), (-1, 7, True), (6, 6, True), (-7, -2, False), (0, 1, True), (5, 0, False))
    states = avg_pool2d(moved(picture, small), 8).permute(0, 2, 3, 1)
    found, seen = put_back(states, small, (40, 48), (8, 8))
    own = avg_pool2d(picture, 8).permute(0, 2, 3, 1)
    inner = seen.clone()
    inner[:, (0, -1)] = False
    inner[:, :, (0, -1)] = False
    assert int(inner.sum()) == 6 * 3 * 4
    assert (found - own)[inner].abs().max() < 1e-3
    assert (found - own).abs().max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_means_over_the_copies_that_show_a_patch_and_registers_are_off(family):
    plain = tiny_model(family, "none")
    pixels, lead = images()["pixel_values"], LEADING[family]
    drawn = [draw_moves(3, (24, 24), 0.4, torch.Generator().manual_seed(seed)) for seed in range(3)]
    target, known = averaged_pictures(backbone_of(add_registers(tiny_model(family, "none"))), pixels, drawn)
    parts = []
    for each in drawn:
        with torch.no_grad():
            states = backbone_of(plain)(pixel_values=moved(pixels, each))[0]
        back, seen = put_back(states[:, lead:].reshape(3, 3, 3, -1), each, (24, 24), (8, 8))
        parts.append((states[:, :lead], back.reshape(3, 9, -1), seen.reshape(3, 9)))
    for picture in range(3):
        for place in range(9):
            shown = [back[picture, place] for _, back, seen in parts if seen[picture, place]]
            assert bool(known[picture, lead + place]) == bool(shown)
            if shown:
                assert torch.allclose(target[picture, lead + place], torch.stack(shown).mean(0), atol=1e-5)
        for place in range(lead):
            mean = torch.stack([front[picture, place] for front, *_ in parts]).mean(0)
            assert torch.allclose(target[picture, place], mean, atol=1e-5)


def test_moves_are_drawn_for_each_picture_up_to_the_share_of_each_side_both_ways():
    found = draw_moves(2000, (40, 100), 0.1, torch.Generator().manual_seed(0))
    assert sorted(set(found.down.tolist())) == list(range(-4, 5))
    assert sorted(set(found.right.tolist())) == list(range(-10, 11))
    assert 0.45 < float(found.mirrored.float().mean()) < 0.55
    again = draw_moves(2000, (40, 100), 0.1, torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    still = draw_moves(50, (40, 100), 0.0, torch.Generator().manual_seed(0))
    assert not still.down.any()
    assert not still.right.any()
