"""Rows of docs/results/speed.md, from `benchmarks/results`: what each benchmark found against what was aimed at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regtune.records import read_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
Rows = list[tuple[str, str, str]]


def _training_speed() -> Rows:
    found = read_json(BENCHMARKS / "training_speed.json")
    return [
        (
            "text tokens/s, regtune against plain `Trainer` in float32 padded to 434",
            f"{found['ratio']:.1f} × ({found['regtune_tokens_per_second']:,.0f} against "
            f"{found['plain_tokens_per_second']:,.0f})",
            "≥ 12 ×",
        ),
        (
            "share of the machine's bfloat16 matrix peak",
            f"{100 * found['share_of_peak']:.0f} % of {found['bfloat16_peak_gflops']:,.0f} GFLOP/s",
            "≥ 50 %",
        ),
    ]


def _register_overhead() -> Rows:
    found = read_json(BENCHMARKS / "register_overhead.json")
    low, high = found["interval_95"]
    name = f"step time with N = 8 against N = 0, length 384, {len(found['ratios'])} interleaved pairs"
    return [(name, f"{found['ratio']:.3f} × ({low:.3f} to {high:.3f})", "≤ 1.05 ×")]


def _decoding() -> Rows:
    path = BENCHMARKS / "decoding.json"
    if not path.is_file():
        return []
    found = read_json(path)
    return [
        (
            f"a decoder's step behind {found['prompt']} tokens with N = 8 against N = 0 (SmolLM2-135M's shape)",
            f"{found['step_ratio']:.3f} ×",
            "≤ 1.05 ×",
        ),
        (
            f"reading {found['prompt']} tokens with N = 8 against N = 0 (with registers that are kept)",
            f"{found['prefill_ratio']:.3f} × ({found['prefill_kept_ratio']:.3f} ×)",
            "≤ 1.06 ×",
        ),
        ("places more in each layer of the cache with N = 8", str(found["more_places"]), "8"),
    ]


def _neuron_words() -> Rows:
    path = BENCHMARKS / "neuron_words.json"
    if not path.is_file():
        return []
    found = read_json(path)
    return [(f"{found['neurons']:,} neurons in words (SmolLM2-135M's shape)", f"{found['seconds']:.0f} s", "≤ 60 s")]


def _span_extraction() -> Rows:
    found = read_json(BENCHMARKS / "span_extraction.json")
    ratios, seconds = found["ratios"], found["median_seconds"]
    return [
        (
            f"answers to {found['questions']:,} questions",
            f"{seconds['extract_answers']:.2f} s",
            "< 2 s",
        ),
        (
            "against a loop over all valid spans, which gives the same answers",
            f"{ratios['exhaustive_loop/extract_answers']:.0f} ×",
            "",
        ),
        (
            "against a loop over the 20 best starts and ends, which gives less",
            f"{ratios['plain_loop/extract_answers']:.1f} ×",
            "reported",
        ),
    ]


def _training_memory() -> Rows:
    found = read_json(BENCHMARKS / "training_memory.json")
    return [("growth of peak memory after the first 50 steps", f"{100 * found['growth']:.1f} %", "< 10 %")]


def _cell_overhead() -> Rows:
    found = read_json(BENCHMARKS / "cell_overhead.json")
    seconds = f"{found['later_mean']:.1f} s (the first one {found['first']:.1f} s)"
    return [("a cell of a sweep without its training steps and answers", seconds, f"≤ {found['limit_seconds']:g} s")]


def _evaluation() -> Rows:
    path = BENCHMARKS / "evaluation_speed.json"
    if not path.is_file():
        return []
    found = read_json(path)
    seconds = found["seconds_answering"] + found["seconds_scoring"]
    name = f"answering and scoring {found['questions']:,} questions of SQuAD dev, N = {found['num_registers']}"
    return [(name, f"{seconds:.0f} s", f"≤ {found['limit_seconds']:g} s")]


def _statistics() -> Rows:
    found = read_json(BENCHMARKS / "statistics_speed.json")
    seconds = found["median_seconds"]
    return [("statistics of 90 runs × 10,570 questions, 10,000 resamples", f"{seconds:.1f} s", "≤ 20 s")]


def _cells_per_hour() -> Rows:
    path = BENCHMARKS / "cells_per_hour.json"
    if not path.is_file():
        return []
    found = read_json(path)
    one, many = found["rows"][0], found["rows"][-1]
    return [
        (
            f"cells of a sweep an hour, {many['processes']} processes side by side against {one['processes']}",
            f"{found['ratio']:.1f} × ({many['cells_per_hour']:.0f} against {one['cells_per_hour']:.0f})",
            "reported",
        )
    ]


def _attention() -> Rows:
    found = read_json(BENCHMARKS / "attention_speed.json")
    return [
        (
            f"attention statistics of {found['windows']} windows against their forward passes (N = 0; N = 8)",
            f"{found['registers_0']['ratio']:.2f} ×; {found['registers_8']['ratio']:.2f} ×",
            "< 1.5 ×",
        ),
        (
            "peak memory with all windows against a fifth of them",
            f"{found['peak_megabytes_all'] / found['peak_megabytes_fifth']:.2f} ×",
            "1 ×",
        ),
    ]


def _attribution() -> Rows:
    found = read_json(BENCHMARKS / "attribution_speed.json")
    propagation, gradients = found["propagation"], found["integrated_gradients"]
    rows = [
        (
            f"{name} against a forward and backward pass of the same batch to all weights (to the embeddings alone)",
            f"{propagation[key]['ratio_training']:.2f} × ({propagation[key]['ratio']:.2f} ×)",
            f"≤ {propagation[key]['limit']:g} ×",
        )
        for name, key in (("AttnLRP", "attnlrp"), ("Chefer 2021", "chefer"))
    ]
    return [
        *rows,
        (
            "integrated gradients to 1 %: steps against the fewest of a fixed rule",
            f"{gradients['steps_over_fewest']:.2f} × ({gradients['gradients_over_fewest']:.2f} × with discarded ones)",
            f"≤ {gradients['limits']['steps']:g} ×",
        ),
        (
            "… throughput against Captum question by question, one number of steps for all (each its fewest)",
            f"{gradients['throughput_over_captum_fixed']:.2f} × ({gradients['throughput_over_captum_fewest']:.2f} ×)",
            f"≥ {gradients['limits']['throughput']:g} ×",
        ),
    ]


SPEED: tuple[Callable[[], Rows], ...] = (
    _training_speed,
    _register_overhead,
    _decoding,
    _neuron_words,
    _span_extraction,
    _training_memory,
    _cell_overhead,
    _evaluation,
    _statistics,
    _attention,
    _attribution,
    _cells_per_hour,
)
