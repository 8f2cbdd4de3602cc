"""Noise: names, shares of words, what has to stay, and the same text for everyone who asks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regtune.errors import ConfigError, DataError, UnknownNameError
from regtune.noise import DISTRACTORS, KINDS, NAMES, Change, Noise, copy_id, noise_of, sentences_of, split_copy
from regtune.records import set_name

LONG = " ".join(f"When the Water rose, their boat {number} left for the Sea." for number in range(400))
POOL = [("other", f"Nobody knows number {number}.") for number in range(9)]

texts = st.text(st.sampled_from("aZéж ,.?!'-ü水\n\t") | st.characters(codec="utf-8"), max_size=60)
strengths = st.floats(0, 1)


said = st.lists(st.sampled_from(["Ada", "their", "it", "was.", "Here!", "elephants", "—"]), min_size=2, max_size=12)


@st.composite
def kept(draw):
    """A text with parts that have to stay: characters of any text, or whole words and sentences."""
    text = draw(texts.filter(bool) | said.map(" ".join))
    starts = [word.start() for word in re.finditer(r"\S+", text)] or [0]
    ends = [word.end() for word in re.finditer(r"\S+", text)] or [len(text)]
    spans = []
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.sampled_from(starts) | st.integers(0, len(text) - 1))
        end = draw(st.sampled_from(ends) | st.integers(start + 1, len(text)))
        spans.append((start, max(end, start + 1)))
    return text, spans


def changed(text, *, key="7", keep=(), seed=0, fields=(), **kinds):
    noise = Noise(strengths=tuple(kinds.items()), seed=seed, fields=fields)
    return Change(noise=noise, sentences={"text": POOL}, id=key)("text", text, keep)


@given(kept(), st.dictionaries(st.sampled_from(NAMES), strengths, min_size=1), st.sampled_from("abcdefgh"))
def test_what_has_to_stay_stays_and_its_place_is_known(case, kinds, key):
    text, spans = case
    try:
        new, found = changed(text, keep=spans, key=key, **kinds)
    except DataError:  # the text holds a whole sentence of the pool's, or the answer is in all of them
        return
    assert [new[start:end] for start, end in found] == [text[start:end] for start, end in spans]


@given(texts, st.sampled_from(NAMES))
def test_strength_0_is_the_identity(text, kind):
    assert changed(text, **{kind: 0.0})[0] == text


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_words_that_change_is_the_strength(kind, strength):
    text = LONG.replace("400", "x")
    text = " ".join(word for word in text.split() if not word.isdecimal())  # digits have neither case nor neighbours
    change = Change(noise=Noise(strengths=((kind, strength),)), id="1")
    change("text", text)
    assert change.seen[kind] == len(text.split())
    assert change.changed[kind] / change.seen[kind] == pytest.approx(strength, abs=0.03)
    assert f"{kind} changed {change.changed[kind]:,} of" in change.note


def test_the_share_of_sentences_that_get_another_one_is_the_strength():
    change = Change(noise=Noise(strengths=((DISTRACTORS, 0.3),)), sentences={"text": POOL}, id="1")
    new, _ = change("text", LONG)
    assert change.changed[DISTRACTORS] == new.count("Nobody knows") == pytest.approx(0.3 * 400, abs=25)
    assert [sentence for sentence in sentences_of(new) if "Nobody" not in sentence] == sentences_of(LONG)


@given(texts, st.sampled_from([kind for kind in KINDS if kind not in ("words", "speech")]), strengths, strengths)
def test_what_changes_at_one_strength_changes_at_every_higher_one(text, kind, one, other):
    low, high = sorted((one, other))
    before, less, more = text.split(), changed(text, **{kind: low})[0].split(), changed(text, **{kind: high})[0].split()
    for old, a, b in zip(before, less, more, strict=True):
        assert a in (old, b)


@given(kept(), st.dictionaries(st.sampled_from(NAMES), strengths, min_size=1), st.sampled_from("abcdefgh"))
def test_own_words_are_words_of_both_texts_in_order_and_without_noise_all_of_them(case, kinds, key):
    text, spans = case
    change = Change(noise=Noise(strengths=tuple(kinds.items())), sentences={"text": POOL}, id=key)
    try:
        new, _ = change("text", text, spans)
    except DataError:
        return
    own = [new[start:end] for start, end in change.own]
    assert [match.span() for match in re.finditer(r"\S+", new) if match.span() in change.own] == change.own
    before = iter(text.split())
    assert all(word in before for word in own)  # an iterator is used up: so they come in this order
    if not any(kinds.values()):
        assert own == text.split()


def test_a_word_that_one_kind_changes_and_another_changes_back_is_no_own_word():
    change = Change(noise=Noise(strengths=(("speech", 1.0), ("case", 1.0))), id="1")
    new, _ = change("text", "IT elephant")
    assert new.split()[-1] == "ELEPHANT"
    assert change.own == []
    twice = Change(noise=Noise(strengths=(("case", 1.0), ("case", 1.0))), id="1")
    assert twice("text", "word WORD")[0] == "word WORD"
    assert twice.own == []


@given(texts.filter(str.strip))
def test_a_word_is_left_when_all_are_to_be_dropped(text):
    assert len(changed(text, words=1.0)[0].split()) == 1


def test_the_seed_and_the_id_draw_the_changes_and_nothing_else_does():
    first = changed(LONG, keyboard=0.2)
    assert first == changed(LONG, keyboard=0.2)
    assert first != changed(LONG, keyboard=0.2, seed=1)
    assert first != changed(LONG, keyboard=0.2, key="8")


def test_the_changes_of_a_seed_are_the_same_in_every_version():
    assert changed("Where does the river end?", keyboard=0.5)[0] == "Where dods the rifer end?"


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("speech", "Their", {"there", "they're"}),
        ("speech", "(Elephants,", {f"{filler} elephants" for filler in ("um", "uh", "er", "well", "like")}),
        ("case", "word", {"WORD"}),
        ("case", "Word", {"word"}),
        ("punctuation", "don't,", {"dont"}),
        ("punctuation", "?", {"?" + sign for sign in ",.;:!?"}),
        ("keyboard", "G", {*"TYFHVB"}),
        ("keyboard", "水", {"水"}),
    ],
)
def test_each_kind_changes_a_word_its_own_way(kind, before, after):
    assert changed(before, **{kind: 1.0})[0] in after


def test_a_short_word_without_a_homophone_is_what_speech_loses():
    assert changed("It was a big elephant", speech=1.0)[0].split()[-1] == "elephant"
    assert "big" not in changed("It was a big elephant", speech=1.0)[0]


def test_sentences_that_hold_an_answer_are_not_put_in():
    text = "It was number 3. So they say."
    start = text.index("number 3")
    for identifier in "abcdefgh":
        new, ((a, b),) = changed(text, key=identifier, keep=[(start, start + 8)], distractors=1.0)
        assert new.count("number 3") == 1
        assert new[a:b] == "number 3"
        assert "Nobody" in new


def test_no_sentence_to_put_in_is_said():
    change = Change(noise=Noise(strengths=((DISTRACTORS, 1.0),)), sentences={"text": [("It is so.", "It is so.")]})
    with pytest.raises(DataError, match="another kind of noise"):
        change("text", "It is so.")


def test_a_field_that_is_not_asked_for_stays():
    assert changed(LONG, case=1.0, fields=("pair",))[0] == LONG


def test_a_name_says_kinds_strengths_fields_and_seed():
    noise, plain = noise_of("noise:keyboard=0.1,distractors=1,in=question+context,seed=3:squad:dev")
    assert plain == "squad:dev"
    assert noise == Noise(strengths=(("distractors", 1.0), ("keyboard", 0.1)), fields=("question", "context"), seed=3)
    assert noise_of("xquad:en") == (None, "xquad:en")


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("noise:keybord=0.1:a.json", UnknownNameError, "keyboard"),
        ("noise:keyboard=1.1:a.json", ConfigError, "from 0 to 1"),
        ("noise:keyboard=nan:a.json", ConfigError, "from 0 to 1"),
        ("noise:keyboard=much:a.json", ConfigError, "from 0 to 1"),
        ("noise:keyboard:a.json", ConfigError, "keyboard=VALUE"),
        ("noise:case=1,case=1:a.json", ConfigError, "once"),
        ("noise:case=1,seed=x:a.json", ConfigError, "whole number"),
        ("noise:case=1", ConfigError, "must be written"),
        ("noise:case=1:noise:words=1:a.json", ConfigError, "all kinds in one"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_to_write(name, error, says):
    with pytest.raises(error, match=says):
        noise_of(name)


def test_records_keep_noise_and_set_apart_by_name():
    assert set_name("noise:keyboard=0.1:../data/xquad.en.json.gz") == "xquad.en-keyboard-0.1"
    assert set_name("noise:case=1,in=question:xquad:en") == "xquad-en-case-1-in-question"


def test_a_perturbed_copy_belongs_to_its_example():
    assert split_copy(copy_id("q1", "noise:case=1:a.json")) == split_copy("q1") == "q1"
