"""What the explorer shows: the library's own numbers, whatever two people do at once."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest
import torch

import regtune
import tiny_seq2seq
from regtune.app import explorer as module
from regtune.app.explorer import Change, Explorer, open_explorer
from regtune.errors import CheckpointError, ConfigError, DataError, UnknownNameError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.registers.surgery import find_decoder_registers, find_registers
from regtune.session import around
from tiny_sweep import tiny_sweep
from tiny_tokenizer import save_tiny, tiny_tokenizer

GIVEN = {"question": "Who lives in house 3?", "context": "The cat is in the house. Dan lives in house 3."}
TEXT = {"text": "The cat lives in the house.", "pair": ""}
PLAIN = Change()


def columns(block):
    return [dict(zip(block.table.header, row, strict=True)) for row in block.rows]


def test_predictions_are_the_models_own_with_and_without_registers(alone):
    (block,) = alone.predictions(GIVEN, PLAIN)
    session = alone.sessions[0]
    example = Examples(items=(session.task.example({"id": "given", **GIVEN}, session.task_settings),), names=("x",))
    (plain,) = session.predict(example)
    with regtune.disable_registers(session.model):
        (off,) = session.predict(example)
    assert block.table.header == ("text", "2 registers", "registers off")
    for column, prediction in ((1, plain), (2, off)):
        said = {row[0]: row[column] for row in block.rows if row[column] is not None}
        assert said == {one.text: one.probability for one in prediction.n_best}
    assert plain.n_best[0].probability != off.n_best[0].probability


def test_a_knocked_out_register_is_masked_and_all_of_them_off_is_no_registers(alone):
    (block,) = alone.predictions(GIVEN, Change(knocked_out=("r1",)))
    assert block.table.header[1:] == ("2 registers, without 1", "registers off")
    session = alone.sessions[0]
    example = Examples(items=(session.task.example({"id": "given", **GIVEN}, session.task_settings),), names=("x",))
    with regtune.mask_registers(session.model, [1]):
        (masked,) = session.predict(example)
    assert next(row[1] for row in block.rows) == masked.n_best[0].probability
    (off,) = alone.predictions(GIVEN, Change(off=True))
    assert off.table.header[1:] == ("registers off",)


def test_two_models_stand_side_by_side_and_indices_that_one_lacks_are_no_change_to_it(explorer):
    (block,) = explorer.predictions(GIVEN, Change(knocked_out=("r0",)))
    assert block.table.header[1:] == ("A: 2 registers, without 0", "A: registers off", "B: no registers")


def with_both(family, encoder=2, head="text-to-text"):
    """A model with registers of the decoder's own."""
    config = regtune.RegisterConfig(num_registers=encoder, decoder_registers=3, init_std=1.0)
    return around(regtune.add_registers(tiny_seq2seq.tiny_model(family, head), config), tiny_tokenizer())


@pytest.mark.parametrize(
    ("encoder", "out", "words"),
    [
        (0, ("r1",), "0 registers, decoder's 3"),
        (2, ("r1",), "2 registers, without 1, decoder's 3"),
        (0, ("d0", "d2"), "0 registers, decoder's 3, without 0, 2"),
        (2, ("r0", "d1", "d9", "r5"), "2 registers, without 0, decoder's 3, without 1"),
    ],
)
def test_registers_of_both_sets_are_knocked_out_each_in_its_own(encoder, out, words):
    session = with_both("bart", encoder)
    change = Change(knocked_out=out)
    assert change.words(session) == words
    with change.on(session):
        assert find_decoder_registers(session.model).masked == {n for n in range(3) if f"d{n}" in out}
        assert encoder == 0 or find_registers(session.model).masked == {n for n in range(2) if f"r{n}" in out}
    assert find_decoder_registers(session.model).masked == frozenset()


@torch.no_grad()
@pytest.mark.parametrize("encoder", [0, 2])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_s_register_is_knocked_out_as_its_own_mask_hides_it(family, encoder):
    session = with_both(family, encoder)
    given = tiny_seq2seq.texts(9) | {"decoder_input_ids": torch.tensor([[2, 9, 8, 30]])}

    def said():
        output = session.model(**given, use_cache=False)
        return output.logits, output.encoder_last_hidden_state

    logits, read = said()
    for number in range(3):
        with regtune.mask_registers(session.model.get_decoder(), [number]):
            wanted, _ = said()
        with Change(knocked_out=(f"d{number}",)).on(session):
            found, still_read = said()
        assert torch.equal(found, wanted)
        assert torch.equal(still_read, read)
        assert (found - logits).abs().max() > 1e-3
    if encoder:
        with Change(knocked_out=("r1",)).on(session):
            assert (said()[1] - read).abs().max() > 1e-3


