"""Registers of the decoder's own in models that have an encoder too: T5, mT5, BART and Marian."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSeq2SeqLM, AutoModelForTextEncoding, DynamicCache, EncoderDecoderCache, StaticCache

from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.int8 import activation_ranges
from regtune.config import RegisterConfig, RunConfig, config_hash
from regtune.errors import CheckpointError, ConfigError, InputError, UnsupportedModelError
from regtune.registers.cache_names import CACHE
from regtune.registers.in_peft import RegisterLoraConfig
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import (
    add_registers,
    backbone_of,
    disable_registers,
    find_decoder_registers,
    find_registers,
    mask_registers,
    num_registers,
    register_parameters,
    remove_registers,
    require_registers,
)
from tiny import tiny_model as tiny_stack
from tiny_seq2seq import FAMILIES, texts, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
N = 3
STEPS = 8
OWN = RegisterConfig(num_registers=0, decoder_registers=N, init_std=1.0)
BOTH = RegisterConfig(num_registers=2, decoder_registers=N, init_std=1.0)
EVERY = pytest.mark.parametrize("family", FAMILIES)
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])
CONFIGS = pytest.mark.parametrize("config", [OWN, BOTH], ids=["the decoder's alone", "both"])
GREEDY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
CACHES = {"none": {"use_cache": False}, "dynamic": {}, "static": {"cache_implementation": "static"}}


def pair(family: str, config: RegisterConfig = OWN, attention: str = "sdpa", **changes):
    """A model with registers, and the same without."""
    if family == "bart":  # which would repeat its first token for ever
        changes = {"tie_word_embeddings": False, **changes}
    plain = tiny_model(family, attention=attention, **changes)
    return add_registers(copy.deepcopy(plain), config), plain


def to_write(model, *lengths: int) -> torch.Tensor:
    """What a decoder is given, `[batch, tokens]`."""
    ids = texts(*lengths, seed=5)["input_ids"]
    ids[:, 0] = model.config.decoder_start_token_id
    return ids


def on_the_left(batch: dict) -> dict:
    lengths = batch["attention_mask"].sum(1).tolist()
    roll = [
        {name: row.roll(len(row) - length) for name, row in zip(batch, rows, strict=True)}
        for length, *rows in zip(lengths, *batch.values(), strict=True)
    ]
    return {name: torch.stack([row[name] for row in roll]) for name in batch}


@torch.no_grad()
def logits_by_hand(plain, model, source, written):
    """Logits `[tokens, vocabulary]` of the plain model for one text and what was written, `[1, tokens]` each.

    Its decoder is given registers and words in one sequence: no regtune in it, no cache, no padding. The encoder is the
    other model's.
    """
    registers, decoder, tokens = find_decoder_registers(model), plain.get_decoder(), written.shape[1]
    vectors = (registers.tokens + registers.positions)[None]
    read = model.get_encoder()(source).last_hidden_state
    words, hook = decoder.embed_tokens(written), None
    if plain.config.model_type == "bart":  # behind its LayerNorm, which a place in the sequence would not be
        places = decoder.embed_positions.weight[2 : 2 + tokens]
        text = torch.nn.functional.layer_norm(
            words + places, words.shape[-1:], *decoder.layernorm_embedding.parameters()
        )
        hook = decoder.layernorm_embedding.register_forward_hook(lambda *_: torch.cat([vectors, text], dim=1))
    if plain.config.model_type == "marian":  # which multiplies all by its scale and adds each place's position
        places, scale = decoder.embed_positions.weight, decoder.embed_scale
        vectors = (vectors - places[:N]) / scale
        words = words + (places[:tokens] - places[N : N + tokens]) / scale
    joined = torch.cat([vectors, words], dim=1)
    states = decoder(inputs_embeds=joined, encoder_hidden_states=read, use_cache=False).last_hidden_state[:, N:]
    if hook is not None:
        hook.remove()
    scale = plain.config.d_model**-0.5 if getattr(plain.config, "scale_decoder_outputs", False) else 1.0
    return (plain.lm_head(states * scale) + getattr(plain, "final_logits_bias", 0.0))[0]


def written_by_hand(plain, model, source) -> list[int]:
    found = [plain.config.decoder_start_token_id]
    end = plain.config.eos_token_id
    for _ in range(STEPS):
        logits = logits_by_hand(plain, model, source, torch.tensor([found]))[-1]
        logits[end] = -torch.inf
        found.append(int(logits.argmax()))
    return found


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-4)


# What they compute


@torch.no_grad()
@CONFIGS
@ATTENTIONS
@EVERY
def test_logits_are_those_of_registers_put_in_by_hand(family, attention, config):
    model, plain = pair(family, config, attention)
    batch, written = texts(12, 7), to_write(model, 6, 6)
    without = plain(**batch, decoder_input_ids=written).logits
    for padded in (batch, on_the_left(batch)) if family in ("t5", "mt5") else (batch,):  # else padding moves texts
        for use_cache in (True, False):
            found = model(**padded, decoder_input_ids=written, use_cache=use_cache).logits
            assert float((found - without).abs().max()) > 1e-2, "registers must change something"
            for row, length in enumerate((12, 7)):
                source = batch["input_ids"][row : row + 1, :length]
                close(found[row], logits_by_hand(plain, model, source, written[row : row + 1]), 5e-5)


@EVERY
def test_every_cache_writes_what_is_found_by_hand_in_a_batch_and_alone(family):
    model, plain = pair(family, BOTH)
    batch = texts(12, 7, 9)
    sources = [batch["input_ids"][row : row + 1, :length] for row, length in enumerate((12, 7, 9))]
    expected = [written_by_hand(plain, model, source) for source in sources]
    assert expected != plain.generate(**batch, **GREEDY).tolist(), "registers must change what is written"
    for name, way in CACHES.items():
        assert model.generate(**batch, **GREEDY, **way).tolist() == expected, name
        assert [model.generate(source, **GREEDY, **way)[0].tolist() for source in sources] == expected, name
    if family in ("t5", "mt5"):
        assert model.generate(**on_the_left(batch), **GREEDY).tolist() == expected


@EVERY
def test_beams_and_samples_don_t_depend_on_the_cache(family):
    model, _ = pair(family, BOTH)
    batch = texts(12, 7)
    for settings in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        found = []
        for way in CACHES.values():
            torch.manual_seed(4)
            found.append(model.generate(**batch, **{**GREEDY, **settings}, **way))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    alone = model.generate(batch["input_ids"][1:, :7], **GREEDY, num_beams=3)
    assert torch.equal(model.generate(**batch, **GREEDY, num_beams=3)[1:], alone)


@torch.no_grad()
@ATTENTIONS
@EVERY
def test_tokens_given_in_pieces_are_read_as_tokens_given_at_once(family, attention):
    model, _ = pair(family, OWN, attention)
    batch, written = texts(12, 7), to_write(model, 7, 7)
    expected = model(**batch, decoder_input_ids=written, use_cache=False).logits
    for kind, rooms in ((DynamicCache, ({}, {})), (StaticCache, ({"max_cache_len": 7}, {"max_cache_len": 12}))):
        for step in (1, 2, 5):
            cache = EncoderDecoderCache(*(kind(config=model.config, **room) for room in rooms))
            parts = [
                model(**batch, decoder_input_ids=piece, **{CACHE: cache}).logits for piece in written.split(step, 1)
            ]
            close(torch.cat(parts, dim=1), expected, 5e-5)
            assert int(cache.get_seq_length()) == 7, "registers aren't counted"


@torch.no_grad()
@EVERY
def test_a_cropped_cache_goes_on_from_where_it_was_cropped(family):
    model, _ = pair(family)
    batch, written = texts(12, 7), to_write(model, 7, 7)
    cache = model(**batch, decoder_input_ids=written, use_cache=True)[CACHE]
    cache.crop(-3)
    again = model(**batch, decoder_input_ids=written[:, 4:], **{CACHE: cache}).logits
    close(again, model(**batch, decoder_input_ids=written).logits[:, 4:], 5e-5)


@torch.no_grad()
@ATTENTIONS
@EVERY
def test_no_logit_changes_when_a_later_token_changes(family, attention):
    model, _ = pair(family, BOTH, attention)
    batch, written = texts(12, 7), to_write(model, 7, 7)
    before = model(**batch, decoder_input_ids=written).logits
    for place in range(1, 7):
        other = written.clone()
        other[:, place] = (other[:, place] + 17) % 100 + 4
        after = model(**batch, decoder_input_ids=other).logits
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place:], before[:, place:])


@torch.no_grad()
@EVERY
def test_padding_behind_what_the_decoder_reads_changes_nothing(family):
    model, _ = pair(family)
    batch, written = texts(12, 7), to_write(model, 6, 6)
    expected = model(**batch, decoder_input_ids=written).logits
    mask = pad(torch.ones_like(written), (0, 2))
    found = model(**batch, decoder_input_ids=pad(written, (0, 2), value=9), decoder_attention_mask=mask).logits
    close(found[:, :6], expected, 5e-5)


LEFT = (0, 2, 5)


def padded_before(model) -> tuple[dict, dict, list]:
    """Three texts, what is written of each with padding before it, and each pair alone."""
    batch, rows = texts(12, 7, 9), [to_write(model, 11 - pad) for pad in LEFT]
    ids, mask = torch.full((3, 11), 1), torch.zeros(3, 11, dtype=torch.long)
    for row, (pad_, written) in enumerate(zip(LEFT, rows, strict=True)):
        ids[row, pad_:], mask[row, pad_:] = written[0], 1
    alone = [
        {"input_ids": batch["input_ids"][row : row + 1, :length], "decoder_input_ids": rows[row]}
        for row, length in enumerate((12, 7, 9))
    ]
    return batch, {"decoder_input_ids": ids, "decoder_attention_mask": mask}, alone


@torch.no_grad()
@CONFIGS
@ATTENTIONS
@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_padding_before_what_a_decoder_reads_moves_nothing_where_positions_are_distances(family, attention, config):
    model, plain = pair(family, config, attention)
    batch, written, alone = padded_before(model)
    mask = written["decoder_attention_mask"]
    for use_cache in (True, False):
        found = model(**batch, **written, use_cache=use_cache).logits
        for row, pad_ in enumerate(LEFT):
            close(found[row, pad_:], model(**alone[row]).logits[0], 1e-4)
    for static in (False, True):
        kind, read = StaticCache if static else DynamicCache, model.get_encoder()(**batch)
        rooms = [{"max_cache_len": size} if static else {} for size in (11, 12)]
        cache = EncoderDecoderCache(*(kind(config=model.config, **room) for room in rooms))
        given = {"encoder_outputs": read, "attention_mask": batch["attention_mask"], CACHE: cache}
        parts = []
        for first, last in ((0, 6), (6, 7), (7, 11)):
            ids, seen = written["decoder_input_ids"][:, first:last], mask[:, :last]
            parts.append(model(decoder_input_ids=ids, decoder_attention_mask=seen, **given).logits)
        close(torch.cat(parts, dim=1)[mask.bool()], found[mask.bool()], 1e-4)
    with mask_registers(model):
        close(model(**batch, **written).logits[mask.bool()], plain(**batch, **written).logits[mask.bool()], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_texts_are_continued_alike_with_padding_before_them(family, beams):
    model, _ = pair(family, BOTH)
    batch, written, alone = padded_before(model)
    for way in CACHES.values():
        found = model.generate(**batch, **written, **GREEDY, num_beams=beams, **way)[:, 11:]
        for row, pad_ in enumerate(LEFT):
            expected = model.generate(**alone[row], **GREEDY, num_beams=beams)[:, 11 - pad_ :]
            assert torch.equal(found[row : row + 1], expected)


class RunAgain(torch.nn.Module):
    """A layer that is run again in the backward pass with its hooks."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)


