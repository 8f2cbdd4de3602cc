"""The lens: planted words are read back, through the input embeddings, a head, and a neuron's weights."""

import pytest
import torch

from analyses.attribution.explained import DECODERS, decoder, encoder
from regtune.analyses.registers.lens import borrowed_head, language_head, register_lens, vocabulary_vectors
from regtune.analyses.registers.neurons import clamp_effect, clamp_neuron, neuron_lens
from regtune.errors import CheckpointError, ConfigError, UnknownNameError, UnsupportedModelError
from regtune.records import plain
from regtune.registers.surgery import backbone_of
from tiny import FAMILIES, inputs, tiny_model
from tiny_tokenizer import VOCABULARY, save_tiny, tiny_tokenizer

WITH_HEAD = [family for family in FAMILIES if family != "deberta-v2-conv"]


def any_language_model(family):
    return decoder(family) if family in DECODERS else encoder(family, "masked-lm")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_embedding_is_read_as_its_token(family):
    model = encoder(family, num_registers=2)
    planted = vocabulary_vectors(model)[torch.tensor([[7, 55], [31, 7]])]
    lens = register_lens(model, 3.0 * planted, top=2)
    assert [[words[0].token for words in depths] for depths in lens.embedding] == [["7", "31"], ["55", "7"]]
    assert all(words[0].score == pytest.approx(1) for depths in lens.embedding for words in depths)
    assert lens.head is None
    assert lens.norms == ()


def test_tokens_have_their_text_and_rows_beyond_the_vocabulary_a_number():
    model, tokenizer = encoder("bert"), tiny_tokenizer()
    beyond = len(tokenizer)
    lens = register_lens(model, vocabulary_vectors(model)[torch.tensor([[5, beyond]])], tokenizer, top=1)
    assert lens.embedding[0][0][0].token == VOCABULARY[5]
    assert lens.embedding[1][0][0].token == str(beyond)


@pytest.mark.parametrize("family", [*WITH_HEAD, *DECODERS])
def test_the_head_is_the_models_own_way_from_its_last_state_to_its_logits(family):
    model, given, seen = any_language_model(family), inputs(family), []
    head = language_head(model)
    first = model.get_submodule(head.steps[0])
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(**given).logits
        handle.remove()
        assert torch.allclose(head(seen[0]), logits, atol=1e-9)
    assert len(head.norms) == (2 if family == "modernbert" else 1)


def test_the_lens_reads_the_last_state_as_the_model_would_have_said_it():
    model, seen = encoder("bert", "masked-lm"), []
    model.cls.predictions.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        said = model(**inputs("bert")).logits[0].softmax(-1)
    lens = register_lens(model, seen[0][:1], top=3)
    assert [int(depths[0][0].token) for depths in lens.head] == said.argmax(-1).tolist()
    assert lens.head[4][0][0].score == pytest.approx(float(said[4].max()), rel=1e-4)
    assert lens.head_from == "BertForMaskedLM"
    assert lens.norms == ("cls.predictions.transform.LayerNorm",)
    assert plain(lens)["head"][4][0][0] == list(lens.head[4][0][0])


def test_a_fine_tuned_model_borrows_the_head_of_its_base(tmp_path):
    model = encoder("bert", num_registers=2)
    assert language_head(model) is None
    base = tiny_model("bert", "masked-lm")
    save_tiny(tmp_path / "base", head="masked-lm")
    states = torch.randn(4, 2, 32)
    loaded, named = (register_lens(model, states, head_from=source) for source in (base, tmp_path / "base"))
    assert loaded.head == named.head
    assert named.head_from == str(tmp_path / "base")
    assert len(loaded.head) == 2
    assert len(loaded.head[0]) == 4


def test_a_head_that_is_not_there_or_does_not_fit_is_refused(tmp_path):
    model = encoder("bert")
    with pytest.raises(CheckpointError, match="BertForQuestionAnswering has no language-model head"):
        borrowed_head(model, encoder("bert"))
    save_tiny(tmp_path / "qa")
    with pytest.raises(CheckpointError, match=r"BertForQuestionAnswering has no language-model head \(.*qa\)"):
        borrowed_head(model, tmp_path / "qa")
    with pytest.raises(ConfigError, match="hidden_size 16, but this one has 32"):
        borrowed_head(model, tiny_model("bert", "masked-lm", hidden_size=16))
    with pytest.raises(ConfigError, match="vocabulary 90, but this one has 120"):
        borrowed_head(model, tiny_model("bert", "masked-lm", vocab_size=90))
    with pytest.raises(ConfigError, match="top=0"):
        register_lens(model, torch.randn(1, 1, 32), top=0)


def test_an_architecture_without_an_entry_is_refused():
    from transformers import AutoModel, XLNetConfig

    model = AutoModel.from_config(XLNetConfig(vocab_size=30, d_model=8, n_layer=1, n_head=2, d_inner=8))
    with pytest.raises(UnsupportedModelError, match=r"model_type='xlnet'.*Supported: ALBERT .*BERT"):
        language_head(model)


