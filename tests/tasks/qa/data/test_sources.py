"""Data sets by name: the table, the names, the embedded set, and hub rows offline."""

import builtins
import os

import pytest

from regtune.errors import ConfigError, DataError, MissingExtraError, UnknownNameError
from regtune.tasks.qa.data.records import RecordCollector
from regtune.tasks.qa.data.sources import DATASETS, collect_rows, language_of, load_questions
from regtune.tasks.qa.data.squad import write_squad
from regtune.tasks.qa.examples import Answer, QAExample

CONTEXT = "Helsinki on Suomen pääkaupunki."


def row(number, **changes):
    answers = {"text": ["Helsinki"], "answer_start": [0]}
    return {
        "id": f"finnish-{number}",
        "title": "H",
        "context": CONTEXT,
        "question": "Mikä?",
        "answers": answers,
    } | changes


def example(identifier):
    return QAExample(id=identifier, question="q?", context="c d", answers=(Answer(text="d", start=2),))


@pytest.fixture
def fake_hub(monkeypatch):
    """Stands in for the hub: rows by (path, config, split), as a real `datasets.Dataset`."""
    datasets = pytest.importorskip("datasets")
    calls = []

    def install(rows):
        def load_dataset(path, config, *, split, revision):
            calls.append((path, config, split, revision))
            return datasets.Dataset.from_list(rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return install


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("tydiqa:dev:finnish", ("google-research-datasets/tydiqa", "secondary_task", "validation", None)),
        ("tydiqa:train:finnish", ("google-research-datasets/tydiqa", "secondary_task", "train", None)),
        ("xquad:th", ("google/xquad", "xquad.th", "validation", None)),
        ("squad:validation", ("rajpurkar/squad", None, "validation", None)),
        ("squad_v2:dev", ("rajpurkar/squad_v2", None, "validation", None)),
        ("mlqa:test:en.de", ("facebook/mlqa", "mlqa.en.de", "test", "refs/convert/parquet")),
    ],
)
def test_a_hub_name_asks_for_its_repository_and_split(fake_hub, name, call):
    calls = fake_hub([row(1), row(2)])
    data = load_questions([name])
    assert calls == [call]
    assert [e.id for e in data] == ["finnish-1", "finnish-2"]
    assert data.items[0].answers == (Answer(text="Helsinki", start=0),)


def test_the_language_filter_reads_the_id(fake_hub):
    fake_hub([row(1, id="english-1"), row(2), row(3, id="finnishish-3")])
    assert [e.id for e in load_questions(["tydiqa:dev:finnish"])] == ["finnish-2"]


def test_a_language_without_questions_is_an_error(fake_hub):
    fake_hub([row(1)])
    with pytest.raises(DataError, match=r"no question whose id starts with 'telugu-' \(the last id is 'finnish-1'\)"):
        load_questions(["tydiqa:dev:telugu"])


def test_shared_ids_of_a_hub_copy_are_refused_and_can_be_renumbered(fake_hub):
    fake_hub([row(1), row(1, question="Missä?")])
    with pytest.raises(DataError, match=r"row\[1\] id='finnish-1'.*already used.*renumber"):
        load_questions(["tydiqa:dev:finnish"])
    data = load_questions(["tydiqa:dev:finnish"], on_duplicate_id="renumber")
    assert [e.id for e in data] == ["finnish-1", "finnish-1#2"]


def test_empty_answers_are_impossible_in_v2_and_bad_in_v1(fake_hub):
    fake_hub([row(1), row(2, answers={"text": [], "answer_start": []})])
    assert [e.is_impossible for e in load_questions(["squad_v2:train"])] == [False, True]
    with pytest.raises(DataError, match="there is no answer"):
        load_questions(["squad:train"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "id must be text"),
        ({"answers": {"text": ["Helsinki"], "answer_start": []}}, "answers has 1 texts, but as answer_start a list"),
        ({"answers": {"text": ["Helsinki"], "answer_start": [1]}}, r"the text occurs at 0 \(off by 1\)"),
        ({"answers": None}, "answers must be a list"),
        ({"question": ""}, "question is empty"),
    ],
)
def test_a_bad_row_gets_the_checks_of_files(changes, reason):
    with pytest.raises(DataError, match=reason) as caught:
        collect_rows(RecordCollector(), [row(1, **changes)], "hub:x", id_prefix="finnish-")
    assert "hub:x: row[0]" in str(caught.value)


def test_rows_with_a_list_of_answers_are_read_too():
    collector = RecordCollector()
    collect_rows(collector, [row(1, answers=[{"text": "Suomen", "answer_start": 12}])], "hub:x")
    assert collector.examples[0].answers == (Answer(text="Suomen", start=12),)


