"""Registers in decoders give what putting them in by hand gives, whatever cache, padding and way of generating."""

from __future__ import annotations

import copy
import functools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import CacheLayerMixin, Fp8QuantizedLayer, HQQQuantizedLayer, QuantoQuantizedLayer

from by_hand import N, greedy_by_hand, logits_by_hand, logits_of, padded, rows, with_registers
from regtune.registers.cache_names import CACHE
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import disable_registers, mask_registers, max_text_length, remove_registers
from tiny import DECODER_HEADS, DECODERS, WINDOWED, attentions_of, tiny_config

CASES = [(family, attention) for family in DECODERS for attention in attentions_of(family)]
POLICIES = [("before", "stay"), ("shared", "stay"), ("before", "leave"), ("shared", "leave")]
SETTINGS = [
    (family, attentions_of(family)[-1], rotary, windows)
    for family in DECODERS
    for rotary, windows in POLICIES
    if (rotary == "before" or family != "gpt2") and (windows == "stay" or family in WINDOWED)
]


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-4)


def positions_of(batch):
    """As `generate` gives them."""
    return (batch["attention_mask"].cumsum(1) - 1).masked_fill(batch["attention_mask"] == 0, 0)


@pytest.mark.grid
@pytest.mark.parametrize(("family", "attention", "rotary", "windows"), SETTINGS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_are_those_of_registers_put_in_by_hand(family, attention, rotary, windows, use_cache):
    settings = {} if family == "gpt2" else {"rotary": rotary}
    settings |= {"windows": windows} if windows == "leave" else {}
    model, plain = with_registers(family, attention, **settings)
    for side in ("left", "right"):
        batch = padded(20, 3, 13, side=side)
        with torch.no_grad():
            found = model(**batch, position_ids=positions_of(batch), use_cache=use_cache).logits
        for row, text in enumerate(rows(batch)):
            expected = logits_by_hand(plain, model, text, rotary=rotary, windows=windows)
            close(found[row][batch["attention_mask"][row].bool()], expected)


STEPS = 9
GREEDY = {"max_new_tokens": STEPS, "do_sample": False}
FULL = sorted(set(DECODERS) - WINDOWED)
CACHES = {
    "none": {"use_cache": False},
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "in chunks of 1": {"prefill_chunk_size": 1},
    "in chunks of 4": {"prefill_chunk_size": 4},
    "static in chunks of 4": {"cache_implementation": "static", "prefill_chunk_size": 4},
}


def continued(model, batch, **settings):
    """The new tokens, `[batch, steps]`."""
    return model.generate(**batch, **{**GREEDY, **settings})[:, batch["input_ids"].shape[1] :]


@pytest.mark.grid
@pytest.mark.parametrize(("family", "attention", "rotary", "windows"), SETTINGS)
def test_every_cache_continues_with_the_tokens_found_by_hand(family, attention, rotary, windows):
    settings = {} if family == "gpt2" else {"rotary": rotary}
    settings |= {"windows": windows} if windows == "leave" else {}
    model, plain = with_registers(family, attention, **settings)
    batch = padded(11, 3, 8)
    by_hand = {"rotary": rotary, "windows": windows}
    expected = [greedy_by_hand(plain, model, text, STEPS, **by_hand) for text in rows(batch)]
    assert expected != continued(plain, batch).tolist(), "registers must change what is said"
    for name, cache in CACHES.items():
        assert continued(model, batch, **cache).tolist() == expected, name
    alone = [continued(model, {"input_ids": text[None]}).tolist()[0] for text in rows(batch)]
    assert alone == expected
    user = DynamicCache()  # which knows of no windows
    assert continued(model, batch, **{CACHE: user}).tolist() == expected
    assert user.get_seq_length() == 11 + STEPS - 1


GROUPS = {"nbits": 4, "q_group_size": 8, "residual_length": 4}
QUANTISED = {
    "fp8": (Fp8QuantizedLayer, {}),
    "quanto": (QuantoQuantizedLayer, GROUPS),
    "hqq": (HQQQuantizedLayer, {**GROUPS, "axis_key": 1, "axis_value": 1}),
}


@pytest.mark.parametrize("backend", QUANTISED)
@pytest.mark.parametrize("family", FULL)
def test_a_quantised_cache_continues_with_the_same_tokens_and_leaves_registers_as_they_are(
    family, backend, monkeypatch
):
    layer, options = QUANTISED[backend]
    if backend == "hqq":
        pytest.importorskip("hqq")
    if backend == "quanto":
        pytest.importorskip("optimum.quanto")
        from optimum.quanto.library.extensions.cpp import ext

        def unpack(packed, bits):
            return torch.cat([(packed >> place) & (2**bits - 1) for place in range(0, 8, bits)])

        monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack))  # which is compiled on its first use
    model, _ = with_registers(family, attentions_of(family)[-1])
    batch = padded(11, 3, 8)
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": backend, **options}}
    expected = continued(model, batch)
    with torch.no_grad():
        exact = model(**batch, **{CACHE: DynamicCache()})[CACHE].layers[1].keys[:, :, :N]
        cache = model(**batch, **{CACHE: QuantizedCache(backend, model.config, **options)})[CACHE]
    assert cache.get_seq_length() == 11
    assert torch.equal(cache.layers[1].register_keys, exact)
    continued(model, batch, **quantised)
    if backend == "fp8":  # so that it loses nothing
        monkeypatch.setattr(layer, "fp8_dtype", torch.float32)
    else:
        monkeypatch.setattr(layer, "_quantize", lambda _layer, states, axis: states)
        monkeypatch.setattr(layer, "_dequantize", lambda _layer, states: states)
    assert torch.equal(continued(model, batch, **quantised), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_offloaded_cache_continues_with_the_same_tokens(family, kind, monkeypatch):
    class Stream(nullcontext):
        def wait_stream(self, other):
            del other

    monkeypatch.setattr(torch, "Stream", Stream)  # there is none without an accelerator
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    model, _ = with_registers(family)
    batch, moved = padded(11, 3, 8), []
    make = DynamicCache if kind == "dynamic" else functools.partial(StaticCache, max_cache_len=11 + STEPS)
    cache = make(config=model.config, offloading=True)

    def offload(layer):
        moved.append(layer)

    monkeypatch.setattr(CacheLayerMixin, "offload", offload)
    assert torch.equal(continued(model, batch, **{CACHE: cache}), continued(model, batch))
    assert moved


@pytest.mark.parametrize("family", DECODERS)
def test_beams_and_samples_don_t_depend_on_the_cache(family):
    model, _ = with_registers(family, attentions_of(family)[-1])
    batch = padded(11, 3, 8)
    for settings in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        found = []
        for cache in ("none", "dynamic", "static"):
            torch.manual_seed(4)
            found.append(continued(model, batch, **settings, **CACHES[cache]))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    for text, beam in zip(rows(batch), continued(model, batch, num_beams=3), strict=True):
        assert torch.equal(continued(model, {"input_ids": text[None]}, num_beams=3)[0], beam)


@pytest.mark.parametrize("family", DECODERS)
def test_embedded_text_continues_with_the_same_tokens(family):
    model, _ = with_registers(family, attentions_of(family)[-1])
    batch = padded(11, 3, 8)
    words = model.get_input_embeddings()(batch["input_ids"])
    for cache in ("dynamic", "static"):
        expected = continued(model, batch, **CACHES[cache])
        found = model.generate(inputs_embeds=words, attention_mask=batch["attention_mask"], **GREEDY, **CACHES[cache])
        assert torch.equal(found, expected)


def steps_of(model, assistant=None, **settings) -> tuple[torch.Tensor, int]:
    calls = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(None))
    try:
        tokens = model.generate(**padded(11), **GREEDY, assistant_model=assistant, **settings)
    finally:
        hook.remove()
    return tokens, len(calls)


