"""What do explanations cost? Relevance propagation beside a plain gradient, integrated gradients beside plain Captum.

All in float32 on windows of real questions, answered by a model that regtune trained; the sides take turns.

Relevance propagation: `explain` with AttnLRP and with Chefer's rules against one plain forward and backward pass of the
same batch and target (the answer's logits), SDPA attention: down to the word embeddings with frozen weights, the least
that any gradient takes (`ratio`), and down to all weights, as in training (`ratio_training`).

Integrated gradients to 1 % completeness, from padding, special tokens held. `fewest` is the smallest number of points
with which one Gauss-Legendre rule over the whole path comes to 1 %, found for each question by trying them all on F
along the path (129 forward passes at Chebyshev points; the path's polynomial is exact far below 1 %). Rivals: Captum,
one question at a time, weights as loaded, with `fixed`, the smallest number of points that brings *every* question to
1 %, since one has to be chosen; and with each question's own `fewest`, which nobody knows beforehand.

    python benchmarks/attribution_speed.py RUN_DIR [--data FILE] [--questions 32] [--length 384] [--rounds 5] [--tiny]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result
from torch import Tensor

import regtune
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.batch import Batch, baseline_embeddings, given_embeddings, make_batch, word_embeddings
from regtune.families import family_of
from regtune.registers.surgery import num_registers
from regtune.rows.targets import values_of
from regtune.tasks.qa.settings import QASettings

TYDIQA = Path("../shared/data/tydiqa-goldp/en.dev.json.gz")
NAMES = ("input_ids", "attention_mask", "token_type_ids", "token_classes")
SHARE = 0.01
CURVE = 128
LIMITS = {"attnlrp": 1.6, "chefer": 4.0, "steps": 1.3, "throughput": 3.0}


def seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def prepared(model: Any, tensors: Mapping[str, Tensor], tokenizer: Any) -> Batch:
    family = family_of(model.base_model.config, "relevance")
    wanted = ["answer"] * len(tensors["input_ids"])
    return make_batch(model, family, tensors, wanted, tolerance=SHARE, tokenizer=tokenizer)


def propagation(model: Any, tensors: dict[str, Tensor], tokenizer: Any, rounds: int) -> dict[str, Any]:
    """Seconds of every side on one batch, in turns, and the ratios of their medians."""
    batch = prepared(model, tensors, tokenizer)
    with torch.no_grad():
        targets = batch.resolve(batch.run())

    def plain() -> None:
        with given_embeddings(batch) as given:
            given.words = word_embeddings(batch).requires_grad_()
            torch.autograd.grad(values_of(batch.run(), targets).sum(), given.words)

    def frozen() -> None:
        model.requires_grad_(False)
        plain()
        model.requires_grad_(True)

    def training() -> None:
        values_of(batch.run(), targets).sum().backward()
        model.zero_grad()

    sides = {
        "plain": frozen,
        "training": training,
        "attnlrp": lambda: attribute(model, tensors, method="attnlrp", target="answer", batch_size=64),
        "chefer": lambda: attribute(
            model, tensors, method="chefer", target="answer", batch_size=64, on_residual="warn"
        ),
    }
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(sides[name]))
    middle = {name: statistics.median(found) for name, found in times.items()}
    return {
        name: {
            "ratio": round(middle[name] / middle["plain"], 3),
            "ratio_training": round(middle[name] / middle["training"], 3),
            "limit": LIMITS[name],
        }
        for name in ("attnlrp", "chefer")
    } | {"seconds": {name: [round(one, 3) for one in found] for name, found in times.items()}}


class Question:
    """One question by itself: its path, and Captum on it."""

    def __init__(self, model: Any, tensors: dict[str, Tensor], tokenizer: Any) -> None:
        length = int(tensors["attention_mask"].sum())
        self.tensors = {name: value[:, :length] for name, value in tensors.items()}
        self.batch = prepared(model, self.tensors, tokenizer)
        with torch.no_grad():
            self.targets = self.batch.resolve(self.batch.run())
        self.end, self.start = word_embeddings(self.batch), baseline_embeddings(self.batch, "pad")

    def value(self, given: Any, words: Tensor) -> Tensor:
        given.words = words
        rows = torch.zeros(len(words), dtype=torch.long, device=words.device)
        return values_of(self.batch.run_rows(rows), self.targets * len(words))

    def fewest(self, most: int = 160) -> tuple[int, list[float]]:
        """The smallest number of points that comes to 1 %, and the error of every number from 1."""
        shares = (1 - np.cos(np.pi * np.arange(CURVE + 1) / CURVE)) / 2
        values: list[float] = []
        with torch.no_grad(), given_embeddings(self.batch) as given:
            for part in np.array_split(shares, CURVE // 8):
                share = torch.tensor(part, dtype=self.end.dtype, device=self.end.device).view(-1, 1, 1)
                values += self.value(given, self.start + share * (self.end - self.start)).tolist()
        change = values[-1] - values[0]
        slope = np.polynomial.chebyshev.Chebyshev.fit(shares, values, CURVE, domain=[0, 1]).deriv()
        errors = []
        for points in range(1, most + 1):
            nodes, sizes = np.polynomial.legendre.leggauss(points)
            errors.append(abs(float((sizes / 2 * slope((nodes + 1) / 2)).sum()) - change) / abs(change))
        return next((points for points, error in enumerate(errors, start=1) if error <= SHARE), most), errors

    def captum(self, points: int) -> Tensor:
        from captum.attr import IntegratedGradients

        with given_embeddings(self.batch) as given:
            method = IntegratedGradients(lambda words: self.value(given, words))
            found: Tensor = method.attribute(self.end, self.start, n_steps=points, method="gausslegendre")
            return found.sum(-1)[0]


class Passes:
    """Counts texts that run through the model, with and without gradients."""

    def __init__(self, model: Any) -> None:
        self.counts = {True: 0, False: 0}
        self.handle = model.base_model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.counts[torch.is_grad_enabled()] += len(args[0] if args else kwargs["input_ids"])


def captum_of(questions: Sequence[Question], points: Sequence[int]) -> list[Tensor]:
    """Captum's scores, one question at a time, each with so many steps."""
    return [one.captum(few) for one, few in zip(questions, points, strict=True)]


