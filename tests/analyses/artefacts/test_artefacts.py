"""Artefacts: planted ones are found, absent ones are not, and the numbers are those of the definitions."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

import tiny
from analyses.artefacts.artefact_inputs import SEP_ID, batch, plant, quiet_model, single_rows
from analyses.attribution.explained import any_model, decoder
from regtune.analyses.artefacts.artefacts import EDGES, ArtefactSettings, artefact_statistics, kurtosis
from regtune.analyses.artefacts.sites import SITES, blocks_of
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.records import plain
from regtune.registers.surgery import add_registers, disable_registers, mask_registers, remove_registers

PLACES = {
    "bert": ("output.LayerNorm", "output.dense", True),
    "roberta": ("output.LayerNorm", "output.dense", True),
    "xlm-roberta": ("output.LayerNorm", "output.dense", True),
    "electra": ("output.LayerNorm", "output.dense", True),
    "deberta-v2": ("output.LayerNorm", "output.dense", True),
    "deberta-v2-conv": ("output.LayerNorm", "output.dense", True),
    "mpnet": ("output.LayerNorm", "output.dense", True),
    "distilbert": ("output_layer_norm", "ffn.lin2", True),
    "albert": ("full_layer_layer_norm", "ffn_output", True),
    "modernbert": ("mlp_norm", "mlp.Wo", False),
    "gpt2": ("ln_2", "mlp.c_proj", False),
    "llama": ("post_attention_layernorm", "mlp.down_proj", False),
    "qwen2": ("post_attention_layernorm", "mlp.down_proj", False),
    "qwen3": ("post_attention_layernorm", "mlp.down_proj", False),
}


def content(found):
    return plain({name: getattr(found, name) for name in ("layers", "sites", "special", "norm_weights")})


def numbers(found):
    """Every number of the result, by its path."""
    flat = {}

    def walk(value, path):
        if isinstance(value, dict):
            for name, part in value.items():
                walk(part, f"{path}.{name}")
        elif isinstance(value, list):
            for index, part in enumerate(value):
                walk(part, f"{path}[{index}]")
        elif isinstance(value, (int, float)):
            flat[path] = value

    walk(content(found), "")
    return flat


def assert_same(first, second, rel=1e-4):
    first, second = numbers(first), numbers(second)
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert value == pytest.approx(second[path], rel=rel, abs=1e-5), path


# What is found


@pytest.mark.parametrize("family", PLACES)
def test_every_family_is_read_at_the_places_that_its_norm_placement_means(family):
    found = artefact_statistics(any_model(family), [batch()])
    assert (found.norm, found.feed_forward, found.post_norm) == PLACES[family]
    assert found.layers == 3
    assert all(len(found.sites[site]) == 3 for site in SITES)
    assert found.sites["block"][0].tokens == (12 + 7 + 20) - 3 * 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_registers_have_a_row_of_their_own_and_leave_the_count_of_content_alone(family):
    found = artefact_statistics(any_model(family, 3), [batch(pad=2)])
    assert found.num_registers == 3
    assert found.special["register"]["block"][1].tokens == 3 * 3
    assert found.special["cls"]["block"][1].tokens == 3
    assert found.sites["block"][0].tokens == 33


@pytest.mark.parametrize("placement", ["prefix", "after_cls", "suffix"])
def test_content_is_content_wherever_registers_stand(placement):
    plain = tiny.tiny_model("bert")
    expected = artefact_statistics(plain, [batch(pad=3)])
    model = add_registers(plain, RegisterConfig(num_registers=2, placement=placement)).eval()
    with mask_registers(model):  # registers that nobody attends to leave the text as it is
        found = artefact_statistics(model, [batch(pad=3)])
    for site in SITES:
        for mine, theirs in zip(found.sites[site], expected.sites[site], strict=True):
            assert mine.median == pytest.approx(theirs.median, rel=1e-5)
    with disable_registers(model):
        assert_same(artefact_statistics(model, [batch(pad=3)]), expected)
    remove_registers(model)


def test_a_planted_massive_activation_is_found_where_it_is():
    model = quiet_model()

    def change(states):
        states[:, 3, 11] = 5000.0

    plant(model.base_model.encoder.layer[1].output.dense, change)
    found = artefact_statistics(model, [batch()])
    place = found.sites["feed_forward"][1]
    assert place.massive["content"] == 3
    assert place.massive_dimensions == ((11, 3),)
    assert place.largest == 5000.0
    assert place.max_over_median > 1000
    assert found.sites["norm_input"][1].massive_dimensions == ((11, 3),)
    assert found.sites["feed_forward"][0].massive["content"] == 0
    assert found.sites["block"][1].massive["content"] == 0, "the LayerNorm hides it"


def test_massive_activations_are_counted_at_special_tokens_and_apart_from_content():
    model = quiet_model()

    def change(states):
        states[:, 0, 11] = 5000.0

    plant(model.base_model.encoder.layer[1].output.dense, change)
    found = artefact_statistics(model, [batch()])
    place = found.sites["feed_forward"][1]
    assert place.massive == {"content": 0, "cls": 3, "sep": 0, "register": 0}
    assert place.massive_dimensions == ((11, 3),)
    size, times = place.massive_largest["cls"]
    assert size == 5000.0
    assert times > 1000
    assert found.by_text["feed_forward"]["massive_ratio"][:, 1].min() > 1000


def test_a_planted_outlier_dimension_is_found_in_every_token():
    model = quiet_model()
    with torch.no_grad():
        model.base_model.encoder.layer[2].output.dense.bias[7] = 200.0
    found = artefact_statistics(model, [batch()])
    assert found.sites["norm_input"][2].outlier_dimensions == ((7, 1.0),)
    assert found.sites["norm_input"][2].kurtosis > 50
    assert found.sites["norm_input"][1].outlier_dimensions == ()
    assert found.sites["norm_input"][2].outlier_entries == pytest.approx(1 / 128)


def test_a_planted_high_norm_token_is_found_and_no_other():
    model = quiet_model()
    plant(model.base_model.encoder.layer[0].output.dense, lambda states: states[1, 2].mul_(200.0))
    place = artefact_statistics(model, [batch()]).sites["feed_forward"][0]
    for rule in ("mean+3std", "median+kmad", "10x_median"):
        assert place.tokens_beyond[rule] >= 1, rule
    assert place.tokens_beyond["10x_median"] == 1
    assert place.outlier_rate["10x_median"] == pytest.approx(1 / 33)


def test_a_large_norm_on_cls_is_in_its_row_and_not_in_the_content():
    model = quiet_model()
    plain = artefact_statistics(model, [batch()])
    plant(model.base_model.encoder.layer[0].output.dense, lambda states: states[:, 0].mul_(100.0))
    found = artefact_statistics(model, [batch()])
    assert found.special["cls"]["feed_forward"][0].relative > 30
    assert found.special["sep"]["feed_forward"][0].relative < 3
    place, before = found.sites["feed_forward"][0], plain.sites["feed_forward"][0]
    assert dataclasses.replace(place, massive_largest=before.massive_largest) == before


def test_a_quiet_model_has_none_of_them():
    found = artefact_statistics(quiet_model(), [batch(), batch(seed=2)])
    for site in SITES:
        for place in found.sites[site]:
            assert sum(place.massive.values()) == 0
            assert place.outlier_dimensions == ()
            assert place.tokens_beyond["3x_median"] == 0
            assert place.max_over_median < 30


def test_norm_weights_beyond_three_deviations_are_named():
    model = quiet_model()
    with torch.no_grad():
        model.base_model.encoder.layer[1].output.LayerNorm.weight[[5, 9]] = 8.0
    assert artefact_statistics(model, [batch()]).norm_weights == ((), (5, 9), ())


# The numbers are the definitions'


def test_streamed_numbers_are_those_of_all_states_at_once():
    model = any_model("bert")  # with norm weights that differ, so that norms behind the LayerNorm do
    whole = batch((12, 7, 20, 9))
    found = artefact_statistics(model, [*single_rows(whole)[:2], batch((12, 7, 20, 9))])
    seen = {}
    for layer, block in enumerate(model.base_model.encoder.layer):
        keep = functools.partial(remember, seen, layer)
        block.output.LayerNorm.register_forward_pre_hook(lambda _, args, keep=keep: keep("norm_input", args[0]))
        block.output.dense.register_forward_hook(lambda _, __, output, keep=keep: keep("feed_forward", output))
    with torch.no_grad():
        states = model.base_model(whole["input_ids"], whole["attention_mask"], output_hidden_states=True).hidden_states
    content = (whole["token_classes"] >= 2).numpy()
    for layer in range(3):
        seen[layer, "block"] = states[layer + 1]
        for site in SITES:
            values = seen[layer, site].double().numpy()
            texts = [values[row][content[row]] for row in (0, 1, 0, 1, 2, 3)]  # as they were given above
            check_place(found.sites[site][layer], texts)


def remember(seen, layer, site, values):
    seen[layer, site] = values


def check_place(place, texts):
    every = np.concatenate(texts)
    norms = np.linalg.norm(every, axis=1)
    assert place.tokens == len(every)
    assert place.median == pytest.approx(np.median(norms), rel=1e-5)
    assert place.mad == pytest.approx(np.median(abs(norms - np.median(norms))), rel=1e-3)
    assert place.outlier_rate["mean+3std"] == (norms > norms.mean() + 3 * norms.std()).mean()
    assert place.counts == tuple(np.histogram(norms, EDGES)[0])
    deviations = every - every.mean()
    assert place.kurtosis == pytest.approx((deviations**4).mean() / (deviations**2).mean() ** 2, rel=1e-5)
    assert place.infinity_norm == pytest.approx(np.mean([abs(text).max() for text in texts]), rel=1e-5)
    ratios = [abs(text).max() / np.sort(abs(text).ravel())[(text.size - 1) // 2] for text in texts]
    assert place.max_over_median == pytest.approx(max(ratios), rel=1e-4)
    beyond = [abs(text - text.mean()) > 6 * text.std() for text in texts]
    assert place.outlier_entries == pytest.approx(np.concatenate(beyond).mean(), abs=1e-9)
    z_scored = [(text - every.mean(0)) / every.std(0) for text in texts]
    for ending, given in (("", texts), ("_z", z_scored)):
        near, pairs = zip(*map(cosines, given), strict=True)
        assert place.cosine[f"neighbours{ending}"] == pytest.approx(np.mean(near), abs=1e-5)
        assert place.cosine[f"pairs{ending}"] == pytest.approx(np.mean(pairs), abs=1e-5)


def cosines(text):
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    all_pairs = unit @ unit.T
    return np.diagonal(all_pairs, 1).mean(), all_pairs[~np.eye(len(text), dtype=bool)].mean()


def test_neighbours_are_tokens_side_by_side():
    whole = batch((9,))
    whole["token_classes"][0, 4] = 1  # a [SEP] between 3 and 5: these two are no neighbours
    model = tiny.tiny_model("bert")
    found = artefact_statistics(model, [whole])
    with torch.no_grad():
        states = model.base_model(whole["input_ids"], whole["attention_mask"]).last_hidden_state[0]
    unit = states / states.norm(dim=1, keepdim=True)
    expected = [float(unit[a] @ unit[a + 1]) for a in (1, 2, 5, 6)]
    assert found.sites["block"][2].cosine["neighbours"] == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("registers", [0, 3])
def test_padding_and_batch_size_change_nothing(family, registers):
    model = any_model(family, registers)
    expected = artefact_statistics(model, single_rows(batch()))
    assert_same(artefact_statistics(model, [batch(pad=6)]), expected)


def test_numbers_text_by_text_belong_to_their_examples():
    model = any_model("bert")
    rows = single_rows(batch())
    forwards = artefact_statistics(model, rows)
    backwards = artefact_statistics(model, rows[::-1])
    assert forwards.examples == (0, 1, 2)
    assert backwards.examples == (2, 1, 0)
    for name in forwards.by_text["block"]:
        for site in SITES:
            assert backwards.by_text[site][name][::-1] == pytest.approx(forwards.by_text[site][name], rel=1e-5)


def test_batches_may_be_a_generator():
    model = any_model("bert")
    assert_same(artefact_statistics(model, iter(single_rows(batch()))), artefact_statistics(model, [batch()]))


def test_kurtosis_has_its_known_values():
    def of(x):
        return kurtosis(np.array([len(x), *((x**power).sum() for power in (1, 2, 3, 4))]))

    random = np.random.default_rng(0)
    assert of(random.normal(5, 2, 200_000)) == pytest.approx(3, abs=0.05)
    assert of(random.uniform(-1, 1, 200_000)) == pytest.approx(1.8, abs=0.02)
    assert of(np.array([-1.0, 1.0] * 50)) == pytest.approx(1)
    assert of(np.full(9, 0.3)) is None


def test_norms_outside_the_histogram_count_at_its_ends():
    model = quiet_model()
    plant(model.base_model.encoder.layer[0].output.dense, lambda states: states.mul_(1e6))
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states.mul_(0))
    found = artefact_statistics(model, [batch()])
    assert found.sites["feed_forward"][0].counts[-1] == 33
    assert found.sites["feed_forward"][1].counts[0] == 33
    assert found.sites["feed_forward"][1].kurtosis is None


# The model, and bad input


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert"])
def test_the_model_is_left_as_it_was(family):
    model = any_model(family, 2)
    inputs = {name: value for name, value in batch().items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**inputs).start_logits
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    artefact_statistics(model, [batch()])
    with pytest.raises(ConfigError):
        artefact_statistics(model, [batch(), {"input_ids": torch.ones(1, 2)}])
    with torch.no_grad():
        assert torch.equal(model(**inputs).start_logits, before)
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()) == hooks


def test_a_family_that_registers_do_not_know_is_read_from_its_list_of_blocks():
    config = AutoConfig.for_model(
        "gpt_neox", vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=66,
    )  # fmt: skip
    found = artefact_statistics(AutoModel.from_config(config).eval(), [batch()])
    assert (found.layers, found.norm, found.post_norm) == (2, "post_attention_layernorm", False)


def test_an_encoder_decoder_is_refused_with_what_is_supported():
    config = AutoConfig.for_model("t5", vocab_size=120, d_model=32, num_layers=2, num_heads=4, d_ff=48, d_kv=8)
    with pytest.raises(UnsupportedModelError, match=r"T5Model.*Supported: .*BERT"):
        blocks_of(AutoModel.from_config(config))


def test_text_without_content_is_refused_and_a_row_without_it_left_out():
    empty = batch((2, 2))
    with pytest.raises(DataError, match="not one content token"):
        artefact_statistics(any_model("bert"), [empty])
    with pytest.raises(DataError, match="not one content token"):
        artefact_statistics(any_model("bert"), [])
    found = artefact_statistics(any_model("bert"), [batch((2, 12))])
    assert found.examples == (1,)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(UnsupportedModelError, match="training mode"):
        artefact_statistics(any_model("bert").train(), [batch()])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_states_that_are_no_numbers_are_refused(broken):
    model = quiet_model()
    with torch.no_grad():
        model.base_model.encoder.layer[1].output.dense.bias[3] = broken
    with pytest.raises(UnsupportedModelError, match="no numbers"):
        artefact_statistics(model, [batch()])


def test_batches_without_classes_are_refused():
    plain = {name: value for name, value in batch().items() if name != "token_classes"}
    with pytest.raises(ConfigError, match="needs token_classes"):
        artefact_statistics(any_model("bert"), [plain])


def test_a_text_of_one_token_has_no_pairs_and_no_nan_in_the_record():
    found = artefact_statistics(any_model("bert"), [batch((3,))])
    assert found.sites["block"][0].cosine["pairs"] is None
    assert "nan" not in str(content(found)).lower()


def test_bfloat16_is_measured_in_float32_with_or_without_native_support():
    found = artefact_statistics(tiny.tiny_model("bert").bfloat16(), [batch()])
    exact = artefact_statistics(tiny.tiny_model("bert"), [batch()])
    assert found.sites["block"][0].median == pytest.approx(exact.sites["block"][0].median, rel=0.02)


@pytest.mark.parametrize("changes", [{"absolute": 0.0}, {"mad_factor": -1.0}, {"dimension_share": 1.5}])
def test_impossible_thresholds_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ArtefactSettings(**changes)


def test_decoders_are_read_too_and_their_first_block_isnt_special():
    found = artefact_statistics(decoder("llama"), [batch()])
    assert found.special["sep"]["block"][0].tokens == 3
    assert SEP_ID == 3
