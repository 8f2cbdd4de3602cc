"""Probes find what is there, nothing where there is nothing, and say so where there is too little."""

import sys

import numpy as np
import pytest

from analyses.artefacts.artefact_inputs import batch, plant, quiet_model
from analyses.attribution.explained import any_model
from regtune.analyses.artefacts.probes import (
    LEAST_TOKENS,
    PARTS,
    TokenStates,
    held_out_hits,
    probe_tokens,
    token_states,
)
from regtune.errors import ConfigError, MissingExtraError, UnknownNameError

TEXTS, EACH, HIDDEN = 20, 40, 16


def made_up(*, token_shown=(), text_shown=(), outliers=200, seed=0):
    """Tokens of 20 texts; outlier and ordinary ones show their id or their text in their state, or don't."""
    random = np.random.default_rng(seed)
    count = TEXTS * EACH
    token, example = random.integers(0, 5, count), np.repeat(np.arange(TEXTS), EACH)
    outlier = np.zeros(count, dtype=bool)
    outlier[random.permutation(count)[:outliers]] = True
    states = random.normal(size=(count, HIDDEN))
    codes = random.normal(size=(max(5, TEXTS), HIDDEN)) * 4
    for kind, of_kind in (("outlier", outlier), ("ordinary", ~outlier)):
        if kind in token_shown:
            states[of_kind] += codes[token[of_kind]]
        if kind in text_shown:
            states[of_kind] += codes[example[of_kind] % 4]
    return TokenStates(
        states=states.astype(np.float32),
        norms=np.linalg.norm(states, axis=1).astype(np.float32),
        token=token,
        part=np.tile(np.arange(EACH) * PARTS // EACH, TEXTS),
        pixels=np.zeros((count, 0), dtype=np.float32),
        likeness=np.full(count, np.nan, dtype=np.float32),
        example=example,
        outlier=outlier,
    )


def probes(tokens, **options):
    return {(probe.information, probe.tokens): probe for probe in probe_tokens(tokens, resamples=200, **options)}


def test_what_a_token_shows_is_found_and_what_it_hides_is_not():
    labels = {"article": [text % 4 for text in range(TEXTS)]}
    found = probes(made_up(token_shown=["ordinary"], text_shown=["outlier"]), labels=labels)
    assert found["token", "ordinary"].accuracy > 0.9
    assert found["article", "outlier"].accuracy > 0.9
    for information, kind in (("token", "outlier"), ("article", "ordinary"), ("part", "outlier"), ("part", "ordinary")):
        probe = found[information, kind]
        assert probe.accuracy == pytest.approx(1 / probe.classes, abs=0.15)
        assert probe.low < probe.chance + 0.1
    for probe in found.values():
        assert probe.low <= probe.accuracy <= probe.high
        assert probe.held_out == "texts"


def test_both_kinds_get_equally_many_tokens():
    found = probes(made_up(outliers=150))
    assert found["token", "outlier"].count == pytest.approx(found["token", "ordinary"].count, abs=5)


def test_too_few_outliers_give_a_reason_and_no_number():
    found = probes(made_up(outliers=9))
    probe = found["token", "outlier"]
    assert probe.accuracy is None
    assert f"{LEAST_TOKENS} tokens in 2 classes are needed" in probe.reason
    assert probe.reason.startswith("0 outlier tokens"), "classes that occur too rarely don't count"
    assert found["token", "ordinary"].count <= LEAST_TOKENS


def test_no_outlier_at_all_is_told_as_well():
    assert probes(made_up(outliers=0))["part", "outlier"].accuracy is None


def test_texts_are_not_parted_by_folds_where_the_label_crosses_them():
    """Each text has a code of its own that would give its random label away, if a fold held some of its tokens."""
    random = np.random.default_rng(1)
    example = np.repeat(np.arange(40), 10)
    label = random.integers(0, 2, 40)[example]
    states = (random.normal(size=(40, 64)) * 5)[example] + random.normal(size=(400, 64))
    assert held_out_hits(states, label, None).mean() > 0.9
    assert held_out_hits(states, label, example).mean() < 0.75


def test_where_the_label_is_the_text_other_tokens_of_it_are_held_out():
    found = probes(made_up(text_shown=["outlier"], outliers=400), labels={"text": list(range(TEXTS))})
    assert found["text", "outlier"].held_out == "tokens"


def test_a_passage_read_with_several_questions_counts_once():
    whole = probes(made_up())["part", "ordinary"]
    halves = probes(made_up(outliers=300), texts=[text // 2 for text in range(TEXTS)])["part", "ordinary"]
    assert whole.count == 200
    assert halves.count < 200


def test_tokens_are_read_where_they_were_asked_for():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[0, 3].mul_(500.0))
    given = batch(pad=3)
    found = token_states(model, [given], layer=1, site="feed_forward", norm_above=20.0)
    assert found.outlier.sum() == 1
    which = int(found.outlier.argmax())
    assert found.example[which] == 0
    assert found.token[which] == given["input_ids"][0, 3]
    assert len(found.states) == 33
    assert found.norms[which] == pytest.approx(np.linalg.norm(found.states[which]), rel=1e-5)
    fewer = token_states(model, [given], layer=1, site="feed_forward", norm_above=20.0, most_ordinary=5)
    assert (len(fewer.states), fewer.outlier.sum()) == (6, 1)


def test_registers_are_no_tokens_and_ids_stay_with_their_states():
    given = batch(pad=3)
    found = token_states(any_model("bert", 3), [given], layer=2, site="block", norm_above=1e9)
    assert len(found.token) == 33
    assert found.token.tolist() == given["input_ids"][given["token_classes"] >= 2].tolist()


def test_the_part_of_a_text_is_counted_over_its_content():
    found = token_states(any_model("bert"), [batch((10,))], layer=0, norm_above=1e9)
    assert found.part.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_bad_places_are_refused():
    with pytest.raises(ConfigError, match=r"no layer 9.*has 3"):
        token_states(any_model("bert"), [batch()], layer=9, norm_above=1.0)
    with pytest.raises(UnknownNameError, match="feed_forward"):
        token_states(any_model("bert"), [batch()], layer=0, site="feedforward", norm_above=1.0)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"regtune\[analysis\]"):
        probe_tokens(made_up())
