"""Registers in the encoder of models that write with a decoder: T5, mT5, BART and Marian."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import (
    CONFIG_KEY,
    add_registers,
    backbone_of,
    base_of,
    disable_registers,
    find_registers,
    max_text_length,
    num_registers,
    register_parameters,
    remove_registers,
)
from regtune.testing import check_family
from tiny_seq2seq import FAMILIES, LABELS, texts, tiny_model

N = 4
FOUR = RegisterConfig(num_registers=N, init_std=0.5)
QUICK = {("t5", "text-to-text"), ("bart", "text-to-text"), ("marian", "text-to-text"), ("bart", "question-answering")}
CASES = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in LABELS]
EVERY = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_family_keeps_every_promise_with_every_head(family, head):
    check_family(tiny_model(family, head))


@pytest.mark.slow
@EVERY
def test_every_family_keeps_every_promise_with_eager_attention(family):
    check_family(tiny_model(family, attention="eager"))


def test_the_heads_that_transformers_has_are_all_there():
    found = {family: {head for one, head in LABELS if one == family} for family in FAMILIES}
    heads = {"question-answering", "sequence-classification", "text-to-text", "none"}
    assert found["bart"] == heads
    assert found["t5"] == found["mt5"] == heads | {"token-classification", "encoder-alone"}
    assert found["marian"] == {"text-to-text", "none"}


@torch.no_grad()
def by_hand(plain, registers, ids):
    """The encoder's states of one text, `[1, tokens, hidden]`, with registers put in front without hooks."""
    encoder = plain.get_encoder()
    words, vectors = encoder.embed_tokens(ids), registers(1)
    if plain.config.model_type == "marian":  # which adds the position of each place, registers' too
        places = encoder.embed_positions.weight
        words = words * encoder.embed_scale + places[: ids.shape[1]] - places[N : N + ids.shape[1]]
        vectors = vectors - places[:N]
    return encoder(inputs_embeds=torch.cat([vectors, words], dim=1)).last_hidden_state[:, N:]


@pytest.mark.parametrize("family", ["t5", "mt5", "marian"])
def test_the_encoder_gives_what_registers_put_in_by_hand_give(family):
    plain = tiny_model(family)
    model, batch = add_registers(copy.deepcopy(plain), FOUR), texts(12, 7)
    found = model.get_encoder()(**batch).last_hidden_state
    for row, length in enumerate((12, 7)):
        expected = by_hand(plain, find_registers(model), batch["input_ids"][row : row + 1, :length])
        torch.testing.assert_close(found[row : row + 1, :length], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@EVERY
def test_embedded_text_is_read_as_its_tokens_are(family):
    model, batch = add_registers(tiny_model(family), FOUR), texts(12, 7)
    encoder = model.get_encoder()
    words = encoder.embed_tokens(batch["input_ids"]) * getattr(encoder, "embed_scale", 1.0)
    found = encoder(inputs_embeds=words, attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(found, encoder(**batch).last_hidden_state)


@torch.no_grad()
@EVERY
def test_the_decoder_sees_the_text_and_no_register(family):
    model, batch = add_registers(tiny_model(family, attention="eager"), FOUR), texts(12, 7)
    written = model.generate(**batch, max_new_tokens=4, output_attentions=True, return_dict_in_generate=True)
    output = model(**batch, decoder_input_ids=batch["input_ids"][:, :3], output_attentions=True)
    across = [*output.cross_attentions, *(layer for step in written.cross_attentions for layer in step)]
    assert {weights.shape[-1] for weights in across} == {12}
    assert max(float(weights[1, ..., 7:].max()) for weights in across) < 1e-6, "nor padding"
    assert {weights.shape[-1] for weights in output.encoder_attentions} == {N + 12}
    assert output.encoder_last_hidden_state.shape[1] == 12


@EVERY
def test_teacher_forcing_teaches_the_registers_through_the_decoder(family):
    model, batch = add_registers(tiny_model(family), FOUR), texts(12, 7)
    labels = batch["input_ids"][:, :5].clone()
    labels[1, 3:] = -100
    loss = model(**batch, labels=labels).loss
    loss.backward()
    assert all((parameter.grad.norm(dim=-1) > 0).all() for parameter in register_parameters(model))
    with disable_registers(model):
        assert model(**batch, labels=labels).loss != loss


@torch.no_grad()
@EVERY
def test_saved_models_load_as_what_they_are_and_plain_transformers_does_not_go_unnoticed(family, tmp_path):
    model, batch = add_registers(tiny_model(family), FOUR), texts(12, 7)
    written = model.generate(**batch, max_new_tokens=8, num_beams=2)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(AutoModelForSeq2SeqLM, tmp_path)
    assert torch.equal(loaded.generate(**batch, max_new_tokens=8, num_beams=2), written)
    with pytest.raises(CheckpointError, match="loaded without regtune"):
        num_registers(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))
    remove_registers(loaded)
    assert num_registers(loaded) == 0
    assert not [part for part in loaded.modules() if hasattr(getattr(part, "config", None), CONFIG_KEY)]


@EVERY
def test_a_decoder_of_such_a_model_is_refused_in_words(family):
    model = tiny_model(family)
    with pytest.raises(UnsupportedModelError, match=r"the decoder of .* without its encoder\. Pass the whole model"):
        add_registers(model.get_decoder(), FOUR)
    if family in ("bart", "marian"):
        with pytest.raises(UnsupportedModelError, match="without its encoder"):
            add_registers(AutoModelForCausalLM.from_config(model.config), FOUR)


@EVERY
def test_the_encoder_is_the_backbone_and_both_together_the_base(family):
    for head in ("text-to-text", "none"):
        model = tiny_model(family, head)
        for _ in ("without", "with"):
            assert backbone_of(model) is model.get_encoder()
            assert base_of(model) is (model.model if family in ("bart", "marian") and head != "none" else model)
            add_registers(model, FOUR) if num_registers(model) == 0 else None
        assert max_text_length(model) == (None if family in ("t5", "mt5") else 66)


def test_places_and_settings_that_don_t_fit_are_refused():
    for family in ("t5", "marian"):
        with pytest.raises(ConfigError, match=r"placement='after_cls' doesn't fit .*: .*Use one of prefix, suffix"):
            add_registers(tiny_model(family), RegisterConfig(placement="after_cls"))
        with pytest.raises(ConfigError, match="layer_norm=True doesn't fit"):
            add_registers(tiny_model(family), RegisterConfig(layer_norm=True))
    with pytest.raises(UnsupportedModelError, match=r"encoder_layerdrop=0\.1; registers need encoder_layerdrop <= 0"):
        add_registers(tiny_model("bart", encoder_layerdrop=0.1))


@pytest.mark.parametrize("init", ["embedding", "sep"])
@EVERY
def test_start_values_have_the_scale_of_what_registers_join(family, init):
    model = add_registers(tiny_model(family), RegisterConfig(num_registers=60, init=init, position="learned"))
    encoder, tokens = model.get_encoder(), find_registers(model).tokens
    with torch.no_grad(), disable_registers(model):
        words = encoder.embed_tokens(torch.tensor([[3]]) if init == "sep" else torch.arange(4, 120)[None, :60])
        words = words * getattr(encoder, "embed_scale", 1.0)
        if family == "bart":
            places = encoder.embed_positions(torch.zeros(words.shape[:2]))
            words = encoder.layernorm_embedding(words + places)
    if init == "sep":
        torch.testing.assert_close(tokens.data, words[0].expand_as(tokens))
    else:
        assert 0.7 < float(tokens.detach().std() / words.std()) < 1.4
