"""Neurons that act at registers: what they have there and elsewhere, and the invariants that hold all the same."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
import tiny_images
import tiny_seq2seq
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.registers.moved_neurons import (
    Neuron,
    RegisterNeurons,
    move_neurons,
    moved_neurons,
    neuron_layers,
    restore_neurons,
)
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import (
    NEURONS_KEY,
    add_registers,
    backbone_of,
    disable_registers,
    layout_of,
    remove_registers,
)
from regtune.testing.broken import BrokenInvariantError
from regtune.testing.invariants import (
    causality_kept,
    checkpointing_agrees,
    generation_agrees,
    padding_agrees,
    passes_are_their_own,
)
from regtune.testing.subject import Subject, make_inputs, values_of

NEURONS = (
    Neuron(layer=0, index=3, held=1.5),
    Neuron(layer=0, index=11, sign=-1, held=-0.7),
    Neuron(layer=2, index=5, held=2.0),
)
READERS = (
    *("bert", "distilbert", "electra", "modernbert", "deberta-v2", "mpnet", "roberta"),
    *("vit", "dinov2", "siglip_vision_model", "t5", "bart"),
)


def model_of(family, head=None, **registers):
    if family in tiny_images.FAMILIES:
        model = tiny_images.tiny_model(family, attention="sdpa")
    elif family in tiny_seq2seq.FAMILIES:
        model = tiny_seq2seq.tiny_model(family)
    else:
        model = tiny.tiny_model(family, head, "eager" if family in tiny.EAGER_ONLY else "sdpa")
    return add_registers(model, RegisterConfig(num_registers=2, init_std=0.5, **registers))


def batch_of(family):
    if family in tiny_images.FAMILIES:
        return tiny_images.images()
    return tiny.inputs(family, pad=4)


@torch.no_grad()
def activations(model, batch, layer=0):
    """What the second projection of a layer reads, `[batch, total, neurons]`."""
    backbone = backbone_of(model)
    projection = neuron_layers(backbone, family_of(backbone.config))[layer][1]
    found = []
    handle = projection.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    backbone(**batch)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("family", tiny.few(READERS, "bert", "modernbert", "vit", "t5"))
def test_registers_have_the_largest_activation_over_real_tokens_and_all_others_none(family):
    model, batch = model_of(family), batch_of(family)
    before = activations(model, batch)
    move_neurons(model, NEURONS)
    after = activations(model, batch)
    mask = batch.get("attention_mask")
    order = layout_of(model, mask) if mask is not None else None
    real = torch.ones(before.shape[0], before.shape[1] - 2) if mask is None else mask
    for row in range(len(before)):
        if order is None or order.order is None:
            registers, text = [0, 1], list(range(2, before.shape[1]))
        else:
            place = order.order[row].tolist()
            registers, text = [place.index(0), place.index(1)], order.text_columns[row].tolist()
        there = [column for column, seen in zip(text, real[row].tolist(), strict=True) if seen]
        for neuron in NEURONS[:2]:
            own = before[row, there, neuron.index]
            largest = own.max() if neuron.sign > 0 else own.min()
            assert after[row, registers, neuron.index].tolist() == pytest.approx([float(largest)] * 2)
            assert not after[row, text, neuron.index].any()
    others = [index for index in range(before.shape[2]) if index not in (3, 11)]
    assert after[..., others].equal(before[..., others])


@torch.no_grad()
@pytest.mark.parametrize(("sign", "shift"), [(-1, 8.0), (1, -0.6)])
def test_padding_is_no_largest_activation_where_no_token_s_speaks_for_a_neuron(sign, shift):
    """Signed activations are below 0 at all tokens, so that 0, or what padding holds, would be larger."""
    model, batch = model_of("bert"), batch_of("bert")
    reads = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    reads.weight[3].mul_(0.01)
    reads.bias[3] = shift
    mask = batch["attention_mask"]
    own = activations(model, batch)[:, 2:, 3].masked_fill(~mask.bool(), -sign * torch.inf) * sign
    assert bool((own.amax(1) < 0).all())
    assert not bool(mask.all())
    move_neurons(model, [Neuron(layer=0, index=3, sign=sign, held=0.0)])
    found = activations(model, batch)[:, :2, 3]
    torch.testing.assert_close(found, (sign * own.amax(1, keepdim=True)).expand(-1, 2))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_a_decoder_registers_have_one_number_for_all_texts(family):
    model, batch = model_of(family), batch_of(family)
    move_neurons(model, NEURONS)
    after = activations(model, batch)
    assert after[:, :2, 3].unique().tolist() == pytest.approx([1.5])
    assert after[:, :2, 11].unique().tolist() == pytest.approx([-0.7])
    assert not after[:, 2:, [3, 11]].any()


@pytest.mark.parametrize("family", tiny.few(("llama", "gpt2"), "llama"))
def test_no_token_of_a_decoder_depends_on_a_later_one_and_caches_agree(family):
    model = model_of(family, "causal-lm")
    move_neurons(model, NEURONS)
    subject = Subject(model, make_inputs(model)[0])
    causality_kept(subject)
    generation_agrees(subject)


def test_with_the_largest_over_the_text_a_decoders_tokens_would_know_later_ones():
    model = model_of("llama", "causal-lm")
    move_neurons(model, NEURONS)
    next(part for part in model.modules() if isinstance(part, RegisterNeurons)).causal = False
    with pytest.raises(BrokenInvariantError, match="differ"):
        causality_kept(Subject(model, make_inputs(model)[0]))


@pytest.mark.parametrize("family", tiny.few(("bert", "modernbert", "llama", "vit", "t5"), "bert", "llama"))
def test_padding_checkpointing_threads_and_nested_calls_change_nothing(family):
    model = model_of(family)
    move_neurons(model, NEURONS)
    subject = Subject(model, make_inputs(model)[0])
    if family != "vit":
        padding_agrees(subject)
    if family == "t5":
        subject.inputs |= {"decoder_input_ids": subject.inputs["input_ids"][:, :7]}
    checkpointing_agrees(subject)
    passes_are_their_own(subject)


def test_switched_off_or_taken_back_the_model_is_what_it_was():
    for family in ("bert", "llama"):
        model, batch = model_of(family), batch_of(family)
        with torch.no_grad():
            with disable_registers(model):
                plain = values_of(model, batch)
            before = values_of(model, batch)
            move_neurons(model, NEURONS)
            assert not values_of(model, batch).equal(before)
            twin = copy.deepcopy(model)
            with disable_registers(model):
                assert values_of(model, batch).equal(plain)
                assert not values_of(twin, batch).equal(plain)
            restore_neurons(model)
            assert values_of(model, batch).equal(before)
        assert moved_neurons(model) == ()
        assert not hasattr(model.config, NEURONS_KEY)
        move_neurons(model, NEURONS)
        remove_registers(model)
        with torch.no_grad():
            assert values_of(model, batch).equal(plain)
        assert moved_neurons(model) == ()


def test_saved_and_opened_the_same_neurons_act_bit_for_bit(tmp_path):
    for family in ("bert", "llama"):
        model, batch = model_of(family), batch_of(family)
        move_neurons(model, NEURONS)
        model.save_pretrained(tmp_path / family)
        again = from_pretrained(type(model), tmp_path / family)
        assert moved_neurons(again) == NEURONS
        with torch.no_grad():
            assert values_of(again, batch).equal(values_of(model, batch))
    config = tmp_path / "bert" / "config.json"
    config.write_text(config.read_text().replace('"sign": -1', '"sign": 3'))
    with pytest.raises(CheckpointError, match=r"\.sign in the register neurons in config\.json"):
        from_pretrained(type(model_of("bert")), tmp_path / "bert")


def test_models_whose_neurons_belong_to_no_layer_are_refused():
    with pytest.raises(UnsupportedModelError, match="share one set of weights"):
        move_neurons(model_of("albert"), NEURONS)
    model = add_registers(tiny.tiny_model("bert", chunk_size_feed_forward=4), RegisterConfig(num_registers=2))
    with pytest.raises(UnsupportedModelError, match="chunk_size_feed_forward"):
        move_neurons(model, NEURONS)
    with pytest.raises(ConfigError, match=r"index=48.*it has 3 layers of 48 neurons"):
        move_neurons(model_of("bert"), [Neuron(layer=1, index=48)])
    with pytest.raises(UnsupportedModelError, match="has no registers"):
        move_neurons(tiny.tiny_model("bert"), NEURONS)
