"""What do attention statistics cost beside the forward passes that they need anyway, and do they keep memory flat?

MiniLM (SDPA, float32) reads windows of real questions in batches of 16, in turns: a block of plain forward passes, the
same block with `attention_statistics`, which runs those forward passes itself. The ratio is the second over the first,
so 1.5 means that the statistics cost half a forward pass. Memory: the most that the process needs for a fifth of the
batches (the longest among them), and for all.

    python benchmarks/attention_speed.py [--data FILE] [--windows 500] [--block 48] [--registers 8] [--length 384]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from minilm_windows import TYDIQA, minilm, question_batches
from record import write_result

from regtune.analyses.attention.attention import attention_statistics
from regtune.interfaces import Batch
from regtune.models.precision import best_device

BATCH = 16


def plain(model: Any, batches: list[Batch]) -> float:
    """Seconds of plain forward passes."""
    device = next(model.parameters()).device
    began = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            names = ("input_ids", "attention_mask", "token_type_ids")
            model(**{name: batch[name].to(device) for name in names if name in batch})
    _wait(device)
    return time.perf_counter() - began


def measured(model: Any, batches: list[Batch]) -> float:
    """Seconds of forward passes with statistics."""
    began = time.perf_counter()
    attention_statistics(model, batches)
    _wait(next(model.parameters()).device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def compare(model: Any, blocks: list[list[Batch]]) -> dict[str, Any]:
    """Both sides on every block, the one that goes first changing from block to block."""
    plain(model, blocks[0])
    measured(model, blocks[0])
    pairs = []
    for number, block in enumerate(blocks):
        if number % 2:
            second = measured(model, block)
            pairs.append((plain(model, block), second))
        else:
            first = plain(model, block)
            pairs.append((first, measured(model, block)))
        print(f"{pairs[-1][0]:.2f} s plain, {pairs[-1][1]:.2f} s with statistics", flush=True)
    return {
        "ratio": round(sum(second for _, second in pairs) / sum(first for first, _ in pairs), 3),
        "median_ratio": round(statistics.median(second / first for first, second in pairs), 3),
        "ratios": [round(second / first, 3) for first, second in pairs],
        "seconds_plain": round(sum(first for first, _ in pairs), 2),
        "seconds_with_statistics": round(sum(second for _, second in pairs), 2),
    }


def peaks(model: Any, batches: list[Batch]) -> dict[str, float]:
    """Most megabytes (on Linux) that the process has had after statistics of a fifth of the batches, and of all."""
    found = {}
    for name, chosen in (("fifth", batches[::5]), ("all", batches)):
        attention_statistics(model, chosen)
        found[f"peak_megabytes_{name}"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=TYDIQA)
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--block", type=int, default=48)
    parser.add_argument("--registers", type=int, default=8)
    parser.add_argument("--length", type=int, default=384)
    asked = parser.parse_args()
    batches = question_batches(asked.data, asked.windows, max_length=asked.length, batch_size=BATCH)
    size = max(1, asked.block // BATCH)
    # Batches are sorted by length; every block gets long and short ones.
    blocks = [batches[start :: max(1, len(batches) // size)] for start in range(max(1, len(batches) // size))]
    memory = peaks(minilm(asked.registers).to(best_device()).eval(), batches)
    found = {}
    for count in dict.fromkeys((0, asked.registers)):
        print(f"{count} registers", flush=True)
        found[f"registers_{count}"] = compare(minilm(count).to(best_device()).eval(), blocks)
    path = write_result(
        "attention_speed",
        {
            "ratio": max(side["ratio"] for side in found.values()),
            **found,
            **memory,
            "windows": sum(len(batch["input_ids"]) for batch in batches),
            "mean_tokens": round(
                float(sum(batch["attention_mask"].sum() for batch in batches))
                / sum(len(batch["input_ids"]) for batch in batches),
                1,
            ),
            "max_length": asked.length,
            "batch_size": BATCH,
            "precision": "float32",
        },
    )
    print(max(side["ratio"] for side in found.values()), path)


if __name__ == "__main__":
    main()
