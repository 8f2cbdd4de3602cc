"""Register-augmented fine-tuning of pretrained transformers.

Everything public is here; every module below is private. Names are imported when first used, so `import regtune`
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regtune.methods import peft_kinds

if TYPE_CHECKING:
    from regtune.analyses.attribution.attribute import attribute
    from regtune.analyses.attribution.explain import explain
    from regtune.analyses.inspection import inspect
    from regtune.analyses.monitor import RegisterMonitor
    from regtune.analyses.neurons.neurons import neurons
    from regtune.app.demo import run_demo as demo
    from regtune.app.serve import explore
    from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
    from regtune.errors import RegtuneError
    from regtune.families._family import Family
    from regtune.interfaces import Analysis, Attached, Block, Examples, Group, Method, Metric, Rows, Stage, Task
    from regtune.methods.listing import list_methods
    from regtune.methods.peft import RegisterLoraConfig
    from regtune.records import RunRecord
    from regtune.registers.kept import registers_cache
    from regtune.registers.reg_bert import RegBertForQuestionAnswering, RegBertModel
    from regtune.registers.saving import from_pretrained, load_registers, save_registers
    from regtune.registers.sinks import add_sink_logits, disable_sink_logits, remove_sink_logits
    from regtune.registers.surgery import (
        add_registers,
        disable_registers,
        mask_registers,
        num_registers,
        register_parameters,
        remove_registers,
        split_attention,
    )
    from regtune.registry import load_plugin, register
    from regtune.report.compare import compare_two as compare
    from regtune.report.page import write_report
    from regtune.rows.texts import text_rows
    from regtune.serving.export import export
    from regtune.session import Session, open  # noqa: A004
    from regtune.sweeps.describe import describe as info
    from regtune.sweeps.evaluate import evaluate
    from regtune.sweeps.fit import FittedModel, fit
    from regtune.sweeps.predict import predict
    from regtune.sweeps.run import run_experiment as train
    from regtune.sweeps.sweep_actions import carry_out as sweep
    from regtune.tasks.listing import list_tasks
    from regtune.tasks.qa.data.sources import load_questions
    from regtune.tasks.qa.data.sources import load_questions as read_squad
    from regtune.tasks.qa.data.squad import write_squad
    from regtune.tasks.qa.question_answerer import QuestionAnswerer, ask
    from regtune.testing.doctor import examine as doctor

__version__ = "0.1.0"

peft_kinds.watch()

_HOME = {
    "Analysis": "regtune.interfaces",
    "Attached": "regtune.interfaces",
    "Block": "regtune.interfaces",
    "DataConfig": "regtune.config",
    "Examples": "regtune.interfaces",
    "Family": "regtune.families._family",
    "FittedModel": "regtune.sweeps.fit",
    "Group": "regtune.interfaces",
    "Method": "regtune.interfaces",
    "Metric": "regtune.interfaces",
    "QuestionAnswerer": "regtune.tasks.qa.question_answerer",
    "RegBertForQuestionAnswering": "regtune.registers.reg_bert",
    "RegBertModel": "regtune.registers.reg_bert",
    "RegisterConfig": "regtune.config",
    "RegisterLoraConfig": "regtune.methods.peft",
    "RegisterMonitor": "regtune.analyses.monitor",
    "RegtuneError": "regtune.errors",
    "Rows": "regtune.interfaces",
    "RunConfig": "regtune.config",
    "RunRecord": "regtune.records",
    "Session": "regtune.session",
    "Stage": "regtune.interfaces",
    "Task": "regtune.interfaces",
    "TrainConfig": "regtune.config",
    "add_registers": "regtune.registers.surgery",
    "add_sink_logits": "regtune.registers.sinks",
    "ask": "regtune.tasks.qa.question_answerer",
    "attribute": "regtune.analyses.attribution.attribute",
    "compare": "regtune.report.compare:compare_two",
    "demo": "regtune.app.demo:run_demo",
    "disable_registers": "regtune.registers.surgery",
    "disable_sink_logits": "regtune.registers.sinks",
    "doctor": "regtune.testing.doctor:examine",
    "evaluate": "regtune.sweeps.evaluate",
    "explain": "regtune.analyses.attribution.explain",
    "explore": "regtune.app.serve",
    "export": "regtune.serving.export",
    "fit": "regtune.sweeps.fit",
    "from_pretrained": "regtune.registers.saving",
    "info": "regtune.sweeps.describe:describe",
    "inspect": "regtune.analyses.inspection",
    "list_methods": "regtune.methods.listing",
    "list_tasks": "regtune.tasks.listing",
    "load_plugin": "regtune.registry",
    "load_questions": "regtune.tasks.qa.data.sources",
    "load_registers": "regtune.registers.saving",
    "mask_registers": "regtune.registers.surgery",
    "neurons": "regtune.analyses.neurons.neurons",
    "num_registers": "regtune.registers.surgery",
    "open": "regtune.session",
    "predict": "regtune.sweeps.predict",
    "read_squad": "regtune.tasks.qa.data.sources:load_questions",
    "register": "regtune.registry",
    "register_parameters": "regtune.registers.surgery",
    "registers_cache": "regtune.registers.kept",
    "remove_registers": "regtune.registers.surgery",
    "remove_sink_logits": "regtune.registers.sinks",
    "save_registers": "regtune.registers.saving",
    "split_attention": "regtune.registers.surgery",
    "sweep": "regtune.sweeps.sweep_actions:carry_out",
    "text_rows": "regtune.rows.texts",
    "train": "regtune.sweeps.run:run_experiment",
    "write_report": "regtune.report.page",
    "write_squad": "regtune.tasks.qa.data.squad",
}
"""Public name to `module`, or `module:name` where it has another name at home."""

__all__ = [
    "Analysis",
    "Attached",
    "Block",
    "DataConfig",
    "Examples",
    "Family",
    "FittedModel",
    "Group",
    "Method",
    "Metric",
    "QuestionAnswerer",
    "RegBertForQuestionAnswering",
    "RegBertModel",
    "RegisterConfig",
    "RegisterLoraConfig",
    "RegisterMonitor",
    "RegtuneError",
    "Rows",
    "RunConfig",
    "RunRecord",
    "Session",
    "Stage",
    "Task",
    "TrainConfig",
    "add_registers",
    "add_sink_logits",
    "ask",
    "attribute",
    "compare",
    "demo",
    "disable_registers",
    "disable_sink_logits",
    "doctor",
    "evaluate",
    "explain",
    "explore",
    "export",
    "fit",
    "from_pretrained",
    "info",
    "inspect",
    "list_methods",
    "list_tasks",
    "load_plugin",
    "load_questions",
    "load_registers",
    "mask_registers",
    "neurons",
    "num_registers",
    "open",
    "predict",
    "read_squad",
    "register",
    "register_parameters",
    "registers_cache",
    "remove_registers",
    "remove_sink_logits",
    "save_registers",
    "split_attention",
    "sweep",
    "text_rows",
    "train",
    "write_report",
    "write_squad",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regtune' has no attribute {name!r}; public names: {', '.join(sorted(_HOME))}")
    module, _, other = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), other or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
