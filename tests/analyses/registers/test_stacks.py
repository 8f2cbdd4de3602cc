"""The part `registers` of models with an encoder and a decoder, each number made again by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from regtune.analyses.inspection import inspect
from regtune.analyses.registers.analysis import RegisterAnalysis, RegisterSettings
from regtune.analyses.registers.lens import lens_of_batch
from regtune.analyses.registers.stacks import MOVED, OWN_WORDS, WRITTEN
from regtune.config import RegisterConfig
from regtune.errors import DataError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.records import plain
from regtune.registers.surgery import add_registers, disable_registers, find_decoder_registers, mask_registers
from regtune.rows.texts import PlainText
from regtune.session import Session, around
from tiny_seq2seq import tiny_model
from tiny_tokenizer import tiny_tokenizer

TEXTS = ("the cat lives in the house.", "who is in 3?", "where was the cat in the house?", "in.")
ENCODER, DECODER = 2, 3
EVERY = pytest.mark.parametrize("family", ["t5", "bart"])


def session_of(family: str, head: str = "text-to-text", encoder: int = ENCODER, decoder: int = DECODER, **settings):
    config = RegisterConfig(num_registers=encoder, decoder_registers=decoder, init_std=1.0, **settings)
    return around(add_registers(tiny_model(family, head), config), tiny_tokenizer())


def said(count: int = len(TEXTS)) -> Examples:
    return Examples(items=tuple(PlainText(id=str(n), text=text) for n, text in enumerate(TEXTS[:count])), names=("t",))


def audit(session: Session, examples: Examples | None = None, **settings):
    examples = examples or said()
    made = RegisterSettings(**{"resamples": 200, **settings})
    return plain(RegisterAnalysis().measure(session, session.rows(examples), examples, made))


def written(session: Session, text: str):
    """What one text becomes, and what the decoder is given for it."""
    ids = session.reader(text, return_tensors="pt")["input_ids"]
    out = session.model.generate(ids, max_new_tokens=WRITTEN, do_sample=False)
    return {"input_ids": ids, "decoder_input_ids": out[:, :-1]}, out[0, 1:]


@torch.no_grad()
def loss_of(session: Session, text: str, change=None) -> float:
    """Nats on a text's own words, which were written before the change."""
    given, labels = written(session, text)
    with change or torch.no_grad():
        logits = session.model(**given, use_cache=False).logits[0]
    return float(torch.nn.functional.cross_entropy(logits.double(), labels))


