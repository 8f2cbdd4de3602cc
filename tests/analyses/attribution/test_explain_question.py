"""One question explained: at the model's own answer, in the window that holds it; bad input is refused."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from analyses.attribution.explained import encoder
from regtune.analyses.attribution import explain_question as module
from regtune.analyses.attribution.explain_question import explain_question, explain_row
from regtune.config import AnswerConfig, DataConfig, RegisterConfig, RunConfig
from regtune.errors import CheckpointError, DataError, MissingExtraError, UnknownNameError
from regtune.registers.surgery import add_registers
from regtune.report.overlays.pictures import read_pictures
from regtune.targets import ClassLogit, StartLogit
from regtune.tasks.qa.ask import ask
from tiny import inputs, tiny_model
from tiny_tokenizer import save_tiny, tiny_tokenizer

QUESTION = "Who lives in the house?"
CONTEXT = "The cat is in the house. Ann lives in house 3, and Bob was in house 4."
LEDGER = ("attnlrp",)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def registers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registers")
    add_registers(tiny_model("bert"), RegisterConfig(num_registers=3)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def with_config(monkeypatch, folder, **answers):
    data = DataConfig(max_length=40, stride=12, max_question_length=24)
    config = RunConfig(data=data, answers=AnswerConfig(**answers))
    monkeypatch.setattr(module, "open_target", lambda name: SimpleNamespace(model=folder, config=config))


def test_start_and_end_of_the_answer_that_the_model_gives_are_explained(plain):
    found = explain_question(plain, QUESTION, CONTEXT, methods=LEDGER)
    (model,) = found.models
    assert model.answer.text == ask(plain, QUESTION, CONTEXT).text
    assert CONTEXT[model.answer.start : model.answer.end] == model.answer.text
    assert [asked for asked, _ in model.attributions] == ["start", "end"]
    start, end = (one for _, one in model.attributions)
    assert start.value + end.value == pytest.approx(model.answer.score, abs=1e-4)
    first, last = (int(one.target.rsplit(" ", 1)[1]) for one in (start, end))
    assert (start.offsets[first][0], start.offsets[last][1]) == (model.answer.start, model.answer.end)


def test_offsets_lead_to_the_question_and_to_the_context(plain):
    (model,) = explain_question(plain, QUESTION, CONTEXT, methods=LEDGER).models
    found = model.attributions[0][1]
    for place, (token, (start, end)) in enumerate(zip(found.tokens, found.offsets, strict=True)):
        text = QUESTION if place < model.context_start else CONTEXT
        if not token.startswith("["):
            assert text[start:end].lower() == token.removeprefix("##")


def test_two_models_are_explained_side_by_side(plain, registers):
    found = explain_question(registers, QUESTION, CONTEXT, methods=LEDGER, targets=("answer",), compare=plain)
    assert [model.num_registers for model in found.models] == [3, 0]
    assert [len(one.registers) for one in found.attributions] == [3, 0]
    different = found.models[0].answer.text != found.models[1].answer.text
    assert bool(found.notes) == different
    (picture,) = read_pictures(json.loads(json.dumps(found.to_json())))
    assert [model.label for model in picture.models] == ["with 3 registers", "without registers"]
    assert picture.rows == {"attnlrp": ["answer"]}


@pytest.mark.parametrize("target", ["answer", "answer-minus-null", "answer-minus-runner-up"])
def test_every_target_of_question_answering_is_at_hand(plain, target):
    ((asked, found),) = (
        explain_question(plain, QUESTION, CONTEXT, methods=LEDGER, targets=(target,)).models[0].attributions
    )
    assert asked == target
    assert abs(found.value - found.total) < 1e-3


def test_a_long_text_is_explained_where_the_answer_is_and_it_is_said(plain, monkeypatch):
    with_config(monkeypatch, plain)
    long = f"{'The house was in the house. ' * 12}{CONTEXT}"
    (model,) = explain_question("run", QUESTION, long, methods=LEDGER).models
    (note,) = [note for note in model.notes if "overlapping parts" in note]
    found = model.attributions[0][1]
    spans = found.offsets[model.context_start : -1]
    assert spans[0][0] <= model.answer.start
    assert model.answer.end <= spans[-1][1]
    assert f"characters {spans[0][0]:,} to {spans[-1][1]:,} of {len(long):,}" in note
    assert len(found.tokens) <= 40
    whole = ask_long(plain, long)
    assert model.answer.score == pytest.approx(whole, abs=1e-4)
    assert sum(one.value for _, one in model.attributions) == pytest.approx(whole, abs=1e-3)


def ask_long(folder, text):
    from regtune.tasks.qa.question_answerer import QuestionAnswerer

    answerer = QuestionAnswerer.from_pretrained(folder, max_length=40, stride=12)
    return answerer(question=QUESTION, context=text).n_best[0].score


def test_a_question_longer_than_the_window_is_cut_alike_for_the_answer_and_its_explanation(plain):
    (model,) = explain_question(plain, "who lives in the house " * 20, CONTEXT, methods=LEDGER).models
    assert any("only its start was read" in note for note in model.notes)
    assert sum(one.value for _, one in model.attributions) == pytest.approx(model.answer.score, abs=1e-4)


def test_no_answer_is_said_and_the_best_answer_is_explained_against_it(plain, monkeypatch):
    with_config(monkeypatch, plain, null_answers=True, null_threshold=-1e6)
    (model,) = explain_question("run", QUESTION, CONTEXT, methods=LEDGER).models
    ((asked, found),) = model.attributions
    assert asked == "answer-minus-null"
    assert found.target.endswith("minus no answer")
    assert any("holds no answer" in note for note in model.notes)
    assert model.answer.text


def test_an_answer_against_the_models_own_odds_comes_with_a_warning(plain, monkeypatch):
    with_config(monkeypatch, plain)
    found = {}
    for question in (QUESTION, "What was in the house?", "Where is the cat?", "Who is Bob?", "What is in house 4?"):
        (model,) = explain_question("run", question, CONTEXT, methods=LEDGER, targets=("answer-minus-null",)).models
        warned = any("don't trust this answer" in note for note in model.notes)
        found[warned] = model.attributions[0][1].value
        assert warned == (model.attributions[0][1].value < 0)
    assert found


def test_methods_that_cannot_be_had_are_left_out_by_default_and_refused_when_asked_for(plain, monkeypatch):
    def explain(*arguments, method, **more):
        if method == "integrated-gradients":
            raise MissingExtraError("captum", "analysis", "Integrated gradients")
        return genuine(*arguments, method=method, **more)

    genuine = module.explain
    monkeypatch.setattr(module, "explain", explain)
    monkeypatch.setattr(module, "METHODS", dict.fromkeys(module.METHODS_SHOWN))
    (model,) = explain_question(plain, QUESTION, CONTEXT).models
    assert {one.method for _, one in model.attributions} == {"attnlrp", "chefer"}
    assert any(note.startswith("integrated-gradients is left out: Integrated gradients needs") for note in model.notes)
    with pytest.raises(MissingExtraError):
        explain_question(plain, QUESTION, CONTEXT, methods=("integrated-gradients",))


def test_explaining_again_gives_the_same_numbers(plain):
    torch.manual_seed(3)
    first = explain_question(plain, QUESTION, CONTEXT, methods=LEDGER).to_json()
    torch.manual_seed(4)
    assert explain_question(plain, QUESTION, CONTEXT, methods=LEDGER).to_json() == first


def test_words_that_the_ledger_books_against_their_own_answer_are_compared_with_hiding_them():
    """The sentence stands where the ledger's sign and the experiment's disagree, and nowhere else."""
    model, said = encoder("bert"), set()
    for place, ids in enumerate(inputs("bert", batch=8, seq=9, seed=0)["input_ids"], start=1):
        moved = {"occlusion": {"special_tokens": "moved"}}
        goals, methods = {"start": StartLogit(position=place)}, ("attnlrp", "occlusion")
        row, answer = {"input_ids": ids[None]}, (place, place)
        found, notes = explain_row(model, row, goals, methods=methods, options=moved, answer=answer)
        booked, hidden = (float(one.relevance[place]) for _, one in found)
        assert len(notes) == (booked < 0 < hidden)
        for note in notes:
            assert note.startswith(f"attnlrp books the answer's own words at {booked:+.2f} logits for start, yet")
            assert f"costs {hidden:.2f}." in note
        said.add(len(notes))
    assert said == {0, 1}


def test_one_row_of_any_task_is_explained_by_several_methods():
    row = {"input_ids": torch.arange(4, 12)[None]}
    goals = {"first": ClassLogit(label=0), "contrast": ClassLogit(label=1, minus=0)}
    model = encoder("mpnet", "sequence-classification")
    options = {"occlusion": {"special_tokens": "moved", "baseline": "zero"}}
    found, notes = explain_row(model, row, goals, methods=("attnlrp", "occlusion"), options=options)
    assert [(asked, one.method) for asked, one in found] == [
        (asked, method) for method in ("attnlrp", "occlusion") for asked in goals
    ]
    assert found[-1][1].options["baseline"] == "zero"
    assert notes == ()


@pytest.mark.parametrize("bad", [None, 3, "", "  ", b"bytes", ["a list"]])
def test_what_is_no_text_is_refused_with_the_value(bad):
    with pytest.raises(DataError, match="The context is"):
        explain_question("nowhere", QUESTION, bad)
    with pytest.raises(DataError, match="The question is"):
        explain_question("nowhere", bad, CONTEXT)


def test_unknown_names_are_refused_before_a_model_is_loaded():
    with pytest.raises(UnknownNameError, match="Did you mean 'attnlrp'"):
        explain_question("nowhere", QUESTION, CONTEXT, methods=("attnlpr",))
    with pytest.raises(
        UnknownNameError, match="Available: answer, answer-minus-null, answer-minus-runner-up, end, start\\."
    ):
        explain_question("nowhere", QUESTION, CONTEXT, targets=("class",))
    with pytest.raises(DataError, match="at least one of each"):
        explain_question("nowhere", QUESTION, CONTEXT, targets=())


def test_a_model_without_an_answering_head_is_refused(tmp_path):
    save_tiny(tmp_path, head="none")
    with pytest.raises(CheckpointError, match="no head for question answering"):
        explain_question(str(tmp_path), QUESTION, CONTEXT)


def test_the_second_model_is_refused_by_its_name(plain, tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        explain_question(plain, QUESTION, CONTEXT, methods=LEDGER, compare=str(tmp_path / "missing"))


def test_answers_are_frozen(plain):
    found = explain_question(plain, QUESTION, CONTEXT, methods=LEDGER)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.models = ()
