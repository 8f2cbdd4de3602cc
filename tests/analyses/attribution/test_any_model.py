"""Methods without rules explain any Hugging Face model that embeds tokens: unknown families, decoders, T5."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from analyses.attribution.explained import lively
from regtune.analyses.attribution.attribute import PEERS, attribute
from regtune.analyses.attribution.attribution import ConservationError
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.rows.targets import ClassLogit, TargetError, TokenLogit

SIZE = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
T5 = {"vocab_size": 120, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 120,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
}
KINDS = {
    "camembert": (AutoModelForTokenClassification, SIZE, TokenLogit(position=3, label=1)),
    "layoutlm": (AutoModelForSequenceClassification, SIZE, ClassLogit(label=1, minus=0)),
    "mistral": (AutoModelForCausalLM, {**SIZE, "num_key_value_heads": 1}, None),
    "gpt_neox": (AutoModelForCausalLM, SIZE, None),
    "opt": (
        AutoModelForSequenceClassification,
        {**SIZE, "ffn_dim": 24, "word_embed_proj_dim": 16},
        ClassLogit(label=1),
    ),
    "t5": (AutoModelForSeq2SeqLM, {**T5, "decoder_start_token_id": 0}, None),
    "bart": (AutoModelForSequenceClassification, BART, None),
}
OPTIONS = {
    "integrated-gradients": {"special_tokens": "moved", "baseline": "zero"},
    "occlusion": {"special_tokens": "moved", "baseline": "zero"},
}
SEES_NO_ATTENTION = {"t5": ("rollout",), "bart": ("attention", "attention-gradient", "rollout")}


def model_of(kind):
    auto, settings, _ = KINDS[kind]
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    return model.double().eval() if kind == "t5" else lively(model)  # T5's float32 norms make livelier paths jump


def batch_of(kind, rows=2):
    ids = torch.randint(4, 120, (rows, 8), generator=torch.Generator().manual_seed(1))
    if kind == "bart":
        ids[:, -1] = 2  # its classes are read at the last end token
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def found_by(model, batch, method, target, **more):
    return attribute(model, batch, method=method, target=target, **{**OPTIONS.get(method, {}), **more})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_method_without_rules_explains_every_kind_of_model(kind):
    model, batch, target = model_of(kind), batch_of(kind), KINDS[kind][2]
    for method in PEERS:
        if method in SEES_NO_ATTENTION.get(kind, ()):
            with pytest.raises(TargetError, match="answers through a decoder"):
                found_by(model, batch, method, target)
            continue
        loose = {"tolerance": 0.2} if method == "integrated-gradients" else {}
        if kind == "t5" and loose:  # without positions an RMS norm jumps at zero: no line from there has an integral
            loose["baseline"] = "pad"
        for one in found_by(model, batch, method, target, **loose):
            assert one.relevance.shape == (8,), method
            assert abs(one.relevance).max() > 0, method
            if method in ("attention", "rollout"):
                assert one.total == pytest.approx(1), method
            if method == "integrated-gradients":
                assert one.value == pytest.approx(one.total + one.residual)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_path_that_jumps_at_its_start_is_told_why_and_what_to_choose_which_then_works():
    model, batch = model_of("t5"), batch_of("t5")
    with pytest.raises(ConservationError, match=r"jumps at the start.*RMS norm.*no positions.*baseline='pad'.*--bas"):
        found_by(model, batch, "integrated-gradients", None, baseline="zero")
    assert found_by(model, batch, "integrated-gradients", None, baseline="pad")[0].steps < 512
    with pytest.raises(ConservationError, match=r"allowed\. Raise max_steps or tolerance, or run"):
        found_by(model, batch, "integrated-gradients", None, baseline="pad", max_steps=20)


@pytest.mark.parametrize("kind", ["camembert", "mistral", "opt", "t5", "bart"])
def test_a_token_that_is_hidden_is_hidden_wherever_it_is_read(kind):
    """Of a decoder that reads the text itself, too: the score is what a model without the token's vector says."""
    model, batch, target = model_of(kind), batch_of(kind), KINDS[kind][2]
    found = found_by(model, batch, "occlusion", target)
    with torch.no_grad():
        for table in {id(t): t for t in model.modules() if isinstance(t, torch.nn.Embedding)}.values():
            if table.num_embeddings == 120:
                table.weight[batch["input_ids"][0, 3]] = 0
    token = int(batch["input_ids"][0, 3])
    if target is None:
        label = int(found[0].target.split()[2] if "token id" in found[0].target else found[0].target.split()[1])
        target = TokenLogit(label=label) if "token id" in found[0].target else ClassLogit(label=label)
    if kind in ("mistral", "t5") and target.label == token:
        pytest.skip("the head is tied to the embedding that was taken away")
    first = {name: value[:1] for name, value in batch.items()}
    (gone,) = attribute(model, first, method="random", target=target)
    assert found[0].relevance[3] == pytest.approx(found[0].value - gone.value, abs=1e-9)


