"""What the tests of the command line share: how it is run, and a folder to run it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regtune.cli.main import main
from tiny_tokenizer import save_questions, save_tiny

SMALL = ["--data.max-length", "60", "--settings.stride", "12", "--settings.max-question-length", "24"]
QUICK = ["--training.epochs", "1", "--training.batch-size", "3", "--training.precision", "float32"]


def invoke(capsys: Any, arguments: tuple[str | Path, ...]) -> tuple[int, str, str]:
    """Runs a command; returns exit code, standard output, and standard error without boxes and line breaks."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.replace("│", " ").split())


def prepare(folder: Path) -> Path:
    """Puts a tiny model and questions for it into a folder."""
    save_tiny(folder / "model")
    save_questions(folder / "q.json")
    return folder


def train(*more: str) -> list[str]:
    """A training command for such a folder that takes a second."""
    return ["train", *more, "--model", "model", "--data.train", "q.json", "--data.eval", "q.json", *SMALL, *QUICK]