def test_looks_at_a_model_with_both_sets_know_both():
    session = with_both("bart")
    explorer = Explorer(sessions=(session,), cells=())
    names = {"r0": "encoder register 0", "r1": "encoder register 1"} | {
        f"d{n}": f"decoder register {n}" for n in range(3)
    }
    assert explorer.registers == names
    said, block = explorer.relevance({"text": "a cat"}, Change(knocked_out=("d1",)), ("gradient-input",))
    assert said.notes[0].endswith("2 registers, decoder's 3, without 1.")
    with regtune.mask_registers(session.model.get_decoder(), [1]):
        wanted = regtune.explain(session, "a cat", method="gradient-input").attributions[0]
    (found,) = block.data["models"][0]["attributions"]
    assert found["registers"] == pytest.approx(wanted.registers.tolist())
    assert [number for number, score in enumerate(found["registers"]) if score == 0] == [2 + 1]
    titles = [block.title for block in explorer.lens({"text": "a cat"}, PLAIN)]
    assert [title for title in titles if "encoder" in title or "decoder" in title] == titles[:2]


def test_a_decoder_s_registers_alone_are_switched_off_beside_what_it_says_and_read_by_the_lens(tmp_path):
    config = regtune.RegisterConfig(num_registers=0, decoder_registers=2, init_std=1.0)
    model = regtune.add_registers(tiny_seq2seq.tiny_model("bart", "sequence-classification"), config)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    explorer = open_explorer(tmp_path)
    (block,) = explorer.predictions(TEXT, Change(knocked_out=("d0",)))
    assert block.table.header[1:] == ("0 registers, decoder's 2, without 0", "registers off")
    assert list(explorer.registers) == ["d0", "d1"]
    (lens,) = explorer.lens(TEXT, PLAIN)
    assert [row[0] for row in lens.rows] == ["0", "1"]


def test_a_classifier_and_a_model_without_a_task_are_explored_alike(classifier, tmp_path):
    (block,) = classifier.predictions(TEXT, PLAIN)
    assert sum(row[1] for row in block.rows) == pytest.approx(1)
    assert classifier.fields == ("text", "pair")
    assert classifier.sets == ()
    base = open_explorer(save_tiny(tmp_path / "base", head="none"))
    assert base.fields == ("text",)
    assert "no head for a task" in base.predictions({"text": "a cat"}, PLAIN)[0].text
    assert len(base.norms({"text": "a cat"}, PLAIN)) == 2
    assert len(base.attention({"text": "a cat"}, PLAIN)) == 4


def test_relevance_is_that_of_explain_under_the_same_change(explorer):
    said, block = explorer.relevance(GIVEN, Change(knocked_out=("r0",)), ("attnlrp",), "start")
    assert [line.rpartition(": ")[2] for line in said.notes] == ["2 registers, without 0.", "no registers."]
    with regtune.mask_registers(explorer.sessions[0].model, [0]):
        wanted = regtune.explain(explorer.sessions[0], GIVEN, method="attnlrp", target="start")
    found = block.data["models"][0]["attributions"][0]
    assert found["relevance"] == pytest.approx(wanted.attributions[0].relevance.tolist())
    assert found["registers"][0] == 0 != found["registers"][1]
    assert len(block.data["models"]) == 2


def test_attention_is_the_models_own_with_registers_apart(alone):
    session = alone.sessions[0]
    places = alone.places(GIVEN, PLAIN)
    assert list(places)[:3] == ["r0", "r1", "0"]
    assert places["0"] == "[CLS]"
    blocks = alone.attention(GIVEN, PLAIN, layer=1, head=2, place="4")
    session.model.set_attn_implementation("eager")
    batch = alone._batch(session, GIVEN)
    with torch.no_grad():
        weights = session.forward(batch, output_attentions=True).attentions[1][0, 2]
    session.model.set_attn_implementation("sdpa")
    assert list(blocks[0].data["to"].values()) == pytest.approx(weights[2 + 4].tolist(), abs=1e-5)
    assert blocks[0].data["from"] == "4"
    assert blocks[0].html.count('aria-pressed="true"') == 1
    assert blocks[0].html.count("data-place=") == len(places) == weights.shape[0]
    assert [block.title for block in blocks if "to registers" in block.title]
    assert not [block for block in alone.attention(GIVEN, Change(off=True)) if "to registers" in block.title]


def test_a_place_that_a_look_does_not_have_falls_back_to_the_first_token(alone):
    assert alone.attention(GIVEN, Change(off=True), place="r0")[0].data["from"] == "0"
    assert alone.attention(GIVEN, PLAIN, layer=99, head=99, place="9999")[0].data["from"] == "0"


def test_norms_are_those_of_the_hidden_states(alone):
    figure, table = alone.norms(GIVEN, PLAIN)
    session = alone.sessions[0]
    batch = alone._batch(session, GIVEN)
    with torch.no_grad():
        states = session.forward(batch, output_hidden_states=True).hidden_states
    norms = np.array(figure.data["norms"])
    assert norms[:, 2:] == pytest.approx(torch.stack(states[1:])[:, 0].norm(dim=-1).numpy(), rel=1e-4)
    assert figure.data["tokens"][:3] == ["r0", "r1", "[CLS]"]
    assert columns(table)[0]["median of content"] > 0


