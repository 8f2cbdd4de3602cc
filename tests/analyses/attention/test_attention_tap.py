"""The attention tap: the weights that eager attention returns, from any implementation, and nothing changed after."""

from __future__ import annotations

import pytest
import torch

import tiny
from analyses.attribution.explained import CASES, DECODERS, any_model, encoder, shared_model
from regtune.analyses.attention.tap import attention_tap
from regtune.errors import UnsupportedModelError
from regtune.registers.surgery import layout_of


def tapped(model, batch):
    found = []
    with torch.no_grad(), attention_tap(model, lambda *call: found.append(call)):
        outputs = model(**batch)
    return outputs, found


def eager_attentions(model, batch):
    """What transformers returns with eager attention, in the order `[registers, text]`."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(**batch, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(implementation)


@pytest.mark.parametrize(("family", "num_registers"), CASES)
def test_the_tap_gives_eager_weights_and_the_values_that_they_weigh_in_every_family(family, num_registers):
    model, batch = shared_model(family, num_registers), tiny.inputs(family, pad=4)
    outputs, found = tapped(model, batch)
    with torch.no_grad():
        plain = model(**batch)
    name = "logits" if family in DECODERS else "start_logits"
    text = batch["attention_mask"].bool()
    assert torch.allclose(outputs[name][text], plain[name][text], atol=1e-5)
    expected = eager_attentions(model, batch)
    assert [call[0] for call in found] == list(range(len(expected)))
    layout = layout_of(model, batch["attention_mask"])
    seen = torch.cat([torch.ones(3, num_registers, dtype=torch.bool), text], dim=1)
    for (_, weights, values, _), eager in zip(found, expected, strict=True):
        ordered = weights if layout is None else layout.registers_first(weights, 2, 3)
        rows = seen[:, None, :, None].expand_as(eager)  # padding queries mean nothing
        assert torch.allclose(ordered[rows], eager[rows], atol=1e-6)
        assert values.shape[:3] == (3, 4, 20 + num_registers)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet", "llama"])
def test_the_values_are_those_that_the_weights_multiply(family):
    model = shared_model(family)
    outputs = []
    with torch.no_grad(), attention_tap(model, lambda *call: outputs.append((call[1] @ call[2], call[3]))):
        kept = []
        module = {
            "bert": "bert.encoder.layer.0.attention.output.dense",
            "mpnet": "mpnet.encoder.layer.0.attention.attn.o",
            "deberta-v2": "deberta.encoder.layer.0.attention.output.dense",
            "llama": "model.layers.0.self_attn.o_proj",
        }
        handle = model.get_submodule(module[family]).register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        model(**tiny.inputs(family))
        handle.remove()
    mixed = outputs[0][0].transpose(1, 2).flatten(2)
    assert torch.allclose(mixed, kept[0], atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet", "modernbert", "llama"])
def test_gradients_of_the_weights_can_be_asked_for(family):
    model, found = shared_model(family), []
    with attention_tap(model, lambda layer, weights, *_: found.append(weights)):
        outputs = model(**tiny.inputs(family))
        value = (outputs.logits if family in DECODERS else outputs.start_logits)[:, 3].sum()
        gradients = torch.autograd.grad(value, found)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("family", ["bert", "albert", "deberta-v2", "mpnet", "modernbert", "gpt2"])
def test_training_gradients_are_bit_identical_after_leaving_also_by_an_exception(family):
    model, batch = any_model(family), tiny.inputs(family)

    def gradients():
        model.zero_grad()
        outputs = model(**batch)
        (outputs.logits if family in DECODERS else outputs.start_logits).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before = gradients()
    keys = {name: set(module.__dict__) for name, module in model.named_modules()}

    def fail(*_):
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"), attention_tap(model, fail):
        model(**batch)
    tapped(model, batch)
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == keys
    for one, other in zip(before, gradients(), strict=True):
        assert torch.equal(one, other)


def test_a_second_pass_counts_its_layers_from_the_start():
    model, layers = encoder("albert"), []
    with torch.no_grad(), attention_tap(model, lambda layer, *_: layers.append(layer)):
        model(**tiny.inputs("albert"))
        model(**tiny.inputs("albert"))
    assert layers == [0, 1, 2, 0, 1, 2]


def test_training_mode_and_a_second_tap_are_refused():
    model = encoder("bert")
    with pytest.raises(UnsupportedModelError, match="explained already"), attention_tap(model, lambda *_: None):
        tapped(model, tiny.inputs("bert"))
    model.bert.encoder.layer[0].train()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        tapped(model, tiny.inputs("bert"))