@EVERY
def test_a_register_is_judged_by_the_model_s_own_words_without_it_and_no_other(family):
    session = session_of(family)
    content = audit(session)
    assert content["quantity"] == OWN_WORDS
    assert content["loss"] == pytest.approx(np.mean([loss_of(session, text) for text in TEXTS]), abs=1e-5)
    stacks = {"encoder": session.model.get_encoder(), "decoder": session.model.get_decoder()}
    for name, count in (("encoder", ENCODER), ("decoder", DECODER)):
        for register in (*range(count), None):
            which = None if register is None else [register]
            expected = [
                loss_of(session, text, mask_registers(stacks[name], which)) - loss_of(session, text) for text in TEXTS
            ]
            found = content["measures"][f"registers.{name}.mask.{'all' if register is None else register}"]
            assert found == pytest.approx(expected, abs=1e-5)
            effect = next(
                one
                for one in content["sets"][name]["knock_outs"]
                if (one["register"], one["how"]) == (register, "mask")
            )
            assert effect["loss"]["difference"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert any(abs(value) > 1e-3 for values in content["measures"].values() for value in values)


@torch.no_grad()
@EVERY
def test_attention_and_norms_are_those_of_each_stack_s_own_tokens(family):
    session = session_of(family)
    content = audit(session, hows=("mask",))
    sums = {"encoder": [], "decoder": []}
    session.model.set_attn_implementation("eager")
    norms = {"encoder": [], "decoder": []}
    for text in TEXTS:
        given, _ = written(session, text)
        output = session.model(**given, output_attentions=True, output_hidden_states=True)
        for name, count in (("encoder", ENCODER), ("decoder", DECODER)):
            maps = torch.stack(output[f"{name}_attentions"])[:, 0]
            sums[name].append(maps[:, :, count:, :count].transpose(2, 3))
            norms[name].append(output[f"{name}_hidden_states"][0][0].norm(dim=-1))
    for name, maps in sums.items():
        found, every = content["sets"][name], torch.cat(maps, dim=-1).mean(-1)
        assert np.allclose(found["attention_in"], every.mean(1), atol=1e-5)
        assert np.allclose(found["attention_in_head"], every.amax(1), atol=1e-5)
        stack = session.model.get_submodule(("" if family == "t5" else "model.") + name)
        own = stack.registers(1)[0].norm(dim=-1)
        assert np.allclose(found["norm"][0], own / torch.cat(norms[name]).mean(), rtol=1e-4)
        assert len(found["norm"]) == len(found["attention_in"]) + 1 == len(maps_of(stack)) + 1


def maps_of(stack):
    return stack.block if hasattr(stack, "block") else stack.layers


@EVERY
def test_what_a_register_holds_on_average_takes_its_place_in_its_own_stack(family):
    """All texts alike: the mean is what each holds, so that nothing changes."""
    session = session_of(family, depth="every_layer")
    same = Examples(items=tuple(PlainText(id=str(n), text=TEXTS[0]) for n in range(3)), names=("t",))
    content = audit(session, same, hows=("mean", "zero"))
    for one in content["sets"].values():
        by_how = {how: [e for e in one["knock_outs"] if e["how"] == how] for how in ("mean", "zero")}
        assert all(abs(e["loss"]["difference"]) < 1e-4 for e in by_how["mean"])
        assert any(abs(e["loss"]["difference"]) > 1e-3 for e in by_how["zero"])


@EVERY
def test_each_set_is_read_in_words_as_it_is_on_average(family):
    """All texts alike: the mean is what each holds."""
    session = session_of(family)
    same = Examples(items=tuple(PlainText(id=str(n), text=TEXTS[0]) for n in range(3)), names=("t",))
    content = audit(session, same)
    given, _ = written(session, TEXTS[0])
    expected = lens_of_batch(session.model, given, session.reader)
    for name, lens in zip(("encoder", "decoder"), plain(expected), strict=True):
        found = content["sets"][name]["lens"]
        assert found["stack"] == name
        assert [[words[0][0] for words in depths] for depths in found["embedding"]] == [
            [words[0][0] for words in depths] for depths in lens["embedding"]
        ]
    said = [[words[0] for words in depths] for depths in content["sets"]["decoder"]["lens"]["head"]]
    assert said == [
        [[word[0], pytest.approx(word[1], abs=1e-4)] for word, *_ in ds] for ds in plain(expected[1])["head"]
    ]
    titles = [block.title for block in RegisterAnalysis().blocks(content)]
    assert f"What the language-model head of {type(session.model).__name__} makes of them" in titles
    older = {
        **content,
        "sets": {name: {k: v for k, v in one.items() if k != "lens"} for name, one in content["sets"].items()},
    }
    assert len(list(RegisterAnalysis().blocks(older))) == len(titles) - 3


@pytest.mark.parametrize(("encoder", "decoder"), [(ENCODER, 0), (0, DECODER), (ENCODER, DECODER)])
def test_heads_are_judged_by_logits_without_labels_and_each_set_that_is_there_is_shown(encoder, decoder):
    session = session_of("bart", "sequence-classification", encoder, decoder)
    content = audit(session)
    assert content["quantity"] == MOVED
    assert content["reads"] == "the text"
    assert list(content["sets"]) == ["encoder"] * bool(encoder) + ["decoder"] * bool(decoder)
    ids = session.reader(TEXTS[0], return_tensors="pt")["input_ids"]
    stack = session.model.get_decoder() if decoder else session.model.get_encoder()
    with torch.no_grad():
        plain_logits = session.model(ids).logits
        with mask_registers(stack, [1]):
            moved = (session.model(ids).logits - plain_logits).norm() / plain_logits.norm()
    name = "decoder" if decoder else "encoder"
    assert content["measures"][f"registers.{name}.mask.1"][0] == pytest.approx(float(moved), rel=1e-3)


def test_a_task_s_loss_and_metric_are_used_where_there_are_labels(tmp_path):
    model = add_registers(
        tiny_model("bart", "sequence-classification"),
        RegisterConfig(num_registers=1, decoder_registers=2, init_std=1.0),
    )
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = tmp_path / "some.csv"
    data.write_text("text,label\n" + "".join(f"{text},{('no', 'yes')[n % 2]}\n" for n, text in enumerate(TEXTS)))
    found = inspect(
        tmp_path / "model", parts=["registers"], data=[str(data)], settings={"registers": {"resamples": 200}},
        output_dir=tmp_path / "out",
    )  # fmt: skip
    record = found["registers"]
    assert record.content["quantity"] == "loss"
    assert record.content["metric"]["name"] == "accuracy"
    assert record.subject["label"] == "registers, N = 1, decoder's 2"
    shown = " ".join(str(found).split())
    for words in ("The encoder's registers knocked out:", "The decoder's own registers knocked out:", "Untouched: "):
        assert words in shown
    assert [block.kind for block in record.blocks()].count("figure") == 6
    assert set(record.measures) == {f"registers.encoder.mask.{n}" for n in (0, "all")} | {
        f"registers.decoder.mask.{n}" for n in (0, 1, "all")
    }


def test_what_nothing_can_be_seen_of_is_refused_in_words():
    bare = session_of("t5", "none")
    with pytest.raises(UnsupportedModelError, match=r"This T5Model has no head.*AutoModelForSeq2SeqLM"):
        audit(bare)
    session = session_of("t5")
    with disable_registers(session.model), pytest.raises(UnsupportedModelError, match="are disabled"):
        audit(session)


def test_parts_that_know_nothing_of_a_decoder_s_registers_are_left_out_in_words(tmp_path):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    session = dataclasses.replace(session_of("t5", encoder=0), name="mine")
    assert find_decoder_registers(session.model) is not None
    few = {"registers": {"resamples": 200}}
    found = inspect(session, data=[str(data)], settings=few, output_dir=tmp_path / "out")
    assert [record.part for record in found.records] == ["registers"]
    assert list(found["registers"].content["sets"]) == ["decoder"]
    notes = dict(note.split(" is left out: ") for note in found.notes)
    assert set(notes) == {"attention", "artefacts", "int8", "heads", "explanations"}
    assert "has registers in its decoder" in notes["int8"]
    with pytest.raises(DataError, match="heads is left out: There are no relevance rules"):
        inspect(session, parts=["heads"], data=[str(data)], output_dir=tmp_path / "out")
