"""`inspect`: every part on the same examples, one record a part, comparisons, and what a model can't have."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import regtune
from command_line import invoke
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.explanations import explanation_measures
from regtune.analyses.inspection import (
    aligned,
    compare_records,
    direction,
    inspect,
    read_record,
    read_records,
    settings_of_parts,
)
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from regtune.records import plain, read_json, write_json
from regtune.registers.surgery import add_registers
from regtune.registry import ANALYSES
from regtune.report.page import write_report
from regtune.stats import ArmScores, compare
from tiny import tiny_model
from tiny_tokenizer import save_questions, save_tiny, tiny_tokenizer

COUNT = 6
QUICK = {
    "artefacts": {"probes": False},
    "registers": {"resamples": 200, "hows": ("mask", "mean")},
    "heads": {"examples": 3},
    "faithfulness": {
        "texts": 3,
        "limit_texts": 2,
        "random_draws": 3,
        "methods": ("attnlrp", "random"),
        "max_groups": 3,
    },
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return str(save_questions(tmp_path_factory.mktemp("questions") / "q.json", COUNT))


def saved(folder, registers=2, **settings):
    torch.manual_seed(0)
    made = tiny_model("bert", max_position_embeddings=512, **settings)
    if registers:
        made = add_registers(made, RegisterConfig(num_registers=registers))
    made.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("registers"))


@pytest.fixture(scope="module")
def inspected(tmp_path_factory, model, questions):
    folder = tmp_path_factory.mktemp("inspect") / "inspect"
    return inspect(model, parts=tuple(ANALYSES), data=(questions,), output_dir=folder, settings=QUICK)


def test_every_part_leaves_one_record_and_nothing_is_left_out(inspected):
    assert {path.name for path in inspected.folder.iterdir()} == {f"{name}.json" for name in ANALYSES}
    assert inspected.notes == ()
    assert [record.part for record in inspected.records] == list(ANALYSES)


def test_all_parts_saw_the_same_examples_in_the_same_order(inspected):
    for record in inspected.records:
        assert record.data["ids"] == [f"q{index}" for index in range(COUNT)], record.part
        assert all(len(values) == COUNT for values in record.measures.values())
        assert record.measures.keys() == record.titles.keys()
        assert record.subject["num_registers"] == 2


def test_a_costly_part_looks_at_some_of_the_sample_and_has_no_number_for_the_others(inspected):
    known = [v is not None for v in inspected["faithfulness"].measures["faithfulness.attnlrp.comprehensiveness"]]
    assert known == [True, False, True, False, True, False]
    known = [value is not None for value in inspected["heads"].measures["heads.without_cls"]]
    assert known == [True, False, True, False, True, False]


def test_a_part_that_chose_its_sample_by_itself_says_how_to_get_more(inspected):
    settings = {**inspected["faithfulness"].settings, "texts": None}
    record = dataclasses.replace(inspected["faithfulness"], settings=settings)
    assert record.sample == f"Measured on 3 of the {COUNT} examples (--set faithfulness.texts={COUNT} takes all)."


def test_a_record_comes_back_as_it_was(inspected):
    records, refused = read_records(inspected.folder)
    assert refused == []
    for back, record in zip(records, inspected.records, strict=True):
        assert json.dumps(dataclasses.asdict(back)) == json.dumps(dataclasses.asdict(record))


def test_the_numbers_are_those_of_the_parts(inspected):
    attention = inspected["attention"]
    assert attention.mean("attention.mass_text.cls") == pytest.approx(
        np.mean(attention.content["mass_text"]["cls"]), rel=1e-4
    )
    int8 = inspected["int8"]
    for scheme in ("bondarenko", "linear"):
        lost = int8.content["schemes"][scheme]["value"]
        assert int8.mean(f"int8.{scheme}.f1_loss") == pytest.approx(lost, abs=1e-5)


def test_what_a_person_reads_names_every_part_and_the_model(inspected, model):
    shown = str(inspected)
    assert shown.startswith(f"{model}: BertForQuestionAnswering, registers, N = 2; {COUNT} examples of")
    for name in ANALYSES:
        assert f"\n{ANALYSES.get(name).title}\n" in shown
    assert "knocked out by 'mask'" in shown
    assert inspected["attention"].sample == f"Measured on all {COUNT} examples."
    assert inspected["explanations"].sample == f"Measured on all {COUNT} examples."
    assert inspected["faithfulness"].sample in shown
    assert inspected["faithfulness"].sample.startswith(
        f"Measured on 3 of the {COUNT} examples (--set faithfulness.texts="
    )


def test_the_report_draws_every_part_from_its_blocks(inspected, tmp_path):
    page = write_report(inspected.folder.parent, output=tmp_path).read_text(encoding="utf-8")
    for name in ANALYSES:
        assert f"<h3>{ANALYSES.get(name).title}</h3>" in page
    assert f"All parts were given the same {COUNT} examples" in page
    assert f"Measured on 3 of the {COUNT} examples (--set heads.examples={COUNT} takes all)." in page
    assert page.count("<svg") > 20
    assert "Not used" not in page


def test_a_record_that_its_analysis_does_not_understand_is_named_by_the_report(inspected, tmp_path):
    folder = tmp_path / "broken"
    for record in inspected.records:
        content = read_json(inspected.folder / f"{record.part}.json")
        if record.part == "attention":
            del content["content"]["mass"]
        write_json(folder / "inspect" / f"{record.part}.json", content)
    (folder / "inspect" / "artefacts.json").write_text("{", encoding="utf-8")
    page = write_report(folder, output=tmp_path / "out").read_text(encoding="utf-8")
    assert "The record of attention can&#x27;t be understood (KeyError" in page
    assert "artefacts.json" in page.split("Not used", 1)[1]


def test_one_model_is_opened_for_all_parts_and_forward_runs_on_it_alone(model, questions, tmp_path, monkeypatch):
    import regtune.analyses.inspection as module

    opened = []
    real = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *args, **kwargs: opened.append(args) or real(*args, **kwargs))
    parts = ("attention", "artefacts", "int8", "registers", "heads", "faithfulness")
    session = regtune.open(model)
    inspect(session, parts=parts, data=(questions,), output_dir=tmp_path, settings=QUICK)
    assert opened == []


def test_a_model_without_registers_or_head_is_inspected_as_far_as_it_goes(tmp_path, questions):
    folder = save_tiny(tmp_path / "bare", head="none", max_position_embeddings=512)
    found = inspect(str(folder), data=(questions,), output_dir=tmp_path / "out", settings={"heads": {"examples": 2}})
    assert {record.part for record in found.records} == {"attention", "artefacts", "int8", "heads"}
    assert [note.split()[0] for note in found.notes] == ["registers", "explanations"]
    assert found["int8"].content["schemes"]["linear"]["metric"] == "relative_error"
    assert found["heads"].content["quantity"] == "last hidden state"


def test_registers_of_a_bare_model_and_plain_text_are_inspected_by_its_states(tmp_path):
    folder = saved(tmp_path / "bare", head="none")
    text = tmp_path / "some.txt"
    text.write_text("the cat is in the house\nwho was in the house\nwhat is the cat\n", encoding="utf-8")
    found = inspect(
        folder,
        parts=("registers",),
        data=(str(text),),
        output_dir=tmp_path / "out",
        settings={"registers": {"resamples": 200}},
    )
    content = found["registers"].content
    assert content["quantity"] == "the last hidden state"
    assert content["knock_outs"][0]["loss"]["difference"] > 0
    assert "relevance" not in content
    assert found.records[0].blocks()


def test_nothing_that_can_be_measured_is_an_error_that_says_why(tmp_path, questions):
    folder = str(save_tiny(tmp_path / "n0", max_position_embeddings=512))
    with pytest.raises(DataError, match="registers is left out: the model has no registers"):
        inspect(folder, parts=("registers",), data=(questions,), output_dir=tmp_path / "out")


def test_models_are_compared_example_by_example(tmp_path, model, questions):
    other = saved(tmp_path / "n0", registers=0)
    found = inspect(
        model,
        parts=("attention", "artefacts"),
        data=(questions,),
        compare=other,
        output_dir=tmp_path / "a",
        settings={"artefacts": {"probes": False}},
    )
    rows = {row.metric.name: row for row in found.differences}
    mine, theirs = found["attention"], found.others[0]["attention"]
    row = rows["attention.mass_text.cls"]
    assert row.baseline_mean == pytest.approx(mine.mean("attention.mass_text.cls"))
    assert row.arm_mean == pytest.approx(theirs.mean("attention.mass_text.cls"))
    assert row.difference == pytest.approx(row.arm_mean - row.baseline_mean)
    assert row.interval[0] <= row.difference <= row.interval[1]
    assert "attention.mass.register" not in rows, "the other has no registers"
    assert "model by model" in str(found)
    assert "What differs" in str(found)


def test_a_model_does_not_differ_from_itself_and_seeds_are_paired(inspected):
    rows = compare_records([inspected.records], [inspected.records], resamples=200)
    assert {row.difference for row in rows} == {0.0}
    assert {direction(row) for row in rows} == {"not shown"}


def shifted(records, by):
    """The records with every number of attention moved."""
    return [
        dataclasses.replace(
            record,
            measures={n: [None if v is None else v + by for v in values] for n, values in record.measures.items()},
        )
        for record in records
        if record.part == "attention"
    ]


def test_several_seeds_widen_the_interval_by_how_they_differ(inspected):
    base = [shifted(inspected.records, 0.0)] * 3
    even = compare_records(base, [shifted(inspected.records, 0.1)] * 3, resamples=2000)
    uneven = compare_records(base, [shifted(inspected.records, by) for by in (0.0, 0.1, 0.2)], resamples=2000)
    for same, spread in zip(even, uneven, strict=True):
        assert same.difference == pytest.approx(spread.difference) == pytest.approx(0.1)
        assert direction(same) == "higher"
        assert spread.interval[0] < 0.0
        assert spread.interval[1] > 0.2
        assert (spread.seeds, direction(spread)) == (3, "not shown")


def test_p_values_are_corrected_over_all_rows(inspected, monkeypatch):
    import regtune.stats.comparison as module

    base, other = [shifted(inspected.records, 0.0)], [shifted(inspected.records, 0.1)]
    corrected = [row.p_adjusted for row in compare_records(base, other, resamples=200)]
    monkeypatch.setattr(module, "holm", list)
    plain = [row.p_adjusted for row in compare_records(base, other, resamples=200)]
    assert min(corrected) == pytest.approx(min(1, len(plain) * min(plain)))
    assert min(plain) < min(corrected)


def test_other_examples_or_settings_are_not_compared(inspected):
    (attention,) = shifted(inspected.records, 0.0)
    others = dataclasses.replace(attention, data={**attention.data, "ids": ["x"] * COUNT})
    with pytest.raises(DataError, match="other examples"):
        compare_records([[attention]], [[others]])
    others = dataclasses.replace(attention, settings={**attention.settings, "sink_above": 0.5})
    with pytest.raises(DataError, match="settings"):
        compare_records([[attention]], [[others]])


def test_the_comparison_of_records_is_the_one_of_scores(inspected):
    """One model a side goes the way of two single runs: exact sign flips where few examples differ."""
    base, other = [shifted(inspected.records, 0.0)], [shifted(inspected.records, 0.1)]
    name = "attention.entropy_text"
    (row,) = [row for row in compare_records(base, other) if row.metric.name == name]
    runs = (np.asarray([arm[0][0].measures[name]], dtype=float) for arm in (base, other))
    before, after = (ArmScores(scores=run, metric=row.metric) for run in runs)
    (alone,) = compare(before, {"run": after})
    assert (row.p_value, row.interval, row.exact) == (alone.p_value, alone.interval, True)
    assert row.p_value == pytest.approx(2 / 2**COUNT)


def test_many_measures_get_the_draws_that_their_correction_needs(inspected):
    base, other = [shifted(inspected.records, 0.0)], [shifted(inspected.records, 0.1)]
    assert len(compare_records(base, other, resamples=100)) > 5


def test_a_record_of_other_types_is_refused_with_file_and_field(inspected, tmp_path):
    whole = read_json(inspected.folder / "attention.json")
    for name, value, message in (
        ("schema_version", 1, "schema_version"),
        ("kind", "run", "kind"),
        ("measures", {"m": ["high"]}, r"measures.m\[0\]"),
        ("measures", {"m": [1.0]}, "one number for each example"),
        ("subject", None, "subject"),
        ("made", 3, "made"),
        ("stranger", 3, "stranger"),
    ):
        path = write_json(tmp_path / "attention.json", whole | {name: value})
        with pytest.raises(DataError, match=message) as error:
            read_record(path)
        assert "attention.json" in str(error.value)
        assert "Inspect the model again." in str(error.value)


# The command


def test_parts_and_settings_are_chosen_on_the_command_line(tmp_path, capsys, model, questions):
    command = ("inspect", model, "--data", questions, "--parts", "attention", "artefacts", "--output-dir", tmp_path)
    code, out, err = invoke(capsys, (*command, "--set", "attention.queries=content", "artefacts.probes=false"))
    assert code == 0
    for line in (f"1/3 opening {model}", f"2/3 attention of {COUNT} examples", f"3/3 artefacts of {COUNT} examples"):
        assert line in err, "a line a stage, also where there is no terminal"
    assert str(tmp_path) in out
    assert {path.stem for path in tmp_path.glob("*.json")} == {"attention", "artefacts"}
    assert read_record(tmp_path / "attention.json").settings["queries"] == "content"
    assert "attention sinks" in out
    assert "massive activations" in out


def test_faithfulness_is_a_command_with_its_settings_as_flags(tmp_path, capsys, model, questions):
    command = ("faithfulness", model, "--data", questions, "--output-dir", tmp_path, "--settings.texts", "2")
    flags = ("--settings.methods", "gradient-input", "--settings.random-draws", "2", "--settings.limit-texts", "0")
    code, out, _ = invoke(capsys, (*command, *flags))
    assert code == 0
    record = read_record(tmp_path / "faithfulness.json")
    assert (record.settings["texts"], record.settings["random_draws"]) == (2, 2)
    assert "gradient-input" in out


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path, capsys, monkeypatch):
    for command in ("inspect", "faithfulness"):
        began = time.process_time()
        code, _, err = invoke(capsys, (command, tmp_path / "nowhere"))
        assert time.process_time() - began < 1
        assert code == 1
        assert "nowhere doesn't exist" in err
    monkeypatch.chdir(tmp_path)
    assert "doesn't exist" in invoke(capsys, ("inspect", "runs/nowhere"))[2]


def test_a_part_that_takes_minutes_is_measured_where_it_is_named():
    assert [name for name in ANALYSES if name not in settings_of_parts((), {})] == ["faithfulness"]
    assert list(settings_of_parts(("faithfulness",), {})) == ["faithfulness"]


def test_wrong_names_are_refused(model, questions, capsys):
    with pytest.raises(UnknownNameError, match="atention"):
        inspect(model, data=(questions,), parts=("atention",))
    with pytest.raises(UnknownNameError, match="the settings of attention: 'qeries'"):
        inspect(model, data=(questions,), parts=("attention",), settings={"attention": {"qeries": "text"}})
    with pytest.raises(UnknownNameError, match="heads"):
        inspect(model, data=(questions,), parts=("attention",), settings={"heads": {}})
    with pytest.raises(CheckpointError, match="no checkpoints"):
        inspect(model, data=(questions,), parts=("attention",), checkpoints=True)
    with pytest.raises(ConfigError, match="sink_above"):
        inspect(model, data=(questions,), parts=("attention",), settings={"attention": {"sink_above": 2.0}})
    assert "PART.FIELD=VALUE" in invoke(capsys, ("inspect", model, "--set", "nonsense"))[2]


# Measures of explanations


def attribution(*relevance):
    tokens = tuple("abcd"[: len(relevance)])
    return Attribution(
        method="m",
        target="t",
        value=1.0,
        tokens=tokens,
        offsets=None,
        relevance=np.array(relevance),
        registers=np.zeros(0),
    )


def test_concentration_and_share_on_the_answer_have_their_known_values():
    content = {0: np.array([False, True, True, True]), 1: np.array([True, True, True, True])}
    gold = {0: np.array([False, False, True, False]), 1: np.zeros(4, dtype=bool)}
    found = explanation_measures(
        "m", {0: attribution(9.0, 0.0, -2.0, 0.0), 1: attribution(1.0, -1.0, 1.0, 1.0)}, content, gold
    )
    assert found["explanation.m.entropy"] == {0: 0.0, 1: pytest.approx(1.0)}
    assert found["explanation.m.on_gold"] == {0: 1.0}


def test_an_example_without_a_number_is_none_and_a_stranger_is_refused():
    assert aligned({"m": {1: 0.5, 0: float("nan")}}, 3) == {"m": [None, 0.5, None]}
    assert aligned({"m": np.array([0.25, np.nan])}, 2) == {"m": [0.25, None]}
    with pytest.raises(DataError, match="example 3"):
        aligned({"m": {3: 0.5}}, 3)


def test_what_an_analysis_gives_becomes_plain_json():
    found = plain({"a": np.array([[1.0, np.nan]]), "b": (1, Path("x/y")), "c": attribution(1.0), "d": torch.ones(1)})
    assert found["a"] == [[1.0, None]]
    assert found["b"] == [1, "x/y"]
    assert found["c"]["relevance"] == [1.0]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