@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_padding_before_what_a_decoder_reads_changes_no_gradient_and_layers_run_again_know_of_it(depth):
    config = RegisterConfig(num_registers=2, decoder_registers=N, init_std=0.5, depth=depth)
    model, _ = pair("t5", config, dropout_rate=0.0)
    batch, written, alone = padded_before(model)
    taught = {"labels": written["decoder_input_ids"].masked_fill(written["decoder_attention_mask"] == 0, -100)}

    def gradients(*given: dict) -> list[torch.Tensor]:
        model.zero_grad()
        for one in given:
            tokens = int((one["labels"] != -100).sum())
            (model(**one, use_cache=False).loss * tokens).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients(*({**one, "labels": one["decoder_input_ids"]} for one in alone))
    found = [gradients({**batch, **written, **taught})]
    model.train().activation_checkpointing_enable()
    found.append(gradients({**batch, **written, **taught}))
    model.activation_checkpointing_disable()
    model.decoder.block[0] = RunAgain(model.decoder.block[0])
    found.append(gradients({**batch, **written, **taught}))
    for way in found:
        for one, right in zip(way, expected, strict=True):
            close(one, right, 1e-4 * max(1.0, float(right.abs().max())))


@torch.no_grad()
@EVERY
def test_embedded_words_are_read_as_tokens_are(family):
    model, _ = pair(family)
    batch, written = texts(12, 7), to_write(model, 6, 6)
    words = model.get_decoder().embed_tokens(written)
    found = model(**batch, decoder_inputs_embeds=words, use_cache=False).logits
    assert torch.equal(found, model(**batch, decoder_input_ids=written, use_cache=False).logits)