def test_a_model_that_writes_is_explained_token_by_token():
    model, batch = model_of("t5"), batch_of("t5")
    written = torch.tensor([[0, 7, 9], [0, 8, 5]])
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=written).logits
    for position in range(3):
        target = TokenLogit(position=position, label=11)
        found = attribute(
            model, {**batch, "decoder_input_ids": written}, method="gradient-input", target=target, batch_size=1
        )
        assert [one.value for one in found] == pytest.approx(logits[:, position, 11].tolist())
    with pytest.raises(TargetError, match="position=3 is outside the text; its tokens are 0 to 2"):
        attribute(model, {**batch, "decoder_input_ids": written}, method="random", target=TokenLogit(position=3))
    with torch.no_grad():
        first = model(**batch, decoder_input_ids=written[:, :1]).logits[:, 0]
    assert [one.value for one in attribute(model, batch, method="random")] == pytest.approx(first.amax(1).tolist())


def test_attention_of_a_model_that_writes_is_what_its_decoder_pays_to_the_text():
    model, batch = model_of("t5"), batch_of("t5")
    given = {**batch, "decoder_input_ids": torch.tensor([[0, 7, 9], [0, 8, 5]])}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        paid = [one.mean(1)[:, 1] for one in model(**given, output_attentions=True).cross_attentions]
    for layers, expected in (("last", paid[-1]), ("all", torch.stack(paid).mean(0))):
        found = attribute(model, given, method="attention", target="predicted@1", layers=layers)
        for row, one in enumerate(found):
            assert one.relevance == pytest.approx(expected[row].numpy())


def test_a_model_that_says_something_else_when_asked_for_its_weights_is_refused():
    """Falcon forgets its causal mask then (transformers 5.23)."""
    settings = {**SIZE, "new_decoder_architecture": True, "num_kv_heads": 1, "bias": False}
    torch.manual_seed(0)
    config = AutoConfig.for_model("falcon", **settings)
    model = lively(AutoModelForCausalLM.from_config(config))
    with pytest.raises(UnsupportedModelError, match="says something else when it is asked"):
        attribute(model, batch_of("falcon"), method="attention")
    torch.manual_seed(0)
    eager = lively(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    assert len(attribute(eager, batch_of("falcon"), method="attention")) == 2


def test_rules_for_an_unknown_architecture_are_refused_with_what_takes_any():
    with pytest.raises(UnsupportedModelError, match=r"no relevance rules for model_type='opt'.*: attention"):
        attribute(model_of("opt"), batch_of("opt"))


def test_embeddings_in_another_order_are_refused_and_methods_that_leave_them_alone_still_work():
    torch.manual_seed(0)
    config = AutoConfig.for_model("xlnet", vocab_size=120, d_model=16, n_layer=2, n_head=2, d_inner=24)
    model = lively(AutoModelForSequenceClassification.from_config(config))
    for rows in (2, 8):  # 8 rows of 8 tokens: the shape alone tells nothing
        with pytest.raises(UnsupportedModelError, match="in another order than"):
            found_by(model, batch_of("xlnet", rows), "occlusion", None)
        assert len(attribute(model, batch_of("xlnet", rows), method="random")) == rows


def test_a_model_without_a_table_of_words_is_refused():
    model = model_of("camembert")
    model.roberta.get_input_embeddings = lambda: (_ for _ in ()).throw(NotImplementedError)
    with pytest.raises(UnsupportedModelError, match="has no table of word embeddings"):
        attribute(model, batch_of("camembert"), method="occlusion")


@pytest.mark.parametrize(
    "wrong",
    ["a text", ["one text", "another"], [[1, 2]], None, 3, {"input_ids": "text"}, {"input_ids": [[1, 2], [3]]}, {}],
    ids=repr,
)
def test_what_is_no_batch_of_tokens_gets_a_sentence(wrong):
    with pytest.raises(ConfigError, match=r"tokenizer\(texts, padding=True, return_tensors='pt'\)"):
        attribute(model_of("camembert"), wrong, method="random")
    with pytest.raises(ConfigError, match="int 3 is no target"):
        attribute(model_of("camembert"), batch_of("camembert"), method="random", target=3)
