"""What span question answering can be told beside what every task is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from regtune.config import Count, DataConfig, Tokens
from regtune.typed import Checked, Range


@dataclass(frozen=True, kw_only=True)
class QASettings(Checked, section="settings"):
    """How contexts are cut into windows, and how logits become answers."""

    max_length: Tokens = DataConfig.max_length
    """Longest window in text tokens, special tokens included, registers not."""
    stride: Annotated[int, Range(0, 2**20)] = 128
    """Overlap between two windows of one context, in tokens."""
    max_question_length: Tokens = 64
    """Longer questions are cut and counted (or refused in training, with `on_long_question=refuse`)."""
    on_long_question: Literal["refuse", "truncate"] = "truncate"
    """In training, what to do with a question longer than `max_question_length` tokens: stop, or cut and count it."""
    on_bad_record: Literal["raise", "skip", "mend"] = DataConfig.on_bad_record
    """As in `DataConfig`; what can be mended is an offset that is near its answer."""
    top_k: Count = 20
    """Answers kept for each question."""
    max_answer_tokens: Tokens = 60
    """Longest answer in tokens."""
    null_answers: bool = False
    """Let the model say that there is no answer (SQuAD v2.0)."""
    null_threshold: Annotated[float, Range(-(10**6), 10**6)] = 0.0
    """No answer is given when null score - best score exceeds this."""
    batch_size: Count = 32
    """Windows in a batch at inference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stride", "max_question_length"):
            value = getattr(self, name)
            smaller = value < self.max_length or value == getattr(QASettings, name)  # `shortened` makes these fit
            self.require(smaller, name, f"must be smaller than max_length={self.max_length}.")