@torch.no_grad()
@EVERY
def test_outputs_have_the_text_s_length_and_self_attention_keeps_registers_in_front(family):
    model, _ = pair(family, BOTH, "eager")
    batch, written = texts(12, 7), to_write(model, 6, 6)
    flags = {"output_attentions": True, "output_hidden_states": True}
    found = model(**batch, decoder_input_ids=written, **flags)
    assert found.logits.shape[1] == 6
    assert {states.shape[1] for states in found.decoder_hidden_states} == {6}
    assert {weights.shape[2:] for weights in found.decoder_attentions} == {(N + 6, N + 6)}
    assert {weights.shape[2:] for weights in found.cross_attentions} == {(6, 12)}
    assert {weights.shape[2:] for weights in found.encoder_attentions} == {(2 + 12, 2 + 12)}
    assert all(float(weights.triu(1).abs().max()) < 1e-6 for weights in found.decoder_attentions), (
        "later ones are hidden"
    )
    assert all(bool((weights[:, :, N:, :N] > 0).all()) for weights in found.decoder_attentions), "and registers seen"
    given = {"encoder_hidden_states": found.encoder_last_hidden_state, "input_ids": written, **flags}
    *_, own, across = model.get_decoder()(**given, use_cache=False, return_dict=False)
    assert {weights.shape[2:] for weights in own} == {(N + 6, N + 6)}
    assert {weights.shape[2:] for weights in across} == {(6, 12)}


