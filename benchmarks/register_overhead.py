"""What do eight registers cost in a training step? Step time with N=8 against N=0 at 384 text tokens, in turns.

python benchmarks/register_overhead.py [--pairs 60] [--batch-size 16]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from typing import Any

import numpy as np
import torch
from minilm_windows import minilm
from record import write_result
from scipy.stats import bootstrap

from regtune.config import TrainConfig
from regtune.models.precision import autocast, best_device, resolve_precision
from regtune.training.cpu_dropout import FastCpuDropout
from regtune.training.heap import keep_freed_memory
from regtune.training.parameter_groups import parameter_groups, register_group

LENGTH = 384


class Side:
    """One model with its optimiser, trained as `fine_tune` does."""

    def __init__(self, num_registers: int, batch: dict[str, torch.Tensor]) -> None:
        self.device = best_device()
        self.model: Any = minilm(num_registers).to(self.device).train()
        config = TrainConfig()
        claimed = [register_group(self.model, config)]
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config, claimed=claimed), fused=True)
        self.batch = {name: value.to(self.device) for name, value in batch.items()}
        self.precision = resolve_precision("auto", self.device)

    def step(self) -> float:
        """Seconds of one forward pass, backward pass and update."""
        began = time.perf_counter()
        fast = FastCpuDropout() if self.device.type == "cpu" else contextlib.nullcontext()
        with fast:
            with autocast(self.device, self.precision):
                loss = self.model(**self.batch).loss
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    asked = parser.parse_args()
    ids = torch.randint(1000, 30_000, (asked.batch_size, LENGTH))
    positions = torch.randint(LENGTH, (asked.batch_size,))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "start_positions": positions,
        "end_positions": positions,
    }
    keep_freed_memory()
    plain, registers = Side(0, batch), Side(8, batch)
    for side in (plain, registers, plain, registers):
        side.step()
    pairs = []
    for number in range(asked.pairs):
        if number % 2:
            second = registers.step()
            pairs.append((plain.step(), second))
        else:
            first = plain.step()
            pairs.append((first, registers.step()))
    ratios = [second / first for first, second in pairs]
    interval = bootstrap((np.array(ratios),), np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = interval.confidence_interval
    path = write_result(
        "register_overhead",
        {
            "ratio": round(statistics.median(ratios), 4),
            "interval_95": [round(float(low), 4), round(float(high), 4)],
            "ratios": [round(ratio, 4) for ratio in ratios],
            "seconds_without": round(statistics.median(first for first, _ in pairs), 4),
            "seconds_with_8": round(statistics.median(second for _, second in pairs), 4),
            "length": LENGTH,
            "batch_size": asked.batch_size,
            "precision": plain.precision,
        },
    )
    print(f"{statistics.median(ratios):.4f} ({low:.4f} to {high:.4f})", path)


if __name__ == "__main__":
    main()
