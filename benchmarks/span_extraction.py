"""How fast are answers found in start and end logits, compared with a plain loop over the 20 best starts and ends?

    python benchmarks/span_extraction.py [--questions 10570] [--repetitions 5]

Three sides run in one process, in turns, on the same made-up logits: about one window a question and 170 tokens a
window, five questions a paragraph, as in SQuAD v1.1's dev set. All give, for each question, the 20 best answers with
text, place, score and probability.

- `plain_loop`: two Python loops over the 20 best starts and ends, the way scripts usually do it. It may give
  duplicates, fewer than 20 answers, and shares of the listed answers only.
- `exhaustive_loop`: two Python loops over all starts and ends, which give what `extract_answers` gives; slow, so it
  runs on one question in 50 and its time is multiplied.
- `extract_answers`, as predictions, and `n_best_read`, where besides every single answer is made a Python object.

The result goes to `benchmarks/results/span_extraction.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from record import machine, write_result

from regtune.tasks.qa.answers import extract_answers
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.settings import QASettings

QUESTIONS_A_PARAGRAPH = 5
QUESTION_TOKENS = 14  # [CLS], the question, [SEP]
LONGEST_CONTEXT = 384 - QUESTION_TOKENS - 1
STRIDE = 128
EXHAUSTIVE_STEP = 50


def make_windows(questions: int, rng: np.random.Generator) -> tuple[list[QAExample], list[Window]]:
    """Paragraphs of words drawn from Zipf's law, one token a word, cut into overlapping windows."""
    examples: list[QAExample] = []
    windows: list[Window] = []
    for number in range(questions):
        if number % QUESTIONS_A_PARAGRAPH == 0:
            tokens = int(np.clip(rng.lognormal(5.0, 0.4), 30, 800))
            words = [f"w{rank % 30_000}" for rank in rng.zipf(1.2, tokens) % 30_000]
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            offsets = np.stack([ends - [len(word) for word in words], ends], axis=1).astype(np.int32)
            context = " ".join(words)
        examples.append(QAExample(id=f"q{number}", question="", context=context, answers=()))
        first = 0
        while True:
            piece = offsets[first : first + LONGEST_CONTEXT]
            windows.append(_window(number, piece))
            if first + LONGEST_CONTEXT >= len(offsets):
                break
            first += LONGEST_CONTEXT - STRIDE
    return examples, windows


def _window(example: int, offsets: np.ndarray) -> Window:
    return Window(
        example=example,
        input_ids=np.zeros(QUESTION_TOKENS + len(offsets) + 1, dtype=np.int32),
        token_type_ids=None,
        context_start=QUESTION_TOKENS,
        context_end=QUESTION_TOKENS + len(offsets),
        offsets=offsets,
        start_position=0,
        end_position=0,
        null_position=0,
    )