@torch.no_grad()
@ATTENTIONS
@EVERY
def test_switched_off_it_is_the_plain_model_bit_for_bit_and_masked_it_is_but_for_rounding(family, attention):
    model, plain = pair(family, BOTH, attention)
    batch, written = texts(12, 7), to_write(model, 6, 6)
    expected = plain(**batch, decoder_input_ids=written).logits
    with disable_registers(model):
        assert torch.equal(model(**batch, decoder_input_ids=written).logits, expected)
        assert torch.equal(model.generate(**batch, **GREEDY), plain.generate(**batch, **GREEDY))
    with mask_registers(model):
        close(model(**batch, decoder_input_ids=written).logits, expected)
        assert torch.equal(model.generate(**batch, **GREEDY), plain.generate(**batch, **GREEDY))
    with mask_registers(model, [1]):
        one_less = model(**batch, decoder_input_ids=written).logits
        assert torch.equal(model.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY, use_cache=False))
    assert not torch.allclose(one_less, model(**batch, decoder_input_ids=written).logits)


@torch.no_grad()
@EVERY
def test_none_leave_the_model_as_it_is(family):
    plain = tiny_model(family)
    model = add_registers(copy.deepcopy(plain), RegisterConfig(num_registers=0))
    batch, written = texts(12, 7), to_write(model, 6, 6)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(
        model(**batch, decoder_input_ids=written).logits, plain(**batch, decoder_input_ids=written).logits
    )
    assert not [module for module in model.modules() if module._forward_pre_hooks or module._forward_hooks]