def test_the_lens_reads_registers_and_says_where_there_are_none(explorer, runs):
    blocks = explorer.lens(GIVEN, PLAIN)
    table = next(block for block in blocks if block.kind == "table")
    assert [row[0] for row in table.rows] == ["0", "1"]
    assert len(table.columns) == 1 + explorer.layers + 1
    with pytest.raises(UnsupportedModelError, match="disabled"):
        explorer.lens(GIVEN, Change(off=True))
    with pytest.raises(UnsupportedModelError, match="no registers"):
        open_explorer(runs[1]).lens(GIVEN, PLAIN)


def test_examples_are_listed_searched_and_put_into_the_fields(explorer):
    (name,) = explorer.sets
    found = explorer.examples(name)
    assert len(found.ids) == 6
    assert explorer.examples(name, "all", "LIVES IN 3").ids == ("q3",)
    right, wrong = (set(explorer.examples(name, which).ids) for which in ("right", "wrong"))
    assert right | wrong == set(found.ids)
    assert not right & wrong
    assert explorer.given(name, "q3")["question"] == "Who lives in 3?"
    assert explorer.given(name, "nobody") == {}
    for wrong_name, wrong_choice in ((name, "best"), ("other", "all")):
        with pytest.raises(UnknownNameError):
            explorer.examples(wrong_name, wrong_choice)


def test_flips_are_the_examples_that_one_run_alone_has_right(explorer, runs):
    (name,) = explorer.sets
    cells = []
    for cell, right in zip(explorer.cells, (np.array([1, 1, 1, 0, 0, 0]), np.array([1, 0, 0, 1, 0, 0])), strict=True):
        scored = dataclasses.replace(cell.scored[name], right=right.astype(bool))
        cells.append(dataclasses.replace(cell, scored={name: scored}))
    flipped = dataclasses.replace(explorer, cells=tuple(cells))
    assert flipped.examples(name, "won").ids == ("q3",)
    assert flipped.examples(name, "lost").ids == ("q1", "q2")
    assert flipped.examples(name, "right").ids == ("q0", "q1", "q2")
    with pytest.raises(DataError, match="--compare"):
        open_explorer(runs[0]).examples(name, "won")


def test_two_people_at_once_get_what_each_gets_alone(alone):
    texts = [{**GIVEN, "context": f"Bob is in the house. Ann lives in house {n}."} for n in range(3)]
    changes = [PLAIN, Change(off=True), Change(knocked_out=("r0",))]
    looks = [
        lambda text, change: [block.data for block in alone.attention(text, change, place="3")],
        lambda text, change: [block.rows for block in alone.predictions(text, change)],
        lambda text, change: [block.data for block in alone.relevance(text, change)],
    ]
    jobs = [(look, text, change) for look in looks for text in texts for change in changes]
    wanted = [json.dumps(look(text, change)) for look, text, change in jobs]
    found = [None] * len(jobs)

    def work(first):
        for number in range(first, len(jobs), 4):
            look, text, change = jobs[number]
            found[number] = json.dumps(look(text, change))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted
    assert len(set(wanted)) == len(wanted)


# Bad input


def test_long_and_empty_texts_get_a_sentence(alone, classifier):
    for look in (alone.predictions, alone.relevance, alone.attention, alone.norms, alone.lens):
        with pytest.raises(DataError, match=r"The context has 100,000 characters; the page takes at most 20,000"):
            look({**GIVEN, "context": "a " * 50_000}, PLAIN)
        with pytest.raises(DataError, match="'question' is"):
            look({**GIVEN, "question": " "}, PLAIN)
    with pytest.raises(DataError, match="the text given"):
        classifier.predictions({"text": "", "pair": ""}, PLAIN)


def test_runs_of_two_tasks_the_same_run_twice_and_no_run_are_refused(runs, tmp_path):
    other = save_tiny(tmp_path / "classifier", head="sequence-classification")
    with pytest.raises(DataError, match=r"is for qa and .* is for classify. Compare two models of one task"):
        open_explorer(runs[0], other)
    with pytest.raises(ConfigError, match="are the same"):
        open_explorer(runs[0], runs[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a run directory nor a model"):
        open_explorer(tmp_path / "empty")


def test_an_adapter_whose_base_is_missing_is_named_with_its_base(tmp_path):
    pytest.importorskip("peft")
    base = tiny_sweep(tmp_path).base
    data = dataclasses.replace(base.data, train=(str(tmp_path / "train.json"),), eval=(str(tmp_path / "dev.json"),))
    regtune.train(
        dataclasses.replace(base, data=data, methods={"lora": {"r": 2}}, output_dir=tmp_path / "run"), progress=False
    )
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"The adapter in .*run.* needs its base model .*base, .*can't be opened"):
        open_explorer(tmp_path / "run")


def test_the_list_has_an_end(explorer, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 4)
    found = explorer.examples(explorer.sets[0])
    assert len(found.ids) == len(found.block.rows) == 4
    assert "6 questions, the first 4" in found.block.title
