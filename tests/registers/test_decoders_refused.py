"""What registers in decoders can't be used with is refused in words, before anything is computed."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, GPT2Config, GPT2LMHeadModel, StaticCache

from by_hand import N, padded, with_registers
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, InputError, UnsupportedModelError
from regtune.registers.cache_names import CACHE
from regtune.registers.surgery import add_registers, disable_registers, mask_registers, remove_registers
from tiny import DECODERS, WINDOWED, tiny_model

IDS = padded(6, 6)["input_ids"]
ONE = IDS[:, :1]


def filled(model, make=DynamicCache, **settings):
    with torch.no_grad():
        return model(IDS, **{CACHE: make(config=model.config, **settings)})[CACHE]


@pytest.mark.parametrize("placement", ["suffix", "after_cls"])
@pytest.mark.parametrize("family", DECODERS)
def test_registers_that_come_later_are_refused(family, placement):
    with pytest.raises(ConfigError, match=rf"placement='{placement}' doesn't fit .*wouldn't see registers .*prefix"):
        add_registers(tiny_model(family, "causal-lm"), RegisterConfig(num_registers=2, placement=placement))


def test_settings_that_mean_nothing_are_refused():
    two = {"num_registers": 2}
    for family in ("gpt2", "bert", "modernbert"):
        with pytest.raises(ConfigError, match=r"rotary='shared' doesn't fit"):
            add_registers(tiny_model(family, "none"), RegisterConfig(**two, rotary="shared"))
    for family in [*sorted(set(DECODERS) - WINDOWED), "modernbert"]:
        with pytest.raises(ConfigError, match=r"windows='leave' doesn't fit .*sliding_window"):
            add_registers(tiny_model(family, "none"), RegisterConfig(**two, windows="leave"))
    with pytest.raises(ConfigError, match="layer_norm=True doesn't fit Llama"):
        add_registers(tiny_model("llama", "none"), RegisterConfig(**two, layer_norm=True))


def test_models_whose_registers_would_see_the_text_are_refused():
    model = tiny_model("gemma3_text", "causal-lm")
    model.config.use_bidirectional_attention = True
    with pytest.raises(UnsupportedModelError, match="use_bidirectional_attention=True"):
        add_registers(model)
    model = tiny_model("llama", "causal-lm")
    model.config.is_causal = False
    with pytest.raises(UnsupportedModelError, match="is_causal=False"):
        add_registers(model)
    with pytest.raises(UnsupportedModelError, match="add_cross_attention=True"):
        add_registers(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, add_cross_attention=True)))
    model, _ = with_registers("llama")
    with pytest.raises(InputError, match="is_causal=False would let registers see the text"):
        model(IDS, is_causal=False)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "big_bird"])
def test_encoders_that_are_decoders_are_refused(family):
    model = tiny_model(family, "masked-lm")
    model.config.is_decoder = True
    with pytest.raises(UnsupportedModelError, match="is_decoder=True; registers are supported in encoders"):
        add_registers(model)


@pytest.mark.parametrize("family", DECODERS)
def test_a_cache_filled_without_registers_is_refused_with_them_and_the_other_way_round(family):
    model, plain = with_registers(family, "eager")
    with pytest.raises(InputError, match=rf"read with no registers .*runs with {N} of its own.*empty cache"):
        model(ONE, **{CACHE: filled(plain)})
    with disable_registers(model):
        off = filled(model)
        assert type(off.layers[0]).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer")
        model(ONE, **{CACHE: off})
    with pytest.raises(InputError, match="read with no registers"):
        model(ONE, **{CACHE: off})
    on = filled(model)
    with disable_registers(model), pytest.raises(InputError, match=f"read with {N} registers.*runs with them switched"):
        model(ONE, **{CACHE: on})
    with pytest.raises(InputError, match=f"holds {N} registers, and the model that runs has none of them"):
        plain(ONE, **{CACHE: on})
    model(ONE, **{CACHE: on})
    with pytest.raises(InputError, match="has none of them"):
        remove_registers(model)(ONE, **{CACHE: on})


def test_a_cache_of_another_model_another_number_or_other_masked_registers_is_refused():
    model, _ = with_registers("llama")
    other, _ = with_registers("llama", n=3)
    cache = filled(model)
    with pytest.raises(InputError, match=f"read with {N} registers of another model; this model runs with 3 of its"):
        other(ONE, **{CACHE: cache})
    with mask_registers(model, [1]):
        with pytest.raises(InputError, match=rf"read with {N} registers; .*{N} of its own, of which \[1\] masked"):
            model(ONE, **{CACHE: cache})
        partly = filled(model)
        model(ONE, **{CACHE: partly})
    with pytest.raises(
        InputError, match=rf"{N} registers, of which \[1\] masked; this model runs with {N} of its own\."
    ):
        model(ONE, **{CACHE: partly})
    model(ONE, **{CACHE: copy.deepcopy(cache)})
    copy.deepcopy(model)(ONE, **{CACHE: cache})


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_a_cache_that_was_reset_serves_anyone_again(family, make):
    model, plain = with_registers(family, "eager")
    other, _ = with_registers(family, "eager", n=3)
    room = {"max_cache_len": 9} if make is StaticCache else {}
    cache = filled(model, make, **room)
    for one in (model, other, model):
        cache.reset()
        with torch.no_grad():
            found = one(IDS, **{CACHE: cache}).logits
            torch.testing.assert_close(found, one(IDS, use_cache=False).logits, atol=2e-5, rtol=1e-4)
        assert cache.get_seq_length() == 6
    cache.reset()
    with disable_registers(model), torch.no_grad():
        torch.testing.assert_close(model(IDS, **{CACHE: cache}).logits, plain(IDS).logits, atol=2e-5, rtol=1e-4)


def test_a_pass_that_fails_leaves_an_empty_cache():
    model, plain = with_registers("llama")

    def fail(*_):
        raise RuntimeError("out of memory")

    cache = DynamicCache(config=model.config)
    hook = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(IDS, **{CACHE: cache})
    hook.remove()
    assert cache.get_seq_length() == 0
    assert torch.equal(plain(IDS, **{CACHE: cache}).logits, plain(IDS).logits)


def test_a_static_cache_that_fits_the_text_fits_the_registers_and_a_smaller_one_is_refused():
    model, _ = with_registers("llama")
    cache = filled(model, StaticCache, max_cache_len=7)
    model(ONE, **{CACHE: cache})
    assert cache.get_max_length() == 7
    with pytest.raises(InputError, match=r"room for 7 tokens .* holds 7; 1 more don't fit.*max_cache_len=8"):
        model(ONE, **{CACHE: cache})
    with pytest.raises(InputError, match=r"room for 5 tokens .* holds 0; 6 more"):
        filled(model, StaticCache, max_cache_len=5)
    early = StaticCache(config=model.config, max_cache_len=7)
    early.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
    assert torch.equal(model(IDS, **{CACHE: early}).logits, model(IDS, **{CACHE: None}).logits)


def test_masks_and_positions_that_don_t_fit_are_refused():
    model, _ = with_registers("llama")
    cache = filled(model)
    with pytest.raises(InputError, match=r"has 3 columns.*6 tokens in the cache and 1 in this call.*all 7"):
        model(ONE, **{CACHE: cache}, attention_mask=torch.ones(2, 3))
    with pytest.raises(InputError, match=r"has 12 columns.*6 tokens in the cache and 1 in this call.*aren't counted"):
        model(ONE, **{CACHE: cache}, attention_mask=torch.ones(2, 7 + N))
    with pytest.raises(InputError, match=r"\(2, 1, 2, 7\), which doesn't fit 1 tokens"):
        model(ONE, **{CACHE: cache}, attention_mask=torch.ones(2, 1, 2, 7, dtype=torch.bool))
    with pytest.raises(InputError, match=r"\(2, 1, 1, 7\) is torch.int64"):
        model(ONE, **{CACHE: cache}, attention_mask=torch.ones(2, 1, 1, 7, dtype=torch.long))
    with pytest.raises(InputError, match=r"has shape \(2, 1, 7\); with registers it must be"):
        model(ONE, **{CACHE: cache}, attention_mask=torch.ones(2, 1, 7))
    with pytest.raises(InputError, match="is a list; with registers"):
        model(ONE, **{CACHE: cache}, attention_mask=[1])
    for positions in (torch.arange(6 + N)[None], torch.arange(6), torch.zeros(3, 6, dtype=torch.long)):
        with pytest.raises(InputError, match=r"position_ids has shape .* doesn't fit 2 x 6 tokens.*have their own"):
            model(IDS, position_ids=positions)
    assert cache.get_seq_length() == 6
    encoder = add_registers(tiny_model("modernbert"), RegisterConfig(num_registers=2))
    with pytest.raises(InputError, match=r"position_ids has shape \(1, 8\), which doesn't fit 2 x 6 tokens"):
        encoder(IDS, position_ids=torch.arange(8)[None])


def test_other_caches_and_kernels_are_refused():
    model, _ = with_registers("llama")
    with pytest.raises(InputError, match="is a tuple; with registers it must be a transformers Cache"):
        model(IDS, **{CACHE: ((torch.zeros(2, 2, 0, 8),) * 2,) * 3})
    with pytest.raises(InputError, match="is a EncoderDecoderCache; with registers"):
        model(IDS, **{CACHE: EncoderDecoderCache(DynamicCache(), DynamicCache())})
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="need attn_implementation 'sdpa' or 'eager', not 'flex_attention'"):
        model(IDS)


def test_a_batch_without_a_padding_token_is_refused_in_words():
    model = tiny_model("llama", "sequence-classification", pad_token_id=None)
    add_registers(model, RegisterConfig(num_registers=2))
    with pytest.raises(ValueError, match="no padding token"):
        model(IDS)


def test_an_assistant_with_another_tokenizer_is_refused_in_words():
    model, _ = with_registers("llama")
    other = tiny_model("llama", "causal-lm", vocab_size=90)
    with pytest.raises(ValueError, match="tokenizer"):
        model.generate(IDS[:1], assistant_model=add_registers(other, RegisterConfig(num_registers=3)), max_new_tokens=4)


def test_rows_padded_differently_that_leave_windows_can_t_be_repeated():
    model, _ = with_registers("mistral", windows="leave")
    cache = model(**padded(6, 3), **{CACHE: DynamicCache(config=model.config)})[CACHE]
    cache.batch_repeat_interleave(2)
    with pytest.raises(InputError, match=r"filled with 2 texts padded differently, and this call has 4.*position_ids"):
        model(torch.cat([ONE, ONE]), **{CACHE: cache})
