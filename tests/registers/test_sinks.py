"""Sink logits: against the equation, computed by another attention function, in every family; and their promises."""

from __future__ import annotations

import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import nn

import tiny_images
import tiny_seq2seq
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, InputError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.registers.cache_names import CACHE
from regtune.registers.saving import from_pretrained
from regtune.registers.sinks import (
    SINKS_KEY,
    add_sink_logits,
    balance_sink_logits,
    disable_sink_logits,
    remove_sink_logits,
    sinks_in,
)
from regtune.registers.surgery import add_registers, backbone_of
from regtune.testing.subject import values_of
from tiny import DECODERS, EAGER_ONLY, few, inputs, tiny_model

REFUSED = ("deberta-v2", "mpnet", "deberta", "big_bird")
WORDS = (
    *("bert", "roberta", "distilbert", "electra", "albert", "modernbert", "nomic_bert", "eurobert"),
    *DECODERS,
)


def shuffled(model, scale=2.0):
    """Sinks that differ from head to head and matter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for sinks in sinks_in(model):
            sinks.logits.copy_(scale * torch.randn(sinks.logits.shape, generator=generator))
    return model


def reference(module, query, key, value, mask, **options):
    """exp(score) / (exp(s_h) + sum of exp(score)), in float64, times the values."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * (options.get("scaling") or query.shape[-1] ** -0.5)
    cap = options.get("softcap")
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"]
    if mask is not None:
        scores = scores + mask[..., : key.shape[2]].double()
    top = scores.amax(-1, keepdim=True)
    shares = (scores - top).exp()
    sink = getattr(module, "by_hand", None)
    below = shares.sum(-1, keepdim=True)
    if sink is not None:
        below = below + (sink.double().view(1, -1, 1, 1) - top).exp()
    weights = shares / below
    return (weights @ value).transpose(1, 2).to(query.dtype).contiguous(), weights


def by_hand(model, monkeypatch):
    """The model without sinks, whose own attention in steps is the reference, with their numbers."""
    numbers = [sinks.logits.detach().clone() for sinks in sinks_in(model)]
    plain = copy.deepcopy(model)
    remove_sink_logits(plain)
    backbone = backbone_of(plain)
    family = family_of(backbone.config)
    for module, number in zip(modules_at(backbone, *family.within_layers(family.attention)), numbers, strict=True):
        module.by_hand = number
        monkeypatch.setattr(sys.modules[type(module).__module__], "eager_attention_forward", reference)
    plain.set_attn_implementation("eager")
    return plain


def agree(model, batch, monkeypatch):
    with torch.no_grad():
        found = values_of(model, batch)
        with monkeypatch.context() as patched:
            expected = values_of(by_hand(model, patched), batch)
        with disable_sink_logits(model):
            off = values_of(model, batch)
    scale = 1 + expected.abs().max()
    assert (found - expected).abs().max() < 3e-5 * scale
    assert (found - off).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", few(WORDS, "bert", "albert", "modernbert", "llama", "gemma2"))