@pytest.mark.parametrize("family", DECODERS)
def test_an_assistant_and_prompt_lookup_say_the_same_in_no_more_steps_than_without_registers(family):
    model, plain = with_registers(family, attentions_of(family)[-1])
    expected, _ = steps_of(model)
    twin = copy.deepcopy(model)
    tokens, steps = steps_of(model, twin)
    assert torch.equal(tokens, expected)
    assert steps <= steps_of(plain, copy.deepcopy(plain))[1] < STEPS
    assert torch.equal(steps_of(model, plain)[0], expected), "an assistant without registers"
    assert torch.equal(steps_of(plain, model)[0], steps_of(plain)[0]), "an assistant with registers"
    assert torch.equal(steps_of(model, prompt_lookup_num_tokens=3)[0], expected)


@pytest.mark.grid
@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("windows", ["stay", "leave"])
def test_a_second_turn_on_a_kept_cache_says_what_a_fresh_start_says(family, windows):
    if windows == "leave" and family not in WINDOWED:
        pytest.skip("no windows")
    model, _ = with_registers(family, attentions_of(family)[-1], windows=windows)
    batch = padded(11, 3, 8)
    kept = [DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=40)]
    for cache in kept:
        first = model.generate(**batch, **GREEDY, **{CACHE: cache})
        said = torch.cat([first, padded(4, 4, 4, seed=7)["input_ids"]], dim=1)
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, STEPS + 4), value=1)
        turn = {"input_ids": said, "attention_mask": mask}
        assert torch.equal(continued(model, turn, **{CACHE: cache}), continued(model, turn))


