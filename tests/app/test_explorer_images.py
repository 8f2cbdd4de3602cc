"""The explorer on a model of images: the same numbers over the picture, and what needs words is refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from regtune.app.explorer import Change, open_explorer
from regtune.config import RegisterConfig
from regtune.errors import DataError, UnsupportedModelError
from regtune.registers.surgery import add_registers
from regtune.report.rendering import fragment
from tiny_images import save_tiny, tiny_model

PLAIN = Change()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(file)
    return {"image": str(file)}


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("vit"))
    add_registers(tiny_model("vit"), RegisterConfig(num_registers=2, init_std=0.5)).save_pretrained(folder)
    return open_explorer(folder)


def test_an_image_is_what_is_given_and_its_classes_are_what_is_said(explorer, picture):
    assert (explorer.fields, explorer.layers, explorer.heads) == (("image",), 3, 4)
    (table,) = explorer.predictions(picture, PLAIN)
    assert {row[0] for row in table.rows} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert sum(row[1] for row in table.rows) == pytest.approx(1.0)
    with pytest.raises(DataError, match=r"There is no image; choose or drop one\."):
        explorer.predictions({"image": ""}, PLAIN)


def test_attention_and_norms_are_drawn_over_the_picture(explorer, picture):
    found = explorer.attention(picture, PLAIN, layer=1, place="0")
    pixels = explorer._batch(explorer.sessions[0], picture)["pixel_values"]
    model = explorer.sessions[0].model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(pixel_values=pixels, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    wanted = output.attentions[1][0].mean(0)[2, 3:].reshape(3, 3)
    assert np.allclose(found[0].data["maps"], [wanted.numpy()], atol=1e-6)
    assert "[CLS]" in explorer.places(picture, PLAIN).values()
    norms = explorer.norms(picture, PLAIN)
    assert np.shape(norms[0].data["maps"]) == (3, 3, 3)
    first = output.hidden_states[1][0, 1:].norm(dim=-1).reshape(3, 3)
    assert np.allclose(norms[0].data["maps"][0], first.numpy(), rtol=1e-4)
    relevance = explorer.relevance(picture, PLAIN, ["attnlrp", "occlusion"])
    page = fragment([*found, *norms, *relevance])
    assert page.count('class="patches"') == 2
    assert page.count("data:image/png;base64,") >= 4


def test_registers_have_no_words_among_patches(explorer, picture):
    with pytest.raises(UnsupportedModelError, match="reads images, so it has no words"):
        explorer.lens(picture, PLAIN)
