"""An answer is the unit of reading: what is kept, converted, mended and counted, in every shape that is known."""

import gzip
import json

import pytest

from regtune.errors import DataError
from regtune.tasks.qa.data import records
from regtune.tasks.qa.data.records import RecordCollector
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.data.squad import write_squad
from regtune.tasks.qa.examples import Answer, QAExample

CONTEXT = "Ada built the bridge\u00a0of Lund in 1932. 🐦 Lund is old."


def qa(*answers, **changes):
    record = {"id": "q1", "question": "Who?", "answers": [{"text": t, "answer_start": s} for t, s in answers]} | changes
    return {name: value for name, value in record.items() if value is not ...}


def squad(*qas, context=CONTEXT):
    return {"data": [{"title": "T", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


@pytest.fixture
def write(tmp_path):
    def _write(*contents, name="set.json"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(content) for content in contents))
        return path

    return _write


def pairs(example):
    return [(answer.text, answer.start) for answer in example.answers]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bad", [("", 5), ("", -1), (" ", 0), (None, 0), ("\ud83d", 0)])
def test_one_bad_answer_does_not_drop_a_question(write, training, bad):
    data = load_questions(write(squad(qa(bad, ("Ada", 0)))), for_training=training)
    assert pairs(data.items[0]) == [("Ada", 0)]
    assert data.facts["notes"] == {"answers without a text beside good ones, left out": 1}


def test_a_wrong_offset_beside_a_good_one_keeps_its_text(write):
    data = load_questions(write(squad(qa(("Ada built", 7), ("Lund", 24), ("Odense", 3)))))
    assert pairs(data.items[0]) == [("Ada built", None), ("Lund", 24), ("Odense", None)]
    assert data.facts["notes"] == {"answers whose offset is wrong or not known, which count by their text": 2}


def test_in_evaluation_a_text_counts_whatever_its_offset_and_in_training_it_does_not(write):
    path = write(squad(qa(("Odense", 3)), qa(("Ada", 0), id="q2")))
    assert [pairs(e) for e in load_questions(path, for_training=False)] == [[("Odense", None)], [("Ada", 0)]]
    data = load_questions(path, on_bad_record="skip")
    assert [e.id for e in data] == ["q2"]
    assert data.notes[0].startswith("1 of 2 questions were left out, the first: ")
    assert (data.facts["read"], data.facts["left_out"], len(data.facts["skipped"])) == (2, 1, 1)


@pytest.mark.parametrize(
    ("changes", "identifier", "note"),
    [
        ({"id": 262}, "262", "ids that are numbers, taken as text"),
        ({"id": 262.0}, "262", "ids that are numbers, taken as text"),
        ({"id": ..., "guid": "g7"}, "g7", "ids that stand under 'guid'"),
        ({"id": None}, "unnamed#1", "questions without an id, numbered (unnamed#1, unnamed#2, …)"),
        ({"id": ...}, "unnamed#1", "questions without an id, numbered (unnamed#1, unnamed#2, …)"),
        ({"id": " "}, "unnamed#1", "questions without an id, numbered (unnamed#1, unnamed#2, …)"),
        ({"id": "", "qid": "7"}, "7", "ids that stand under 'qid'"),
        ({"id": "unnamed#1"}, "unnamed#1", None),
        ({"is_impossible": 0}, "q1", "is_impossible given as a number or as text"),
        ({"is_impossible": "False"}, "q1", "is_impossible given as a number or as text"),
        ({"is_impossible": None}, "q1", "is_impossible given as null, taken as not given"),
        ({"answers": [{"text": "Ada", "answer_start": "0"}]}, "q1", "offsets given as text or as decimal numbers"),
        ({"answers": [{"text": "Ada", "answer_start": 0.0}]}, "q1", "offsets given as text or as decimal numbers"),
        ({"answers": [{"text": "Ada", "answer_start": -1}]}, "q1", "answers without an offset, found where"),
        ({"answers": ["Ada"]}, "q1", "answers without an offset, found where their text occurs the only time"),
        ({"answers": {"text": "Ada", "answer_start": 0}}, "q1", None),
        ({"title": 5}, "q1", None),
    ],
)
def test_what_is_harmless_is_converted_and_counted(write, changes, identifier, note):
    data = load_questions(write(squad(qa(("Ada", 0), **changes))))
    (example,) = data
    assert (example.id, pairs(example), example.is_impossible) == (identifier, [("Ada", 0)], False)
    assert [kind.startswith(note) for kind in data.facts["notes"]] == ([] if note is None else [True])


@pytest.mark.parametrize("yes", [True, 1, "true", "True", "1", 1.0])
@pytest.mark.parametrize("answers", [[], [{"text": "", "answer_start": -1}], {"text": [], "answer_start": []}])
def test_questions_without_an_answer_in_any_spelling(write, yes, answers):
    (example,) = load_questions(write(squad(qa(is_impossible=yes, answers=answers))))
    assert (example.is_impossible, example.answers) == (True, ())


def test_questions_without_ids_get_ids_that_no_other_has(write):
    data = load_questions(write(squad(qa(("Ada", 0), id="unnamed#1"), *(qa(("Ada", 0), id=None) for _ in range(3)))))
    assert [e.id for e in data] == ["unnamed#1", "unnamed#2", "unnamed#3", "unnamed#4"]


MENDS = {
    "off by one": (("Ada", 1), ("Ada", 0), "off by 1"),
    "off by three": (("Ada", 3), ("Ada", 0), "off by 3"),
    "no-break space": (("bridge of", 14), ("bridge\u00a0of", 14), "it differs in case or kind of space"),
    "case": (("ada Built", 1), ("Ada built", 0), "it differs in case or kind of space, off by 1"),
    "UTF-16 units": (("old", 49), ("old", 48), "it counts UTF-16 units, and offsets count characters"),
    "UTF-8 bytes": (("old", 52), ("old", 48), "it counts UTF-8 bytes, and offsets count characters"),
}


@pytest.mark.parametrize("case", MENDS)
def test_a_near_offset_is_mended_and_listed(write, case):
    given, right, cause = MENDS[case]
    data = load_questions(write(squad(qa(given))), on_bad_record="mend")
    assert pairs(data.items[0]) == [right]
    assert CONTEXT.startswith(right[0], right[1])
    (mend,) = data.facts["mended"]
    assert mend["reason"] == f"answer_start {given[1]} became {right[1]} ({cause})"
    assert mend["place"].endswith(": data[0].paragraphs[0].qas[0] id='q1'.answers[0]")
    assert "1 offsets were mended" in data.notes[0]


@pytest.mark.parametrize(
    ("text", "start", "context"),
    [
        ("Lund", 20, CONTEXT),  # four characters away
        ("a", 2, "a. a. a. a."),  # two are near: which one?
        ("aa", 4, "baaaab aab"),
        ("old", 12, "🐦🐦🐦🐦 so old, old"),  # UTF-16 units say one place, nearness another
    ],
)
def test_an_offset_with_no_near_place_or_two_is_not_mended_and_no_place_is_named(write, text, start, context):
    assert not context.startswith(text, start)
    path = write(squad(qa((text, start)), qa(("x", len(context)), id="q2"), context=context + "x"))
    data = load_questions(path, on_bad_record="mend")
    assert [e.id for e in data] == ["q2"]
    assert data.facts["mended"] == []


def test_a_hint_names_no_occurrence_that_may_be_wrong(write):
    path = write(squad(qa(("the", 40)), context="the cat and the dog, and far from here is nothing of the kind."))
    with pytest.raises(DataError, match="more than once, at no place that is certain") as caught:
        load_questions(path)
    assert "occurs at" not in str(caught.value)


SHAPES = {
    "rows in a list": (
        [[{"id": "1", "context": CONTEXT, "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}]],
    ),
    "rows under data": (
        [
            {
                "data": [
                    {
                        "id": "1",
                        "context": CONTEXT,
                        "question": "Who?",
                        "answers": {"text": ["Ada"], "answer_start": [0]},
                    }
                ]
            }
        ],
    ),
    "rows, one a line": (
        [
            {"id": "1", "context": CONTEXT, "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}},
            {"id": "2", "context": CONTEXT, "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
        ],
    ),
    "one row": (
        [{"id": "1", "context": CONTEXT, "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}],
    ),
    "MRQA": (
        [
            {"header": {"dataset": "SQuAD", "split": "dev"}},
            {
                "id": "",
                "context": CONTEXT,
                "context_tokens": [["Ada", 0]],
                "qas": [
                    {
                        "qid": "1",
                        "id": "",
                        "question": "Who?",
                        "question_tokens": [["Who", 0]],
                        "answers": ["Ada", "ada"],
                        "detected_answers": [{"text": "ada", "char_spans": [[0, 2]], "token_spans": [[0, 0]]}],
                    }
                ],
            },
        ],
    ),
    "CMRC": (
        [
            [
                {
                    "context_id": "D0",
                    "context_text": CONTEXT,
                    "title": "T",
                    "qas": [{"query_text": "Who?", "query_id": "1", "answers": ["Ada", "Ada"]}],
                }
            ]
        ],
    ),
    "articles without data": ([squad(qa(("Ada", 0), id="1"))["data"]],),
    "articles, one a line": ([squad(qa(("Ada", 0), id="1"))["data"][0], squad(qa(("Ada", 0), id="2"))["data"][0]],),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_known_by_its_content(write, shape, packed):
    path = write(*SHAPES[shape][0], name="set.jsonl")
    if packed:
        raw, path = path.read_bytes(), path.with_name("set.jsonl.gz")
        path.write_bytes(gzip.compress(raw))
    data = load_questions([str(path)])
    assert [e.id for e in data] == ["1", "2"][: len(data)]
    for example in data:
        assert (example.question, example.context) == ("Who?", CONTEXT)
        assert pairs(example)[0] == ("Ada", 0)
    assert not data.skipped


def test_mrqa_texts_that_were_detected_nowhere_still_count(write):
    line = SHAPES["MRQA"][0][1]
    question = line["qas"][0] | {"answers": ["Ada", "Countess Ada"]}
    data = load_questions(write({"header": {}}, line | {"qas": [question]}))
    assert pairs(data.items[0]) == [("Ada", 0), ("Countess Ada", None)]


def test_a_line_that_was_cut_short_is_one_bad_record(write):
    path = write(*SHAPES["rows, one a line"][0])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="line 2: this line is no JSON"):
        load_questions(path)
    data = load_questions(path, on_bad_record="skip")
    assert [e.id for e in data] == ["1"]
    assert data.notes[0].startswith("1 of 2 questions were left out")


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    row = {"id": "1", "context": "a\u2028b\u0085c", "question": "?", "answers": {"text": ["a"], "answer_start": [0]}}
    lines = [json.dumps(row | {"id": name}, ensure_ascii=False) for name in "12"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len(load_questions(tmp_path / "a.jsonl")) == 2


def test_a_field_that_is_given_twice_is_counted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(squad(qa(("Ada", 0)))).replace('"id"', '"id": "first", "id"'))
    data = load_questions(path)
    assert (data.items[0].id, data.facts["notes"]) == (
        "q1",
        {"objects that name a field twice, of which the last one counts": 1},
    )


def test_the_first_so_many_are_said_to_be_so_many_of_how_many(write):
    path = write(squad(*(qa(("Ada", 0), id=str(number)) for number in range(10))))
    data = load_questions([str(path)], max_examples=3)
    assert data.notes == ("the first 3 of 10 usable questions are used, as asked for",)
    assert data.facts["read"] == 10


def test_an_answer_without_a_place_is_written_and_read_back(tmp_path):
    made = [
        QAExample(
            id="1", question="?", context="a b a", answers=(Answer(text="c", start=None), Answer(text="b", start=2))
        )
    ]
    assert list(load_questions(write_squad(made, tmp_path / "a.json"))) == made


def test_a_gzip_bomb_is_refused_after_the_cap_and_the_cap_can_be_raised(tmp_path):
    path = tmp_path / "bomb.json.gz"
    raw = json.dumps(squad(qa(("Ada", 0)))).encode() + b" " * 5_000_000
    path.write_bytes(gzip.compress(raw))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"unpacks to more than 1,000,000 bytes.*gunzip.*max_bytes"):
        load_questions(path, max_bytes=1_000_000)
    assert len(load_questions(path, max_bytes=6_000_000)) == 1


def test_a_gzip_bomb_is_not_unpacked_beyond_the_cap(tmp_path, monkeypatch):
    from regtune.tasks import files

    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(64):
            stream.write(b" " * 2**20)
    read = []
    real = gzip.GzipFile.read

    def counted(self, size=-1):
        piece = real(self, size)
        read.append(len(piece))
        return piece

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DataError, match="could fill the memory"):
        load_questions(path, max_bytes=3 * 2**20)
    assert sum(read) <= 3 * 2**20 + 2 * files._CHUNK


@pytest.mark.parametrize("how", ["refuse", "renumber"])
def test_equal_ids_are_looked_up_a_few_times_each_however_many_there_are(how):
    class Counted(dict):
        lookups = 0

        def __contains__(self, key):
            Counted.lookups += 1
            return super().__contains__(key)

    Counted.lookups = 0
    collector = RecordCollector("skip", how)
    collector._places = Counted()
    for _ in range(500):
        collector.add(qa(("Ada", 0), context=CONTEXT), "a: b")
    data = collector.finish()
    assert len(data) == (500 if how == "renumber" else 1)
    assert Counted.lookups <= 5 * 500


@pytest.mark.parametrize("text", ["a b", "a", "\u00e9 a", "zz"])
def test_ever_more_wrong_offsets_are_not_ever_more_searches_through_a_context(monkeypatch, text):
    class Counted(str):
        searched = 0

        def find(self, *given):
            Counted.searched += len(self)
            return super().find(*given)

        def __contains__(self, part):
            Counted.searched += len(self)
            return super().__contains__(part)

        def encode(self, *given):
            Counted.searched += len(self)
            return super().encode(*given)

    context = Counted("a b a b \u00e9 a \U0001f426 " * 200)
    monkeypatch.setattr(records, "_SEARCHED", 20 * len(context))
    assert not context.startswith(text, 2_001)

    def searched(questions):
        Counted.searched = 0
        collector = RecordCollector("mend", "refuse")
        collector.add(qa(("a", 0), id="good", context=context), "a: b")
        for number in range(questions):
            collector.add(qa((text, 2_001), id=str(number), context=context), "a: b")
        data = collector.finish()
        assert len(data) + len(data.skipped) == questions + 1
        return Counted.searched

    assert 0 < searched(100) == searched(300) <= 100 * len(context)