@pytest.mark.parametrize("family", DECODERS)
def test_a_copied_prompt_cache_serves_several_continuations(family):
    model, _ = with_registers(family, attentions_of(family)[-1])
    prompt = padded(9)["input_ids"]
    with torch.no_grad():
        cache = model(prompt, **{CACHE: DynamicCache(config=model.config)})[CACHE]
    for seed in (3, 5):
        text = torch.cat([prompt, padded(4, seed=seed)["input_ids"]], dim=1)
        found = continued(model, {"input_ids": text}, **{CACHE: copy.deepcopy(cache)})
        assert torch.equal(found, continued(model, {"input_ids": text}))
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("family", DECODERS)
def test_calls_of_different_length_switched_on_and_off_don_t_disturb_each_other(family):
    model, plain = with_registers(family, attentions_of(family)[-1])
    long, short = padded(11, 3, 8), padded(5, 2, seed=3)
    for cache in ("dynamic", "static"):
        once = {name: continued(model, batch, **CACHES[cache]) for name, batch in (("long", long), ("short", short))}
        assert torch.equal(continued(model, long, **CACHES[cache]), once["long"])
        with disable_registers(model):
            assert torch.equal(continued(model, short, **CACHES[cache]), continued(plain, short, **CACHES[cache]))
        assert torch.equal(continued(model, short, **CACHES[cache]), once["short"])


@pytest.mark.parametrize("family", DECODERS)
def test_copies_saved_models_and_models_without_registers_again_say_what_they_should(family, tmp_path):
    model, plain = with_registers(family, attentions_of(family)[-1], windows="leave" if family in WINDOWED else "stay")
    batch = padded(11, 3, 8)
    expected = continued(model, batch)
    assert torch.equal(continued(copy.deepcopy(model), batch), expected)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path, attn_implementation=model.config._attn_implementation)
    assert torch.equal(continued(loaded, batch), expected)
    save_registers(model, tmp_path / "alone")
    assert torch.equal(continued(load_registers(copy.deepcopy(plain), tmp_path / "alone"), batch), expected)
    assert torch.equal(continued(remove_registers(loaded), batch), continued(plain, batch))


