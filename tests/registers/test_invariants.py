"""The seven invariants of the design, for every family, on every attention implementation it has."""

from __future__ import annotations

import pytest
import torch

from regtune.config import RegisterConfig
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import (
    add_registers,
    disable_registers,
    find_registers,
    mask_registers,
    remove_registers,
)
from tiny import ABSOLUTE, FAMILIES, attentions_of, inputs, tiny_model

N = 5
CASES = [(family, attention) for family in FAMILIES for attention in attentions_of(family)]
PLACED = [
    (family, attention, placement)
    for family, attention in CASES
    for placement in (("prefix", "after_cls", "suffix") if family in ABSOLUTE else ("prefix", "suffix"))
]


def registers(**changes) -> RegisterConfig:
    return RegisterConfig(num_registers=N, init_std=0.5, **changes)


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        output = model(**batch)
    return torch.stack([output.start_logits, output.end_logits])[:, batch["attention_mask"].bool()]


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_no_registers_and_disabled_registers_are_bit_identical_to_the_plain_model(family, attention):
    model, batch = tiny_model(family, attention=attention), inputs(family, pad=5)
    plain = logits(model, batch)
    assert torch.equal(plain, logits(add_registers(model, RegisterConfig(num_registers=0)), batch))
    assert find_registers(model) is None
    add_registers(model, registers())
    assert not torch.allclose(plain, logits(model, batch), atol=1e-3), "registers must have an effect to be disabled"
    with disable_registers(model):
        assert torch.equal(plain, logits(model, batch))


@pytest.mark.parametrize(("family", "attention", "placement"), PLACED)
def test_masked_registers_leave_the_model_unchanged(family, attention, placement):
    model, batch = tiny_model(family, attention=attention), inputs(family, pad=5)
    plain = logits(model, batch)
    add_registers(model, registers(placement=placement))
    with mask_registers(model):
        # 1e-6 in float32, for logits of size 1; these tiny models' logits reach 10.
        assert (logits(model, batch) - plain).abs().max() <= 1e-6 * max(1.0, plain.abs().max().item())
    assert (logits(model, batch) - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "attention", "placement"), PLACED)
def test_registers_never_leave_the_model(family, attention, placement):
    batch = inputs(family, pad=5)
    size, seq = batch["input_ids"].shape
    model = add_registers(tiny_model(family, "none", attention), registers(placement=placement))
    output = model(**batch, output_hidden_states=True)
    assert output.last_hidden_state.shape[:2] == (size, seq)
    assert [state.shape[1] for state in output.hidden_states] == [seq] * 4
    answers = add_registers(tiny_model(family, attention=attention), registers(placement=placement))
    labels = {"start_positions": torch.tensor([0, 3, seq - 1]), "end_positions": torch.tensor([2, 3, seq - 1])}
    output = answers(**batch, **labels)
    assert output.start_logits.shape == output.end_logits.shape == (size, seq)
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "mpnet"])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_the_pooler_reads_the_first_text_token(family, placement):
    model, batch = add_registers(tiny_model(family, "none"), registers(placement=placement)), inputs(family)
    output = model(**batch)
    first = output.last_hidden_state[:, :1]
    again = model.pooler_activation(model.pooler(first[:, 0])) if family == "albert" else model.pooler(first)
    assert torch.equal(output.pooler_output, again)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_saving_and_loading_gives_the_same_logits_bit_for_bit(family, depth, tmp_path):
    if family == "albert" and depth == "every_layer":
        pytest.skip("ALBERT's layers share weights; refused, see test_surgery")
    batch = inputs(family, pad=5)
    model = add_registers(tiny_model(family), registers(depth=depth))
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "whole")
    whole = from_pretrained(type(model), tmp_path / "whole", attn_implementation="eager").eval()
    assert torch.equal(expected, logits(whole, batch))
    save_registers(model, tmp_path / "small")
    small = load_registers(tiny_model(family), tmp_path / "small")
    assert torch.equal(expected, logits(small, batch))
    assert (tmp_path / "small" / "registers.safetensors").stat().st_size < 8_000


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_registers_gives_back_the_plain_model(family):
    model, batch = tiny_model(family), inputs(family, pad=5)
    keys, plain = list(model.state_dict()), logits(model, batch)
    settings = model.config.to_dict()
    add_registers(model, registers())
    assert list(model.state_dict()) != keys
    remove_registers(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(plain, logits(model, batch))
    assert model.config.to_dict() == settings


@pytest.mark.parametrize("family", [f for f in FAMILIES if len(attentions_of(f)) > 1])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_eager_and_sdpa_attention_agree(family, placement):
    batch = inputs(family, pad=5)
    both = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(3)
        model = add_registers(tiny_model(family, attention=attention), registers(placement=placement))
        find_registers(model).tokens.data.copy_(
            torch.linspace(-1, 1, find_registers(model).tokens.numel()).view_as(find_registers(model).tokens)
        )
        find_registers(model).positions.data.zero_()
        both.append(logits(model, batch))
    torch.testing.assert_close(*both, atol=2e-5, rtol=1e-4)


def left_padded(family: str, batch: dict[str, torch.Tensor], pad: int) -> dict[str, torch.Tensor]:
    """The same rows with the second row's padding on the left; absolute positions are given to match."""
    moved = {name: value.clone() for name, value in batch.items()}
    for value in moved.values():
        value[1] = value[1].roll(pad)
    positions = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if family in {"bert", "electra", "albert"} or family in {"distilbert", "modernbert"}:
        moved["position_ids"] = positions
    return moved


@pytest.mark.parametrize(("family", "attention", "placement"), PLACED)
def test_left_and_right_padding_agree(family, attention, placement):
    if family == "deberta-v2-conv":
        pytest.skip("the convolution itself sees padding, with or without registers")
    right = inputs(family, pad=5)
    left = left_padded(family, right, 5)
    model = add_registers(tiny_model(family, attention=attention), registers(placement=placement))
    torch.testing.assert_close(logits(model, right), logits(model, left), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "attention", "placement"), PLACED)
def test_a_padded_row_equals_the_same_row_alone(family, attention, placement):
    if family == "deberta-v2-conv":
        pytest.skip("the convolution itself sees padding, with or without registers")
    batch = inputs(family, pad=5)
    model = add_registers(tiny_model(family, attention=attention), registers(placement=placement))
    alone = {name: value[1:2, :-5] for name, value in batch.items()}
    row = model(**batch).start_logits[1, :-5]
    torch.testing.assert_close(row, model(**alone).start_logits[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_gradients_reach_every_register_and_checkpointing_changes_none(family, depth):
    if family == "albert" and depth == "every_layer":
        pytest.skip("ALBERT's layers share weights; refused, see test_surgery")
    batch = inputs(family, pad=5)
    labels = {"start_positions": torch.tensor([2, 3, 4]), "end_positions": torch.tensor([5, 6, 7])}
    model = add_registers(tiny_model(family), registers(depth=depth))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model(**batch, **labels).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    module = find_registers(model)
    parts = [module.tokens, module.positions] + ([module.deep.flatten(0, 1)] if depth == "every_layer" else [])
    grads = [module.tokens.grad, module.positions.grad] + (
        [module.deep.grad.flatten(0, 1)] if depth == "every_layer" else []
    )
    for part, grad in zip(parts, grads, strict=True):
        assert grad.shape == part.shape
        assert (grad.abs().sum(dim=-1) > 0).all()
    if not model.supports_gradient_checkpointing:
        return
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(**batch, **labels).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, found[name], atol=1e-6, rtol=1e-5)
