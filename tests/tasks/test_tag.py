"""Tags of words: files of every kind, one scheme inside, spans by the strict rule, words lost and counted."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import regtune
from regtune.analyses.attribution.explain import explain
from regtune.analyses.outcomes import attributions
from regtune.errors import ConfigError, DataError
from regtune.interfaces import Examples
from regtune.tasks.tag import SPAN_F1, WORD_ACCURACY, Sentence, Tagging, TagPrediction, TagSettings, first_pieces, spans
from tiny_tokenizer import save_tiny

TASK = Tagging()
WORDS, TAGS = ("Ada", "lives", "in", "New", "York", "."), ("B-PER", "O", "O", "B-LOC", "I-LOC", "O")


def read(path, text=None, *, limit=None, **settings):
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return TASK.read([str(path)], TagSettings(**settings), limit=limit)


def said(found):
    return [(tuple(item.text[start:end] for start, end in item.words), item.tags) for item in found.items]


def columns(words=WORDS, tags=TAGS, between="\t"):
    return "".join(f"{word}{between}{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"


# Files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.conll", columns()),
        ("a.txt", columns(between=" ").replace("\n", "\r\n")),
        ("a.tsv", "-DOCSTART-\tO\n\n" + columns() + "\t\n"),
        ("a.jsonl", json.dumps({"tokens": WORDS, "ner_tags": TAGS}) + "\n"),
        ("a.json", json.dumps([{"words": WORDS, "tags": TAGS}])),
        ("a.conll", "".join(f"{word} NNP x {tag}\n" for word, tag in zip(WORDS, TAGS, strict=True))),
    ],
)
def test_a_tagged_file_of_any_kind_is_read(tmp_path, name, text):
    assert said(read(tmp_path / name, text)) == [(WORDS, TAGS)]


def test_a_packed_file_in_latin_1_is_read(tmp_path):
    (tmp_path / "a.conll.gz").write_bytes(gzip.compress("é\tB-X\n".encode("latin-1")))
    assert said(read(tmp_path / "a.conll.gz")) == [(("é",), ("B-X",))]
    with pytest.raises(DataError, match=r"is not ascii text.*--settings\.encoding"):
        read(tmp_path / "a.conll.gz", encoding="ascii")


def test_columns_are_chosen_by_number_or_name(tmp_path):
    rows = "From\tADP\tIN\nAda\tPROPN\tNNP\n\nGo\tVERB\tVB\n"
    found = read(tmp_path / "a.tsv", rows, tag_column="1")
    assert said(found) == [(("From", "Ada"), ("ADP", "PROPN")), (("Go",), ("VERB",))]
    assert [item.tags for item in read(tmp_path / "a.tsv").items] == [("IN", "NNP"), ("VB",)]
    record = {"tokens": ["no"], "form": ["Ada"], "tags": ["no"], "who": [1]}
    named = {"token_column": "form", "tag_column": "who", "label_names": ("O", "PER")}
    assert said(read(tmp_path / "b.jsonl", json.dumps(record), **named)) == [(("Ada",), ("PER",))]
    with pytest.raises(ConfigError, match=r"columns without names, so --settings\.tag-column upos names none"):
        read(tmp_path / "a.tsv", tag_column="upos")


def test_of_universal_dependencies_words_and_their_parts_of_speech_are_read(tmp_path):
    rest = "\t_" * 6
    rows = [("1-2", "don't", "_", "_"), ("1", "do", "do", "AUX"), ("2", "n't", "not", "PART"), ("2.1", "go", "go", "X")]
    text = "# sent_id = 1\n" + "".join("\t".join(row) + rest + "\n" for row in rows)
    assert said(read(tmp_path / "a.conllu", text)) == [(("do", "n't"), ("AUX", "PART"))]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.conll", "", r"a\.conll is empty"),
        ("a.conll", "a\tO\n\nAda\n", r"a\.conll, line 3: 'Ada' has 1 column; a word \(column 0\) and its tag"),
        ("a.conll", "a\tO\nAda\t\n", r"line 1: the tag is ''"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', r"record 1: words: 2, tags: 1; give a list with one"),
        ("a.jsonl", '{"tokens": ["a"]}', r"no column is called like a tag .*--settings\.tag-column"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', r"the tag is None"),
        ("a.jsonl", '{"tokens": ["a"], "tags": "O"}', r"words: 1, tags: 'O'"),
        ("a.jsonl", '{"tokens": "a b", "tags": ["O", "O"]}', r"the words are 'a b'; a list of words is needed"),
        ("a.jsonl", '{"tokens": [], "tags": []}', r"the words are \[\]"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, name, text, told):
    with pytest.raises(DataError, match=told):
        read(tmp_path / name, text)


def test_bad_sentences_can_be_left_out_and_are_counted(tmp_path):
    found = read(tmp_path / "a.conll", columns() + "Ada\n\n" + columns(), on_bad_record="skip")
    assert (len(found), found.facts["left_out"]) == (2, 1)
    assert found.notes[0].startswith("1 of 3 sentences were left out, the first: ")


@pytest.mark.parametrize(
    ("tags", "bio", "note"),
    [
        ("I-A I-A B-A O I-B", "B-A I-A B-A O B-B", "2 tags I- that begin an entity (IOB1) were read as B-."),
        ("S-A B-A I-A E-A O", "B-A B-A I-A I-A O", "2 tags of another scheme (IOBES, BILOU) were read as BIO."),
        ("U-A B-A L-A U-B O", "B-A B-A I-A B-B O", "3 tags of another scheme (IOBES, BILOU) were read as BIO."),
        ("B-A I-A O B-A B-B", "B-A I-A O B-A B-B", None),
        ("B-A I-B O O O", "B-A B-B O O O", "1 tags I- that begin an entity (IOB1) were read as B-."),
        ("S-X NN O O O", "S-X NN O O O", None),
    ],
)
def test_entities_of_any_scheme_become_bio_and_it_is_said(tmp_path, tags, bio, note):
    found = read(tmp_path / "a.conll", columns("abcde", tags.split()))
    assert found.items[0].tags == tuple(bio.split())
    assert found.notes == ((note,) if note else ())


def test_the_tags_of_the_model_come_from_the_training_data(tmp_path):
    found = read(tmp_path / "a.conll", columns())
    assert list(TASK.prepare(found, TagSettings())["label2id"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    speech = read(tmp_path / "b.conll", columns("ab", ("NOUN", "ADJ")))
    assert list(TASK.prepare(speech, TagSettings())["label2id"]) == ["ADJ", "NOUN"]
    with pytest.raises(DataError, match="have 1 label"):
        TASK.prepare(read(tmp_path / "c.conll", columns("ab", "OO")), TagSettings())


# Scores


def scored(gold, said):
    pairs = list(zip(gold, said, strict=True))
    items = tuple(Sentence(id=str(i), text="", words=(), tags=tuple(gold)) for i, (gold, _) in enumerate(pairs))
    found = [TagPrediction(id=str(i), tags=tuple(tags), spans=()) for i, (_, tags) in enumerate(pairs)]
    return TASK.score(found, Examples(items=items, names=("x",))), (found, Examples(items=items, names=("x",)))


def test_the_scores_are_those_of_known_answers():
    """The example of seqeval's page, and its strict mode: an I- after O, or of another type, begins nothing."""
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    columns_, both = scored(gold, said)
    assert SPAN_F1.of(columns_) == pytest.approx(0.5)
    assert TASK.figures(*both) == pytest.approx({"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.8})
    for tags, expected in (
        ("O I-PER O", set()),
        ("B-PER I-LOC O", {("PER", 0, 1)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("B-PER O I-PER", {("PER", 0, 1)}),
        ("I-PER I-PER B-PER I-PER", {("PER", 2, 4)}),
        ("B-a-b I-a-b I-b", {("a-b", 0, 2)}),
    ):
        assert spans(tags.split()) == expected, tags


def reference(tags):
    """Entities, looked for at every pair of ends."""
    found = set()
    for first in range(len(tags)):
        for behind in range(first + 1, len(tags) + 1):
            kind = (tags[first] or "O")[2:]
            inside = tags[first] == f"B-{kind}" and all(tag == f"I-{kind}" for tag in tags[first + 1 : behind])
            if inside and (behind == len(tags) or tags[behind] != f"I-{kind}"):
                found.add((kind, first, behind))
    return found


SOME_TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]
WORDS_TAGGED_TWICE = st.lists(st.tuples(st.sampled_from(SOME_TAGS), st.sampled_from([*SOME_TAGS, None])), min_size=1)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORDS_TAGGED_TWICE, min_size=1, max_size=4))
def test_the_scores_are_those_of_every_pair_of_ends(sentences):
    pairs = [tuple(zip(*words, strict=True)) for words in sentences]
    both = [(reference(g), reference(s)) for g, s in pairs]
    assert [(spans(g), spans(s)) for g, s in pairs] == both
    found = scored(*zip(*pairs, strict=True))[0]
    right, gold, given_ = (sum(map(len, sets)) for sets in zip(*((g & s, g, s) for g, s in both), strict=True))
    assert SPAN_F1.of(found) == pytest.approx(2 * right / (gold + given_) if gold + given_ else 0.0)
    words = [one == other for g, s in pairs for one, other in zip(g, s, strict=True)]
    assert WORD_ACCURACY.of(found) == pytest.approx(np.mean(words))


@given(st.lists(st.tuples(*[st.sampled_from(["NOUN", "VERB", "ADJ"])] * 2), min_size=1, max_size=9))
def test_the_span_f1_of_parts_of_speech_is_their_accuracy(words):
    gold, said = zip(*words, strict=True)
    found = scored([gold], [said])[0]
    assert SPAN_F1.of(found) == pytest.approx(WORD_ACCURACY.of(found))


# Words and tokens


def test_a_token_belongs_to_the_word_of_its_last_character():
    words = ((0, 3), (4, 8), (9, 9), (9, 10))
    tokens = [(0, 0), (0, 2), (2, 3), (3, 6), (6, 8), (8, 9), (8, 10), (0, 0)]
    assert first_pieces(words, np.array(tokens)).tolist() == [1, 3, -1, 6]
    assert first_pieces(((0, 3), (4, 8)), np.array([(0, 0), (0, 3)])).tolist() == [1, -1]


NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    labels = {"id2label": NAMES, "label2id": {name: n for n, name in NAMES.items()}, "num_labels": 3}
    return regtune.open(save_tiny(tmp_path_factory.mktemp("tags"), head="token-classification", **labels))


def test_the_first_piece_of_a_word_is_learnt_and_nothing_else(tmp_path, session):
    found = read(tmp_path / "a.conll", columns(("the", "bob", "cat"), ("O", "B-PER", "O")))
    rows = session.rows(found)
    pieces = session.reader.convert_ids_to_tokens(rows.rows[0].input_ids.tolist())
    assert pieces == ["[CLS]", "the", "b", "##o", "##b", "cat", "[SEP]"]
    batch = rows.batch([0], pad_to=9)
    assert batch["labels"].tolist() == [[-100, 0, 1, -100, -100, 0, -100, -100, -100]]
    assert session.forward(batch, labels=True).loss > 0


def test_words_that_are_not_read_count_as_wrong_and_are_counted_aloud(tmp_path, session):
    words = ("the", "\u200b", *["cat"] * 70)
    found = read(tmp_path / "a.jsonl", json.dumps({"tokens": words, "tags": ["B-PER"] * 72}))
    rows = session.rows(found)
    assert rows.lengths == [66]  # the tiny model's positions
    assert rows.notes == (
        "8 of 72 words, in 1 of 1 sentences, are not read (data.max_length=66, or the tokenizer makes nothing of them)"
        ", and count as wrong.",
    )
    (said,) = session.predict(found, rows)
    assert said.tags[1] is None
    assert said.tags[-7:] == (None,) * 7
    alike = TagPrediction(id="", tags=tuple("B-PER" if tag else None for tag in said.tags), spans=())
    scores = TASK.score([alike], found)
    assert {name: value.tolist() for name, value in scores.items()} == {
        "tp": [64.0], "fp": [0.0], "fn": [8.0], "right": [64.0], "words": [72.0],
    }  # fmt: skip
    assert "nothing is learnt of them" in session.rows(found, training=True).notes[0]


def test_tags_outside_the_models_and_sentences_without_tags_are_refused(tmp_path, session):
    found = read(tmp_path / "a.conll", columns("ab", ("O", "B-DOG")))
    with pytest.raises(DataError, match=r"A word of a\.conll:1 has the label 'B-DOG', which the model doesn't know"):
        session.rows(found)
    bare = Examples(items=(TASK.example({"text": "the cat"}, TagSettings()),), names=("x",))
    with pytest.raises(DataError, match="0 has no label"):
        session.rows(bare, training=True)


def test_a_text_is_cut_into_words_and_what_is_marked_has_its_place(session):
    text = "Ada (who 'lives' in U.S. cities) don't, @bob!"
    item = TASK.example({"text": text}, TagSettings())
    words = [text[start:end] for start, end in item.words]
    assert " ".join(words) == "Ada ( who ' lives ' in U.S . cities ) don't , @ bob !"
    (said,) = session.predict(Examples(items=(item,), names=("x",)))
    assert len(said.tags) == len(words)
    for span in said.to_json()["spans"]:
        assert text[span["start"] : span["end"]] == span["text"]
    assert TASK.example({"tokens": ["a b", "c"]}, TagSettings()).words == ((0, 3), (4, 5))


def test_few_tags_are_explained_and_the_others_named(session):
    text = "the cat lives in the house in the house"
    shown = TASK.shown(session.rows(examples := one(text)), examples, session)
    assert len(shown.default) <= 5
    assert len(shown.targets) == len(shown.targets | dict.fromkeys(shown.default))
    if len(shown.targets) > 5:
        assert f"Explained are 5 of {len(shown.targets)} tags" in shown.notes[-1]
    found = explain(session, text, method="gradient-input")
    assert [each.asked for each in found.attributions] == list(shown.default)


def one(text):
    return Examples(items=(TASK.example({"text": text}, TagSettings()),), names=("x",))


def test_where_nobody_names_a_tag_the_surest_that_is_not_o_is_explained(tmp_path, session):
    found = read(tmp_path / "a.conll", columns(("the", "bob", "cat"), ("O", "B-PER", "O")))
    (batch,) = session.batches(session.rows(found))
    with torch.no_grad():
        shares = session.forward(batch).logits[0].log_softmax(-1)
    marked = [place for place in range(1, 6) if int(shares[place].argmax())] or list(range(1, 6))
    best = max(marked, key=lambda place: float(shares[place].max()))
    (one_,) = attributions(session, batch, "gradient-input", [])
    assert one_.read_from == (best,)
    assert one_.target == f"tag {NAMES[int(shares[best].argmax())]} of token {best}"


def test_tags_of_which_some_say_where_an_entity_begins_are_said(tmp_path):
    found = read(tmp_path / "a.conll", "Ada B-PER\nbuilt O\n\nBob PER\nran O\n")
    assert [item.tags for item in found.items] == [("B-PER", "O"), ("PER", "O")]
    (note,) = found.notes
    assert "(B-PER) and some don't (PER)" in note
    assert read(tmp_path / "b.conll", "Ada PER\nbuilt O\n").notes == ()  # a type a word is a scheme of its own
    assert read(tmp_path / "c.conll", "Ada PRP\nbuilt M-X\n").notes == ()