def test_a_heads_weights_are_the_softmax_of_scores_and_sink_without_its_share(family, attention, monkeypatch):
    if attention == "sdpa" and family in EAGER_ONLY:
        pytest.skip("has no SDPA")
    head = "none" if family in ("nomic_bert", "eurobert") else None
    model = shuffled(add_sink_logits(tiny_model(family, head, attention)))
    agree(model, inputs(family, pad=4), monkeypatch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", few(tiny_images.FAMILIES, "vit"))
def test_of_images_too(family, attention, monkeypatch):
    model = shuffled(add_sink_logits(tiny_images.tiny_model(family, attention=attention)))
    agree(model, tiny_images.images(), monkeypatch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", few(("t5", "bart"), "t5"))
def test_of_an_encoder_beside_a_decoder_too(family, attention, monkeypatch):
    model = shuffled(add_sink_logits(tiny_seq2seq.tiny_model(family, attention=attention)))
    assert len(sinks_in(model)) == 3
    agree(model, inputs(family, pad=4) | {"decoder_input_ids": inputs(family, seq=7)["input_ids"]}, monkeypatch)


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_compute_attention_themselves_are_refused(family):
    with pytest.raises(UnsupportedModelError, match=r"computes its attention itself.*Take registers"):
        add_sink_logits(tiny_model(family, "none"))


def test_together_with_registers_they_are_a_key_more(monkeypatch):
    for family in ("bert", "llama", "modernbert"):
        model = add_registers(tiny_model(family, attention="sdpa"), RegisterConfig(num_registers=3))
        agree(shuffled(add_sink_logits(model)), inputs(family, pad=4), monkeypatch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_sink_of_minus_infinity_is_none_and_off_is_bit_for_bit_plain(attention):
    for family in ("bert", "llama"):
        model, batch = tiny_model(family, attention=attention), inputs(family, pad=4)
        with torch.no_grad():
            plain = values_of(model, batch)
            add_sink_logits(model)
            for sinks in sinks_in(model):
                sinks.logits.fill_(-1e4)
            assert (values_of(model, batch) - plain).abs().max() <= 1e-6 * (1 + plain.abs().max())
            shuffled(model)
            with disable_sink_logits(model):
                assert values_of(model, batch).equal(plain)
            keys = set(model.state_dict())
            remove_sink_logits(model)
            assert values_of(model, batch).equal(plain)
        assert keys - set(model.state_dict()) == {key for key in keys if SINKS_KEY in key}
        assert not hasattr(model.config, SINKS_KEY)


def test_eager_attentions_keep_their_shape_and_lack_the_sinks_share():
    model, batch = shuffled(add_sink_logits(tiny_model("bert"))), inputs("bert")
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions
    assert [tuple(one.shape) for one in maps] == [(3, 4, 20, 20)] * 3
    assert all(float(one.sum(-1).max()) < 1 for one in maps)


@pytest.mark.parametrize("family", few(("llama", "gpt2", "mistral"), "llama"))
def test_a_cache_changes_no_next_token_and_no_token_sees_a_later_one(family):
    model = shuffled(add_sink_logits(tiny_model(family, "causal-lm", "sdpa")))
    ids = inputs(family, batch=2, seq=12)["input_ids"]
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :7], use_cache=True)
        rest = model(ids[:, 7:], **{CACHE: first[CACHE]}).logits
        one = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True)
        other = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert (torch.cat([first.logits, rest], 1) - whole).abs().max() < 1e-4
    assert one.equal(other)


def test_padding_on_either_side_changes_nothing_of_a_row():
    model, batch = shuffled(add_sink_logits(tiny_model("bert", attention="sdpa"))), inputs("bert", batch=1, seq=10)
    ids, ones = batch["input_ids"], batch["attention_mask"]
    fill, none = torch.ones_like(ids[:, :4]), torch.zeros_like(ones[:, :4])
    with torch.no_grad():
        alone = model.bert(**batch)[0]
        right = model.bert(torch.cat([ids, fill], 1), attention_mask=torch.cat([ones, none], 1))[0][:, :10]
    assert (right - alone).abs().max() < 1e-5


def gradients(model, batch, *, off=False, around=nn.Module.__call__):
    model.zero_grad()
    loss = sum(part.square().sum() for part in around(model, **batch)[:2])
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient_also_of_a_pass_that_ran_with_them_off(reentrant):
    model, batch = shuffled(add_sink_logits(tiny_model("llama", attention="sdpa"))).train(), inputs("llama", pad=4)

    def switched_off(model, **batch):
        with disable_sink_logits(model):
            return nn.Module.__call__(model, **batch)

    for around in (nn.Module.__call__, switched_off):
        model.activation_checkpointing_disable()
        plain = gradients(model, batch, around=around)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        again = gradients(model, batch, around=around)
        assert plain.keys() == again.keys()
        assert all(torch.allclose(again[name], plain[name], atol=1e-5) for name in plain)
        assert any(SINKS_KEY in name for name in plain) is (around is not switched_off)


def test_a_gradient_is_the_difference_quotient():
    model = shuffled(add_sink_logits(tiny_model("bert", attention="sdpa"))).double()
    batch, sinks = inputs("bert", pad=4), sinks_in(model)[1]

    def value():
        return model(**batch).start_logits[0].square().sum()

    value().backward()
    with torch.no_grad():
        sinks.logits[2] += 1e-5
        above = value()
        sinks.logits[2] -= 2e-5
        below = value()
    assert sinks.logits.grad[2].item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-5)


