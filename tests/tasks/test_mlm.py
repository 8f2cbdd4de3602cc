"""Masked language modelling: the same masks for every model, figures against a loop, one run and what is made of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import regtune
from command_line import QUICK, invoke
from regtune.errors import DataError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.noise import noise_of
from regtune.rows.reading import perturbed
from regtune.rows.texts import NOT_SCORED
from regtune.tasks.lm import Document
from regtune.tasks.mlm import MaskedLanguageModelling, MlmSettings
from tiny_tokenizer import save_tiny

TASK = MaskedLanguageModelling()
TEXTS = ["the cat lives in the house. who was in the house? " * 4, "where is the cat, what is it", "a cat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("encoder"), head="masked-lm")


def opened(model, **settings):
    return regtune.open(model, settings=MlmSettings(**{"max_length": 20, "batch_size": 3, **settings}))


def documents(*texts, **more):
    items = tuple(Document(id=str(number), text=text, **more) for number, text in enumerate(texts or TEXTS))
    return Examples(items=items, names=("x",))


def restored(rows):
    """The words of each document, masks filled in."""
    found = {}
    for row, example in zip(rows.rows, rows.example, strict=True):
        ids = np.where(row.labels == NOT_SCORED, row.input_ids, row.labels)
        found.setdefault(example, []).extend(ids[1:-1].tolist())
    return found


def test_the_masks_depend_on_the_document_and_the_seed_alone(model):
    session = opened(model, mask_probability=0.5)
    rows = session.rows(documents())
    again = opened(model, mask_probability=0.5)
    regtune.add_registers(again.model, regtune.RegisterConfig(num_registers=3))
    same = again.rows(documents(), training=True)
    assert [row.input_ids.tolist() for row in rows.rows] == [row.input_ids.tolist() for row in same.rows]
    alone = session.rows(Examples(items=documents().items[:1], names=("x",)))
    assert [row.input_ids.tolist() for row in alone.rows] == [row.input_ids.tolist() for row in rows.rows[: len(alone)]]
    other = opened(model, mask_probability=0.5, mask_seed=1).rows(documents())
    assert [row.labels.tolist() for row in other.rows] != [row.labels.tolist() for row in rows.rows]
    for number, text in enumerate(TEXTS):
        assert restored(rows)[number] == session.reader(text, add_special_tokens=False)["input_ids"]
    assert max(rows.lengths) == 20


def test_blocks_in_which_nothing_is_masked_are_left_out_but_every_document_has_one(model):
    rows = opened(model, mask_probability=0.01).rows(documents())
    assert set(rows.example) == {0, 1, 2}
    assert all((row.labels != NOT_SCORED).any() for row in rows.rows)


def test_figures_are_those_of_a_loop(model):
    session = opened(model)
    rows = session.rows(documents())
    found = session.predict(documents(), rows)
    for number, one in enumerate(found):
        nats, right, count = 0.0, 0, 0
        for row, example in zip(rows.rows, rows.example, strict=True):
            if example == number:
                with torch.no_grad():
                    logits = session.model(input_ids=torch.tensor([row.input_ids.tolist()])).logits[0]
                for place in np.flatnonzero(row.labels != NOT_SCORED):
                    nats -= float(logits[place].log_softmax(-1)[row.labels[place]])
                    right += int(logits[place].argmax()) == row.labels[place]
                    count += 1
        assert one.nats == pytest.approx(nats, rel=1e-5)
        assert (one.right, one.tokens) == (right, count)
    figures = TASK.figures(found, documents())
    tokens = sum(one.tokens for one in found)
    assert figures["perplexity"] == pytest.approx(np.exp(sum(one.nats for one in found) / tokens))
    assert figures["masked_accuracy"] == pytest.approx(sum(one.right for one in found) / tokens)


def test_words_that_a_person_left_out_are_predicted(model):
    session = opened(model)
    (one,) = session.predict(documents("the [MASK] is in the [MASK]", given=True))
    ids = session.reader("the [MASK] is in the [MASK]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = session.model(input_ids=ids).logits[0].argmax(-1)[[2, 6]]
    assert one.to_json() == {"id": "0", "text": " ".join(session.reader.decode([int(token)]) for token in best)}
    with pytest.raises(DataError, match=r"'a cat' has no \[MASK\]"):
        session.predict(documents("a cat", given=True))


def noisy(spec, *texts, **more):
    return perturbed(TASK, documents(*texts, **more), noise_of(f"noise:{spec}:x")[0])


@pytest.mark.parametrize("spec", ["keyboard=0.4,words=0.3", "case=1"])
def test_with_noise_only_the_documents_own_words_are_masked_and_the_rest_is_read_as_it_is(model, spec):
    session = opened(model, mask_probability=0.9)
    found = noisy(spec)
    rows = session.rows(found)
    assert set(rows.example) == {0, 1, 2}
    for row, example in zip(rows.rows, rows.example, strict=True):
        item = found.items[example]
        masked = row.offsets[row.labels != NOT_SCORED].tolist()
        own = [(0, len(item.text))] if item.own is None else item.own
        assert masked
        assert all(any(a <= start and end <= b for a, b in own) for start, end in masked)
    for number, item in enumerate(found.items):
        assert restored(rows)[number] == session.reader(item.text, add_special_tokens=False)["input_ids"]
    assert all(one.tokens >= 1 for one in session.predict(found))


def test_noise_of_strength_0_masks_and_scores_what_no_noise_does(model):
    session = opened(model)
    assert session.predict(noisy("keyboard=0")) == session.predict(documents())


def test_a_persons_mask_stays_in_noise(model):
    found = noisy("case=1,words=0.5", "where the [MASK], lives is the Cat", given=True)
    assert "[MASK]," in found.items[0].text
    (one,) = opened(model).predict(found)
    assert len(one.text.split()) == 1


def test_a_tokenizer_without_mask_is_refused(model):
    session = opened(model)
    session.reader.mask_token = None
    with pytest.raises(UnsupportedModelError, match=r"has no \[MASK\]"):
        session.rows(documents())


def test_a_run_is_trained_evaluated_predicted_explained_inspected_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", head="masked-lm")
    lines = "\n".join(json.dumps({"text": f"the cat lives in the house {n}"}) for n in range(12))
    (tmp_path / "a.jsonl").write_text(lines)
    words = ["train", "--task", "mlm", "--model", "model", "--data.train", "a.jsonl", "--data.eval", "a.jsonl"]
    words += ["--data.max-length", "30", *QUICK]
    for n in ("0", "2"):
        code, out, err = invoke(capsys, (*words, "--registers.num-registers", n, "--output-dir", f"n{n}"))
        assert code == 0, err
        assert "masked accuracy" in out
    code, out, err = invoke(capsys, ("predict", "n2", "--text", "the [MASK] lives"))
    assert code == 0, err
    assert json.loads(out)["text"]
    for command in (
        ("evaluate", "n2"),
        ("explain", "n2", "the [MASK] lives", "--method", "attnlrp"),
        ("inspect", "n2", "--limit", "3", "--parts", "explanations", "registers"),
        ("compare", "n2", "n0", "--resamples", "500"),
    ):
        code, out, err = invoke(capsys, command)
        assert code == 0, err