def make_logits(windows: list[Window], rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Noise around -6, and five places a window where starts and ends rise together, as trained models' logits do."""
    starts, ends = [], []
    for window in windows:
        length = len(window.input_ids)
        start, end = rng.normal(-6, 1.5, (2, length)).astype(np.float32)
        for height in (12.0, 9.0, 7.0, 6.0, 5.0):
            place = int(rng.integers(window.context_start, window.context_end))
            last = min(place + int(rng.geometric(0.35)), window.context_end)
            start[max(place - 2, 0) : place + 1] += (
                np.float32(height) * np.array([0.3, 0.6, 1], np.float32)[-min(place, 2) - 1 :]
            )
            end[last - 1 : last + 2] += np.float32(height) * np.array([1, 0.6, 0.3], np.float32)[: length - last + 1]
        starts.append(start)
        ends.append(end)
    return starts, ends


def plain_loop(
    windows: list[Window],
    examples: list[QAExample],
    starts: list[np.ndarray],
    ends: list[np.ndarray],
    *,
    config: QASettings,
) -> list[list[dict[str, Any]]]:
    """For each window all pairs of its 20 best starts and 20 best ends, in two Python loops."""
    by_example: list[list[int]] = [[] for _ in examples]
    for number, window in enumerate(windows):
        by_example[window.example].append(number)
    answers = []
    for example, mine in zip(examples, by_example, strict=True):
        found: list[dict[str, Any]] = []
        for number in mine:
            window, start_logits, end_logits = windows[number], starts[number], ends[number]
            best_starts = np.argsort(start_logits)[::-1][: config.top_k].tolist()
            best_ends = np.argsort(end_logits)[::-1][: config.top_k].tolist()
            for start in best_starts:
                for end in best_ends:
                    if start < window.context_start or end >= window.context_end:
                        continue
                    if end < start or end - start + 1 > config.max_answer_tokens:
                        continue
                    first = int(window.offsets[start - window.context_start, 0])
                    last = int(window.offsets[end - window.context_start, 1])
                    score = float(start_logits[start] + end_logits[end])
                    found.append({"text": example.context[first:last], "start": first, "end": last, "score": score})
        found = sorted(found, key=lambda answer: answer["score"], reverse=True)[: config.top_k]
        exponentials = np.exp(np.array([answer["score"] for answer in found]) - found[0]["score"])
        for answer, share in zip(found, (exponentials / exponentials.sum()).tolist(), strict=True):
            answer["probability"] = share
        answers.append(found)
    return answers


def exhaustive_loop(
    windows: list[Window],
    examples: list[QAExample],
    starts: list[np.ndarray],
    ends: list[np.ndarray],
    *,
    config: QASettings,
) -> list[list[tuple[str, int, int, float, float]]]:
    """All pairs of all windows in two Python loops: the exact n-best, with shares of everything."""
    answers: list[list[tuple[str, int, int, float, float]]] = [[] for _ in examples]
    found: list[list[tuple[float, int, int]]] = [[] for _ in examples]
    for window, start_row, end_row in zip(windows, starts, ends, strict=True):
        start_logits = start_row[window.context_start : window.context_end].tolist()
        end_logits = end_row[window.context_start : window.context_end].tolist()
        offsets = window.offsets.tolist()
        for start, start_logit in enumerate(start_logits):
            for end in range(start, min(start + config.max_answer_tokens, len(end_logits))):
                found[window.example].append((-start_logit - end_logits[end], offsets[start][0], offsets[end][1]))
    for number, pairs in enumerate(found):
        pairs.sort()
        total = sum(math.exp(pairs[0][0] - cost) for cost, _, _ in pairs)
        best: dict[str, tuple[float, int, int]] = {}
        for pair in pairs:
            best.setdefault(examples[number].context[pair[1] : pair[2]], pair)
            if len(best) == config.top_k:
                break
        answers[number] = [
            (text, start, end, -cost, math.exp(pairs[0][0] - cost) / total) for text, (cost, start, end) in best.items()
        ]
    return answers


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10_570)
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    config = QASettings()
    examples, windows = make_windows(asked.questions, rng)
    starts, ends = make_logits(windows, rng)
    everything = (windows, examples, starts, ends)
    part = _part(*everything, step=EXHAUSTIVE_STEP)
    sides: dict[str, Callable[[], list[Any]]] = {
        "plain_loop": lambda: plain_loop(*everything, config=config),
        "exhaustive_loop": lambda: exhaustive_loop(*part, config=config),
        "extract_answers": lambda: extract_answers(*everything, config=config),
        "n_best_read": lambda: [one.n_best for one in extract_answers(*everything, config=config)],
    }
    answers = sides["extract_answers"]()
    plain_agrees = [p[0]["text"] == q.text for p, q in zip(sides["plain_loop"](), answers, strict=True)]
    exact = zip(sides["exhaustive_loop"](), answers[::EXHAUSTIVE_STEP], strict=True)
    exact_agrees = [[span[0] for span in p] == list(q.texts) for p, q in exact]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.repetitions):
        for name, run in sides.items():
            seconds[name].append(
                _seconds(run) * (len(examples) / len(part[1]) if run is sides["exhaustive_loop"] else 1)
            )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        f"{slow}/{fast}": round(medians[slow] / medians[fast], 2)
        for slow in ("plain_loop", "exhaustive_loop")
        for fast in ("extract_answers", "n_best_read")
    }
    result = {
        "questions": len(examples),
        "windows": len(windows),
        "mean_tokens": round(float(np.mean([len(window.input_ids) for window in windows])), 1),
        "top_k": config.top_k,
        "max_answer_tokens": config.max_answer_tokens,
        "exhaustive_loop_ran_on_questions": len(part[1]),
        "same_best_answer_as_plain_loop": sum(plain_agrees) / len(plain_agrees),
        "same_n_best_as_exhaustive_loop": sum(exact_agrees) / len(exact_agrees),
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratios": ratios,
    }
    path = write_result("span_extraction", result)
    print(f"{len(windows)} windows of {len(examples)} questions on {machine()['processor']}, median seconds:")
    for name, value in medians.items():
        print(f"  {name:16} {value:8.3f}")
    print(f"ratios {ratios}; written to {path}")


def _part(
    windows: list[Window], examples: list[QAExample], starts: list[np.ndarray], ends: list[np.ndarray], *, step: int
) -> tuple[list[Window], list[QAExample], list[np.ndarray], list[np.ndarray]]:
    """Every `step`-th question with its windows."""
    chosen = [number for number, window in enumerate(windows) if window.example % step == 0]
    renumbered = [dataclasses.replace(windows[n], example=windows[n].example // step) for n in chosen]
    return renumbered, examples[::step], [starts[n] for n in chosen], [ends[n] for n in chosen]


if __name__ == "__main__":
    main()
