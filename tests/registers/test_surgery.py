"""Adding, refusing and removing registers; what the seven invariants don't cover."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from regtune.config import RegisterConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.registers.surgery import (
    add_registers,
    disable_registers,
    find_registers,
    mask_registers,
    max_text_length,
    num_registers,
    register_parameters,
    remove_registers,
    split_attention,
)
from tiny import ABSOLUTE, FAMILIES, HEADS, attentions_of, inputs, tiny_model

FOUR = RegisterConfig(num_registers=4, init_std=0.5)


def test_a_model_in_eval_mode_stays_in_eval_mode():
    assert not any(module.training for module in add_registers(tiny_model("bert")).modules())
    assert all(module.training for module in add_registers(tiny_model("bert").train()).modules())


@pytest.mark.grid
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "mpnet", "modernbert"]
)
def test_every_head_gives_outputs_of_the_texts_length(family, head):
    model, batch = tiny_model(family, head), inputs(family)
    if head == "multiple-choice":
        batch = {name: value.unsqueeze(1).repeat(1, 2, 1) for name, value in batch.items()}
    plain = model(**batch)
    output = add_registers(model, FOUR)(**batch)
    for name, value in plain.items():
        if isinstance(value, torch.Tensor):
            assert output[name].shape == value.shape, name
    first = next(name for name, value in plain.items() if isinstance(value, torch.Tensor))
    assert not torch.equal(plain[first], output[first])


def test_an_unsupported_family_is_refused_and_the_supported_ones_are_listed():
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 16,
    }
    model = OPTForCausalLM(OPTConfig(**sizes, vocab_size=20, max_position_embeddings=16))
    with pytest.raises(UnsupportedModelError, match=r"model_type='opt'.*BERT \(bert\).*ModernBERT"):
        add_registers(model, FOUR)
    with pytest.raises(UnsupportedModelError, match="Linear is not a Hugging Face model"):
        add_registers(nn.Linear(2, 2), FOUR)


def test_a_bert_that_is_a_decoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="is_decoder=True"):
        add_registers(tiny_model("bert", "masked-lm", is_decoder=True), FOUR)


def test_a_variant_that_runs_layers_behind_its_encoder_is_refused():
    model = tiny_model("deberta-v2")
    model.config.z_steps = 3
    with pytest.raises(UnsupportedModelError, match="z_steps=3"):
        add_registers(model, FOUR)


def test_a_model_that_has_registers_is_refused_until_they_are_removed():
    model = add_registers(tiny_model("bert"), FOUR)
    with pytest.raises(UnsupportedModelError, match="has 4 registers already"):
        add_registers(model, FOUR)
    assert num_registers(add_registers(remove_registers(model), RegisterConfig(num_registers=2))) == 2


def test_removing_or_masking_what_is_not_there_is_an_error():
    model = tiny_model("bert")
    with pytest.raises(UnsupportedModelError, match="has no registers"):
        remove_registers(model)
    with pytest.raises(UnsupportedModelError, match="has no registers"), mask_registers(model):
        pass
    with disable_registers(model):
        model(**inputs("bert"))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ABSOLUTE))
def test_after_cls_is_refused_where_positions_are_distances(family):
    with pytest.raises(ConfigError, match="placement='after_cls' doesn't fit"):
        add_registers(tiny_model(family), RegisterConfig(num_registers=2, placement="after_cls"))


def test_registers_of_every_layer_are_refused_where_layers_are_shared():
    with pytest.raises(ConfigError, match="layers share one set of weights"):
        add_registers(tiny_model("albert"), RegisterConfig(num_registers=2, depth="every_layer"))


def test_more_registers_than_positions_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"num_registers=66 leaves no room.*66"):
        add_registers(tiny_model("bert"), RegisterConfig(num_registers=66))


@pytest.mark.parametrize("family", sorted(ABSOLUTE))
def test_the_longest_text_still_fits_beside_registers(family):
    model = add_registers(tiny_model(family), FOUR)
    longest = max_text_length(model)
    assert longest == (64 if family in {"roberta", "xlm-roberta"} else 66)
    assert model(**inputs(family, seq=longest)).start_logits.shape[1] == longest


def test_rotary_registers_use_up_positions_and_unlimited_positions_say_so():
    assert max_text_length(add_registers(tiny_model("modernbert"), FOUR)) == 62
    assert max_text_length(add_registers(tiny_model("deberta-v2"), FOUR)) is None


@pytest.mark.parametrize("placement", ["prefix", "after_cls", "suffix"])
def test_attention_maps_keep_the_registers_first_and_split_into_four(placement):
    config = RegisterConfig(num_registers=4, placement=placement, init_std=0.5)
    model, batch = add_registers(tiny_model("bert"), config), inputs("bert", pad=5)
    for attention in model(**batch, output_attentions=True).attentions:
        assert attention.shape[-2:] == (24, 24)
        split = split_attention(attention, 4)
        assert split.text_to_text.shape[-2:] == (20, 20)
        assert split.text_to_registers.shape[-2:] == (20, 4)
        assert split.registers_to_text.shape[-2:] == (4, 20)
        assert (split.text_to_registers > 0).all()
        assert (split.text_to_text[1, :, :, -5:] == 0).all(), "padding is never attended to"
        assert (split.registers_to_text[1, :, :, -5:] == 0).all()


def test_where_registers_stand_makes_no_difference_to_absolute_positions():
    outputs = []
    for placement in ("prefix", "after_cls", "suffix"):
        model = tiny_model("bert")
        torch.manual_seed(5)
        add_registers(model, RegisterConfig(num_registers=4, placement=placement, init_std=0.5))
        outputs.append(model(**inputs("bert", pad=5)).start_logits)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_a_local_window_never_hides_a_register():
    # Four registers ahead of 40 tokens; the local window reaches 4 to each side.
    model = add_registers(tiny_model("modernbert", "none"), FOUR)
    batch = inputs("modernbert", seq=40)
    attention = model(**batch, output_attentions=True).attentions
    local = [
        split_attention(a, 4) for a, kind in zip(attention, model.config.layer_types, strict=True) if "sliding" in kind
    ]
    assert local
    for split in local:
        assert (split.text_to_registers > 0).all(), "the last token sees the registers"
        assert (split.registers_to_text > 0).all()
        assert (split.text_to_text[:, :, 0, 5:] == 0).all(), "text still sees only its neighbours"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_inputs_embeds_positional_arguments_and_no_mask_work(family, attention):
    if attention not in attentions_of(family):
        pytest.skip("no sdpa in this family")
    model = add_registers(tiny_model(family, attention=attention), FOUR)
    ids = inputs(family)["input_ids"]
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).start_logits
    torch.testing.assert_close(model(ids).start_logits, expected)
    torch.testing.assert_close(model(ids, torch.ones_like(ids)).start_logits, expected)
    embeds = model.get_input_embeddings()(ids)
    assert model(inputs_embeds=embeds).start_logits.shape == ids.shape


def test_a_full_attention_mask_is_widened_on_both_sides():
    model, batch = add_registers(tiny_model("bert", "none"), FOUR), inputs("bert", pad=5)
    expected = model(**batch).last_hidden_state
    keys = batch["attention_mask"][:, None, None, :].bool()
    full = keys.expand(-1, 1, 20, -1)
    bias = torch.zeros(full.shape).masked_fill(~full, torch.finfo(torch.float32).min)
    output = model(input_ids=batch["input_ids"], attention_mask=bias).last_hidden_state
    torch.testing.assert_close(output[batch["attention_mask"].bool()], expected[batch["attention_mask"].bool()])
    with pytest.raises(ValueError, match=r"shape \(3, 20, 20\)"):
        model(input_ids=batch["input_ids"], attention_mask=torch.ones(3, 20, 20))


def test_tuples_come_back_where_return_dict_is_false():
    for family in ("bert", "mpnet", "deberta-v2"):
        model, batch = add_registers(tiny_model(family, "none"), FOUR), inputs(family)
        output = model(**batch, return_dict=False, output_hidden_states=True)
        assert isinstance(output, tuple)
        assert output[0].shape[1] == 20
        assert all(state.shape[1] == 20 for part in output if isinstance(part, tuple) for state in part)


def test_some_registers_can_be_masked_alone():
    model, batch = add_registers(tiny_model("bert"), FOUR), inputs("bert")
    every = model(**batch).start_logits
    with mask_registers(model, [2]):
        attention = model(**batch, output_attentions=True).attentions[0]
        assert (attention[..., 2] == 0).all()
        assert (attention[..., [0, 1, 3]] > 0).all()
        with mask_registers(model, [0]):
            assert (model(**batch, output_attentions=True).attentions[0][..., [0, 2]] == 0).all()
    assert torch.equal(every, model(**batch).start_logits)
    with (
        pytest.raises(ConfigError, match="register 4 doesn't exist; this model has 0 to 3"),
        mask_registers(model, [4]),
    ):
        pass


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "roberta", "modernbert", "deberta-v2", "distilbert"])
def test_embedding_init_has_the_scale_of_what_registers_join(family):
    model = tiny_model(family, "none")
    embedded = model.embeddings(input_ids=torch.randint(4, 120, (1, 60)))[0]
    add_registers(model, RegisterConfig(num_registers=60, init="embedding", position="none"))
    vectors = find_registers(model).tokens
    assert vectors.std().item() == pytest.approx(embedded.std().item(), rel=0.2)
    assert vectors.shape[1] == embedded.shape[1]


def test_sep_init_starts_at_the_separators_embedding():
    model = tiny_model("bert", "none")
    expected = model.embeddings(input_ids=torch.tensor([[7]]))[0, 0]
    add_registers(model, RegisterConfig(num_registers=3, init="sep"), sep_token_id=7)
    torch.testing.assert_close(find_registers(model).tokens.data, expected.expand(3, -1).detach())
    assert not torch.equal(*find_registers(model).positions.data[:2]), "learned positions tell the copies apart"
    with pytest.raises(ConfigError, match="pass sep_token_id"):
        add_registers(tiny_model("bert"), RegisterConfig(num_registers=2, init="sep"))


def test_mask_init_starts_at_the_masks_embedding():
    model = tiny_model("bert", "none")
    expected = model.embeddings(input_ids=torch.tensor([[9]]))[0, 0]
    add_registers(model, RegisterConfig(num_registers=3, init="mask", trainable=False), mask_token_id=9)
    torch.testing.assert_close(find_registers(model).tokens.data, expected.expand(3, -1).detach())
    with pytest.raises(ConfigError, match="pass mask_token_id"):
        add_registers(tiny_model("bert"), RegisterConfig(num_registers=2, init="mask"))


def test_layer_norm_passes_registers_through_the_embeddings_norm():
    model = add_registers(tiny_model("bert", "none"), RegisterConfig(num_registers=4, layer_norm=True))
    states = []
    model.encoder.layer[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model(**inputs("bert"))
    registers = find_registers(model)
    expected = model.embeddings.LayerNorm(registers.tokens + registers.positions)
    torch.testing.assert_close(states[0][0, :4], expected)
    assert states[0][0, :4].std().item() > 10 * registers.tokens.std().item()


def test_frozen_registers_get_no_gradient_but_work():
    model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=4, trainable=False))
    assert not any(p.requires_grad for p in register_parameters(model))
    batch = inputs("bert") | {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([1, 2, 3])}
    model(**batch).loss.backward()
    assert all(p.grad is None for p in register_parameters(model))


def test_fresh_registers_replace_the_old_ones_at_every_layer():
    model = add_registers(tiny_model("bert", "none"), RegisterConfig(num_registers=4, depth="every_layer"))
    seen = []
    for layer in model.encoder.layer:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :4]))
    model(**inputs("bert"))
    registers = find_registers(model)
    assert registers.deep.shape == (2, 4, 32)
    for index in (0, 1):
        torch.testing.assert_close(seen[index + 1], registers.deep[index].expand(3, -1, -1))


def test_a_deep_copy_has_registers_of_its_own():
    model, batch = add_registers(tiny_model("bert"), FOUR), inputs("bert")
    twin = copy.deepcopy(model)
    before = model(**batch).start_logits
    with torch.no_grad():
        find_registers(twin).tokens.add_(1.0)
    assert torch.equal(before, model(**batch).start_logits)
    assert not torch.equal(before, twin(**batch).start_logits)
    remove_registers(twin)
    assert num_registers(model) == 4
    assert torch.equal(before, model(**batch).start_logits)
