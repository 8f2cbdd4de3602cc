"""Made-up measurements of the inside of a model, as `inside/*.json` holds them: no model, any size one likes."""

from __future__ import annotations

from typing import Any

import numpy as np

from regtune.analyses.attribution.attribution import Attribution

CLASSES = ("cls", "sep", "punctuation", "question", "context", "register")
QUESTION = "Who designed the bridge?"
CONTEXT = "The bridge over the fjord was designed by Ada Lindqvist, not by her brother, and opened in 1921."


def attention(num_registers: int = 4, layers: int = 6, heads: int = 12, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shares = random.dirichlet([3, 1, 1, 2, 6, 3 if num_registers else 1e-9], size=(layers, heads))
    split = random.dirichlet(np.arange(1, num_registers + 1), size=(layers, heads)) if num_registers else None
    single = random.uniform(0, 1, (3, layers, heads)).tolist()
    return {
        "schema_version": 1,
        "kind": "attention",
        "num_registers": num_registers,
        "layers": layers,
        "heads": heads,
        "windows": 120,
        "mass": {name: shares[..., index].tolist() for index, name in enumerate(CLASSES)},
        **dict(zip(("entropy_text", "sink_rate", "idle"), single, strict=True)),
        "register_share": [] if split is None else np.moveaxis(split * shares[..., 5:], -1, 0).tolist(),
    }


def artefacts(layers: int = 6, seed: int = 0) -> dict[str, Any]:
    random, edges = np.random.default_rng(seed), np.geomspace(1e-2, 1e4, 121)
    sites: dict[str, list[dict[str, Any]]] = {}
    for site, size in (("norm_input", 9), ("feed_forward", 5), ("block", 12)):
        for layer in range(layers):
            norms = np.exp(random.normal(np.log(size + layer), 0.2, 4000))
            norms[: 4 * layer] *= 8
            entry = {
                "edges": edges.tolist(),
                "counts": np.histogram(norms, edges)[0].tolist(),
                **{name: float(getattr(np, name)(norms)) for name in ("mean", "std", "median", "max")},
                "outlier_rate": {"mean+3std": 0.01, "median+kmad": 0.02, "absolute": 0.0},
                "max_over_median": 40.0 * (1 + layer),
                "kurtosis": None if layer == 0 else 30.0,
            }
            sites.setdefault(site, []).append(entry)
    return {"schema_version": 1, "kind": "artefacts", "layers": layers, "sites": sites}


def audit(num_registers: int = 4, layers: int = 6, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(layers + 1, num_registers, 5)) + 0.6
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = (vectors @ vectors.transpose(0, 2, 1)).tolist()
    knock_outs = []
    for how in ("mask", "mean", "zero"):
        for register in (*range(num_registers), None):
            middle = 0.002 * (1 + (register or 0)) if register is not None else 0.3
            change = {"difference": middle, "low": middle - 0.003, "high": middle + 0.003}
            knock_outs.append({"register": register, "how": how, "loss": change, "f1": change, "answers_changed": 0.1})
    return {
        "schema_version": 1,
        "kind": "audit",
        "num_registers": num_registers,
        "knock_outs": knock_outs,
        "similarity_initial": cosines[0],
        "similarity_contextual": cosines[1:],
        "variation": random.uniform(0, 0.3, (layers, num_registers)).tolist(),
        "attention_in": random.uniform(0, 0.1, (layers, num_registers)).tolist(),
        "relevance": random.uniform(0, 1, num_registers).tolist(),
        "verdict": "Not all registers are equal: register 3 is missed most.",
    }


def faithfulness() -> dict[str, Any]:
    rows = []
    for metric, factor in (("comprehensiveness", 1.0), ("sufficiency", 0.8)):
        for method, value in (("attnlrp", 0.62), ("chefer", 0.4), ("attention", 0.21), ("random", 0.0)):
            middle = factor * value
            interval = {"value": middle, "low": middle - 0.05, "high": middle + 0.05}
            rows.append({"method": method, "metric": metric, "raw": {**interval}, "normalised": {**interval}})
    return {"schema_version": 1, "kind": "faithfulness", "rows": rows}


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
