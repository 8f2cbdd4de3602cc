"""Reading SQuAD files: what passes, and what each broken thing is told."""

import gzip
import json
from pathlib import Path

import pytest

from regtune.errors import ConfigError, DataError
from regtune.tasks.qa.data.records import RecordCollector
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.examples import Answer, QAExample

CONTEXT = "The tern 🐦 flies from Greenland to Antarctica and back to Greenland."


def qa(**changes):
    record = {"id": "q1", "question": "Where?", "answers": [{"text": "Greenland", "answer_start": 22}]} | changes
    return {name: value for name, value in record.items() if value is not ...}


def document(*qas, context=CONTEXT):
    return {"version": "1.1", "data": [{"title": "Tern", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


@pytest.fixture
def write(tmp_path):
    def _write(content, name="set.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return _write


def test_a_v1_file_gives_its_questions(write):
    (example,) = load_questions(write(document(qa())))
    assert example == QAExample(
        id="q1", question="Where?", context=CONTEXT, answers=(Answer(text="Greenland", start=22),), title="Tern"
    )


def test_gzip_and_a_byte_order_mark_are_read(write):
    raw = json.dumps(document(qa())).encode("utf-8-sig")
    assert len(load_questions(write(gzip.compress(raw), "set.json.gz"))) == 1


def test_v2_questions_without_an_answer_are_impossible_and_plausible_answers_are_ignored(write):
    impossible = qa(answers=[], is_impossible=True, plausible_answers=[{"text": "nonsense", "answer_start": -4}])
    (example,) = load_questions(write(document(impossible)))
    assert example.is_impossible
    assert example.answers == ()


def test_several_files_come_in_order(write):
    first, second = write(document(qa()), "a.json"), write(document(qa(id="q2")), "b.json")
    assert [example.id for example in load_questions([second, first])] == ["q2", "q1"]


BAD_RECORDS = {
    "missing answers": (qa(answers=...), "the field 'answers' is missing"),
    "empty question": (qa(question=" \n"), "question is empty"),
    "id of the wrong type": (qa(id=["q"]), "id must be text, but it is a list (['q'])"),
    "id that is true": (qa(id=True), "id must be text, but it is true/false (True)"),
    "id that is a part of a number": (qa(id=7.5), "id must be text, but it is a float (7.5)"),
    "question of the wrong type": (qa(question=None), "question must be text, but it is null"),
    "half a surrogate": (qa(question="a\ud83d"), "half a surrogate pair"),
    "answers of the wrong type": (qa(answers={}), "answers must hold texts under 'text'"),
    "answer of the wrong type": (qa(answers=[5]), "answers[0] must be an object"),
    "answer without text": (qa(answers=[{"answer_start": 1}]), "the field 'text' is missing"),
    "empty answer": (qa(answers=[{"text": "", "answer_start": 1}]), "text is empty"),
    "offset missing": (qa(answers=[{"text": "Greenland"}]), "answer_start is not given, and the text 'Greenland' does"),
    "offset as words": (qa(answers=[{"text": "Greenland", "answer_start": "two"}]), "must be a whole number"),
    "offset with a fraction": (qa(answers=[{"text": "Greenland", "answer_start": 22.5}]), "must be a whole number"),
    "offset that is no number": (qa(answers=[{"text": "Greenland", "answer_start": float("nan")}]), "a float (nan)"),
    "offset as true": (qa(answers=[{"text": "Greenland", "answer_start": True}]), "must be a whole number"),
    "offset one off": (
        qa(answers=[{"text": "Greenland", "answer_start": 23}]),
        "answer_start=23 gives 'reenland ', where the answer is 'Greenland'; the text occurs at 22 (it counts UTF-16",
    ),
    "negative offset": (qa(answers=[{"text": ".", "answer_start": -4}]), "outside the context of 68 characters"),
    "offset behind the end": (qa(answers=[{"text": "Greenland", "answer_start": 64}]), "outside the context"),
    "huge offset": (qa(answers=[{"text": "Greenland", "answer_start": 10**30}]), "outside the context"),
    "offset in bytes": (qa(answers=[{"text": "Greenland", "answer_start": 25}]), "at 22 (it counts UTF-8 bytes"),
    "offset in UTF-16": (qa(answers=[{"text": "Antarctica", "answer_start": 36}]), "at 35 (it counts UTF-16 units"),
    "answer that is not there": (qa(answers=[{"text": "Iceland", "answer_start": 3}]), "does not occur"),
    "no answer in v1": (qa(answers=[]), "there is no answer"),
    "impossible with an answer": (qa(is_impossible=True), "is_impossible is true, yet there are answers"),
    "is_impossible as text": (qa(is_impossible="no"), "is_impossible must be true or false"),
    "not an object": ("Where?", "a question must be an object"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_refused_with_its_place_and_reason(write, case):
    record, reason = BAD_RECORDS[case]
    path = write(document(qa(id="good"), record))
    with pytest.raises(DataError) as caught:
        load_questions(path)
    message = str(caught.value)
    assert reason in message
    assert f"{path}: data[0].paragraphs[0].qas[1]" in message
    assert "on_bad_record='skip'" in message


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_skipping_keeps_the_good_and_lists_the_bad(write, case):
    record, reason = BAD_RECORDS[case]
    data = load_questions(write(document(qa(id="good"), record)), on_bad_record="skip")
    assert [example.id for example in data] == ["good"]
    (bad,) = data.skipped
    assert reason in bad.reason
    assert ": data[0].paragraphs[0].qas[1]" in bad.place


@pytest.mark.parametrize(
    ("content", "item", "reason"),
    [
        ({"data": [5]}, "data[0]", "an object is needed"),
        ({"data": [{"title": "x"}]}, "data[0]", "'paragraphs' is missing"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "data[0].paragraphs[0]", "'qas' is missing"),
        ({"data": [{"paragraphs": [{"context": "x", "qas": {}}]}]}, "data[0].paragraphs[0]", "qas must be a list"),
        ({"data": [{"paragraphs": [{"qas": [qa()]}]}]}, "qas[0] id='q1'", "'context' is missing"),
        (document(qa(), context=" "), "id='q1'", "context is empty"),
        (document(qa(), context=""), "id='q1'", "context is empty"),
        (document(qa(), qa(id="q2"), context=5), "id='q1'", "context must be text"),
    ],
)
def test_broken_structure_names_the_item(write, content, item, reason):
    with pytest.raises(DataError) as caught:
        load_questions(write(content))
    assert item in str(caught.value)
    assert reason in str(caught.value)


def test_a_null_context_of_the_very_first_record_is_refused(write):
    # Found by hypothesis: null was taken for the context that had been checked before.
    with pytest.raises(DataError, match="context must be text, but it is null"):
        load_questions(write(document(qa(), context=None)))


@pytest.mark.parametrize("content", [[], {"data": {}}, 3, {"question": "x"}])
def test_json_of_another_format_is_refused(write, content):
    with pytest.raises(DataError, match="not in SQuAD format"):
        load_questions(write(content), on_bad_record="skip")


def test_duplicate_ids_are_refused_and_both_places_named(write):
    first, second = write(document(qa(), qa(id="q2")), "a.json"), write(document(qa(id="q2")), "b.json")
    with pytest.raises(DataError) as caught:
        load_questions([first, second])
    assert f"{second}: data[0].paragraphs[0].qas[0] id='q2'" in str(caught.value)
    assert f"already used by {first}: data[0].paragraphs[0].qas[1]" in str(caught.value)


def test_duplicate_ids_can_be_skipped_or_renumbered(write):
    path = write(document(qa(), qa(), qa()))
    assert len(load_questions(path, on_bad_record="skip").skipped) == 2
    assert [example.id for example in load_questions(path, on_duplicate_id="renumber")] == ["q1", "q1#2", "q1#3"]


def test_the_same_file_named_twice_is_refused(write):
    path = write(document(qa()))
    with pytest.raises(ConfigError, match="named twice"):
        load_questions([path, path.parent / "." / path.name])


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match="on_duplicate_id='drop' is not one of refuse, renumber"):
        RecordCollector(on_duplicate_id="drop")


@pytest.mark.parametrize("content", [{"data": []}, document()])
def test_an_empty_data_set_is_refused(write, content):
    with pytest.raises(DataError, match="holds no question"):
        load_questions(write(content))


def test_skipping_everything_is_an_error(write):
    with pytest.raises(DataError, match=r"not one usable question.*1 were skipped.*question is empty"):
        load_questions(write(document(qa(question=""))), on_bad_record="skip")


GOOD = json.dumps(document(qa())).encode()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", GOOD[:-9], "broken JSON"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.json", b'{"data": ' + b"9" * 5000 + b"}", "cannot be read"),
        ("a.json", '{"data": "é"}'.encode("latin-1"), "not UTF-8: byte 10 is 0xe9"),
        ("a.json", GOOD.decode().encode("utf-16"), "not UTF-8"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        ("a.json.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        ("a.json.gz", gzip.compress(GOOD)[:-12], "broken gzip"),
        ("a.json.gz", gzip.compress(GOOD)[:20] + b"\xff" * 20 + gzip.compress(GOOD)[40:], "broken gzip"),
        ("a.json.gz", GOOD, "is no gzip file"),
        ("a.json", gzip.compress(GOOD), "rename it to a.json.gz"),
    ],
)
def test_a_broken_file_is_refused_even_when_skipping(write, name, content, reason):
    path = write(content, name)
    with pytest.raises(DataError) as caught:
        load_questions(path, on_bad_record="skip")
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(write):
    path = write(document(qa()), "train.json")
    with pytest.raises(DataError, match=r"trian\.json does not exist\. Did you mean .*train\.json"):
        load_questions(path.with_name("trian.json"))


def test_a_folder_is_refused_and_its_files_listed(write):
    with pytest.raises(DataError, match=r"is a folder.*it holds set\.json"):
        load_questions(write(document(qa())).parent)


def test_an_impossible_path_is_refused():
    with pytest.raises(DataError, match="cannot be read"):
        load_questions("a\0b.json")


REAL = Path(__file__).parents[5] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_the_real_files_hold_the_questions_that_they_promise():
    english = load_questions(REAL / "tydiqa-goldp" / "en.dev.json.gz")
    assert (len(english), sum(len(example.answers) for example in english)) == (440, 686)
    assert len(load_questions(REAL / "xquad" / "xquad.th.json.gz")) == 1190
