"""The public surface."""

from __future__ import annotations

import subprocess
import sys

import pytest

import regtune

PUBLIC = [
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


def test_the_public_names_are_exactly_these_sorted():
    assert regtune.__all__ == PUBLIC == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_documented(name):
    found = getattr(regtune, name)
    assert found.__doc__


def test_every_command_has_a_public_function():
    from regtune.cli.main import COMMANDS

    functions = {"faithfulness": "inspect", "report": "write_report"}  # regtune.report is the room
    functions |= {"methods": "list_methods", "tasks": "list_tasks"}  # so are these
    assert all(callable(getattr(regtune, functions.get(name, name))) for name in COMMANDS)


def test_an_unknown_name_is_refused_with_the_public_ones():
    with pytest.raises(AttributeError, match="no attribute 'add_register'; public names: Analysis"):
        _ = regtune.add_register


def test_importing_regtune_imports_nothing_heavy():
    code = (
        "import sys, regtune; print(sorted({'torch', 'transformers', 'numpy', 'scipy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
