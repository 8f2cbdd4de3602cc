"""The lens: planted words are read back, through the input embeddings and a head."""

import copy

import pytest
import torch

import tiny_seq2seq
from analyses.attribution.explained import DECODERS, decoder, encoder
from regtune.analyses.registers.lens import language_head, lens_of_batch, register_lens, vocabulary_vectors
from regtune.config import RegisterConfig
from regtune.errors import UnsupportedModelError
from regtune.records import plain
from regtune.registers.surgery import add_registers, disable_registers, find_decoder_registers
from tiny import FAMILIES, inputs
from tiny_seq2seq import texts
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


# Models with an encoder and a decoder

ENCODER, DECODER = 2, 3


def with_both(family, head="text-to-text", encoder=ENCODER, decoder=DECODER, **changes):
    """A model with both sets, and the same without any."""
    plain_model = tiny_seq2seq.tiny_model(family, head, **changes)
    for name, bias in plain_model.named_buffers():
        if name == "final_logits_bias":
            bias.normal_(generator=torch.Generator().manual_seed(0))
    config = RegisterConfig(num_registers=encoder, decoder_registers=decoder, init_std=1.0)
    return add_registers(copy.deepcopy(plain_model), config), plain_model


def states_by_hand(plain_model, model, ids):
    """What each layer of the plain decoder writes (T5's last behind its norm) where it is given registers alone."""
    decoder, vectors = plain_model.get_decoder(), find_decoder_registers(model)(1)
    read, handle = model.get_encoder()(ids).last_hidden_state, None
    if plain_model.config.model_type == "bart":
        handle = decoder.layernorm_embedding.register_forward_hook(lambda *_: vectors)
    if plain_model.config.model_type == "marian":  # which adds the position of each place
        vectors = (vectors - decoder.embed_positions.weight[:DECODER]) / decoder.embed_scale
    output = decoder(inputs_embeds=vectors, encoder_hidden_states=read, use_cache=False, output_hidden_states=True)
    if handle is not None:
        handle.remove()
    return [one[0] for one in output.hidden_states]


def scores_of(nearest, size=120):
    """`[depths, registers, vocabulary]`."""
    found = torch.zeros(len(nearest[0]), len(nearest), size)
    for register, depths in enumerate(nearest):
        for depth, words in enumerate(depths):
            for token, score in words:
                found[depth, register, int(token)] = score
    return found


@torch.no_grad()
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("family", tiny_seq2seq.FAMILIES)
def test_a_decoder_s_own_registers_are_read_as_the_model_would_read_its_last_state(family, scaled):
    changes = {"tie_word_embeddings": scaled} if family == "t5" else {}
    if family == "marian" and not scaled:
        changes = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
    model, plain_model = with_both(family, **changes)
    assert getattr(plain_model.config, "scale_decoder_outputs", scaled) == scaled
    ids = texts(9)["input_ids"]
    _, lens = lens_of_batch(model, {"input_ids": ids}, top=120)
    states, expected = states_by_hand(plain_model, model, ids), []
    for depth, state in enumerate(states):
        if family in ("t5", "mt5") and depth < len(states) - 1:
            state = plain_model.decoder.final_layer_norm(state)
        logits = plain_model.lm_head(state * 32**-0.5 if family == "t5" and scaled else state)
        expected.append((logits + getattr(plain_model, "final_logits_bias", 0.0)).softmax(-1))
    assert torch.allclose(scores_of(lens.head), torch.stack(expected), atol=1e-5)
    vectors = torch.nn.functional.normalize(plain_model.get_decoder().embed_tokens.weight, dim=-1)
    cosines = torch.nn.functional.normalize(states[0], dim=-1) @ vectors.T
    assert torch.allclose(scores_of(lens.embedding)[0], cosines, atol=1e-5)
    assert (lens.stack, lens.head_from) == ("decoder", type(plain_model).__name__)
    assert lens.norms == (("decoder.final_layer_norm",) if family in ("t5", "mt5") else ())


@torch.no_grad()
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_encoder_s_are_read_by_its_embeddings_and_no_head_which_never_reads_them(family):
    model, _ = with_both(family)
    lens, own = lens_of_batch(model, texts(9), top=120)
    assert (lens.stack, lens.head, own.stack) == ("encoder", None, "decoder")
    normal, vectors = torch.nn.functional.normalize, model.get_encoder().embed_tokens.weight
    cosines = normal(model.get_encoder().registers(1)[0], dim=-1) @ normal(vectors, dim=-1).T
    assert torch.allclose(scores_of(lens.embedding)[0], cosines, atol=1e-5)
    assert len(lens.embedding[0]) == 4
    assert len(own.embedding[0]) == 3
    titles = [block.title for one in (lens, own) for block in one.blocks()]
    assert "each of the encoder's registers" in titles[0]
    assert "each of the decoder's registers" in titles[1]
    assert len(titles) == 3


@pytest.mark.parametrize(("encoder", "decoder"), [(ENCODER, 0), (0, DECODER), (ENCODER, DECODER)])
@pytest.mark.parametrize(("family", "head"), [("t5", "none"), ("t5", "question-answering"), ("bart", "none")])
def test_each_set_that_is_there_is_read_where_no_head_writes(family, head, encoder, decoder):
    model, _ = with_both(family, head, encoder, decoder)
    found = lens_of_batch(model, texts(9), top=2)
    assert [one.stack for one in found] == ["encoder"] * bool(encoder) + ["decoder"] * bool(decoder)
    assert [len(one.embedding) for one in found] == [count for count in (encoder, decoder) if count]
    assert all(one.head is None for one in found)


def test_sets_that_are_switched_off_are_refused_in_words():
    model, _ = with_both("bart", encoder=0)
    with disable_registers(model), pytest.raises(UnsupportedModelError, match="registers are disabled"):
        lens_of_batch(model, texts(9))
    with pytest.raises(UnsupportedModelError, match="has no registers; call add_registers"):
        lens_of_batch(tiny_seq2seq.tiny_model("bart"), texts(9))
