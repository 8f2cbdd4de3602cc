"""Writing SQuAD files, and what becomes of files that were damaged afterwards."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regtune.errors import DataError
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.data.squad import write_squad
from regtune.tasks.qa.examples import Answer, QAExample

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@st.composite
def plain_examples(draw):
    """Examples as plain tuples: beartype, which checks the real ones, draws random numbers and must not do so here."""
    made = []
    for number in range(draw(st.integers(1, 5))):
        context = draw(text)
        spans = draw(st.lists(st.tuples(st.integers(0, len(context)), st.integers(0, len(context))), max_size=3))
        answers = [(context[min(s) : max(s)], min(s)) for s in spans if context[min(s) : max(s)].strip()]
        title = draw(st.sampled_from(["", "a", "b"]))
        made.append((f"{number}{draw(text)}", draw(text), context, answers, title))
    return made


def build(plain):
    return [
        QAExample(
            id=identifier,
            question=question,
            context=context,
            answers=tuple(Answer(text=text, start=start) for text, start in answers),
            title=title,
            is_impossible=not answers,
        )
        for identifier, question, context, answers, title in plain
    ]


@QUICK
@given(plain=plain_examples(), suffix=st.sampled_from([".json", ".json.gz"]))
def test_what_is_written_is_read_back(tmp_path, plain, suffix):
    made = build(plain)
    path = write_squad(made, tmp_path / f"round{suffix}")
    assert list(load_questions(path)) == made
    assert [file.name for file in tmp_path.glob(".round*")] == []


@QUICK
@given(plain=plain_examples(), data=st.data(), packed=st.booleans())
def test_a_corrupted_file_gives_a_data_error_or_sound_examples(tmp_path, plain, data, packed):
    path = write_squad(build(plain), tmp_path / ("c.json.gz" if packed else "c.json"))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw)[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    try:
        read = load_questions(path, on_bad_record=data.draw(st.sampled_from(["raise", "skip"])))
    except DataError:
        return
    assert len({example.id for example in read}) == len(read) > 0
    for example in read:
        assert example.question.strip()
        assert bool(example.answers) != example.is_impossible
        assert all(example.context.startswith(answer.text, answer.start) for answer in example.answers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@QUICK
@given(value=json_values, data=st.data())
def test_any_value_in_any_place_gives_a_data_error_or_sound_examples(tmp_path, value, data):
    answers = [{"text": "tern", "answer_start": 4}]
    questions = [{"id": "1", "question": "?", "answers": answers, "is_impossible": False}]
    questions.append({"id": "2", "question": "?", "answers": [dict(answers[0])]})
    content = {"data": [{"title": "T", "paragraphs": [{"context": "The tern flies.", "qas": questions}]}]}
    places = [(content, "data"), (content["data"], 0)]
    article = content["data"][0]
    paragraph = article["paragraphs"][0]
    question = paragraph["qas"][0]
    places += [(owner, key) for owner in (article, paragraph, question, question["answers"][0]) for key in owner]
    owner, key = data.draw(st.sampled_from([(id(o), k) for o, k in places]))
    next(o for o, _ in places if id(o) == owner)[key] = value
    path = tmp_path / "v.json"
    path.write_text(json.dumps(content))
    try:
        read = load_questions(path)
    except DataError:
        return
    assert all(e.context.startswith(a.text, a.start) for e in read for a in e.answers)


def test_a_gzip_file_has_the_same_bytes_every_time(tmp_path):
    example = QAExample(id="1", question="q", context="c", answers=(Answer(text="c", start=0),))
    first = write_squad([example], tmp_path / "a.json.gz").read_bytes()
    assert write_squad([example], tmp_path / "b.json.gz").read_bytes() == first


def test_an_example_that_could_not_be_read_is_not_written(tmp_path):
    wrong = QAExample(id="1", question="q", context="c", answers=(Answer(text="x", start=0),))
    with pytest.raises(DataError, match=r"examples\[0\] id='1'.*gives 'c'"):
        write_squad([wrong], tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    example = QAExample(id="1", question="q", context="c", answers=(Answer(text="c", start=0),))
    with pytest.raises(DataError, match="cannot be written"):
        write_squad([example], write_squad([example], tmp_path / "a.json") / "b.json")