def integration(model: Any, batches: list[dict[str, Tensor]], tokenizer: Any, exact: int) -> dict[str, Any]:
    """Steps and throughput over all questions."""
    groups = [
        [
            Question(model, {n: v[i : i + 1] for n, v in batch.items()}, tokenizer)
            for i in range(len(batch["input_ids"]))
        ]
        for batch in batches
    ]
    found = [one.fewest() for group in groups for one in group]
    fewest = [few for few, _ in found]
    worst = np.array([errors for _, errors in found]).max(0)
    fixed = int(np.argmax(worst <= SHARE)) + 1 if (worst <= SHARE).any() else len(worst)
    print(f"fewest {fewest}, one number for all {fixed}", flush=True)
    own = iter(fewest)
    chosen = [[next(own) for _ in group] for group in groups]
    passes, steps, ours = Passes(model), [], []
    times = {"regtune": 0.0, "captum_fixed": 0.0, "captum_fewest": 0.0}
    for number, (batch, group, points) in enumerate(zip(batches, groups, chosen, strict=True)):
        counted: list[dict[bool, int]] = []

        def regtune(batch: dict[str, Tensor] = batch, counted: list[dict[bool, int]] = counted) -> None:
            before = dict(passes.counts)
            ours.extend(
                attribute(
                    model, batch, method="integrated-gradients", target="answer", tokenizer=tokenizer, batch_size=64
                )
            )
            counted.append({key: passes.counts[key] - before[key] for key in before})

        sides: dict[str, Callable[[], Any]] = {
            "regtune": regtune,
            "captum_fixed": functools.partial(captum_of, group, [fixed] * len(group)),
            "captum_fewest": functools.partial(captum_of, group, points),
        }
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times[name] += seconds(sides[name])
        steps.append(counted[0])
        print({name: round(value, 1) for name, value in times.items()}, flush=True)
    passes.handle.remove()
    return {
        "questions": len(fewest),
        "fewest": fewest,
        "fixed": fixed,
        "steps": [one.steps for one in ours],
        "steps_over_fewest": round(sum(one.steps or 0 for one in ours) / sum(fewest), 3),
        "gradients_over_fewest": round(sum(count[True] for count in steps) / sum(fewest), 3),
        "forward_passes_each": round(sum(count[False] for count in steps) / len(fewest), 2),
        "largest_error": round(max(abs(one.residual / (one.value - one.baseline)) for one in ours), 5),
        "seconds": {name: round(value, 2) for name, value in times.items()},
        "throughput_over_captum_fixed": round(times["captum_fixed"] / times["regtune"], 3),
        "throughput_over_captum_fewest": round(times["captum_fewest"] / times["regtune"], 3),
        "limits": {name: LIMITS[name] for name in ("steps", "throughput")},
        "distance_from_300_points": distances(groups, chosen, ours, exact),
    }


def distances(groups: list[list[Question]], chosen: list[list[int]], ours: list[Any], exact: int) -> dict[str, float]:
    """How far scores are from those of 300 points, as a share of these, means over a few questions."""
    questions = [one for group in groups for one in group]
    points = [few for group in chosen for few in group]
    far: dict[str, list[float]] = {"regtune": [], "fewest": []}
    for number in range(0, len(questions), max(1, len(questions) // max(1, exact))):
        true = questions[number].captum(300).detach().double().cpu()
        for name, scores in (
            ("regtune", torch.from_numpy(ours[number].relevance.copy())),
            ("fewest", questions[number].captum(points[number]).detach().double().cpu()),
        ):
            far[name].append(float((scores - true).abs().sum() / true.abs().sum()))
    return {name: round(statistics.mean(values), 4) for name, values in far.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of a question-answering model")
    parser.add_argument("--data", type=Path, default=TYDIQA)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exact", type=int, default=4, help="questions that are compared with 300 points")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: 2 short questions; writes no result")
    asked = parser.parse_args()
    if asked.tiny:
        asked.questions, asked.length, asked.rounds, asked.exact = 2, 128, 1, 1
    if not asked.data.is_file():
        sys.exit(f"{asked.data} is missing; name a SQuAD-format file with --data.")
    session = regtune.open(asked.run)
    session.task_settings = QASettings(max_length=asked.length, stride=min(128, asked.length // 3))
    rows = session.rows(session.sample((str(asked.data),), asked.questions))
    found = session.batches(rows.one_each(), batch_size=min(8, asked.questions))
    model, tokenizer = session.model, session.reader
    batches = [{name: batch[name] for name in NAMES if name in batch} for batch in found]
    result = {
        "registers": num_registers(model),
        "max_length": asked.length,
        "precision": "float32",
        "propagation": propagation(model, batches[len(batches) // 2], tokenizer, asked.rounds),
        "integrated_gradients": integration(model, batches, tokenizer, asked.exact),
    }
    print(result if asked.tiny else write_result("attribution_speed", result))


if __name__ == "__main__":
    main()