# Training


@pytest.mark.parametrize("depth", ["input", "every_layer"])
@EVERY
def test_teacher_forcing_teaches_every_register_and_checkpointing_changes_no_gradient(family, depth):
    config = RegisterConfig(num_registers=2, decoder_registers=N, init_std=0.5, depth=depth)
    model, _ = pair(family, config, **{"dropout_rate" if family in ("t5", "mt5") else "dropout": 0.0})
    batch = texts(12, 7)
    labels = batch["input_ids"][:, :5].clone()
    labels[1, 3:] = -100
    found = {}
    for checkpointed in (False, True):
        if checkpointed:
            model.train().activation_checkpointing_enable()
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        learnt = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found[checkpointed] = {name: gradient.clone() for name, gradient in learnt.items()}
    for name, gradient in found[False].items():
        close(found[True][name], gradient, 1e-5 * max(1.0, float(gradient.abs().max())))
    mine = [parameter.grad for parameter in register_parameters(model)]
    assert len(mine) == (6 if depth == "every_layer" else 4)
    assert all(bool((gradient.norm(dim=-1) > 0).all()) for gradient in mine)


@torch.no_grad()
@EVERY
def test_fresh_registers_at_every_layer_don_t_depend_on_the_cache(family):
    model, _ = pair(family, RegisterConfig(num_registers=0, decoder_registers=N, init_std=0.5, depth="every_layer"))
    batch = texts(12, 7)
    found = [model.generate(**batch, **GREEDY, **way) for way in CACHES.values()]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@EVERY
def test_threads_that_switch_them_on_and_off_get_what_each_gets_alone(family):
    model, _ = pair(family, BOTH)
    batch = texts(12, 7)

    def write(off: bool) -> torch.Tensor:
        if not off:
            return model.generate(**batch, **GREEDY)
        with disable_registers(model):
            return model.generate(**batch, **GREEDY)

    alone = [write(False), write(True)]
    with ThreadPoolExecutor(4) as pool:
        for off, found in enumerate(pool.map(write, [False, True] * 6)):
            assert torch.equal(found, alone[off % 2])


# What is found, saved and taken away


