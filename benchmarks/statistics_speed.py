"""How long does the whole comparison table take: 90 runs, 10,570 questions, 10,000 resamples? Budget: 20 s on 2 cores.

    OMP_NUM_THREADS=2 python benchmarks/statistics_speed.py

The runs are the baseline and eight numbers of registers, ten seeds each, on as many questions as SQuAD v1.1 dev. The
scores are simulated (partial credit; seed, question and interaction effects); the time does not depend on them.
Writes `benchmarks/results/statistics_speed.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from record import write_result

from regtune.stats.comparison import compare

BUDGET_S = 20.0


def simulate(arms: int, seeds: int, questions: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    common = rng.standard_normal(questions)
    tables = []
    for _ in range(arms):
        latent = common + 0.3 * rng.standard_normal(questions) + 0.1 * rng.standard_normal((seeds, 1))
        latent = latent + 0.7 * rng.standard_normal((seeds, questions))
        tables.append(((latent > -0.6).astype(float) + (latent > -0.3) + (latent > 0.1)) / 3)
    return tables


def measure(tables: list[np.ndarray], *, resamples: int, paired: bool, repeats: int) -> list[float]:
    arms = {f"registers-{index}": table for index, table in enumerate(tables[1:], start=1)}
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        results = compare(tables[0], arms, resamples=resamples, paired=paired)
        seconds.append(round(time.perf_counter() - start, 2))
        assert len(results) == len(arms)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=9, help="the baseline included")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--questions", type=int, default=10_570)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    tables = simulate(options.arms, options.seeds, options.questions)
    seconds = {
        name: measure(tables, resamples=options.resamples, paired=paired, repeats=options.repeats)
        for name, paired in (("paired", True), ("unpaired", False))
    }
    slowest = max(statistics.median(times) for times in seconds.values())
    runs = options.arms * options.seeds
    result = {
        "design": {**vars(options), "runs": runs},
        "seconds": seconds,
        "median_seconds": slowest,
        "budget_seconds": BUDGET_S,
        "ratio": round(BUDGET_S / slowest, 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }
    print(f"{slowest:.1f} s for {runs} runs (budget {BUDGET_S:.0f} s)")
    print(write_result("statistics_speed", result))


if __name__ == "__main__":
    main()
