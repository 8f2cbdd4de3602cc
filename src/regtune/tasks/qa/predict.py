"""Windows through a model: start and end logits, in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from regtune.config import AnswerConfig
from regtune.models.precision import Precision, autocast, device_of
from regtune.tasks.qa.answers import Prediction, extract_answers
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.task import collate

LogitRows = list[np.ndarray]


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    windows: Sequence[Window],
    *,
    pad_token_id: int,
    batch_size: int = 32,
    precision: Precision = "float32",
    progress: bool = False,
) -> tuple[LogitRows, LogitRows]:
    """Start and end logits of each window, `[seq]` float32 arrays without padding, in the windows' order.

    The model's training mode is put back afterwards.
    """
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].input_ids))
    starts: list[Any] = [None] * len(windows)
    ends: list[Any] = [None] * len(windows)
    device, training = device_of(model), model.training
    model.eval()
    try:
        for first in tqdm(
            range(0, len(order), batch_size), desc="answers", disable=None if progress else True, leave=False
        ):
            chosen = order[first : first + batch_size]
            batch = collate([windows[index] for index in chosen], pad_token_id)
            batch = {name: value.to(device) for name, value in batch.items() if not name.endswith("_positions")}
            with autocast(device, precision):
                output = model(**batch)
            start, end = output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
            for row, index in enumerate(chosen):
                length = len(windows[index].input_ids)
                starts[index], ends[index] = start[row, :length].copy(), end[row, :length].copy()
    finally:
        model.train(training)
    return starts, ends


def answer_questions(
    model: nn.Module,
    windows: Sequence[Window],
    examples: Sequence[QAExample],
    *,
    config: AnswerConfig,
    pad_token_id: int,
    precision: Precision = "float32",
    progress: bool = False,
) -> list[Prediction]:
    """Answers each example from its windows: `predict_logits`, then `extract_answers`."""
    starts, ends = predict_logits(
        model,
        windows,
        pad_token_id=pad_token_id,
        batch_size=config.batch_size,
        precision=precision,
        progress=progress,
    )
    return extract_answers(windows, examples, starts, ends, config=config)