@CONFIGS
@EVERY
def test_both_sets_are_found_each_by_its_name_and_go_without_a_trace(family, config):
    model, plain = pair(family, config)
    assert backbone_of(model) is model.get_encoder()
    own, encoders = find_decoder_registers(model), find_registers(model)
    assert own is find_registers(model.get_decoder()) is model.get_decoder().registers
    assert own.num_registers == N == num_registers(model.get_decoder())
    assert num_registers(model) == config.num_registers == (0 if encoders is None else encoders.num_registers)
    assert sum(map(len, register_parameters(model))) == 2 * (N + config.num_registers)
    remove_registers(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert find_decoder_registers(model) is None
    batch = texts(12, 7)
    assert torch.equal(model.generate(**batch, **GREEDY), plain.generate(**batch, **GREEDY))
    add_registers(model, config)


def test_the_encoder_s_registers_start_as_they_do_without_the_decoder_s():
    torch.manual_seed(0)
    both = add_registers(tiny_model("t5"), BOTH)
    torch.manual_seed(0)
    alone = add_registers(tiny_model("t5"), RegisterConfig(num_registers=2, init_std=1.0))
    assert torch.equal(find_registers(both).tokens, find_registers(alone).tokens)


@torch.no_grad()
@CONFIGS
@EVERY
def test_saved_and_loaded_they_write_the_same_bit_for_bit(family, config, tmp_path):
    model, plain = pair(family, config)
    batch, written = texts(12, 7), to_write(model, 6, 6)
    expected = model(**batch, decoder_input_ids=written).logits
    model.save_pretrained(tmp_path / "whole")
    save_registers(model, tmp_path / "alone")
    loaded = from_pretrained(AutoModelForSeq2SeqLM, tmp_path / "whole")
    assert torch.equal(loaded(**batch, decoder_input_ids=written).logits, expected)
    assert find_decoder_registers(loaded).config == config
    taken = load_registers(plain, tmp_path / "alone")
    assert torch.equal(taken(**batch, decoder_input_ids=written).logits, expected)
    lost = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=f"its config has {N + config.num_registers} registers and it has none"):
        num_registers(lost)
    with pytest.raises(CheckpointError, match="loaded without regtune"), disable_registers(lost):
        pass


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_the_encoder_alone_of_a_saved_model_has_its_own(family, tmp_path):
    for config in (OWN, BOTH):
        model, _ = pair(family, config)
        model.save_pretrained(tmp_path / str(config.num_registers))
        encoder = from_pretrained(AutoModelForTextEncoding, tmp_path / str(config.num_registers))
        assert num_registers(encoder) == config.num_registers
        batch = texts(12, 7)
        assert torch.equal(encoder(**batch).last_hidden_state, model.get_encoder()(**batch).last_hidden_state)
        save_registers(model, tmp_path / "alone")
        with pytest.raises(CheckpointError, match="has none beside its encoder"):
            load_registers(tiny_model(family, "encoder-alone"), tmp_path / "alone")


def test_an_adapter_beside_them_keeps_both_sets(tmp_path):
    model, plain = pair("t5", BOTH)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q"], modules_to_save=["registers"], init_lora_weights=False)
    ).eval()
    batch, written = texts(12, 7), to_write(model, 6, 6)
    with torch.no_grad():
        for parameter in register_parameters(adapted):
            parameter.add_(1.0)
        expected = adapted(**batch, decoder_input_ids=written).logits
        adapted.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(add_registers(plain, BOTH), tmp_path).eval()
        assert torch.equal(loaded(**batch, decoder_input_ids=written).logits, expected)


def test_the_setting_moves_the_hash_of_no_config_that_has_none():
    assert config_hash(RunConfig()) == "46f95d75f5fa"
    assert config_hash(RunConfig(registers=BOTH)) != config_hash(
        RunConfig(registers=RegisterConfig(num_registers=2, init_std=1.0))
    )


# What is refused


@torch.no_grad()
@EVERY
def test_a_cache_filled_with_other_registers_is_refused(family):
    model, plain = pair(family)
    batch, written = texts(12, 7), to_write(model, 6, 6)
    filled = model(**batch, decoder_input_ids=written, use_cache=True)[CACHE]
    with disable_registers(model):
        with pytest.raises(InputError, match=f"read with {N} registers; this model runs with them switched off"):
            model(**batch, decoder_input_ids=written[:, :1], **{CACHE: filled})
        without = model(**batch, decoder_input_ids=written, use_cache=True)[CACHE]
    with pytest.raises(InputError, match="read with no registers"):
        model(**batch, decoder_input_ids=written[:, :1], **{CACHE: without})
    with pytest.raises(InputError, match="the model that runs has none of them"):
        plain(**batch, decoder_input_ids=written[:, :1], **{CACHE: filled})
    with pytest.raises(InputError, match="is a DynamicCache; beside an encoder it must be an EncoderDecoderCache"):
        model(**batch, decoder_input_ids=written, **{CACHE: DynamicCache()})
    filled.reset()
    again = model(**batch, decoder_input_ids=written, **{CACHE: filled}).logits
    assert torch.equal(again, model(**batch, decoder_input_ids=written).logits)


