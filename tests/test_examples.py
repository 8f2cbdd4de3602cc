"""The example scripts run, on tiny models."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tiny_tokenizer import save_tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"add_registers.py", "ask_a_question.py"}


def test_adding_registers_and_taking_them_away(run, tmp_path):
    out = run("add_registers.py", str(save_tiny(tmp_path / "model")))
    assert "4 registers" in out
    assert out.count("layer ") == 3
    assert out.count("identical to the plain model: True") == 2


def test_asking_questions(run, tmp_path):
    out = run("ask_a_question.py", str(save_tiny(tmp_path / "model", max_position_embeddings=256)))
    assert len(out.splitlines()) == 3
    assert "probability" in out