def projections(model, family, layer=1):
    """The layer's second projection as a tensor with a row for each neuron, to be written to."""
    backbone = backbone_of(model)
    paths = {
        "distilbert": f"transformer.layer.{layer}.ffn.lin2",
        "albert": "encoder.albert_layer_groups.0.albert_layers.0.ffn_output",
        "modernbert": f"layers.{layer}.mlp.Wo",
        "gpt2": f"h.{layer}.mlp.c_proj",
    }
    default = f"layers.{layer}.mlp.down_proj" if family in DECODERS else f"encoder.layer.{layer}.output.dense"
    module = backbone.get_submodule(paths.get(family, default))
    return module.weight if family == "gpt2" else module.weight.T


@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
def test_a_planted_neuron_writes_the_planted_word(family):
    model = decoder(family) if family in DECODERS else encoder(family)
    layer = 0 if family == "albert" else 1
    words = model.lm_head.weight if family in DECODERS else vocabulary_vectors(model)
    with torch.no_grad():
        words.div_(words.norm(dim=-1, keepdim=True).clamp(min=1e-9)) if family not in ("albert", "electra") else None
        direction = torch.linalg.pinv(words)[:, 44] if family in ("albert", "electra") else words[44]
        projections(model, family, layer)[5] = direction
    (found,) = neuron_lens(model, layer, neurons=[5], top=3)
    assert found.promotes[0].token == "44"
    (against,) = neuron_lens(model, layer, neurons=[6], top=1)
    with torch.no_grad():
        projections(model, family, layer)[6] = -direction
    (against,) = neuron_lens(model, layer, neurons=[6], top=1)
    assert against.suppresses[0].token == "44"
    assert against.suppresses[0].score < 0


def test_what_a_neuron_reads_is_a_row_of_the_first_projection():
    gated, gpt = decoder("llama"), decoder("gpt2")
    with torch.no_grad():
        gated.model.layers[2].mlp.up_proj.weight[3] = 9 * gated.lm_head.weight[17]
        gpt.transformer.h[0].mlp.c_fc.weight[:, 3] = 9 * gpt.lm_head.weight[18]
    assert neuron_lens(gated, 2, neurons=[3], side="reads")[0].promotes[0].token == "17"
    assert neuron_lens(gpt, 0, neurons=[3], side="reads")[0].promotes[0].token == "18"
    modern = encoder("modernbert")
    with torch.no_grad():
        modern.model.layers[0].mlp.Wi.weight[48 + 3] = 9 * vocabulary_vectors(modern)[19]
    found = neuron_lens(modern, 0, side="reads")
    assert len(found) == 48
    assert found[3].promotes[0].token == "19"


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "llama", "gpt2"])
def test_clamping_holds_one_neuron_and_lets_it_go(family):
    model = decoder(family) if family in DECODERS else encoder(family, num_registers=2)
    given, layer = inputs(family), 0
    effect = clamp_effect(model, given, layer=layer, neuron=5, value=30.0)
    assert all(float(value.abs().max()) > 1e-4 for value in effect.values())
    assert set(effect) == ({"logits"} if family in DECODERS else {"start_logits", "end_logits"})
    with torch.no_grad():
        before = [value.clone() for value in model(**given).values() if isinstance(value, torch.Tensor)]
        with pytest.raises(KeyError), clamp_neuron(model, layer, 5, value=30.0):
            raise KeyError
        after = [value for value in model(**given).values() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_clamped_neuron_raises_the_logit_of_the_word_it_writes():
    model = decoder("llama")
    with torch.no_grad():
        model.lm_head.weight.div_(model.lm_head.weight.norm(dim=-1, keepdim=True))
        model.model.layers[2].mlp.down_proj.weight[:, 5] = model.lm_head.weight[44]
        model.model.norm.weight.fill_(1.0)
    effect = clamp_effect(model, inputs("llama"), layer=2, neuron=5, value=1e4)["logits"]
    with torch.no_grad(), clamp_neuron(model, 2, 5, value=1e4):
        said = model(**inputs("llama")).logits
    assert (said.argmax(-1) == 44).all()
    assert (effect[..., 44] > 0).all()


def test_neurons_that_do_not_exist_are_refused_with_the_number():
    model = encoder("bert")
    with pytest.raises(ConfigError, match="layer 3 doesn't exist; this model has 0 to 2"):
        neuron_lens(model, 3)
    with pytest.raises(ConfigError, match="neuron 48 doesn't exist; this model has 0 to 47"):
        neuron_lens(model, 0, neurons=[48])
    with pytest.raises(ConfigError, match="neuron -1 doesn't exist"), clamp_neuron(model, 0, -1, value=1.0):
        pass
    with pytest.raises(UnknownNameError, match=r"'write'\. Did you mean 'writes'"):
        neuron_lens(model, 0, side="write")
    with pytest.raises(UnsupportedModelError, match="training mode"):
        clamp_effect(encoder("bert").train(), inputs("bert"), layer=0, neuron=0, value=1.0)
    with pytest.raises(UnsupportedModelError, match="no logits"):
        clamp_effect(encoder("bert", "none"), inputs("bert"), layer=0, neuron=0, value=1.0)
