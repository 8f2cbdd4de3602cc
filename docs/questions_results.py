"""Tables of docs/results/minilm-questions.md: the adapter that comes with regtune beside the ablation's plain runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from regtune.records import load_record, read_json, read_predictions
from regtune.session import spread_over
from regtune.tables import Column, Table

RESULTS = Path(__file__).resolve().parent / "results"
FOLDER = RESULTS / "minilm-questions"
PLAIN = RESULTS / "ablation-last" / "cells"
"""The fair grid, in which the runs without registers are the whole fine-tuning of the same model on TyDi QA alone."""


def _markdown(columns: tuple[str | Column, ...], rows: list[tuple[Any, ...]]) -> str:
    return Table(columns=columns, rows=tuple(rows)).markdown().strip()


@cache
def _plain(name: str, examples: int) -> tuple[list[float], list[float]]:
    """Exact match and F1 of each plain run, in percent, on so many questions spread evenly over a set."""
    found: tuple[list[float], list[float]] = ([], [])
    for folder in sorted(PLAIN.iterdir()):
        record = load_record(folder)
        if not record.methods and not record.config["registers"]["num_registers"]:
            rows = read_predictions(folder, record, name)
            chosen = [rows[index] for index in spread_over(len(rows), examples)]
            for column, values in zip(("exact_match", "f1"), found, strict=True):
                values.append(100 * mean(row[column] for row in chosen))
    return found


def table_scores() -> str:
    """The adapter's scores on each set, and those of the plain runs on the same questions."""
    rows = []
    for one in read_json(FOLDER / "evaluation.json")["sets"]:
        plain_em, plain_f1 = _plain(one["name"], one["examples"])
        questions = f"{one['examples']:,}" + (f" of {one['of']:,}" if one["of"] != one["examples"] else "")
        own = 100 * one["metrics"]["exact_match"], 100 * one["metrics"]["f1"]
        rows.append((one["name"], questions, *own, mean(plain_em), mean(plain_f1), max(plain_f1)))
    own_columns = (Column("EM", ".1f"), Column("F1", ".1f"))
    plain_columns = (Column("plain runs: EM", ".1f"), Column("F1", ".1f"), Column("best F1", ".1f"))
    return _markdown(("set", "questions", *own_columns, *plain_columns), rows)


def table_training() -> str:
    """What it was trained on, how, and how large it is."""
    record, evaluation = load_record(FOLDER), read_json(FOLDER / "evaluation.json")
    training, config = record.training, record.config["training"]
    rates = f"{config['learning_rate']:g}, {config['register_learning_rate']:g}"
    rows = [
        ("methods", record.label),
        ("training questions", f"{record.data['train']['examples']:,}"),
        ("windows", f"{record.data['train']['rows']:,}"),
        ("epochs", f"{config['epochs']:g}"),
        ("learning rates: LoRA and head, registers", rates),
        ("weights that learn", f"{record.parameters['trainable']:,} of {record.parameters['total']:,}"),
        ("minutes", f"{training['seconds'] / 60:.0f}"),
        ("text tokens a second", f"{training['tokens_per_second']:,.0f}"),
        ("computed in", training["precision"]),
        ("processor", record.machine["processor"]),
        ("file", f"{evaluation['bytes'] / 1e6:.2f} MB in half precision"),
        ("answers that half precision changes", f"{evaluation['changed']:,} of {evaluation['examples']:,}"),
    ]
    return _markdown(("", ""), rows)