def test_texts_of_padding_alone_at_first_are_refused_where_positions_are_distances():
    model, _ = pair("t5")
    batch, written = texts(12, 7), to_write(model, 6, 6)
    mask = torch.ones_like(written)
    mask[1, :] = 0
    with pytest.raises(InputError, match=r"Row 1 of what the decoder reads first is nothing but padding"):
        model(**batch, decoder_input_ids=written, decoder_attention_mask=mask)
    with disable_registers(model):
        model(**batch, decoder_input_ids=written, decoder_attention_mask=mask)


def test_models_without_a_decoder_beside_their_encoder_are_refused():
    for model in (tiny_stack("bert", "none"), tiny_model("t5", "encoder-alone")):
        with pytest.raises(ConfigError, match=r"decoder_registers=3 doesn't fit this \w+: it has no decoder beside"):
            add_registers(model, BOTH)
        assert num_registers(model) == 0
    with pytest.raises(ConfigError, match=r"it is a decoder alone\. Use num_registers"):
        add_registers(tiny_stack("llama", "causal-lm"), BOTH)


def test_settings_that_don_t_fit_are_refused_before_anything_changes():
    with pytest.raises(UnsupportedModelError, match=r"decoder_layerdrop=0\.1; registers need decoder_layerdrop <= 0"):
        add_registers(tiny_model("bart", decoder_layerdrop=0.1), OWN)
    model = tiny_model("t5")
    with pytest.raises(ConfigError, match=r"layer_norm=True doesn't fit the decoder of T5"):
        add_registers(model, RegisterConfig(num_registers=0, decoder_registers=2, layer_norm=True))
    with pytest.raises(ConfigError, match=r"rotary='shared' doesn't fit the decoder of T5"):
        add_registers(model, RegisterConfig(num_registers=0, decoder_registers=2, rotary="shared"))
    assert not register_parameters(model)
    with pytest.raises(ConfigError, match="decoder_registers=2 with init='zeros'"):
        RegisterConfig(num_registers=1, decoder_registers=2, init="zeros", position="none")
    add_registers(model, BOTH)
    with pytest.raises(UnsupportedModelError, match="has 5 registers already"):
        add_registers(model, BOTH)


def test_what_knows_nothing_of_them_says_so():
    model, _ = pair("t5", BOTH)
    batch = texts(12, 7) | {"decoder_input_ids": to_write(model, 6, 6)}
    with pytest.raises(UnsupportedModelError, match="has registers in its decoder"):
        attribute(model, batch, method="attention-gradient")
    with pytest.raises(UnsupportedModelError, match="has registers in its decoder"):
        activation_ranges(model, [batch])
    with pytest.raises(ConfigError, match="decoder_registers=3 can't be part of an adapter"):
        peft.get_peft_model(tiny_model("t5"), RegisterLoraConfig(registers=BOTH, target_modules=["q"]))
    with pytest.raises(UnsupportedModelError, match="has registers in its decoder alone"):
        require_registers(pair("t5", OWN)[0])


@pytest.mark.parametrize("init", ["embedding", "sep"])
@EVERY
def test_start_values_have_the_scale_of_what_registers_join(family, init):
    config = RegisterConfig(num_registers=0, decoder_registers=60, init=init, position="learned")
    model = add_registers(tiny_model(family), config)
    decoder, tokens = model.get_decoder(), find_decoder_registers(model).tokens
    with torch.no_grad():
        words = decoder.embed_tokens(torch.tensor([[3]]) if init == "sep" else torch.arange(4, 120)[None, :60])
        words = words * getattr(decoder, "embed_scale", 1.0)
        if family == "bart":
            words = decoder.layernorm_embedding(words + decoder.embed_positions(torch.zeros(words.shape[:2])))
    if init == "sep":
        close(tokens.data, words[0].expand_as(tokens))
    else:
        assert 0.7 < float(tokens.detach().std() / words.std()) < 1.4
