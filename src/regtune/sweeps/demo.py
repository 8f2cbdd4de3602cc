"""The demo: MiniLM fine-tuned on the embedded questions without and with registers, both scored, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.progress import begin_stage, stages
from regtune.records import RunRecord, read_predictions
from regtune.tables import Column, Table

TRAIN, DEV = "embedded:train", "embedded:dev"
COUNTS = (0, 4)
"""Numbers of registers that the demo compares."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the demo's two runs."""

    num_registers: int
    run_dir: Path
    record: RunRecord
    answers: dict[str, dict[str, Any]]
    """Question id to its row in the predictions file: text, exact_match, f1, n_best."""

    def mean(self, metric: str) -> float:
        """A metric's mean over all questions, a ratio in [0, 1]."""
        return sum(float(row[metric]) for row in self.answers.values()) / len(self.answers)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A dev question with its gold answer and what each arm says."""

    question: str
    gold: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found. `difference` and `standard_error` are those of EM and F1, second arm minus first, ratios."""

    arms: tuple[Arm, ...]
    questions: int
    difference: dict[str, float]
    standard_error: dict[str, float]
    """Of the paired difference over questions; the seeds' own spread comes on top."""
    shown: tuple[Shown, ...]


def demo_config(num_registers: int, output_dir: Path) -> RunConfig:
    """The demo's run with this many registers; learning rates as a search found."""
    return RunConfig(
        model="minilm",
        output_dir=output_dir / f"n{num_registers}",
        registers=RegisterConfig(num_registers=num_registers),
        data=DataConfig(train=(TRAIN,), eval=(DEV,)),
        training=TrainConfig(epochs=5.0, batch_size=8, learning_rate=2e-4, register_learning_rate=1e-2),
    )


def run_demo(output_dir: Path = Path("runs/demo"), *, progress: bool = True) -> DemoResult:
    """Runs both arms (a few minutes on two cores; no hub, no GPU), or continues where it was stopped.

    Args:
        output_dir: gets one run directory for each arm.
        progress: say on standard error how far it is.

    Raises:
        MissingExtraError: the `demo` extra isn't installed.
        CheckpointError: `output_dir` holds runs with other settings.
    """
    from regtune.models.minilm import minilm_folder
    from regtune.sweeps.run import run_experiment

    minilm_folder()  # a missing extra is told before anything is written
    arms = []
    with stages(len(COUNTS), shown=progress):
        for count in COUNTS:
            begin_stage(f"MiniLM with {count} registers")
            config = demo_config(count, output_dir)
            arms.append(load_arm(count, config.output_dir, run_experiment(config)))
    return compare(arms)


def load_arm(num_registers: int, run_dir: Path, record: RunRecord) -> Arm:
    """A finished run with its predictions on the first evaluation set."""
    rows = read_predictions(run_dir, record, next(iter(record.predictions)))
    return Arm(num_registers=num_registers, run_dir=run_dir, record=record, answers={row["id"]: row for row in rows})


def compare(arms: Sequence[Arm]) -> DemoResult:
    """Both arms on the same questions: differences with their standard errors, and some answers."""
    from regtune.tasks.qa.data.sources import load_questions

    first, second = arms[0], arms[-1]
    examples = [example for example in load_questions([DEV]).items if example.id in first.answers]
    difference, error = {}, {}
    for metric in ("exact_match", "f1"):
        pairs = [float(second.answers[e.id][metric]) - float(first.answers[e.id][metric]) for e in examples]
        difference[metric], error[metric] = float(np.mean(pairs)), float(stats.sem(pairs))
    step = max(1, len(examples) // _SHOWN)
    shown = [
        Shown(
            question=example.question,
            gold=tuple(dict.fromkeys(answer.text for answer in example.answers)),
            answers=tuple(arm.answers[example.id]["text"] for arm in arms),
        )
        for example in examples[step // 2 :: step][:_SHOWN]
    ]
    return DemoResult(
        arms=tuple(arms),
        questions=len(examples),
        difference=difference,
        standard_error=error,
        shown=tuple(shown),
    )


def demo_text(result: DemoResult) -> str:
    """The result as a person reads it; EM and F1 in percent."""
    lines = [f"MiniLM on the {result.questions} questions of {DEV}, fine-tuned on {TRAIN}", ""]
    columns: tuple[str | Column, ...] = ("registers", *(Column(title, ".1f") for title in ("EM", "F1", "minutes")))
    rows = [
        (arm.num_registers, 100 * arm.mean("exact_match"), 100 * arm.mean("f1"), arm.record.seconds / 60)
        for arm in result.arms
    ]
    lines += [Table(columns=columns, rows=tuple(rows)).text, "", *_verdict(result), ""]
    for item in result.shown:
        lines += [item.question, f"  gold          {' | '.join(item.gold)}"]
        for arm, answer in zip(result.arms, item.answers, strict=True):
            lines.append(f"  {arm.num_registers} registers   {answer or '(no answer)'}")
    lines += ["", "Files (config, run.json, predictions, curve, model):"]
    lines += [f"  {arm.run_dir}" for arm in result.arms]
    model = result.arms[-1].run_dir / "model"
    lines += ["Ask it something:", f'  regtune ask {model} --question "Who built it?" --context "It was built by Ada."']
    return "\n".join(lines)


def _verdict(result: DemoResult) -> list[str]:
    em, error = 100 * result.difference["exact_match"], 100 * result.standard_error["exact_match"]
    f1, f1_error = 100 * result.difference["f1"], 100 * result.standard_error["f1"]
    size = "within" if abs(f1) <= 2 * f1_error else "more than"
    return [
        f"Difference with registers: EM {em:+.1f} (standard error {error:.1f}), F1 {f1:+.1f} ({f1_error:.1f}).",
        f"In F1 that is {size} two standard errors over questions, and another seed moves both rows by points as well.",
        f"One seed on {result.questions} questions can't tell whether registers help; both learn and answer.",
    ]