def test_a_set_that_cannot_be_loaded_says_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"hub:google/xquad\[xquad\.en/validation\].*no route.*give the path"):
        load_questions(["xquad:en"])


def test_without_the_extra_the_error_names_it(monkeypatch):
    real = builtins.__import__

    def no_datasets(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_datasets)
    with pytest.raises(MissingExtraError, match=r"regtune\[hub\]"):
        DATASETS["xquad"].load({"language": "en"}, RecordCollector())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("embeded:train", "Did you mean 'embedded'"),
        ("tydiqa:dev:finish", "Did you mean 'finnish'"),
        ("mlqa:dev:en.dd", "Did you mean 'en.d"),
        ("xquad:sw", "Available: ar, de"),
        ("nothing", "no such file"),
    ],
)
def test_an_unknown_name_suggests_the_right_one(name, hint):
    with pytest.raises(UnknownNameError, match="Unknown") as caught:
        load_questions([name])
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["tydiqa", "tydiqa:dev", "embedded", "xquad:en:dev"])
def test_a_name_with_the_wrong_number_of_parts_shows_the_pattern(name):
    with pytest.raises(ConfigError, match=f"must be written {name.partition(':')[0]}:<"):
        load_questions([name])


@pytest.mark.parametrize("name", ["some/where.json", "nowhere.json.gz", "./nowhere"])
def test_a_path_that_does_not_exist_is_called_a_missing_file(name):
    with pytest.raises(DataError, match="does not exist"):
        load_questions([name])


def test_no_names_and_no_examples_are_refused():
    with pytest.raises(ConfigError, match="No data set is named"):
        load_questions([])
    with pytest.raises(ConfigError, match="max_examples=0"):
        load_questions(["embedded:dev"], max_examples=0)


def test_a_set_named_twice_is_refused_in_any_spelling(tmp_path):
    with pytest.raises(ConfigError, match="'squad:dev' is named twice"):
        load_questions(["squad:validation", "squad:dev"])
    path = write_squad([example("1")], tmp_path / "a.json")
    with pytest.raises(ConfigError, match="named twice"):
        load_questions([str(path), f"{tmp_path}/./a.json"])


def test_ids_shared_by_two_sets_are_refused(tmp_path):
    paths = [str(write_squad([example("1")], tmp_path / name)) for name in ("a.json", "b.json")]
    with pytest.raises(DataError, match=r"b\.json: .*id='1'.*already used by .*a\.json"):
        load_questions(paths)


def test_max_examples_keeps_the_first(tmp_path):
    path = write_squad([example(str(number)) for number in range(5)], tmp_path / "a.json")
    assert [e.id for e in load_questions([str(path)], max_examples=2)] == ["0", "1"]


def test_a_file_without_an_ending_is_found(tmp_path, monkeypatch):
    write_squad([example("1")], tmp_path / "questions")
    monkeypatch.chdir(tmp_path)
    assert len(load_questions(["questions"])) == 1


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("embedded:dev", "en"),
        ("tydiqa:dev:swahili", "sw"),
        ("xquad:zh", "zh"),
        ("mlqa:dev:de.en", "de"),
        ("squad_v2:dev", "en"),
        ("data/xquad.el.json.gz", "el"),
        ("data/fi.dev.json.gz", "fi"),
        ("dev-context-de-question-en.json", "de"),
        ("new_wiki.json", ""),
        ("en-de.json", ""),
    ],
)
def test_the_language_of_a_set_is_known(name, language):
    assert language_of(name) == language


def test_every_set_declares_licence_and_source():
    for prefix, source in DATASETS.items():
        name = ":".join([prefix, *(next(iter(known)) for known in source.parts.values())])
        assert source.licence
        assert source.source
        assert len(language_of(name)) == 2


def test_the_embedded_set_is_large_enough_and_split_by_passage():
    train, dev = load_questions(["embedded:train"]), load_questions(["embedded:dev"])
    both = load_questions(["embedded:train", "embedded:dev"])
    assert len(both) == len(train) + len(dev) >= 500
    train_passages, dev_passages = ({e.context for e in data} for data in (train, dev))
    assert len(train_passages | dev_passages) >= 120
    assert not train_passages & dev_passages
    assert not {e.title for e in train} & {e.title for e in dev}
    assert all(e.context[a.start : a.start + len(a.text)] == a.text for e in both for a in e.answers)
    assert not train.skipped + dev.skipped


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "0", reason="set HF_HUB_OFFLINE=0 to use the hub")
@pytest.mark.parametrize(
    ("name", "count"),
    [("tydiqa:dev:english", 440), ("xquad:en", 1190), ("squad:dev", 10570), ("mlqa:dev:en.de", 512)],
)
def test_the_hub_gives_the_known_number_of_questions(name, count):
    pytest.importorskip("datasets")
    assert len(load_questions([name])) == count
