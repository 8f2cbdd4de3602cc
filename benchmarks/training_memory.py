"""Does memory stay flat over an epoch of varying lengths? Growth of the process after the first 50 steps.

python benchmarks/training_memory.py [--data FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psutil
import torch
from minilm_windows import TYDIQA, minilm, real_windows
from record import write_result

from regtune.config import TrainConfig
from regtune.tasks.qa.task import window_rows
from regtune.training.fine_tune import fine_tune

FIRST = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=TYDIQA)
    asked = parser.parse_args()
    windows, tokenizer = real_windows(asked.data, max_length=384)
    process = psutil.Process()
    memory: list[int] = []
    model = minilm(8)

    def note(*_: object) -> None:
        used = torch.cuda.memory_reserved() if torch.cuda.is_available() else process.memory_info().rss
        memory.append(used)

    next(model.parameters()).register_post_accumulate_grad_hook(note)  # once a step, when all else has its gradient
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            model,
            window_rows(windows, tokenizer.pad_token_id),
            TrainConfig(epochs=1.0),
            output_dir=Path(folder),
            max_length=384,
            fingerprint="benchmark",
        )
    before, after = max(memory[:FIRST]), max(memory[FIRST:])
    path = write_result(
        "training_memory",
        {
            "growth": round(after / before - 1, 4),
            "peak_of_first_50_steps_bytes": before,
            "peak_afterwards_bytes": after,
            "steps": len(memory),
            "every_20th_step_bytes": memory[::20],
        },
    )
    print(f"{after / before - 1:+.1%}", path)


if __name__ == "__main__":
    main()
