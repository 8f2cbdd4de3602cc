"""`regtune methods` and `regtune tasks` list what the registry holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import invoke
from regtune.errors import MissingExtraError
from regtune.methods.listing import list_methods
from regtune.registry import METHODS, TASKS
from regtune.tasks.listing import list_tasks


def test_every_method_says_what_it_changes_costs_and_is_for():
    told, works = list_methods()
    assert [row[0] for row in told.rows] == [row[0] for row in works.rows] == list(METHODS)
    assert all(all(row) for row in told.rows if "pip install" not in row[1])
    cells = {cell for row in works.rows for cell in row[1:]} - {"yes", "no"}
    assert {task.removesuffix("+registers") for cell in cells for task in cell.split(", ")} <= set(TASKS)


def test_every_row_of_the_table_has_a_name_in_the_registry():
    from regtune.methods.peft import TABLE

    assert list(TABLE) == [name for name in METHODS if METHODS.get(name) in TABLE.values()]


def test_one_method_has_its_settings_and_the_reasons(capsys):
    code, out, _ = invoke(capsys, ("methods", "prefix"))
    assert code == 0
    assert "num_virtual_tokens  20" in out
    assert "ModernBERT  qa+registers" in out
    assert "so a prefix is dropped" in out
    code, _, err = invoke(capsys, ("methods", "lore"))
    assert code == 2
    assert "Did you mean 'lora'?" in err


def test_one_method_says_what_can_t_be_in_its_run_and_why():
    def excluded(name):
        return {
            row[0]: row[1]
            for table in list_methods(name)
            if table.caption == "Not in one run with"
            for row in table.rows
        }

    found = excluded("lora")
    adapters = next(names for names in found if names.startswith("rslora"))
    assert "lora" not in adapters.split(", ")
    assert found["sink_logits, test_time_registers"].startswith("lora puts an adapter")
    (names,) = excluded("test_time_registers")
    assert {"lora", "prefix", "trainable_tokens"} <= set(names.split(", "))
    assert excluded("test_time_registers")[names].endswith("may be the base of this one (--model RUN/model).")
    assert excluded("linear_probe")["lp_ft"].startswith("linear_probe keeps the base model's weights frozen to the end")
    assert excluded("registers") == {}


def test_without_peft_the_list_says_which_extra_brings_it(monkeypatch):
    def missing(name):
        if name == "lora":
            raise MissingExtraError("peft", "peft", "LoRA and peft's other methods")
        return get(name)

    get = METHODS.get
    monkeypatch.setattr(METHODS, "get", missing)
    row = next(row for row in list_methods()[0].rows if row[0] == "lora")
    assert "pip install 'regtune[peft]'" in row[1]


@pytest.mark.parametrize("command", ["methods", "tasks"])
def test_the_commands_print_every_name(capsys, command):
    code, out, _ = invoke(capsys, (command,))
    assert code == 0
    names = METHODS if command == "methods" else TASKS
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in names)


def test_every_task_names_its_head_and_metrics():
    rows = list_tasks().rows
    assert [row[0] for row in rows] == list(TASKS)
    assert rows[0][2:] == ("QuestionAnswering", "F1, EM")


def test_the_page_of_methods_is_what_the_command_lists():
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(table.markdown() in page for table in list_methods())
