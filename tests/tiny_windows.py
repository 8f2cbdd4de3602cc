"""Random windows for the tiny models, and training runs on them: offline, a second each."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch

from regtune.config import RegisterConfig, TrainConfig
from regtune.registers.surgery import add_registers
from regtune.tasks.qa.examples import Window
from regtune.tasks.qa.task import F1, collate, window_rows
from regtune.training.fine_tune import TrainingResult, fine_tune
from regtune.training.trainer import RunFlow
from tiny import tiny_model

PAD = 1
MAX_LENGTH = 40


def tiny_window(length: int, *, start: int = 2, end: int = 3, seed: int = 0) -> Window:
    random = np.random.default_rng(seed)
    return Window(
        example=seed,
        input_ids=random.integers(4, 120, length).astype(np.int32),
        token_type_ids=np.zeros(length, np.int32),
        context_start=2,
        context_end=length,
        offsets=np.stack([np.arange(length - 2), np.arange(1, length - 1)], axis=1).astype(np.int32),
        start_position=start,
        end_position=end,
        null_position=0,
    )


def tiny_windows(count: int, seed: int = 0) -> list[Window]:
    lengths = np.random.default_rng(seed).integers(8, MAX_LENGTH, count).tolist()
    return [tiny_window(length, start=length // 3, end=length // 2, seed=i) for i, length in enumerate(lengths)]


def even_windows(count: int) -> list[Window]:
    """Windows of one length: the loss counts padded positions too, and these have none however batches are cut."""
    return [tiny_window(20, start=i % 9, end=i % 11 + 9, seed=i) for i in range(count)]


def score(model) -> dict[str, float]:
    """A number that any change of the weights changes."""
    with torch.no_grad():
        return {"f1": -float(model(**collate(tiny_windows(8, seed=99), PAD)).loss)}


def settings(**changes) -> TrainConfig:
    defaults = {"epochs": 2.0, "batch_size": 4, "evals_per_epoch": 2, "learning_rate": 2e-3, "warmup_ratio": 0.2}
    settings_given = {**defaults, **changes}
    return TrainConfig(**{**settings_given, "epochs": float(settings_given["epochs"])})


def tiny_run(output_dir, config=None, *, registers: int = 2, windows=None, model=None, after_step=None, **options):
    """A fresh tiny BERT with registers, fine-tuned; gives the result and the model. `after_step` gets each step."""

    class Flow(RunFlow):
        def on_step_end(self, args, state, control, **kwargs):
            control = super().on_step_end(args, state, control, **kwargs)
            if after_step is not None:
                after_step(state.global_step)
            return control

    if model is None:
        model = tiny_model("bert", attention="sdpa")
        torch.manual_seed(5)
        add_registers(model, RegisterConfig(num_registers=registers))
    options = {"evaluate": score, "choose": F1, "fingerprint": "abc", **options}
    with mock.patch("regtune.training.fine_tune.RunFlow", Flow):
        result: TrainingResult = fine_tune(
            model,
            window_rows(tiny_windows(40) if windows is None else windows, PAD),
            config or settings(),
            output_dir=output_dir,
            max_length=MAX_LENGTH,
            **options,
        )
    return result, model
