"""A small labelled file for every task that is built in."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_tokenizer import save_questions

_WORDS = ("cat", "house")


def _lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _sentence(index: int) -> str:
    tag = ("B-PET", "B-PLACE")[index % 2]
    return f"the\tO\n{_WORDS[index % 2]}\t{tag}\n{index}\tI{tag[1:]}\nlives\tO\n\n"


def _question(index: int) -> dict:
    return {"question": f"who lives in {index}", "choices": ["the cat", "the house"], "answer": "AB"[index % 2]}


def _document(index: int) -> str:
    return f"the cat lives in the house {index}. who was in the house {index}?\n\n"


WRITERS = {
    "classify": ("labelled.csv", lambda n: "text,label\n" + "".join(f"the {_WORDS[i % 2]} {i},{i % 2}\n" for i in n)),
    "multi-label": (
        "labels.jsonl",
        lambda n: _lines({"text": f"the {_WORDS[i % 2]} {i}", "labels": [_WORDS[i % 2]] * (i % 3 > 0)} for i in n),
    ),
    "regress": ("numbers.csv", lambda n: "text,score\n" + "".join(f"the {_WORDS[i % 2]} {i},{i % 2}.5\n" for i in n)),
    "tag": ("tags.conll", lambda n: "".join(map(_sentence, n))),
    "choose": ("choices.jsonl", lambda n: _lines(map(_question, n))),
    "lm": ("texts.txt", lambda n: "".join(map(_document, n))),
    "mlm": ("texts.txt", lambda n: "".join(map(_document, n))),
    "instruct": ("pairs.csv", lambda n: "prompt,answer\n" + "".join(f"the {_WORDS[i % 2]} {i},{i % 2}\n" for i in n)),
}
"""Task to the name of its file, and what it holds of the examples with these numbers."""

ASKED = {
    **{task: {"text": "the cat 3 lives"} for task in ("classify", "multi-label", "regress", "tag")},
    "choose": {"question": "who lives in 3", "choices": ["the cat", "the house"]},
}
"""Task to what a person gives to be predicted."""


def save_examples(task: str, folder: Path, count: int = 8) -> Path:
    """Writes so many examples of a task; each is learnable from one of its words."""
    if task == "qa":
        return save_questions(folder / "q.json", count)
    name, write = WRITERS[task]
    (folder / name).write_text(write(range(count)), encoding="utf-8")
    return folder / name
