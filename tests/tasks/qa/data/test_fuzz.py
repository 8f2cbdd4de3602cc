"""Files that are wrong in any way, by structure and by bytes: a sentence or sound examples, never a raw error.

A fixed seed in the suite; the `slow` run tries many more, from another seed each time it is edited.
"""

import copy
import gzip
import json
import random

import pytest

from regtune.errors import DataError
from regtune.tasks.qa.data.sources import load_questions

CONTEXT = "The tern 🐦 flies\u00a0from Greenland to Antarctica."


def documents():
    answer = {"text": "tern", "answer_start": 4}
    question = {"id": "1", "question": "What?", "answers": [answer], "is_impossible": False}
    row = {
        "id": "1",
        "title": "T",
        "context": CONTEXT,
        "question": "?",
        "answers": {"text": ["tern"], "answer_start": [4]},
    }
    detected = [{"text": "tern", "char_spans": [[4, 7]], "token_spans": [[1, 1]]}]
    mrqa = {
        "context": CONTEXT,
        "qas": [{"qid": "1", "question": "?", "answers": ["tern"], "detected_answers": detected}],
    }
    cmrc = {"context_text": CONTEXT, "qas": [{"query_id": "1", "query_text": "?", "answers": ["tern"]}]}
    good = {"context": CONTEXT, "qas": [question, {**question, "id": "2"}]}
    return [
        [{"data": [{"title": "T", "paragraphs": [good]}], "version": "1"}],
        [{"header": {"dataset": "x"}}, mrqa, {**mrqa, "qas": [{**mrqa["qas"][0], "qid": "2"}]}],
        [[cmrc, {**cmrc, "qas": [{**cmrc["qas"][0], "query_id": "2"}]}]],
        [[row, {**row, "id": "2"}]],
        [row, {**row, "id": "2"}],
    ]


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    5,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "4",
    "-7",
    "٤",
    "\ud83d",
    "\x1b[2J",
]
VALUES += [
    "\u202e",
    "tern",
    "x" * 3000,
    [],
    {},
    [[]],
    [None],
    {"text": 5},
    [{"text": "tern"}],
    {"text": ["tern"]},
    [["tern"]],
]
VALUES += [
    {"text": "tern", "answer_start": [4]},
    {"text": ["tern"], "answer_start": [None]},
    "DEEP",
    [4, 4],
    [[4]],
    [[-3, 10**20]],
]


def places(value, found=None):
    found = [] if found is None else found
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        places(value[key], found)
    return found


def mutate_structure(values, rng):
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 3)):
        owner, key = rng.choice(places(values))
        action = rng.randrange(4)
        if action == 0:
            del owner[key]
        elif action == 1 and isinstance(owner, dict):
            owner[rng.choice(["id", "answers", "qas", "context", "text", "\x00"])] = owner[key]
        else:
            owner[key] = copy.deepcopy(rng.choice(VALUES))
        if not values or not places(values):
            break
    return values


def as_bytes(values, rng):
    lines = [json.dumps(value, ensure_ascii=rng.random() < 0.5) for value in values]
    raw = "\n".join(lines).replace('"DEEP"', "[" * 3000 + "]" * 3000).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        raw = raw.replace(b'"id"', b'"id": "twice", "id"', 1)
    return raw


def mutate_bytes(raw, rng):
    raw = bytearray(raw)
    for _ in range(rng.randint(0, 4)):
        if raw:
            place = rng.randrange(len(raw))
            raw[place : place + rng.randint(0, 2)] = bytes(rng.choices(range(256), k=rng.randint(0, 2)))
    return bytes(raw[: rng.randint(0, len(raw))] if rng.random() < 0.3 else raw)


def check(folder, seed):
    rng = random.Random(seed)
    raw = as_bytes(mutate_structure(rng.choice(documents()), rng), rng)
    packed = rng.random() < 0.3
    if rng.random() < 0.3:
        raw = mutate_bytes(raw, rng)
    if packed:
        raw = gzip.compress(raw, mtime=0)
        raw = mutate_bytes(raw, rng) if rng.random() < 0.5 else raw
    path = folder / ("fuzz.json.gz" if packed else "fuzz.json")
    path.write_bytes(raw)
    training, mode = rng.random() < 0.5, rng.choice(["raise", "skip", "mend"])
    try:
        data = load_questions(
            path, on_bad_record=mode, on_duplicate_id=rng.choice(["refuse", "renumber"]), for_training=training
        )
    except DataError as error:
        message = str(error)
    else:
        message = ""
    assert len(message) < 5_000
    assert not any(sign in message for sign in "\x1b\x00\u202e\ud83d")
    if message:
        return False
    assert len({example.id for example in data}) == len(data) > 0
    for example in data:
        assert example.question.strip()
        assert example.context.strip()
        assert bool(example.answers) != example.is_impossible
        assert all(answer.text.strip() for answer in example.answers)
        starts = [answer.start for answer in example.answers]
        assert example.is_impossible or not training or any(start is not None for start in starts)
        for answer in example.answers:
            assert answer.start is None or (answer.start >= 0 and example.context.startswith(answer.text, answer.start))
        json.dumps([example.id, example.question, example.context, example.title], ensure_ascii=False).encode()
    json.dumps(data.facts, ensure_ascii=False).encode()
    assert all(len(line) < 5_000 for line in data.notes)
    return True


def test_any_damage_gives_a_sentence_or_sound_examples(tmp_path):
    read = [check(tmp_path, seed) for seed in range(800)]
    assert 100 < sum(read) < 700, "both must happen, or the damage is too small or too large to test anything"


@pytest.mark.slow
def test_much_more_damage_gives_a_sentence_or_sound_examples(tmp_path):
    for seed in range(10_000, 25_000):
        check(tmp_path, seed)
