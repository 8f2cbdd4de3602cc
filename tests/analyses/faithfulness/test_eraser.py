"""ERASER's format: evidence that is where it says it is, or an error that says where it isn't."""

import copy
import gzip
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.analyses.faithfulness.rationales import _joined, read_rationales
from regtune.errors import DataError

REAL = Path(__file__).parents[4] / "shared" / "data" / "eraser-movies"
TEXT = "a film that is\nfar too  long , but funny ."
EVIDENCE = {"docid": "one", "start_token": 4, "end_token": 7, "text": "far too long"}
RECORD = {"annotation_id": "one", "classification": "NEG", "query": "?", "evidences": [[EVIDENCE]]}


def folder_of(path, *records, docs=({"docid": "one", "text": TEXT},), packed=False):
    path.mkdir(exist_ok=True)
    for name, rows in (("docs", docs), ("test", records)):
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = path / f"{name}.jsonl{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(raw) if packed else raw)
    return path


def evidence(**changes):
    record = copy.deepcopy(RECORD)
    record["evidences"][0][0] |= changes
    return record


@pytest.mark.parametrize("packed", [False, True])
def test_evidence_becomes_characters_of_the_document(tmp_path, packed):
    (found,) = read_rationales(folder_of(tmp_path, RECORD, packed=packed))
    assert (found.id, found.label, found.text) == ("one", "NEG", TEXT)
    assert [found.text[start:end] for start, end in found.spans] == ["far too  long"]


def test_evidence_of_no_word_marks_nothing(tmp_path):
    (found,) = read_rationales(folder_of(tmp_path, evidence(start_token=11, end_token=11, text="")))
    assert found.spans == ()


def test_overlapping_evidence_is_joined(tmp_path):
    record = copy.deepcopy(RECORD)
    record["evidences"].append([{"docid": "one", "start_token": 5, "end_token": 9, "text": "too long , but"}])
    record["evidences"][0].append({"docid": "one", "start_token": 0, "end_token": 2, "text": "a film"})
    (found,) = read_rationales(folder_of(tmp_path, record))
    assert [found.text[start:end] for start, end in found.spans] == ["a film", "far too  long , but"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8))
@settings(deadline=None)
def test_joining_keeps_every_character_and_leaves_no_overlap(pairs):
    spans = [(start, start + size) for start, size in pairs]
    joined = _joined(spans)
    assert {c for a, b in joined for c in range(a, b)} == {c for a, b in spans for c in range(a, b)}
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(joined))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            evidence(text="far too short"),
            "words 4 to 7 of 'one' are 'far too  long', the evidence says 'far too short'",
        ),
        (evidence(end_token=90), "words 4 to 90; 'one' has 11 words"),
        (evidence(start_token=-1), "words -1 to 7"),
        (evidence(start_token=8), "words 8 to 7"),
        (evidence(start_token=7), "words 7 to 7 of 'one' are '', the evidence says 'far too long'"),
        (evidence(start_token="4"), "start_token is '4', but must be a whole number"),
        (evidence(start_token=True), "start_token is True"),
        (evidence(docid="two"), "evidence in 'two', but the annotation is of 'one'"),
        (RECORD | {"annotation_id": "two"}, "no document 'two'"),
        (RECORD | {"evidences": None}, "evidences is empty, but must be a list"),
        (RECORD | {"evidences": [EVIDENCE]}, r"evidences\[0\] is {.*must be a list"),
        (RECORD | {"evidences": [["far"]]}, r"evidences\[0\]\[0\] is 'far'"),
        ({"annotation_id": "one"}, "classification is missing"),
        (["one"], "must be a mapping"),
    ],
)
def test_a_bad_record_is_refused_with_its_line(tmp_path, record, message):
    with pytest.raises(DataError, match=message) as caught:
        read_rationales(folder_of(tmp_path, RECORD, record))
    assert "test.jsonl, line 2" in str(caught.value)


def test_ids_occur_once(tmp_path):
    with pytest.raises(DataError, match=r"test.jsonl, line 2: the annotation_id 'one' occurs twice"):
        read_rationales(folder_of(tmp_path, RECORD, RECORD))
    doc = {"docid": "one", "text": TEXT}
    with pytest.raises(DataError, match=r"docs.jsonl, line 2: the docid 'one' occurs twice"):
        read_rationales(folder_of(tmp_path, RECORD, docs=(doc, doc)))


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"neither docs\.jsonl nor docs.jsonl.gz"):
        read_rationales(tmp_path)
    folder = folder_of(tmp_path, RECORD)
    with pytest.raises(DataError, match=r"neither val\.jsonl"):
        read_rationales(folder, "val")
    (folder / "test.jsonl").write_text('{"annotation_id": "on', encoding="utf-8")
    with pytest.raises(DataError, match=r"test.jsonl is broken JSON.*cut short"):
        read_rationales(folder)
    (folder / "test.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        read_rationales(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_real_evidence_stands_where_it_says():
    found = read_rationales(REAL, "test")
    assert len(found) == 199
    assert {rationale.label for rationale in found} == {"NEG", "POS"}
    raw = [json.loads(line) for line in gzip.decompress((REAL / "test.jsonl.gz").read_bytes()).splitlines()]
    for rationale, record in zip(found, raw, strict=True):
        covered = {c for start, end in rationale.spans for c in range(start, end)}
        words = rationale.text.split()
        for group in record["evidences"]:
            for one in group:
                assert words[one["start_token"] : one["end_token"]] == one["text"].split()
        share = len(covered) / len(rationale.text)
        assert 0 < share < 1