def test_switched_off_in_one_thread_they_are_on_in_another_and_in_a_copy():
    model, batch = shuffled(add_sink_logits(tiny_model("bert"))), inputs("bert")
    twin, found = copy.deepcopy(model), []
    with torch.no_grad():
        on = values_of(model, batch)
        with disable_sink_logits(model):
            assert not values_of(model, batch).equal(on)
            assert values_of(twin, batch).equal(on)
            thread = threading.Thread(target=lambda: found.append(values_of(model, batch).detach()))
            thread.start()
            thread.join()
    assert found[0].equal(on)
    assert pickle.loads(pickle.dumps(model))(**batch).start_logits.equal(model(**batch).start_logits)


def test_saved_and_opened_they_answer_bit_for_bit_and_half_of_them_is_refused(tmp_path):
    for family in ("bert", "llama"):
        model, batch = shuffled(add_sink_logits(tiny_model(family, attention="sdpa"))), inputs(family)
        add_registers(model, RegisterConfig(num_registers=2))
        model.save_pretrained(tmp_path / family)
        again = from_pretrained(type(model), tmp_path / family)
        with torch.no_grad():
            assert values_of(again, batch).equal(values_of(model, batch))
        assert type(again) is type(model)
    config = tmp_path / "bert" / "config.json"
    told = config.read_text()
    config.write_text(told.replace(f'"{SINKS_KEY}": true,', ""))
    with pytest.raises(CheckpointError, match="the weights hold sink logits"):
        from_pretrained(type(tiny_model("bert")), tmp_path / "bert")
    remove_sink_logits(model := shuffled(add_sink_logits(tiny_model("bert"))))
    model.save_pretrained(tmp_path / "plain")
    plain = tmp_path / "plain" / "config.json"
    plain.write_text(plain.read_text().replace("{", f'{{"{SINKS_KEY}": true,', 1))
    with pytest.raises(CheckpointError, match="has sink logits, but the weights lack"):
        from_pretrained(type(model), tmp_path / "plain")


def test_balanced_each_takes_the_share_of_attention_that_is_asked_for():
    model, batch = add_sink_logits(tiny_model("bert")), inputs("bert")
    with torch.no_grad():
        with balance_sink_logits(model, 0.02):
            model(**batch)
        maps = model(**batch, output_attentions=True).attentions
    first = (1 - maps[0].sum(-1)).mean((0, 2))
    assert ((first > 0.01) & (first <= 0.02)).all()
    assert all(0.005 < float((1 - one.sum(-1)).mean()) < 0.03 for one in maps[1:])


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "llama", "gemma2", "t5", "t5 with a mask"])
def test_balanced_the_mean_odds_of_the_first_sinks_are_the_share(family):
    """By the equation: a = 1 / (1 + Z e^-s), so that the mean of a / (1 - a) = e^s / Z over queries is the share."""
    if family.startswith("t5"):
        model = tiny_seq2seq.tiny_model("t5", "encoder-alone", "eager")
        batch = tiny_seq2seq.texts(12, 12)
        batch = batch if family.endswith("mask") else {"input_ids": batch["input_ids"]}
    else:
        model, batch = tiny_model(family, "none", "eager"), {"input_ids": inputs("bert")["input_ids"]}
    add_sink_logits(model)
    with balance_sink_logits(model, 0.02):
        model(**batch)
    taken = 1 - model(**batch, output_attentions=True).attentions[0].sum(-1).double()
    odds = (taken / (1 - taken)).mean((0, 2))
    assert odds.tolist() == pytest.approx([0.02] * len(odds), rel=2e-3)


def test_what_cannot_be_is_refused_with_what_to_do():
    model = add_sink_logits(tiny_model("bert"))
    with pytest.raises(UnsupportedModelError, match="has sink logits already"):
        add_sink_logits(model)
    with pytest.raises(ConfigError, match=r"share=1\.5 must be between"):
        add_sink_logits(tiny_model("bert"), share=1.5)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=r"'flash_attention_2', whose kernels.*set_attn_implementation"):
        model(**inputs("bert"))
