"""Comprehensiveness, sufficiency and deletion curves, on models whose right answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.attribution.bag_of_words import (
    CLS,
    FIRST_WORD,
    MASK,
    PAD,
    SEP,
    BagOfWords,
    batch_of,
    oracle,
    random_scores,
)
from analyses.attribution.explained import encoder
from regtune.analyses.faithfulness.model import PerturbedModel, perturbable_texts, perturbed
from regtune.analyses.faithfulness.orders import (
    ERASER_FRACTIONS,
    Grid,
    count_of,
    measure_orders,
    order_of,
    orders_of,
)
from regtune.analyses.inspection import settings_of_parts
from regtune.errors import ConfigError, UnknownNameError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.rows.targets import ClassLogit
from regtune.rows.texts import text_rows
from regtune.session import Session
from regtune.tasks.qa.task import QASettings, QuestionAnswering
from tiny_tokenizer import examples, tiny_tokenizer

WEIGHTS = np.random.default_rng(0).normal(size=40)
TEXTS = [list(np.random.default_rng([1, row]).permutation(40)[: 12 + row]) for row in range(8)]
HOWS = ["mask", "remove"]


def scorer_of(model, batches, *, how="mask", mask=MASK, **options):
    texts = perturbable_texts(model, batches)
    return PerturbedModel(model, texts, how=how, mask_token_id=mask, pad_token_id=PAD, **options)


def bag(**changes):
    return BagOfWords(WEIGHTS, **changes).eval()


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_only_content_may_go():
    (text,) = perturbable_texts(bag(), [batch_of([5, 6, 7])])
    assert text.features.tolist() == [1, 2, 3]
    assert text.target == ClassLogit(label=text.label, minus=1 - text.label)


def test_a_text_without_content_is_left_out():
    batch = batch_of([5, 6], [7])
    batch["token_classes"][1, 1] = 1
    (first,) = perturbable_texts(bag(), [batch])
    assert first.place == (0, 0)


@given(st.integers(1, 12), st.integers(0, 2**12 - 1), st.sampled_from(HOWS))
@settings(deadline=None)
def test_special_tokens_are_never_touched(size, which, how):
    (text,) = perturbable_texts(bag(), [batch_of(list(range(size)))])
    gone = np.array([bool(which >> place & 1) for place in range(size)])
    copy = perturbed(text, gone, how, MASK)
    ids = copy.input_ids.tolist()
    kept = [FIRST_WORD + word for word in range(size) if not gone[word]]
    assert (ids[0], ids[-1]) == (CLS, SEP)
    if how == "remove":
        assert ids[1:-1] == kept
    else:
        assert [word for word in ids[1:-1] if word != MASK] == kept
        assert len(ids) == size + 2


@pytest.mark.parametrize("how", HOWS)
def test_comprehensiveness_and_sufficiency_are_their_definitions(how):
    model, words = bag(), TEXTS[3]
    scorer = scorer_of(model, [batch_of(words)], how=how)
    (text,) = scorer.texts
    scores = random_scores([text])[0]
    found = measure_orders(scorer, orders_of([scores], seed=0)).values
    sign = 1 if text.label == 1 else -1
    weights = [sign * WEIGHTS[word] for word in words]
    ranked = sorted(range(len(words)), key=lambda place: -scores[place])
    whole, without, alone = sigmoid(sum(weights)), [], []
    for fraction in (0.01, 0.05, 0.1, 0.2, 0.5):
        top = ranked[: math.ceil(round(fraction * len(words), 9))]
        alone.append(sigmoid(sum(weights[place] for place in top)))
        without.append(sigmoid(sum(weights[place] for place in ranked if place not in top)))
    assert found["comprehensiveness"][0] == pytest.approx(whole - np.mean(without), abs=1e-12)
    assert found["sufficiency"][0] == pytest.approx(whole - np.mean(alone), abs=1e-12)


def test_the_right_explanation_beats_random_ones_everywhere():
    model = bag()
    scorer = scorer_of(model, [batch_of(*TEXTS)])
    right = measure_orders(scorer, orders_of(oracle(model, scorer.texts), seed=0)).values
    for seed in range(5):
        other = measure_orders(scorer, orders_of(random_scores(scorer.texts, seed), seed=0)).values
        for metric, sign in (("comprehensiveness", 1), ("sufficiency", -1), ("deletion", 1), ("deletion-lerf", -1)):
            assert (sign * right[metric] >= sign * other[metric] - 1e-12).all()
            assert sign * right[metric].mean() > sign * other[metric].mean() + 0.02


def test_curves_begin_with_the_whole_text_and_end_without_it():
    scorer = scorer_of(bag(), [batch_of(*TEXTS)])
    found = measure_orders(scorer, orders_of(random_scores(scorer.texts), seed=0))
    nothing = [(place, np.zeros(len(text.features), dtype=bool)) for place, text in enumerate(scorer.texts)]
    for curve in (found.morf, found.lerf):
        assert np.array_equal(curve[:, 0], scorer.probabilities(nothing))
        assert curve[:, -1] == pytest.approx(0.5)


def test_curves_fall_where_every_word_speaks_for_the_prediction():
    model = BagOfWords(np.abs(WEIGHTS)).eval()
    scorer = scorer_of(model, [batch_of(*TEXTS)])
    found = measure_orders(scorer, orders_of(oracle(model, scorer.texts), seed=0))
    assert (np.diff(found.morf, axis=1) <= 0).all()
    assert (np.diff(found.lerf, axis=1) <= 0).all()
    assert (found.morf <= found.lerf + 1e-12).all()


def test_insertion_is_deletion_backwards():
    scorer = scorer_of(bag(), [batch_of(TEXTS[0][:10])])
    (order,) = orders_of(random_scores(scorer.texts), seed=0)
    found = measure_orders(scorer, [order]).lerf[0, ::-1]
    for place, kept in enumerate(range(11)):
        gone = np.ones(10, dtype=bool)
        gone[order[:kept]] = False
        assert found[place] == scorer.probabilities([(0, gone)])[0]


@pytest.mark.parametrize("how", HOWS)
def test_batches_change_nothing_and_equal_sets_run_once(how):
    random = np.random.default_rng(0)
    asked = [(row, random.random(len(TEXTS[row])) < 0.5) for row in random.integers(0, 8, 40).tolist()]
    one = scorer_of(bag(), [batch_of(*TEXTS)], how=how, batch_tokens=1)
    many = scorer_of(bag(), [batch_of(*TEXTS)], how=how, batch_tokens=10_000)
    assert one.probabilities(asked) == pytest.approx(many.probabilities(asked), abs=1e-14)
    assert one.forwarded == many.forwarded == len({(row, gone.tobytes()) for row, gone in asked})
    many.probabilities(asked + asked)
    assert many.forwarded == one.forwarded
    assert len(many.model.seen) == 2  # one for the predictions, one for all copies
    assert len(one.model.seen) == 1 + one.forwarded


def test_more_texts_than_a_batch_holds_share_it_by_length():
    scorer = scorer_of(bag(), [batch_of(*TEXTS)], how="remove", batch_tokens=64)
    scorer.probabilities([(row, np.arange(len(TEXTS[row])) < row) for row in range(8)])
    assert max(ids.numel() for ids in scorer.model.seen[1:]) <= 64


def test_ties_are_broken_by_chance_and_repeatably():
    flat = np.zeros(50)
    first, second = (order_of(flat, np.random.default_rng(seed)) for seed in (0, 1))
    assert sorted(first) == list(range(50))
    assert not np.array_equal(first, np.arange(50))
    assert not np.array_equal(first, second)
    assert np.array_equal(orders_of([flat], seed=3)[0], orders_of([flat, flat], seed=3)[0])
    assert order_of(np.array([1.0, 3.0, 2.0]), np.random.default_rng(0)).tolist() == [1, 2, 0]


@given(st.integers(1, 400))
@settings(max_examples=50, deadline=None)
def test_every_fraction_takes_at_least_one_token_and_never_one_too_many(features):
    counts = [count_of(fraction, features) for fraction in ERASER_FRACTIONS]
    exact = [-(-percent * features // 100) for percent in (1, 5, 10, 20, 50)]
    assert counts == exact
    assert min(counts) >= 1


# Real architectures


def classifier_batches():
    texts = ["the cat is in the house", "who was in the house?", "cat"]
    session = Session(name="m", model=None, reader=tiny_tokenizer())
    return session.batches(text_rows(texts, session.reader, max_length=64), batch_size=2)


def question_batches(model, questions, tokenizer, batch_size=16):
    session = Session(name="m", model=model, reader=tokenizer, task=QuestionAnswering(), task_settings=QASettings())
    rows = session.rows(Examples(items=tuple(questions), names=("made up",)))
    return session.batches(rows.one_each(), batch_size=batch_size)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("registers", [0, 3])
def test_a_classifier_with_registers_gives_what_it_gives_alone(how, registers):
    model, tokenizer = encoder("bert", "sequence-classification", num_registers=registers), tiny_tokenizer()
    scorer = scorer_of(model, classifier_batches(), how=how, mask=tokenizer.mask_token_id)
    for index, text in enumerate(scorer.texts):
        gone = np.zeros(len(text.features), dtype=bool)
        gone[::2] = True
        ids = torch.tensor(text.input_ids)
        if how == "mask":
            ids[text.features[gone]] = tokenizer.mask_token_id
        else:
            ids = ids[~torch.isin(torch.arange(len(ids)), torch.tensor(text.features[gone]))]
        with torch.no_grad():
            alone = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits.softmax(-1)
        assert scorer.probabilities([(index, gone)])[0] == pytest.approx(float(alone[0, text.label]), abs=1e-10)


@pytest.mark.parametrize("how", HOWS)
def test_an_answer_keeps_its_tokens_and_its_place(how):
    model, tokenizer, questions = encoder("bert", num_registers=2), tiny_tokenizer(), examples(3)
    batches = question_batches(model, questions, tokenizer, batch_size=2)
    for batch in batches:
        places = torch.arange(batch["input_ids"].shape[1])[None, :]
        batch["token_type_ids"] = (places >= batch["context_start"][:, None]).long()
    scorer = scorer_of(model, batches, how=how, mask=tokenizer.mask_token_id)
    for index, text in enumerate(scorer.texts):
        start, end = text.span
        special = np.isin(text.input_ids, tokenizer.all_special_ids) & (text.input_ids != tokenizer.unk_token_id)
        assert set(text.features) == set(np.flatnonzero(~special)) - set(range(start, end + 1))
        gone = np.ones(len(text.features), dtype=bool)
        copy = perturbed(text, gone, how, tokenizer.mask_token_id)
        first, last = copy.span
        assert copy.input_ids[first : last + 1].tolist() == text.input_ids[start : end + 1].tolist()
        ids, types = (torch.tensor(value)[None] for value in (copy.input_ids, copy.token_type_ids))
        with torch.no_grad():
            out = model(input_ids=ids, token_type_ids=types, attention_mask=torch.ones_like(ids))
        alone = out.start_logits.softmax(-1)[0, first] * out.end_logits.softmax(-1)[0, last]
        assert scorer.probabilities([(index, gone)])[0] == pytest.approx(float(alone), abs=1e-10)


def test_the_watched_answer_lies_in_the_context():
    model, tokenizer = encoder("bert"), tiny_tokenizer()
    (batch,) = question_batches(model, examples(4), tokenizer)
    for text in perturbable_texts(model, [batch]):
        row = batch["example"].tolist().index(text.example)
        assert batch["context_start"][row] <= text.span[0] <= text.span[1] < batch["context_end"][row]
        assert (text.target.start, text.target.end) == text.span


# Bad input


def test_training_mode_is_refused():
    model = bag()
    texts = perturbable_texts(model, [batch_of([1, 2])])
    model.train()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        perturbable_texts(model, [batch_of([1, 2])])
    with pytest.raises(UnsupportedModelError, match="training mode"):
        PerturbedModel(model, texts, mask_token_id=MASK)


def test_a_model_without_classes_or_answers_is_refused():
    model = encoder("bert", "token-classification")
    with pytest.raises(UnsupportedModelError, match=r"logits \[.*class probabilities"):
        perturbable_texts(model, classifier_batches())


def test_impossible_settings_are_refused():
    model = bag()
    texts = perturbable_texts(model, [batch_of([1, 2, 3])])
    with pytest.raises(UnknownNameError, match="Did you mean 'remove'"):
        settings_of_parts(("faithfulness",), {"faithfulness": {"how": "removed"}})
    with pytest.raises(ConfigError, match="needs mask_token_id"):
        PerturbedModel(model, texts, how="mask")
    with pytest.raises(ConfigError, match="batch_tokens=0"):
        settings_of_parts(("faithfulness",), {"faithfulness": {"batch_tokens": 0}})
    with pytest.raises(ConfigError, match=r"fractions=\(0\.0,\)"):
        Grid(fractions=(0.0,))
    with pytest.raises(ConfigError, match="must rise from 0 to 1"):
        Grid(curve=(0.0, 0.5, 0.4, 1.0))
    with pytest.raises(ConfigError, match="nan is no number"):
        orders_of([np.array([0.0, np.nan])], seed=0)
