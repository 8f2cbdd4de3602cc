"""The methods without relevance rules: each against its definition, in every family, with padding and registers."""

from __future__ import annotations

import pytest
import torch

import tiny
from analyses.attribution.explained import CASES, DECODERS, any_model, encoder, shared_model
from analyses.attribution.test_lrp import linear_model, state_of, training_gradients
from regtune.analyses.attribution.attribute import METHODS, PEERS, attribute
from regtune.errors import ConfigError, UnknownNameError
from regtune.registers.surgery import disable_registers, mask_registers
from regtune.rows.targets import Answer, ClassLogit, StartLogit, TargetError, TokenLogit

MOVED = {"special_tokens": "moved"}
OPTIONS = {"integrated-gradients": {**MOVED, "baseline": "zero"}, "occlusion": MOVED}
LOOSE = {"integrated-gradients": 0.2}
"""Random weights make wild paths; how well integrated gradients close is tested elsewhere."""


def peer(model, batch, method, target=None, **options):
    options = {**OPTIONS.get(method, {}), **options}
    return attribute(model, batch, method=method, target=target, **options, tolerance=LOOSE.get(method))


def small(family, pad=3):
    return {name: value[:2] for name, value in tiny.inputs(family, seq=9, pad=pad).items()}


def target_for(family):
    return TokenLogit(position=5, label=7) if family in DECODERS else StartLogit(position=5)


@pytest.mark.grid
@pytest.mark.parametrize(("family", "registers"), CASES)
def test_a_padded_row_gets_the_scores_that_it_gets_alone_from_every_peer(family, registers):
    model, batch, target = shared_model(family, registers), small(family), target_for(family)
    alone = {name: value[1:2, :-3] for name, value in batch.items()}
    for method in PEERS:
        padded, single = peer(model, batch, method, target)[1], peer(model, alone, method, target)[0]
        assert padded.relevance.shape == (6,), method
        assert padded.registers.shape == (registers,), method
        assert padded.relevance == pytest.approx(single.relevance, abs=1e-5), method
        assert padded.registers == pytest.approx(single.registers, abs=1e-5), method


def test_every_family_has_every_peer_and_a_method_without_rules_is_refused_with_what_there_is():
    assert set(PEERS) < set(METHODS)
    with pytest.raises(UnknownNameError, match=r"for Llama 'chefer'.*Available: attention, .*rollout"):
        attribute(shared_model("llama"), small("llama"), method="chefer")


@pytest.mark.parametrize(("family", "registers"), [("bert", 3), ("deberta-v2", 3), ("gpt2", 0)])
def test_afterwards_the_model_and_its_training_gradients_are_what_they_were(family, registers):
    model, batch = any_model(family, registers), small(family)
    before, state = training_gradients(model, batch), state_of(model)
    for method in PEERS:
        peer(model, batch, method, target_for(family))
        assert state_of(model) == state, method
    for old, new in zip(before, training_gradients(model, batch), strict=True):
        assert (old is None and new is None) or torch.equal(old, new)


# Attention


