"""Register-augmented fine-tuning of pretrained transformers.

Everything public is here; every module below is private. Names are imported when first used, so `import regtune`
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regtune.config import AnswerConfig, DataConfig, RegisterConfig, RunConfig, TrainConfig
    from regtune.data.sources import load_questions
    from regtune.data.squad import read_squad
    from regtune.errors import RegtuneError
    from regtune.evaluation.question_answerer import QuestionAnswerer
    from regtune.experiments.experiment import run_experiment
    from regtune.models.checkpoints import from_pretrained, load_registers, save_registers
    from regtune.models.reg_bert import RegBertForQuestionAnswering, RegBertModel
    from regtune.models.surgery import (
        add_registers,
        disable_registers,
        mask_registers,
        num_registers,
        remove_registers,
        split_attention,
    )
    from regtune.records import RunRecord

__version__ = "0.1.0"

_HOME = {
    "AnswerConfig": "regtune.config",
    "DataConfig": "regtune.config",
    "QuestionAnswerer": "regtune.evaluation.question_answerer",
    "RegBertForQuestionAnswering": "regtune.models.reg_bert",
    "RegBertModel": "regtune.models.reg_bert",
    "RegisterConfig": "regtune.config",
    "RegtuneError": "regtune.errors",
    "RunConfig": "regtune.config",
    "RunRecord": "regtune.records",
    "TrainConfig": "regtune.config",
    "add_registers": "regtune.models.surgery",
    "disable_registers": "regtune.models.surgery",
    "from_pretrained": "regtune.models.checkpoints",
    "load_questions": "regtune.data.sources",
    "load_registers": "regtune.models.checkpoints",
    "mask_registers": "regtune.models.surgery",
    "num_registers": "regtune.models.surgery",
    "read_squad": "regtune.data.squad",
    "remove_registers": "regtune.models.surgery",
    "run_experiment": "regtune.experiments.experiment",
    "save_registers": "regtune.models.checkpoints",
    "split_attention": "regtune.models.surgery",
}

__all__ = [
    "AnswerConfig",
    "DataConfig",
    "QuestionAnswerer",
    "RegBertForQuestionAnswering",
    "RegBertModel",
    "RegisterConfig",
    "RegtuneError",
    "RunConfig",
    "RunRecord",
    "TrainConfig",
    "add_registers",
    "disable_registers",
    "from_pretrained",
    "load_questions",
    "load_registers",
    "mask_registers",
    "num_registers",
    "read_squad",
    "remove_registers",
    "run_experiment",
    "save_registers",
    "split_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regtune' has no attribute {name!r}; public names: {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
