"""Registers in models that read images: the invariants, DINOv2's own registers, other sizes, heads, refusals."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Backbone, Dinov2Config, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from regtune.config import RegisterConfig
from regtune.errors import ConfigError, InputError
from regtune.families import family_of
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import add_registers, backbone_of, disable_registers, mask_registers, max_text_length
from regtune.testing import check_family
from tiny_images import FAMILIES, LEADING, WITHOUT_CLS, images, tiny_model

FOUR = RegisterConfig(num_registers=4, init_std=0.5)
BEHIND = RegisterConfig(num_registers=4, init_std=0.5, placement="after_cls")
OTHER = (32, 48)


@pytest.mark.grid
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_images_keeps_every_promise(family, attention):
    check_family(tiny_model(family, attention=attention))


def test_the_largest_dinov2_whose_units_are_gated_keeps_every_promise():
    check_family(tiny_model("dinov2", attention="sdpa", use_swiglu_ffn=True), [FOUR])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_a_head_keeps_every_promise(family):
    check_family(tiny_model(family, "none", "sdpa"), [FOUR])


PLACES = [
    (family, placement)
    for family in FAMILIES
    for placement in ("prefix", "after_cls", "suffix")
    if placement != "after_cls" or family not in WITHOUT_CLS
]


@torch.no_grad()
@pytest.mark.parametrize(("family", "placement"), PLACES)
def test_registers_stand_in_front_of_all_behind_cls_or_behind_the_patches(family, placement):
    model = tiny_model(family, "none")
    add_registers(model, RegisterConfig(num_registers=4, init_std=0.5, placement=placement))
    backbone, seen = backbone_of(model), []
    backbone.get_submodule(family_of(backbone.config).layers)[0].register_forward_pre_hook(
        lambda _, args, given: seen.append((*args, *given.values())[0]), with_kwargs=True
    )
    model(**images())
    place = {"prefix": 0, "after_cls": 1, "suffix": LEADING[family] + 9}[placement]
    assert seen[0].shape == (3, LEADING[family] + 9 + 4, 32)
    assert torch.equal(seen[0][:, place : place + 4], backbone.registers(3))


def with_registers_of_its_own(model):
    """Transformers' own DINOv2 with registers, with this model's weights and registers."""
    config = model.config.to_dict()
    for name in ("model_type", "registers", "use_mask_token"):
        config.pop(name, None)
    other = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config, num_register_tokens=4)).eval()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("registers.")}
    registers = model.registers(1)
    other.load_state_dict({**weights, "embeddings.register_tokens": registers})
    return other


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), OTHER])
@pytest.mark.parametrize("config", [FOUR, BEHIND])
def test_registers_on_dinov2_are_dinov2s_own(config, size, monkeypatch):
    model = add_registers(tiny_model("dinov2", "none"), config)
    other = with_registers_of_its_own(model)
    monkeypatch.setattr(other.embeddings, "interpolate_pos_encoding", model.embeddings.interpolate_pos_encoding)
    batch = images(size=size)
    expected, found = other(**batch), model(**batch)
    text = torch.cat([expected.last_hidden_state[:, :1], expected.last_hidden_state[:, 5:]], dim=1)
    assert (found.last_hidden_state - text).abs().max() <= 1e-5
    assert (found.pooler_output - expected.pooler_output).abs().max() <= 1e-5
    with disable_registers(model):
        assert (model(**batch).last_hidden_state - text).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_another_size_are_read_or_refused_in_words(family):
    model = tiny_model(family)
    batch, resized = images(size=OTHER), {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    plain = model(**batch, **resized).logits
    add_registers(model, BEHIND if family not in WITHOUT_CLS else FOUR)
    output = model(**batch, **resized, output_hidden_states=True)
    assert not torch.equal(output.logits, plain)
    assert {state.shape[1] for state in output.hidden_states} == {LEADING[family] + 4 * 6}
    with mask_registers(model):
        assert torch.allclose(model(**batch, **resized).logits, plain, atol=1e-5)
    if resized:
        with pytest.raises(InputError, match=r"have 32 x 48 pixels, and this .* reads 24 x 24\. Resize them"):
            model(**batch)


@torch.no_grad()
def test_oblong_patches_are_counted_by_their_own_sides():
    model, batch = tiny_model("vit", "none", image_size=(24, 36), patch_size=(8, 12)), images(size=(24, 36))
    plain = model(**batch).last_hidden_state
    add_registers(model, RegisterConfig(num_registers=4, init_std=0.5, placement="suffix"))
    assert model(**batch).last_hidden_state.shape == plain.shape == (3, 1 + 3 * 3, 32)
    with mask_registers(model):
        assert torch.allclose(model(**batch).last_hidden_state, plain, atol=1e-5)


@torch.no_grad()
def test_attentions_of_patches_have_the_registers_in_front():
    model, batch = tiny_model("vit"), images()
    add_registers(model, BEHIND)
    maps = model(**batch, output_attentions=True).attentions
    assert {tuple(one.shape) for one in maps} == {(3, 4, 14, 14)}
    with mask_registers(model, [2]):
        masked = model(**batch, output_attentions=True).attentions[0]
    assert (masked[..., 2] == 0).all()
    assert (masked[..., [0, 1, 3, 4]] > 0).all()


@torch.no_grad()
def test_dinov2_as_a_backbone_gives_maps_of_patches_alone():
    torch.manual_seed(0)
    config = Dinov2Config(**{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 24})
    config.patch_size = 8
    model = Dinov2Backbone(config).eval()
    plain = model(**images()).feature_maps[0]
    found = add_registers(model, FOUR)(**images()).feature_maps[0]
    assert found.shape == plain.shape == (3, 32, 3, 3)
    assert not torch.equal(found, plain)


def test_a_tower_inside_a_pair_is_found_and_saved_with_its_pair(tmp_path):
    model = tiny_model("clip_vision_model")
    assert backbone_of(model) is model.vision_model
    add_registers(model, FOUR)
    assert not hasattr(model.config, "registers")
    model.save_pretrained(tmp_path)
    again = from_pretrained(type(model), tmp_path, attn_implementation="eager").eval()
    assert again.config.vision_config.registers["num_registers"] == 4
    assert torch.equal(again(**images()).logits, model(**images()).logits)
    assert max_text_length(model) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_start_values_can_have_the_scale_of_patches(family):
    model = tiny_model(family)
    add_registers(model, RegisterConfig(num_registers=300, init="embedding", position="none"))
    assert model.training is False
    batch, seen = images(batch=60), []
    backbone = backbone_of(model)
    place = "pre_layrnorm" if family == "clip_vision_model" else "embeddings"
    backbone.get_submodule(place).register_forward_hook(lambda *given: seen.append(given[2][:, :300]), prepend=True)
    model(**batch)
    spread = seen[0][:, LEADING[family] :].std(dim=(0, 1)).mean()
    assert 0.5 < backbone.registers.tokens.std(dim=0).mean() / spread < 2


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("siglip_vision_model", BEHIND, r"doesn't fit SigLIP .*: it has no \[CLS\]"),
        ("vit", RegisterConfig(init="sep"), r"doesn't fit ViT, which reads no words"),
        ("vit", RegisterConfig(layer_norm=True), "its embeddings have no LayerNorm"),
    ],
)
def test_settings_that_images_have_no_place_for_are_refused(family, config, words):
    with pytest.raises(ConfigError, match=words):
        add_registers(tiny_model(family), config)


@torch.no_grad()
def test_clips_norm_can_be_passed_through():
    config = RegisterConfig(num_registers=2, init_std=0.5, layer_norm=True, position="none")
    model = add_registers(tiny_model("clip_vision_model", "none"), config)
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    model(**images())
    assert torch.allclose(seen[0][0, :2], model.pre_layrnorm(model.registers.tokens))