def eager_attentions(model, batch):
    """Of a BERT, in the order `[registers, text]`, the mean over heads."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return [layer.mean(1) for layer in attentions]


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_rollout_is_the_product_of_half_attention_and_half_identity(placement):
    model, batch = encoder("bert", num_registers=2, placement=placement), small("bert")
    found = peer(model, batch, "rollout", StartLogit(position=5))
    maps = eager_attentions(model, batch)
    for row, one in enumerate(found):
        flow = torch.eye(11, dtype=torch.float64)[7]  # the explained token, behind two registers
        for attention in reversed(maps):
            flow = 0.5 * flow + 0.5 * flow @ attention[row]
        assert one.registers == pytest.approx(flow[:2].numpy(), abs=1e-9)
        assert one.relevance == pytest.approx(flow[2 : 2 + len(one.relevance)].numpy(), abs=1e-9)
        assert one.total == pytest.approx(1, abs=1e-9)


def test_rollout_ends_at_registers_that_a_layer_gets_anew():
    model, batch = encoder("bert", num_registers=2, depth="every_layer"), small("bert")
    maps = eager_attentions(model, batch)
    for row, one in enumerate(peer(model, batch, "rollout", StartLogit(position=5))):
        flow, registers = torch.eye(11, dtype=torch.float64)[7], torch.zeros(2, dtype=torch.float64)
        for attention in reversed(maps):
            flow = 0.5 * flow + 0.5 * flow @ attention[row]
            registers += flow[:2]
            flow[:2] = 0
        assert one.registers == pytest.approx(registers.numpy(), abs=1e-9)
        assert one.total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_attention_is_the_row_of_the_tokens_that_the_target_is_read_from(layers):
    model, batch = encoder("bert", num_registers=2), small("bert")
    maps = eager_attentions(model, batch)
    wanted = maps[-1] if layers == "last" else torch.stack(maps).mean(0)
    found = peer(model, batch, "attention", Answer(start=3, end=5), layers=layers)
    for row, one in enumerate(found):
        expected = (wanted[row, 2 + 3] + wanted[row, 2 + 5]) / 2
        assert one.registers == pytest.approx(expected[:2].numpy(), abs=1e-9)
        assert one.relevance == pytest.approx(expected[2 : 2 + len(one.relevance)].numpy(), abs=1e-9)


def test_attention_times_gradient_is_the_slope_of_hiding_a_token_from_all_attention():
    """If every weight on token j shrinks by a share e, the target changes by -e times the score."""
    model, batch = encoder("bert", attention="eager"), small("bert", pad=0)
    found = peer(model, batch, "attention-gradient", StartLogit(position=5))

    def value(token, change):
        handles = []
        for layer in model.bert.encoder.layer:
            attention, kept = layer.attention.self, []
            handles.append(attention.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0])))
            handles.append(attention.register_forward_hook(shrinking(attention, kept, token, change)))
        with torch.no_grad():
            logits = model(**batch).start_logits[:, 5]
        for handle in handles:
            handle.remove()
        return logits

    for token in (0, 4, 8):
        slope = (value(token, -1e-5) - value(token, 1e-5)) / 2e-5
        assert [one.relevance[token] for one in found] == pytest.approx(slope.tolist(), rel=1e-5, abs=1e-7)


def shrinking(attention, kept, token, change):
    def shrink(_module, _args, output):
        weights = output[1].clone()
        weights[..., token] *= 1 - change
        values = attention.value(kept[-1]).view(2, 9, 4, 8).transpose(1, 2)
        return (weights @ values).transpose(1, 2).reshape(2, 9, 32), weights

    return shrink


def test_a_class_is_read_from_the_first_token_of_an_encoder_and_the_last_of_a_decoder():
    from regtune.rows.targets import Row

    text = torch.tensor([1, 1, 1, 0]).bool().numpy()
    logits = {"logits": torch.tensor([0.0, 1.0]).numpy()}
    assert ClassLogit().resolve(Row(logits=logits, text=text)).terms[0].position == 0
    assert ClassLogit().resolve(Row(logits=logits, text=text, causal=True)).terms[0].position == 2


def test_a_class_that_is_read_from_a_mean_has_no_attention_of_its_own():
    model = encoder("modernbert", "sequence-classification")
    model.config.classifier_pooling = "mean"
    for method in ("rollout", "attention"):
        with pytest.raises(TargetError, match="classifier_pooling='mean'"):
            peer(model, small("modernbert"), method)


# Gradient times input, occlusion, random


def test_of_a_linear_model_gradient_times_input_is_weight_times_input():
    model, batch = linear_model(), tiny.inputs("bert")
    words = model.bert.embeddings.word_embeddings(batch["input_ids"]).detach()
    expected = (words[:, 5] @ model.qa_outputs.weight[0].detach()).tolist()
    found = peer(model, batch, "gradient-input", StartLogit(position=5))
    assert [one.relevance[5] for one in found] == pytest.approx(expected, abs=1e-12)
    assert all(abs(one.relevance).sum() == pytest.approx(abs(one.relevance[5])) for one in found)


@pytest.mark.parametrize("deep", [False, True])
def test_gradient_times_input_is_the_slope_when_a_register_shrinks(deep):
    model = encoder("bert", num_registers=2, position="none", depth="every_layer" if deep else "input")
    batch, target = small("bert"), StartLogit(position=5)
    found = peer(model, batch, "gradient-input", target)
    registers = model.bert.registers

    def value(scale):
        with torch.no_grad():
            for learned in filter(lambda part: part is not None, (registers.tokens, registers.deep)):
                learned[..., 1, :] *= scale
            logits = model(**batch).start_logits[:, 5]
            for learned in filter(lambda part: part is not None, (registers.tokens, registers.deep)):
                learned[..., 1, :] /= scale
        return logits

    slope = (value(1 + 1e-5) - value(1 - 1e-5)) / 2e-5
    assert [one.registers[1] for one in found] == pytest.approx(slope.tolist(), rel=1e-4, abs=1e-7)


def test_occlusion_is_what_goes_when_the_token_is_padding_in_its_place():
    model, batch = encoder("bert", num_registers=2), small("bert")
    found = peer(model, batch, "occlusion", StartLogit(position=5))
    classes = torch.full((2, 9), 4, dtype=torch.int8)
    classes[:, 0] = 0
    held = peer(model, {**batch, "token_classes": classes}, "occlusion", StartLogit(position=5), special_tokens="held")
    with torch.no_grad():
        whole = model(**batch).start_logits[:, 5]
        for token in (0, 4):
            ids = batch["input_ids"].clone()
            ids[:, token] = 1
            gone = model(**{**batch, "input_ids": ids}).start_logits[:, 5]
            assert [one.relevance[token] for one in found] == pytest.approx((whole - gone).tolist(), abs=1e-9)
        with mask_registers(model, [1]):
            gone = model(**batch).start_logits[:, 5]
    assert [one.registers[1] for one in found] == pytest.approx((whole - gone).tolist(), abs=1e-9)
    assert [one.relevance[0] for one in held] == [0.0, 0.0]
    assert held[1].relevance[1:] == pytest.approx(found[1].relevance[1:], abs=1e-9)


def test_occluding_leaves_robertas_positions_where_they_are():
    """Its positions skip padding ids, so putting the id in would move every later token."""
    model, batch = encoder("roberta"), small("roberta", pad=0)
    found = peer(model, batch, "occlusion", StartLogit(position=5))
    embeddings = model.roberta.embeddings.word_embeddings
    handle = embeddings.register_forward_hook(
        lambda _, args, out: torch.cat([out[:, :2], embeddings.weight[1].expand(2, 1, -1), out[:, 3:]], dim=1)
    )
    with torch.no_grad():
        gone = model(**batch).start_logits[:, 5]
        handle.remove()
        whole = model(**batch).start_logits[:, 5]
    assert [one.relevance[2] for one in found] == pytest.approx((whole - gone).tolist(), abs=1e-9)


def test_random_scores_depend_on_the_text_and_the_seed_alone():
    model, batch = shared_model("bert", 3), small("bert")
    first, again, other = (peer(model, batch, "random", seed=seed) for seed in (0, 0, 1))
    assert first[0].relevance.tolist() == again[0].relevance.tolist()
    assert first[0].relevance.tolist() != other[0].relevance.tolist()
    assert (
        first[1].relevance.tolist() == peer(model, {n: v[1:] for n, v in batch.items()}, "random")[0].relevance.tolist()
    )
    assert abs(first[0].relevance).max() <= 1


def test_registers_that_are_switched_off_get_no_scores():
    model, batch = encoder("bert", num_registers=2), small("bert")
    with disable_registers(model):
        for method in PEERS:
            assert all(len(one.registers) == 0 for one in peer(model, batch, method)), method


# What is refused


def test_options_and_baselines_that_do_not_exist_are_refused_with_what_there_is():
    model, batch = shared_model("bert"), small("bert")
    for message, method, options in (
        (r"option of rollout 'layer'", "rollout", {"layer": 1}),
        (r"choice of layers 'first'.*all, last", "attention", {"layers": "first"}),
        (r"choice of layers 'first'.*all, last", "attention-gradient", {"layers": "first"}),
        (r"baseline 'padding'.*mask, pad, zero", "occlusion", {"baseline": "padding"}),
        (r"special_tokens 'hold'.*held, moved", "occlusion", {"special_tokens": "hold"}),
    ):
        with pytest.raises(UnknownNameError, match=message):
            peer(model, batch, method, **options)
    with pytest.raises(ConfigError, match="internal_batch_size=0"):
        peer(model, batch, "occlusion", internal_batch_size=0)
    with pytest.raises(ConfigError, match="nothing says which they are"):
        attribute(model, batch, method="occlusion")
    with pytest.raises(ConfigError, match="baseline='mask' needs the id of the mask token"):
        peer(model, batch, "occlusion", baseline="mask")
    with pytest.raises(ConfigError, match=r"baseline is torch.int64 \[9\], but gradients need an embedding"):
        peer(model, batch, "integrated-gradients", baseline=batch["input_ids"][0])
    with pytest.raises(ConfigError, match=r"baseline is \[5\]; word embeddings here are \[32\]"):
        peer(model, batch, "integrated-gradients", baseline=torch.zeros(5))
