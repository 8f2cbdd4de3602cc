"""What the training benchmarks share: MiniLM, and real questions cut into its windows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from regtune.config import RegisterConfig
from regtune.interfaces import Batch
from regtune.models.loading import MINILM, load_tokenizer
from regtune.registers.surgery import add_registers
from regtune.session import around, load_model
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.examples import Window
from regtune.tasks.qa.settings import QASettings
from regtune.tasks.qa.windows import make_windows

TYDIQA = Path("../shared/data/tydiqa-goldp/en.train.json.gz")


def real_windows(data: Path, *, max_length: int, stride: int = 128) -> tuple[list[Window], Any]:
    """The windows of a SQuAD-format file, and MiniLM's tokenizer."""
    if not data.is_file():
        sys.exit(f"{data} is missing; name a SQuAD-format training file with --data.")
    tokenizer = load_tokenizer(MINILM)
    found = make_windows(
        load_questions(data).items,
        tokenizer,
        max_length=max_length,
        stride=stride,
        max_question_length=64,
        on_long_question="truncate",
        for_training=True,
    )
    return found.windows, tokenizer


def minilm(num_registers: int = 0) -> Any:
    """MiniLM with a new span head, with or without the paper's registers."""
    return add_registers(
        load_model("AutoModelForQuestionAnswering", MINILM), RegisterConfig(num_registers=num_registers)
    )


def question_batches(data: Path, questions: int, *, max_length: int, batch_size: int = 16) -> list[Batch]:
    """Analysis batches of so many questions, spread over the file, one window each, on which MiniLM can run."""
    if not data.is_file():
        sys.exit(f"{data} is missing; name a SQuAD-format training file with --data.")
    session = around(minilm(), load_tokenizer(MINILM))
    session.task_settings = QASettings(max_length=max_length, stride=128)
    rows = session.rows(session.sample((str(data),), questions))
    return session.batches(rows.one_each(), batch_size=batch_size)
