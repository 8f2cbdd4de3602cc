"""What every task on texts can be told: how files are encoded, how long a text may be, what becomes of bad records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regtune.config import Count, DataConfig, Tokens
from regtune.typed import Checked


@dataclass(frozen=True, kw_only=True)
class TextSettings(Checked, section="settings"):
    """Shared by the settings of tasks on texts."""

    encoding: str = "auto"
    """Of text files: UTF-8 or, where it isn't valid, latin-1; or a name that Python knows."""
    max_length: Tokens = DataConfig.max_length
    """Longest text in tokens, special tokens included, registers not; longer ones are cut and counted."""
    batch_size: Count = 32
    """Texts in a batch at inference."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record, or leave it out, count it and list it."""
