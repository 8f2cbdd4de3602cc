"""How fast is training, in text tokens a second, against plain Trainer in float32 padded to the maximum length?

Both sides train MiniLM on the same TyDi QA windows (434 tokens, stride 128, the paper's) with the same batch size, in
turns in one process. The plain side is `transformers.Trainer` as it comes: every window padded to 434, float32. The
other side is `regtune`'s training entry with its defaults. Only text tokens count, not padding. The share of the
machine's peak is 6 operations a token and encoder weight, over the measured rate of a bfloat16 matrix product.

    python benchmarks/training_speed.py [--data FILE] [--blocks 3] [--plain-steps 5] [--steps 30]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minilm_windows import TYDIQA, minilm, real_windows
from record import write_result
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from regtune.config import TrainConfig
from regtune.tasks.qa.examples import Window
from regtune.tasks.qa.task import collate, window_rows
from regtune.training.fine_tune import fine_tune

LENGTH, BATCH = 434, 16


class Padded(Dataset):
    """Windows padded to the maximum length, one dictionary each."""

    def __init__(self, windows: list[Window], pad_token_id: int) -> None:
        self.rows = [
            {name: value[0] for name, value in collate([w], pad_token_id, pad_to=LENGTH).items()} for w in windows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class Clock(TrainerCallback):
    """Notes the time after every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def plain_rate(windows: list[Window], pad_token_id: int) -> float:
    """Text tokens a second of plain Trainer; the first step warms up and doesn't count."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
        )
        Trainer(minilm(), arguments, train_dataset=Padded(windows, pad_token_id), callbacks=[clock]).train()
    share = (len(clock.times) - 1) / len(clock.times)
    tokens = sum(len(w.input_ids) for w in windows) * share
    return tokens / (clock.times[-1] - clock.times[0])


def regtune_rate(windows: list[Window], pad_token_id: int) -> float:
    """Text tokens a second of regtune, every step counted."""
    with tempfile.TemporaryDirectory() as folder:
        result = fine_tune(
            minilm(),
            window_rows(windows, pad_token_id),
            TrainConfig(epochs=1.0, batch_size=BATCH),
            output_dir=Path(folder),
            max_length=LENGTH,
            fingerprint="benchmark",
        )
    return result.tokens_per_second


def bfloat16_peak(size: int = 2048, repetitions: int = 10) -> float:
    """Operations a second of a bfloat16 matrix product on this machine."""
    left, right = torch.randn(2, size, size).to(torch.bfloat16)
    rates = []
    for _ in range(repetitions):
        began = time.perf_counter()
        torch.mm(left, right)
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=TYDIQA)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--plain-steps", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    windows, tokenizer = real_windows(asked.data, max_length=LENGTH)
    random = np.random.default_rng(0)
    plain, ours = [], []
    for _ in range(asked.blocks):
        chosen = [windows[i] for i in random.permutation(len(windows))]
        plain.append(plain_rate(chosen[: asked.plain_steps * BATCH], tokenizer.pad_token_id))
        ours.append(regtune_rate(chosen[: asked.steps * BATCH], tokenizer.pad_token_id))
        print(f"plain {plain[-1]:.0f}, regtune {ours[-1]:.0f} text tokens/s", flush=True)
    weights = sum(p.numel() for p in minilm().base_model.encoder.parameters())
    peak = bfloat16_peak()
    rate, base = statistics.median(ours), statistics.median(plain)
    path = write_result(
        "training_speed",
        {
            "plain": [round(value, 1) for value in plain],
            "regtune": [round(value, 1) for value in ours],
            "plain_tokens_per_second": round(base, 1),
            "regtune_tokens_per_second": round(rate, 1),
            "ratio": round(rate / base, 2),
            "encoder_weights": weights,
            "bfloat16_peak_gflops": round(peak / 1e9, 1),
            "share_of_peak": round(6 * weights * rate / peak, 3),
            "max_length": LENGTH,
            "batch_size": BATCH,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
