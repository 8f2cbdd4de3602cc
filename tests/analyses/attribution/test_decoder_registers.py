"""Registers of a decoder's own, beside an encoder's: each has its score, and none is taken for another."""

from __future__ import annotations

import html
import re

import pytest
import torch

from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.explain import explain
from regtune.config import RegisterConfig
from regtune.errors import UnsupportedModelError
from regtune.registers.surgery import add_registers, find_decoder_registers, find_registers, mask_registers
from regtune.report.overlays.page import overlay_page
from regtune.report.overlays.terminal import overlay_text
from regtune.rows.targets import TokenLogit
from tiny_seq2seq import texts, tiny_model
from tiny_tokenizer import tiny_tokenizer

ENCODER, DECODER = 4, 3
WRITTEN = torch.tensor([[2, 9, 8, 30], [2, 12, 13, 14]])
EVERY = pytest.mark.parametrize("family", ["t5", "bart", "marian"])
SETS = pytest.mark.parametrize("encoder", [0, ENCODER])


def given(family: str, encoder: int = ENCODER, **settings):
    """A model with both sets (or the decoder's alone), in float64, and a batch with what is written."""
    config = RegisterConfig(num_registers=encoder, decoder_registers=DECODER, init_std=1.0, **settings)
    return add_registers(tiny_model(family), config).double(), {**texts(9, 9), "decoder_input_ids": WRITTEN}


def value(model, batch) -> torch.Tensor:
    """What is explained: the logit of token 7 behind the third one that is written, `[rows]`."""
    return model(**batch, use_cache=False).logits[:, 2, 7]


def explained(model, batch, method, **options):
    return attribute(model, batch, method=method, target=TokenLogit(position=2, label=7), **options)


@torch.no_grad()
@SETS
@EVERY
def test_a_register_that_is_hidden_is_hidden_in_its_own_set_alone(family, encoder):
    model, batch = given(family, encoder)
    expected = []
    for stack, count in ((model.get_encoder(), encoder), (model.get_decoder(), DECODER)):
        for number in range(count):
            with mask_registers(stack, [number]):
                expected.append(value(model, batch))
    expected = (value(model, batch) - torch.stack(expected)).T
    found = explained(model, batch, "occlusion", special_tokens="moved", baseline="zero")
    for row, one in enumerate(found):
        assert one.registers == pytest.approx(expected[row].numpy(), abs=1e-12)
        assert one.register_names == (*("r0", "r1", "r2", "r3")[:encoder], "d0", "d1", "d2")
    assert (expected.abs() > 1e-6).all()


@pytest.mark.parametrize("depth", ["input", "every_layer"])
@SETS
@EVERY
def test_a_register_s_gradient_times_its_vector_is_added_up_over_its_own_depths(family, encoder, depth):
    model, batch = given(family, encoder, depth=depth)
    row = {name: part[:1] for name, part in batch.items()}
    value(model, row).sum().backward()
    expected = []
    for registers in filter(None, (find_registers(model), find_decoder_registers(model))):
        vectors = [registers(1, depth)[0] for depth in range(1 if registers.deep is None else 1 + len(registers.deep))]
        first = (vectors[0].detach() * registers.tokens.grad).sum(-1)
        deep = [] if registers.deep is None else (registers.deep.detach() * registers.deep.grad).sum(-1)
        expected.extend((first + sum(deep)).tolist())
    (found,) = explained(model, row, "gradient-input")
    assert found.registers == pytest.approx(expected, abs=1e-9)
    assert (abs(found.registers) > 1e-9).all()


@pytest.mark.parametrize("depth", ["input", "every_layer"])
@SETS
def test_a_path_of_both_sets_ends_where_both_are_zero(encoder, depth):
    model, batch = given("bart", encoder, depth=depth)
    found = explained(model, batch, "integrated-gradients", special_tokens="moved", baseline="pad", registers="moved")
    absent = torch.full_like(batch["input_ids"], 1)
    with torch.no_grad():
        for registers in filter(None, (find_registers(model), find_decoder_registers(model))):
            for parameter in registers.parameters():
                parameter.zero_()
        start = value(model, {**batch, "input_ids": absent})
    for row, one in enumerate(found):
        assert len(one.registers) == encoder + DECODER
        assert one.baseline == pytest.approx(float(start[row]), abs=1e-9)
        assert one.value == pytest.approx(one.total + one.residual)


@torch.no_grad()
@pytest.mark.parametrize(("encoder", "decoder"), [(ENCODER, 0), (0, DECODER), (ENCODER, DECODER)])
@EVERY
def test_the_decoder_s_attention_over_the_text_gives_registers_nothing(family, encoder, decoder):
    config = RegisterConfig(num_registers=encoder, decoder_registers=decoder, init_std=1.0)
    model = add_registers(tiny_model(family, attention="eager"), config)
    batch = {**texts(9, 9), "decoder_input_ids": WRITTEN}
    paid = model(**batch, output_attentions=True).cross_attentions[-1].mean(1)[:, 2]
    for row, one in enumerate(explained(model, batch, "attention")):
        assert one.relevance == pytest.approx(paid[row].numpy(), abs=1e-6)
        assert one.registers.tolist() == [0.0] * (encoder + decoder)
        assert one.decoder_registers == decoder


def test_what_has_no_gradient_of_the_decoder_s_weights_says_so():
    model, batch = given("bart")
    with pytest.raises(UnsupportedModelError, match=r"has registers in its decoder.*Use gradient-input, occlusion"):
        explained(model, batch, "attention-gradient")


@pytest.mark.parametrize(
    ("encoder", "words"),
    [(0, "with 3 registers of the decoder's own"), (2, "with 2 registers and 3 registers of the decoder's own")],
)
def test_terminal_and_page_tell_the_two_sets_apart(encoder, words):
    model, _ = given("bart", encoder)
    found = explain((model.float(), tiny_tokenizer()), "the cat lives in the house.", method="gradient-input")
    shown, page = overlay_text(found.to_json(), width=200), overlay_page(found.to_json())
    assert words in " ".join(shown.split())
    strip = shown[shown.index("registers: ") :].split("tokens")[0]
    assert strip.split()[1::2] == [*(f"r{index}" for index in range(encoder)), "d0", "d1", "d2"]
    told = html.unescape(page)
    assert words in told
    rows = re.findall(r">((?:decoder's )?register \d)<", told)
    assert rows == [*(f"register {n}" for n in range(encoder)), *(f"decoder's register {n}" for n in range(DECODER))]
