"""Classification: files of every kind, labels from the training data, metrics like scikit-learn's, one run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import regtune
from regtune.cli.main import main
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, ConfigError, DataError
from regtune.interfaces import Examples
from regtune.records import read_json
from regtune.sweeps.predict import predict
from regtune.sweeps.run import run_experiment
from regtune.tasks.classify import Classification, ClassifySettings, ClassPrediction
from regtune.tasks.labelled import LabelledText
from regtune.tasks.metrics import ACCURACY, MACRO_F1, MCC
from tiny_tokenizer import save_tiny

TASK = Classification()
ROWS = [("cat", "the cat is in the house"), ("dog", "who lives, where"), ("cat", 'a "house" is what'), ("dog", "é")]


def read(*names, limit=None, **settings):
    return TASK.read([str(name) for name in names], ClassifySettings(**settings), limit=limit)


def pairs(found):
    return [(item.label, item.text) for item in found.items]


WRITERS = {
    "a.csv": lambda: "text,label\n" + "".join('"{}",{}\n'.format(t.replace('"', '""'), la) for la, t in ROWS),
    "a.jsonl": lambda: "".join(json.dumps({"sentence": t, "label": la}) + "\n" for la, t in ROWS),
    "a.json": lambda: json.dumps([{"text": t, "category": la} for la, t in ROWS]),
    "a.train": lambda: "".join(f"{la} {t}\n" for la, t in ROWS),
    "a.txt": lambda: "".join(f"{la} {t}\r\n" for la, t in ROWS),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_labelled_file_of_any_kind_is_read(tmp_path, name, encoding):
    if "json" in name and encoding == "latin-1":
        pytest.skip("JSON is UTF-8")
    (tmp_path / name).write_bytes(WRITERS[name]().encode(encoding))
    assert pairs(read(tmp_path / name)) == ROWS


def test_columns_can_be_named_or_numbered_and_labels_called(tmp_path):
    (tmp_path / "a.tsv").write_text("mood\tsaid\n1\tgood\n0\tbad\n")
    assert pairs(read(tmp_path / "a.tsv", label_column="mood", text_column="said")) == [("1", "good"), ("0", "bad")]
    (tmp_path / "b.csv").write_text("1,good\n0,bad\n")
    numbered = read(tmp_path / "b.csv", label_column="0", text_column="1", label_names=("no", "yes"))
    assert pairs(numbered) == [("yes", "good"), ("no", "bad")]


def test_a_pair_of_texts_is_read_together(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": 0}\n')
    (item,) = read(tmp_path / "a.jsonl").items
    assert (item.text, item.pair, item.label) == ("a", "b", "0")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", r"a\.csv is empty"),
        ("a.csv", "text,label\n", r"a\.csv holds no labelled text"),
        ("a.csv", "text,label\nwell,\n", r"line 2: the label is ''"),
        ("a.csv", "text,label\n,1\n", r"line 2: the text is ''"),
        ("a.csv", "text,label\na,b,c\n", r"line 2: it has 3 cells where the header has 2"),
        (
            "a.csv",
            "text,mood\na,b\n",
            r"line 2: no column is called like a label .*text, mood.*--settings",
        ),
        ("a.csv", 'text,label\n"a"b,1\n', r"line 2: .*Quote cells"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1\n', r"line 2"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', r"the label is 0\.5"),
        ("a.jsonl", '{"text": "a"}\n', r"no column is called like a label"),
        ("a.train", "1 good\n1\n", r"line 2: '1' is not a label, a space and a text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path / name)


def test_bad_records_can_be_left_out_and_are_counted(tmp_path):
    (tmp_path / "a.train").write_text("1 good\n1\n0 bad\n")
    found = read(tmp_path / "a.train", on_bad_record="skip")
    assert (len(found), found.facts["left_out"], found.facts["read"]) == (2, 1, 3)
    assert found.notes[0].startswith("1 of 3 texts were left out")


def test_an_encoding_that_does_not_exist_or_fit_is_refused(tmp_path):
    (tmp_path / "a.train").write_bytes("1 brûlée\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin9x"):
        read(tmp_path / "a.train", encoding="latin9x")
    with pytest.raises(DataError, match=r"is not ascii text.*--settings\.encoding"):
        read(tmp_path / "a.train", encoding="ascii")


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["10", "9", "0"], ["0", "9", "10"]), (["b", "a", "C"], ["C", "a", "b"]), (["1", "0"], ["0", "1"])],
)
def test_labels_come_from_the_training_data_numbers_in_their_order(labels, names):
    items = tuple(LabelledText(id=str(i), text="x", label=label) for i, label in enumerate(labels))
    facts = TASK.prepare(Examples(items=items, names=("x",)), ClassifySettings())
    assert facts["id2label"] == dict(enumerate(names))
    with pytest.raises(DataError, match="1 label"):
        TASK.prepare(Examples(items=items[:1], names=("x",)), ClassifySettings())


def scores(gold, said, names="abcd"):
    items = tuple(LabelledText(id=str(i), text="x", label=str(label)) for i, label in enumerate(gold))
    found = [
        ClassPrediction(id=str(i), label=one, probabilities=dict.fromkeys(names, 0.25)) for i, one in enumerate(said)
    ]
    return TASK.score(found, Examples(items=items, names=("x",)))


@settings(deadline=None, max_examples=60)  # the first call imports scikit-learn
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_the_metrics_are_those_of_scikit_learn(cases):
    sklearn = pytest.importorskip("sklearn.metrics")
    gold, said = zip(*cases, strict=True)
    found = scores(gold, said)
    if len({*gold, *said}) == 1:  # scikit-learn warns
        assert (MACRO_F1.of(found), MCC.of(found)) == (1.0, 0.0)
        return
    assert ACCURACY.of(found) == pytest.approx(sklearn.accuracy_score(gold, said))
    assert MACRO_F1.of(found) == pytest.approx(sklearn.f1_score(gold, said, average="macro", zero_division=0))
    assert MCC.of(found) == pytest.approx(sklearn.matthews_corrcoef(gold, said), abs=1e-9)


def test_a_metric_of_many_resamples_at_once_is_that_of_each():
    random = np.random.default_rng(0)
    found = scores(random.choice(list("abcd"), 50), random.choice(list("abcd"), 50))
    weights = random.dirichlet(np.ones(50), 7)
    for metric in (ACCURACY, MACRO_F1, MCC):
        columns = metric.select(found)
        together = metric.value(weights @ columns)
        alone = [float(metric.value(row @ columns)) for row in weights]
        assert together == pytest.approx(alone)
    with pytest.raises(ConfigError, match="needs the column 'accuracy'"):
        ACCURACY.of({"f1": [1.0]})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    save_tiny(folder / "base", head="none")
    rows = [f"{('cat', 'dog', 'emu')[i % 3]}\t{('cat', 'house', 'who')[i % 3]} is {i}" for i in range(24)]
    (folder / "train.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    (folder / "dev.tsv").write_text("label\ttext\n" + "\n".join(rows[:9]) + "\n")
    config = RunConfig(
        task="classify",
        model=str(folder / "base"),
        output_dir=folder / "run",
        registers=RegisterConfig(num_registers=2),
        data=DataConfig(train=(str(folder / "train.tsv"),), eval=(str(folder / "dev.tsv"),), max_length=64),
        training=TrainConfig(epochs=12.0, batch_size=4, learning_rate=3e-3, precision="float32"),
    )
    return config, run_experiment(config, progress=False)


def test_a_run_learns_labels_and_records_them(run):
    config, record = run
    assert record.metrics["dev"]["accuracy"] == 1.0
    assert {"accuracy", "macro_f1", "mcc"} < set(record.metrics["dev"])
    assert record.data["train"]["labels"] == {"cat": 8, "dog": 8, "emu": 8}
    session = regtune.open(config.output_dir)
    assert session.task.name == "classify"
    assert session.model.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
    assert regtune.num_registers(session.model) == 2
    rows = read_json(config.output_dir / record.predictions["dev"])
    assert rows[0]["label"] == "cat"
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1.0)
    assert rows[0]["accuracy"] == rows[0]["gold:cat"] == rows[0]["right:cat"] == 1.0


def test_predict_and_evaluate_work_on_the_command_line(run, tmp_path, capsys):
    config, _ = run
    assert main(["predict", str(config.output_dir), "--text", "cat is 1", "house is 2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["id"], line["label"]) for line in lines] == [("1", "cat"), ("2", "dog")]
    (tmp_path / "in.jsonl").write_text('{"id": "x", "text": "who is 3"}\n')
    assert predict(config.output_dir, tmp_path / "in.jsonl")[0]["id"] == "x"
    assert main(["evaluate", str(config.output_dir), "--output-dir", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "accuracy" in table
    assert "100.0" in table
    assert "MCC" in table


def test_a_file_of_questions_is_predicted_by_a_question_answering_model(tmp_path):
    save_tiny(tmp_path / "qa")
    (tmp_path / "in.csv").write_text("question,context\nwho is it,the cat is in the house\n")
    (found,) = predict(tmp_path / "qa", tmp_path / "in.csv")
    assert found["text"] in "the cat is in the house"
    with pytest.raises(DataError, match=r"'question' is None.*fields given are 'id', 'text'"):
        predict(tmp_path / "qa", [{"text": "x"}])


def test_labels_that_the_model_does_not_know_are_refused(run, tmp_path):
    config, _ = run
    (tmp_path / "new.tsv").write_text("label\ttext\nyak\twho\n")
    with pytest.raises(DataError, match=r"new\.tsv:1 has the label 'yak', which the model doesn't know.*cat, dog, emu"):
        regtune.open(config.output_dir).rows(read(tmp_path / "new.tsv"))


def test_a_model_without_a_class_head_is_refused(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(CheckpointError, match="no head for classification"):
        regtune.open(tmp_path, task="classify")


def test_long_texts_are_cut_and_counted(run):
    session = regtune.open(run[0].output_dir)
    long = Examples(items=(LabelledText(id="1", text="the cat " * 100, label="cat"),), names=("x",))
    rows = session.rows(long)
    assert (rows.lengths[0], rows.facts["truncated_texts"]) == (64, 1)


def test_the_embedded_set_belongs_to_the_task():
    train, dev = read("embedded:train"), read("embedded:dev")
    assert (len(train), len(dev)) == (120, 40)
    assert not {item.text for item in train.items} & {item.text for item in dev.items}
    assert set(train.facts["labels"].values()) == {30}


def test_the_tasks_own_settings_are_flags_of_train(run, tmp_path, capsys):
    config, _ = run
    with open(config.data.train[0]) as file:
        (tmp_path / "t.tsv").write_text(file.read().replace("label\t", "mood\t"))
    words = ["train", "--task", "classify", "--model", config.model, "--output-dir", str(tmp_path / "run")]
    words += ["--data.train", str(tmp_path / "t.tsv"), "--data.eval", str(tmp_path / "t.tsv")]
    words += ["--data.max-length", "32"]
    words += ["--training.epochs", "0.2", "--settings.label-column", "mood"]
    assert main(words) == 0
    assert "accuracy" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "run.json")["config"]["settings"]["label_column"] == "mood"


def test_pairs_of_texts_make_a_row_with_both(run):
    session = regtune.open(run[0].output_dir)
    pair = LabelledText(id="1", text="the cat", pair="a house", label="cat")
    rows = session.rows(Examples(items=(pair,), names=("x",)))
    (batch,) = session.batches(rows)
    words = session.reader.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert words == ["[CLS]", "the", "cat", "[SEP]", "a", "house", "[SEP]"]
    assert batch["context_start"].tolist() == [4]
    assert dataclasses.replace(pair).label == "cat"


def test_two_files_of_one_name_keep_their_examples_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text("text,label\nwell,1\n")
    found = read(tmp_path / "a/x.csv", tmp_path / "b/x.csv")
    assert len(set(found.ids)) == len(found) == 2


def test_without_an_evaluation_set_of_one_s_own_the_default_is_named(run, tmp_path):
    config, _ = run
    alone = dataclasses.replace(
        config, data=dataclasses.replace(config.data, eval=DataConfig.eval), output_dir=tmp_path / "run"
    )
    with pytest.raises(
        DataError, match=r"doesn't know.* No evaluation set was named, so it is embedded:dev: set data.eval"
    ):
        run_experiment(alone, progress=False)
    both = dataclasses.replace(alone, data=dataclasses.replace(alone.data, eval=(*DataConfig.eval, *config.data.eval)))
    with pytest.raises(DataError, match=r"or leave it out\.$"):
        run_experiment(both, progress=False)
