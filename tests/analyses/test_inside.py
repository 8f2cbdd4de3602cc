"""A look inside a tiny model: every part leaves its file, and every question its numbers."""

import json

import numpy as np
import pytest

from command_line import invoke
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.inside import PARTS, look_inside
from regtune.analyses.inside_measures import MEASURES, aligned, explanation_measures
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, DataError, UnknownNameError
from regtune.records import read_json
from regtune.registers.surgery import add_registers
from tiny import tiny_model
from tiny_tokenizer import save_questions, save_tiny, tiny_tokenizer

COUNT = 5


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return str(save_questions(tmp_path_factory.mktemp("questions") / "q.json", COUNT))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registers")
    made = tiny_model("bert", max_position_embeddings=512)
    add_registers(made, RegisterConfig(num_registers=2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def looked(tmp_path_factory, model, questions):
    folder = tmp_path_factory.mktemp("inside")
    return look_inside(model, data=(questions,), output_dir=folder, resamples=200, progress=False)


def test_every_part_leaves_its_file(looked):
    kinds = {path.stem: read_json(path)["kind"] for path in looked.folder.glob("*.json")}
    assert kinds == {name: name for name in (*PARTS, "measures")}


def test_every_measure_has_a_number_for_every_question(looked):
    found = read_json(looked.folder / "measures.json")
    assert found["questions"] == [f"q{index}" for index in range(COUNT)]
    assert {measure.name for measure in MEASURES} <= set(found["measures"])
    assert all(len(values) == COUNT for values in found["measures"].values())
    assert (found["num_registers"], found["seed"], found["run"]) == (2, None, None)


def test_the_numbers_are_those_of_the_parts(looked):
    measures = read_json(looked.folder / "measures.json")["measures"]
    attention = read_json(looked.folder / "attention.json")
    assert np.mean(measures["attention.mass_text.cls"]) == pytest.approx(
        np.mean(attention["mass_text"]["cls"]), rel=1e-4
    )
    lost = read_json(looked.folder / "int8.json")["value"]
    assert np.mean(measures["w8a8.f1_loss"]) == pytest.approx(lost, abs=1e-5)


def test_what_a_person_reads_names_the_registers(looked):
    assert "2 registers" in "\n".join(looked.texts)


def test_a_model_without_registers_or_head_is_looked_into_as_far_as_it_goes(tmp_path, questions):
    folder = save_tiny(tmp_path / "bare", head="none", max_position_embeddings=512)
    found = look_inside(str(folder), data=(questions,), output_dir=tmp_path / "inside", progress=False)
    names = {path.stem for path in found.folder.glob("*.json")}
    assert names == {"attention", "artefacts", "measures"}


def test_parts_can_be_chosen_on_the_command_line(tmp_path, capsys, model, questions):
    arguments = ("inside", model, "--data", questions, "--parts", "attention", "--output-dir", tmp_path / "inside")
    code, out, _ = invoke(capsys, arguments)
    assert code == 0
    assert str(tmp_path / "inside") in out
    assert {path.stem for path in (tmp_path / "inside").glob("*.json")} == {"attention", "measures"}


def test_unknown_parts_and_none_at_all_are_refused(model, questions):
    with pytest.raises(UnknownNameError, match="atention"):
        look_inside(model, data=(questions,), parts=("atention",))
    with pytest.raises(ConfigError, match="name at least one"):
        look_inside(model, data=(questions,), parts=())


def test_an_explanation_is_one_json_and_one_page_on_the_command_line(tmp_path, capsys, model):
    page = tmp_path / "why.html"
    command = ("explain", model, "--question", "Who lives in the house?", "--context", "Ann lives in the house.")
    code, out, _ = invoke(capsys, (*command, "--methods", "attnlrp", "--html", page, "--json"))
    assert code == 0
    assert json.loads(out)["kind"] == "explanations"
    assert "house" in page.read_text(encoding="utf-8")


def test_a_diagnosis_is_printed_on_the_command_line(tmp_path, capsys, model, questions):
    command = ("diagnose", model, "--data", questions, "--output-dir", tmp_path / "out", "--no-probes", "--no-quantise")
    code, out, _ = invoke(capsys, command)
    assert code == 0
    assert "sink" in out
    assert (tmp_path / "out" / "diagnosis.json").is_file()


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


def test_a_question_without_a_number_is_none_and_a_stranger_is_refused():
    assert aligned({"m": {1: 0.5, 0: float("nan")}}, ["a", "b", "c"]) == {"m": [None, 0.5, None]}
    with pytest.raises(DataError, match="question 3"):
        aligned({"m": {3: 0.5}}, ["a", "b", "c"])
