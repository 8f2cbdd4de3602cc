"""Inside models of images: every method's law, Darcet's statistics on patches, every part of `inspect`, pictures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import invoke
from regtune.analyses.artefacts.artefacts import EDGES, artefact_statistics, valley_of
from regtune.analyses.artefacts.probes import likeness_of, patches_of, probe_tokens, token_states
from regtune.analyses.attention.attention import patch_attention
from regtune.analyses.attribution.attribute import METHODS, attribute
from regtune.analyses.attribution.explain import explain
from regtune.analyses.inspection import inspect
from regtune.analyses.pictures import data_uri, pixels_of
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from regtune.registers.surgery import add_registers, backbone_of
from regtune.registry import ANALYSES
from regtune.report.overlays import terminal
from regtune.report.overlays.page import overlay_page
from regtune.report.overlays.terminal import overlay_text
from regtune.rows.token_classes import TokenClass
from regtune.session import Session
from regtune.session import open as open_session
from tiny_images import FAMILIES, LEADING, images, save_tiny, tiny_model

TWO = RegisterConfig(num_registers=2, init_std=0.5)
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pictures of noise for each label."""
    folder, random = tmp_path_factory.mktemp("data") / "noise", np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / label / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ViT with two registers."""
    place = save_tiny(tmp_path_factory.mktemp("vit"))
    model = add_registers(tiny_model("vit"), TWO)
    model.save_pretrained(place)
    return place


def double(family, registers, attention="eager"):
    model = tiny_model(family, attention=attention).double()
    return add_registers(model, registers) if registers else model, images(batch=2)["pixel_values"].double()


# Explanations


@pytest.mark.parametrize("registers", [None, TWO])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ledger_of_an_image_closes(family, registers):
    model, pixels = double(family, registers)
    for method in ("attnlrp", "cp-lrp"):
        for found in attribute(model, {"pixel_values": pixels}, method=method):
            assert abs(found.total - found.value) <= 1e-8 * max(1.0, sum(map(abs, found.parts().values())))
            assert found.tokens[LEADING[family] :][:4] == ("0,0", "0,1", "0,2", "1,0")
            assert np.abs(found.relevance[LEADING[family] :]).min() > 0
            assert (found.relevance[: LEADING[family]] == 0).all()
            assert len(found.registers) == (2 if registers else 0)


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_gated_units_of_the_largest_dinov2_are_split_and_its_neurons_are_found(by):
    model = tiny_model("dinov2", use_swiglu_ffn=True).double()
    assert type(model.dinov2.encoder.layer[0].mlp).__name__ == "Dinov2SwiGLUFFN"
    for found in attribute(model, {"pixel_values": images()["pixel_values"].double()}, method="attnlrp", by=by):
        assert abs(found.total - found.value) <= 1e-8 * max(1.0, sum(map(abs, found.parts().values())))
        assert np.abs(found.inner_residual).max() <= 1e-8 * max(1.0, abs(found.value))
        assert len(found.inner) == 3 + (by == "layer")


@pytest.mark.parametrize("family", FAMILIES)
def test_occlusion_is_the_value_less_that_of_the_image_with_a_patch_of_the_mean_colour(family):
    model, pixels = double(family, TWO)
    (found, _) = attribute(model, {"pixel_values": pixels}, method="occlusion", target="LABEL_1")
    hidden = pixels.clone()
    hidden[0, :, 8:16, 16:24] = 0.0  # row 1, column 2
    with torch.no_grad():
        lost = model(pixel_values=pixels).logits[0, 1] - model(pixel_values=hidden).logits[0, 1]
    assert found.relevance[found.tokens.index("1,2")] == pytest.approx(float(lost), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "siglip_vision_model"])
def test_integrated_gradients_add_up_from_the_blank_image(family):
    model, pixels = double(family, TWO)
    options = {"method": "integrated-gradients", "target": "LABEL_0", "max_steps": 4096}
    (found, _) = attribute(model, {"pixel_values": pixels}, **options)
    with torch.no_grad():
        blank = float(model(pixel_values=torch.zeros_like(pixels)).logits[0, 0])
    assert found.baseline == pytest.approx(blank, abs=1e-9)
    assert found.total == pytest.approx(found.value, abs=2e-3 * abs(found.value - blank))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_times_input_is_the_derivative_towards_a_patch_of_nothing(family):
    model, pixels = double(family, None, "sdpa")  # eager attention rounds its weights to float32
    (found, _) = attribute(model, {"pixel_values": pixels}, method="gradient-input", target="LABEL_2")
    table = backbone_of(model).get_input_embeddings()
    step, values = 1e-6, []
    for sign in (1, -1):

        def shrink(_module, _args, output, sign=sign):
            output = output.clone()
            if output.dim() == 4:
                output[0, :, 0, 1] *= 1 + sign * step
            else:
                output[0, 1] *= 1 + sign * step
            return output

        hook = table.register_forward_hook(shrink)
        with torch.no_grad():
            values.append(float(model(pixel_values=pixels).logits[0, 2]))
        hook.remove()
    slope = (values[0] - values[1]) / (2 * step)
    assert found.relevance[found.tokens.index("0,1")] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_rollout_are_shares_read_where_the_head_reads(family):
    model, pixels = double(family, TWO)
    for method in ("attention", "rollout"):
        (found, _) = attribute(model, {"pixel_values": pixels}, method=method)
        assert found.relevance.sum() + found.registers.sum() == pytest.approx(1.0)
    if family == "siglip_vision_model":  # it has no [CLS]: the mean over its patches is read
        assert found.read_from == ()
    (found, _) = attribute(model, {"pixel_values": pixels}, method="attention")
    with torch.no_grad():
        weights = model(pixels, output_attentions=True).attentions[-1][0].mean(0)
    count = len(found.relevance)
    cls, patches = torch.eye(count)[0].double(), (torch.arange(count) >= LEADING[family]).double() / 9
    read = {"siglip_vision_model": patches, "clip_vision_model": patches, "dinov2": (cls + patches) / 2}.get(
        family, cls
    )
    expected = read @ weights[2:].double()
    assert np.allclose(found.relevance, expected[2:], atol=1e-6)
    assert np.allclose(found.registers, expected[:2], atol=1e-6)


def test_any_method_without_chefers_rules_explains_an_image_and_scores_belong_to_it(folder, data):
    session = open_session(folder)
    name = str(data / "LABEL_0/0.png")
    for method in (one for one in METHODS if one != "chefer"):
        found = explain(session, name, method=method)
        (attribution,) = found.attributions
        assert len(attribution.relevance) == 1 + 9
        again = explain(session, {"image": data / "LABEL_0/0.png"}, method=method)
        assert np.allclose(again.attributions[0].relevance, attribution.relevance, atol=1e-6)
    with pytest.raises(UnknownNameError, match="for ViT"):
        explain(session, name, method="chefer")
    with pytest.raises(ConfigError, match="Images have no mask token"):
        explain(session, name, method="occlusion", baseline="mask")


def test_a_tower_without_a_head_says_nothing_of_an_image(tmp_path, data):
    save_tiny(tmp_path, head="none")
    with pytest.raises(CheckpointError, match=r"no head for a task, so it says nothing of an image\. Train it"):
        explain(str(tmp_path), str(data / "LABEL_0/0.png"))


def test_an_explanation_is_drawn_over_the_picture_on_the_page_and_row_by_row_in_the_terminal(folder, data, monkeypatch):
    found = explain(open_session(folder), str(data / "LABEL_1/0.png"), method="occlusion").to_json()
    assert (pixels_of(found["models"][0]["picture"]) == np.array(Image.open(data / "LABEL_1/0.png"))).all()
    page = overlay_page(found)
    assert page.count("<mark") >= 9
    assert 'class="patches"' in page
    assert "background-image:url(data:image/png;base64," in page
    text = overlay_text(found, colour=False, width=80)
    assert sum(line.count("+") + line.count("-") == 3 for line in text.splitlines()) >= 3
    monkeypatch.setattr(terminal, "_CELL", 8)
    assert "strongest patches" in overlay_text(found, colour=False, width=20)
    broken = json.loads(json.dumps(found))
    broken["models"][0]["picture"] = "javascript:alert(1)"
    with pytest.raises(DataError, match="is no PNG image"):
        overlay_page(broken)


def test_a_picture_comes_back_from_its_address():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert (pixels_of(data_uri(pixels)) == pixels).all()


# Darcet's statistics


def histogram(*parts):
    norms = np.concatenate([np.full(count, norm) for norm, count in parts])
    return np.histogram(norms, EDGES)[0], float(np.median(norms))


def test_two_modes_of_norms_are_parted_in_their_valley_and_one_is_left_whole():
    ordinary = [(30 * 1.02**step, 40 - 2 * abs(step)) for step in range(-15, 16)]
    counts, median = histogram(*ordinary, (300.0, 5), (340.0, 6))
    valley = valley_of(counts, median)
    assert valley is not None
    assert 45 < valley < 300
    assert valley_of(*histogram(*ordinary)) is None
    assert valley_of(*histogram(*ordinary, (300.0, 2))) is None  # too few to be a mode
    assert valley_of(*histogram(*ordinary, (50.0, 9))) is None  # within twice the median


def noisy(count=24):
    found = images(batch=count, seed=3)
    classes = torch.tensor([TokenClass.CLS, *[TokenClass.CONTEXT] * 9], dtype=torch.int8).repeat(count, 1)
    return found | {
        "attention_mask": torch.ones(classes.shape, dtype=torch.long),
        "token_classes": classes,
        "patch_grid": torch.tensor([[3, 3]] * count),
        "example": torch.arange(count),
    }


def changed(block, change):
    """From now on `change` is done, in place, to what a block gives."""
    forward = block.forward

    def run(*args, **kwargs):
        output = forward(*args, **kwargs).clone()
        change(output)
        return output

    block.forward = run


def test_planted_outlier_patches_are_counted_apart_from_cls_and_registers():
    model = add_registers(tiny_model("vit"), dataclasses.replace(TWO, placement="after_cls"))
    changed(model.vit.layers[1], lambda output: output[:, 1 + 2 + 4].mul_(40.0))  # behind [CLS] and two registers
    found = artefact_statistics(model, [noisy()])
    place = found.sites["block"][1]
    assert place.valley is not None
    assert place.outlier_rate["valley"] == pytest.approx(1 / 9)
    assert place.tokens == 24 * 9
    assert found.by_text["block"]["high_norm_share"][:, 1] == pytest.approx(np.full(24, 1 / 9))
    assert found.special["cls"]["block"][1].tokens == 24
    assert found.special["register"]["block"][1].tokens == 48
    assert found.special["register"]["block"][1].max < place.valley


def test_cosines_to_neighbours_are_those_of_the_patches_before_positions():
    model, batch = tiny_model("vit"), noisy(2)
    found = patches_of(model, batch)
    with torch.no_grad():
        words = torch.nn.functional.normalize(model.vit.embeddings.patch_embeddings(batch["pixel_values"]), dim=-1)
    around = {0: (1, 3), 4: (1, 3, 5, 7), 5: (2, 4, 8)}
    for place, others in around.items():
        wanted = np.mean([float(words[1, place] @ words[1, other]) for other in others])
        assert found["likeness"][1, place] == pytest.approx(wanted, abs=1e-6)
    assert found["part"][0].tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]
    rows = batch["pixel_values"][0, :, 8:16, 0:8]
    assert np.allclose(found["pixels"][0, 3], rows.flatten().numpy())


def test_probes_tell_what_patches_know_of_place_and_pixels():
    count, model = 200, tiny_model("vit")
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.mul_(10.0)
    colours = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    batch = noisy(count) | {"pixel_values": colours.repeat_interleave(8, 2).repeat_interleave(8, 3)}

    changed(model.vit.layers[0], lambda output: output[:, 1 + 4].fill_(100.0))  # large, and says nothing
    tokens = token_states(model, [batch], layer=0, site="block", norm_above=100.0)
    assert set(tokens.token[tokens.outlier]) == {4}
    found = {(one.information, one.tokens): one for one in probe_tokens(tokens, resamples=100)}
    assert set(found) == {(what, kind) for what in ("position", "part", "pixels") for kind in ("outlier", "ordinary")}
    assert found["position", "ordinary"].accuracy > 0.9
    assert found["pixels", "ordinary"].accuracy > 0.5
    assert found["pixels", "outlier"].accuracy < 0.05
    likeness = likeness_of(tokens)
    assert likeness["outlier"]["count"] == count
    assert likeness["ordinary"]["low"] <= likeness["ordinary"]["value"] <= likeness["ordinary"]["high"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_over_patches_is_what_cls_gives_them(family):
    model = add_registers(tiny_model(family), TWO)
    count = LEADING[family]
    batch = noisy(2)
    kinds = [TokenClass.CLS, *[TokenClass.SEP] * (count - 1)][:count] + [TokenClass.CONTEXT] * 9
    batch |= {"token_classes": torch.tensor(kinds, dtype=torch.int8).repeat(2, 1)}
    batch |= {"attention_mask": torch.ones(batch["token_classes"].shape, dtype=torch.long)}
    session = Session(name="m", model=model, reader=None)
    found = patch_attention(session, batch)
    with torch.no_grad():
        maps = model(pixel_values=batch["pixel_values"], output_attentions=True).attentions
    for layer, weights in enumerate(maps):  # registers stand first
        mean = weights.mean(1)
        wanted = mean[:, 2, -9:] if count else mean[:, -9:, -9:].mean(1)
        assert np.allclose(found[layer], wanted.numpy(), atol=1e-6)


# Every part


def test_every_part_is_measured_on_images_or_says_why_not(folder, data, tmp_path):
    settings = {"registers": {"resamples": 200, "hows": ("mask",)}, "heads": {"examples": 3}}
    found = inspect(
        str(folder), parts=tuple(ANALYSES), data=[str(data)], settings=settings, output_dir=tmp_path / "inspect"
    )
    assert [record.part for record in found.records] == [name for name in ANALYSES if name != "faithfulness"]
    assert any("faithfulness is left out: it takes words away from texts" in note for note in found.notes)
    text = str(found)
    assert "Patches beside their neighbours at the input" in text
    assert "patches" in text
    for record in found.records:
        for block in record.blocks():
            if block.draw is not None:
                import matplotlib as mpl

                mpl.use("agg")
                from matplotlib.figure import Figure

                block.draw(Figure().subplots())
    pictures = {r.part: r.content["pictures"] for r in found.records if r.part in ("attention", "artefacts")}
    for shown in pictures.values():
        assert len(shown) == 3
        assert np.array(shown[0]["values"]).shape == (3, 9)


def test_a_tower_without_a_head_is_inspected_and_heads_is_measured_against_blank_patches(tmp_path, data):
    save_tiny(tmp_path / "m", "dinov2", "none")
    found = inspect(
        str(tmp_path / "m"),
        parts=("attention", "artefacts", "heads"),
        data=[str(data)],
        limit=6,
        settings={"heads": {"examples": 2}},
        output_dir=tmp_path / "out",
    )
    assert [record.part for record in found.records] == ["attention", "artefacts", "heads"]


def test_the_commands_take_images(folder, data, tmp_path, capsys):
    picture = str(data / "LABEL_0/0.png")
    page = tmp_path / "why.html"
    code, said, _ = invoke(capsys, ("explain", folder, picture, "--methods", "occlusion", "--html", page))
    assert (code, "occlusion" in said) == (0, True)
    assert 'class="patches"' in page.read_text()
    assert len(invoke(capsys, ("predict", folder, "--file", data))[1].splitlines()) == 12
    _, shown, _ = invoke(capsys, ("explain", folder, "--file", data, "--methods", "random", "--json"))
    assert len(shown.splitlines()) == 12
