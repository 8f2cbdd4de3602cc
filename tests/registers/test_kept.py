"""A decoder's registers, read once and kept, give what reading them in every call gives."""

from __future__ import annotations

import pytest
import torch

from by_hand import N, padded, with_registers
from regtune.config import RegisterConfig
from regtune.errors import InputError, UnsupportedModelError
from regtune.registers.cache_names import CACHE
from regtune.registers.kept import registers_cache
from regtune.registers.surgery import add_registers, disable_registers, find_registers
from tiny import DECODERS, WINDOWED, attentions_of, tiny_model

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("family", DECODERS)
def test_texts_continue_with_the_same_tokens_from_registers_that_are_kept(family):
    windows = "leave" if family in WINDOWED else "stay"
    model, _ = with_registers(family, attentions_of(family)[-1], windows=windows, depth="every_layer")
    kept, calls = registers_cache(model), []
    find_registers(model).register_forward_hook(lambda *_: calls.append(None))
    for batch in (padded(11, 3, 8), padded(5), padded(9, 9)):
        expected = model.generate(**batch, **GREEDY)
        calls.clear()
        cache = kept.start(len(batch["input_ids"]))
        assert cache.get_seq_length() == 0
        assert torch.equal(model.generate(**batch, **GREEDY, **{CACHE: cache}), expected)
        assert not calls, "registers were read again"
    beams = {"num_beams": 3, "max_new_tokens": 6}
    found = model.generate(**batch, **beams, **{CACHE: kept.start(2 * 3)})
    assert torch.equal(found, model.generate(**batch, **beams))


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("masked", [True, False])
def test_logits_are_those_of_registers_read_in_the_call(family, masked):
    model, _ = with_registers(family)
    batch = padded(7, 4, side="right")
    given = batch if masked else {"input_ids": batch["input_ids"]}
    cache = registers_cache(model).start(2)
    found = model(**given, **{CACHE: cache}).logits
    torch.testing.assert_close(found, model(**given).logits, atol=2e-5, rtol=1e-4)
    assert cache.get_seq_length() == 7
    assert cache.layers[-1].get_seq_length() == 7


def test_a_model_in_training_stays_in_training_and_its_registers_are_read_without_dropout():
    model, _ = with_registers("gpt2")
    expected = registers_cache(model).start().layers[0].keys
    kept = registers_cache(model.train()).start().layers[0].keys
    assert model.training
    assert all(part.training for part in model.modules())
    assert torch.equal(kept, expected)


def test_what_kept_registers_don_t_fit_is_refused():
    model, _ = with_registers("llama")
    kept = registers_cache(model)
    with pytest.raises(InputError, match=r"these start elsewhere .*cumsum"):
        model(**padded(6, 3), **{CACHE: kept.start(2)})
    with pytest.raises(InputError, match=r"the registers of 2 texts, and this call has 3 .*start\(3\)"):
        model(**padded(4, 4, 4), **{CACHE: kept.start(2)})
    other, _ = with_registers("llama", n=3)
    with pytest.raises(InputError, match=f"{N} registers of another model"):
        other(**padded(4), **{CACHE: kept.start()})
    with disable_registers(model), pytest.raises(InputError, match="switched off"):
        registers_cache(model)
    with torch.no_grad():
        find_registers(model).tokens.add_(1.0)
    with pytest.raises(InputError, match=r"weights have changed .*registers_cache\(model\)"):
        kept.start()
    encoder = add_registers(tiny_model("bert"), RegisterConfig(num_registers=2))
    with pytest.raises(UnsupportedModelError, match="no cache to keep registers in"):
        registers_cache(encoder)
