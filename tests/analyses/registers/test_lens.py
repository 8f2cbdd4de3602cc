"""The lens: planted words are read back, through the input embeddings and a head."""

import pytest
import torch

from analyses.attribution.explained import DECODERS, decoder, encoder
from regtune.analyses.registers.lens import language_head, register_lens, vocabulary_vectors
from regtune.errors import UnsupportedModelError
from regtune.records import plain
from tiny import FAMILIES, inputs
from tiny_tokenizer import VOCABULARY, tiny_tokenizer

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


def test_an_architecture_without_an_entry_is_refused():
    from transformers import AutoModel, XLNetConfig

    model = AutoModel.from_config(XLNetConfig(vocab_size=30, d_model=8, n_layer=1, n_head=2, d_inner=8))
    with pytest.raises(UnsupportedModelError, match=r"model_type='xlnet'.*Supported: ALBERT .*BERT"):
        language_head(model)
