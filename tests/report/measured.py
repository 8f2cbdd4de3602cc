"""Made-up explanations of one question: no model, any methods and numbers of registers one likes."""

from __future__ import annotations

from typing import Any

import numpy as np

from regtune.analyses.attribution.attribution import Attribution

QUESTION = "Who designed the bridge?"
CONTEXT = "The bridge over the fjord was designed by Ada Lindqvist, not by her brother, and opened in 1921."


def attribution(method: str = "attnlrp", asked: str = "start", num_registers: int = 4, seed: int = 0) -> dict[str, Any]:
    """Scores for the question and the context above, word by word; `designed` in pieces."""
    random = np.random.default_rng(seed)
    words = [("[CLS]", 0, 0), *spans(QUESTION), ("[SEP]", 0, 0), *spans(CONTEXT), ("[SEP]", 0, 0)]
    scores = random.normal(0, 0.2, len(words))
    for place, (word, _, _) in enumerate(words):
        scores[place] += {"ada": 3.0, "##ed": 1.2, "who": 2.0, "brother": -1.5}.get(word, 0.0)
    registers = random.normal(0, 0.1, num_registers)
    parts = {"positions": 0.4, "biases": -1.1, "softmax": 0.3} if method == "attnlrp" else {}
    if method in ("chefer", "attention"):
        scores = np.abs(scores) / (np.abs(scores).sum() + np.abs(registers).sum())
        registers = np.abs(registers) / 10
    total = float(scores.sum() + registers.sum() + sum(parts.values()))
    found = Attribution(
        method=method,
        target=f"{asked} at token 14",
        value=total + 1e-7 if method == "attnlrp" else 6.5,
        tokens=tuple(word for word, _, _ in words),
        offsets=tuple((start, end) for _, start, end in words),
        relevance=scores,
        registers=registers,
        residual=1e-7,
        **parts,
    )
    return {"asked": asked, **found.to_json()}


def spans(text: str) -> list[tuple[str, int, int]]:
    """Words, signs apart and `designed` in two pieces, with their characters."""
    found, place = [], 0
    for raw in text.split(" "):
        body = raw.rstrip("?,.")
        ends = [(body, place, place + len(body))]
        if body == "designed":
            ends = [("design", place, place + 6), ("##ed", place + 6, place + 8)]
        ends += [(sign, place + len(body) + i, place + len(body) + i + 1) for i, sign in enumerate(raw[len(body) :])]
        found += [(word.lower(), start, end) for word, start, end in ends]
        place += len(raw) + 1
    return found


def explanations(methods: tuple[str, ...] = ("attnlrp", "chefer"), counts: tuple[int, ...] = (0, 4)) -> dict[str, Any]:
    start = CONTEXT.index("Ada Lindqvist")
    answer = {"text": "Ada Lindqvist", "start": start, "end": start + 13, "score": 9.5, "probability": 0.83}
    models = [
        {
            "name": f"runs/n{count}",
            "num_registers": count,
            "answer": answer,
            "notes": [],
            "context_start": len(spans(QUESTION)) + 2,
            "attributions": [
                attribution(method, asked, count, seed=count + number)
                for method in methods
                for number, asked in enumerate(("start", "end"))
            ],
        }
        for count in counts
    ]
    return {
        "schema_version": 1,
        "kind": "explanations",
        "question": QUESTION,
        "context": CONTEXT,
        "notes": [],
        "models": models,
    }