@pytest.mark.grid
@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_gradients_reach_every_register_and_checkpointing_changes_none(family, depth):
    def gradients(checkpointing):
        model, _ = with_registers(family, "eager", depth=depth)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
        batch = padded(11, 3, 8)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    plain, again = gradients(False), gradients(True)
    for name, gradient in plain.items():
        if ".registers." in name:
            assert (gradient.flatten(0, -2).norm(dim=-1) > 0).all(), name
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        close(again[name], gradient, 1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_registers_of_every_layer_are_continued_from_the_cache(family):
    model, _ = with_registers(family, attentions_of(family)[-1], depth="every_layer")
    batch = padded(11, 3, 8)
    expected = continued(model, batch, use_cache=False)
    for cache in ("dynamic", "static", "in chunks of 4"):
        assert torch.equal(continued(model, batch, **CACHES[cache]), expected), cache


@pytest.mark.parametrize("family", DECODERS)
def test_the_cache_grows_by_the_registers_and_no_more(family):
    model, plain = with_registers(family, attentions_of(family)[-1])
    batch = padded(12, 12)
    for make in (DynamicCache, functools.partial(StaticCache, max_cache_len=20)):
        sizes = []
        for one in (model, plain):
            cache = make(config=one.config)
            with torch.no_grad():
                one(**batch, **{CACHE: cache})
            held = [(layer.keys, getattr(layer, "register_keys", None)) for layer in cache.layers]
            sizes.append([sum(t.shape[2] for t in both if t is not None) for both in held])
            assert [layer.get_seq_length() for layer in cache.layers] == [12] * 3
        assert sizes[0] == [size + N for size in sizes[1]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("quantised", [False, True])
def test_rows_of_a_cache_take_their_registers_with_them(family, quantised):
    if quantised and family in WINDOWED:
        pytest.skip("quantised caches take no windows")
    model, _ = with_registers(family)
    batch = padded(11, 3, 8)  # without position_ids each text starts elsewhere, and its registers too
    order, next_one = torch.tensor([2, 0, 0, 1]), torch.tensor([[5]])

    def cache():
        made = QuantizedCache("fp8", model.config) if quantised else DynamicCache(config=model.config)
        return model(**batch, **{CACHE: made})[CACHE]

    def step(cache, mask):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        return model(next_one.expand(len(mask), 1), attention_mask=mask, **{CACHE: cache}).logits

    with torch.no_grad():
        expected = step(cache(), batch["attention_mask"])
        ways = [("reorder_cache", order, order)]
        if not quantised:  # of which transformers moves no rows in other ways
            ways += [("batch_select_indices", order, order), ("batch_repeat_interleave", 2, [0, 0, 1, 1, 2, 2])]
        for name, argument, taken in ways:
            moved = cache()
            getattr(moved, name)(argument)
            close(step(moved, batch["attention_mask"][taken]), expected[taken], 5e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masks_have_the_models_own_type(dtype, attention):
    model, plain = with_registers("llama", attention)
    ids, loose = padded(11, 11)["input_ids"], dtype == torch.bfloat16
    with torch.no_grad():
        expected = model(ids).logits
        found = model.to(dtype)(ids).logits
        assert found.dtype == dtype
        close(found.float(), expected, 0.2 if loose else 1e-5)
        with mask_registers(model):
            close(model(ids).logits, plain.to(dtype)(ids).logits, 0.05 if loose else 1e-6)


HEADED = [
    (family, head)
    for family in DECODERS
    for head, auto in DECODER_HEADS.items()
    if type(tiny_config(family)) in auto._model_mapping
]


@pytest.mark.grid
@pytest.mark.parametrize(("family", "head"), HEADED)
def test_every_head_gives_outputs_of_the_texts_length_and_reads_padded_texts_as_alone(family, head):
    model, plain = with_registers(family, attentions_of(family)[-1], head)
    batch = padded(11, 3, 8)
    with torch.no_grad():
        output, without = model(**batch, position_ids=positions_of(batch)), plain(**batch)
        for name, value in without.items():
            if isinstance(value, torch.Tensor):
                assert output[name].shape == value.shape
                assert not torch.equal(output[name], value)
        for row, text in enumerate(rows(batch)):
            alone, found = logits_of(model(text[None])), logits_of(output)[:, row]
            close(found if found.dim() == 1 else found[:, -len(text) :], alone[:, 0], 5e-5)


def test_the_heads_that_transformers_has_are_all_there():
    without = {head: sorted(set(DECODERS) - {f for f, one in HEADED if one == head}) for head in DECODER_HEADS}
    assert without == {
        "causal-lm": [],
        "sequence-classification": [],
        "token-classification": ["gemma3_text", "olmo2"],
        "question-answering": ["gemma2", "gemma3_text", "olmo2", "phi3"],
    }


def test_positions_that_registers_use_up():
    for family, settings, room in (("gpt2", {}, 66), ("llama", {}, 66 - N), ("llama", {"rotary": "shared"}, 66)):
        assert max_text_length(with_registers(family, **settings)[0]) == room


@pytest.mark.parametrize("name", sorted({CACHE, "past_key_values"}))
@pytest.mark.parametrize("part", ["", "model"])
def test_a_cache_is_taken_by_each_name_that_transformers_takes_it_by(name, part):
    model, _ = with_registers("llama")
    called, batch = model.get_submodule(part), padded(8)
    warned = nullcontext() if name == CACHE else pytest.warns(FutureWarning, match=f"`{name}` is deprecated")
    with torch.no_grad():
        expected = called(**batch)[0][:, 5:]
        cache = called(batch["input_ids"][:, :5], **{CACHE: None}, use_cache=True)[CACHE]
        with warned:
            found = called(batch["input_ids"][:, 5:], **{name: cache})[0]
    close(found, expected)
    assert cache.get_seq_length() == 8


@torch.no_grad()
def test_a_model_in_training_that_checkpoints_hands_out_no_cache_that_counts_registers():
    model, _ = with_registers("llama")
    model.train()
    model.activation_checkpointing_enable()
    cache = model(**padded(8), use_cache=True).get(CACHE)
    assert cache is None or cache.get_seq_length() == 8
