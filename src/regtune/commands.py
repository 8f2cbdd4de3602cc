"""What each subcommand does: arguments -> config -> one library call -> printed result.

Flags come from the config dataclasses. Whatever is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from regtune.arguments import (
    AskArgs,
    CompareArgs,
    DemoArgs,
    DiagnoseArgs,
    DoctorArgs,
    EvaluateArgs,
    ExplainArgs,
    InfoArgs,
    InsideArgs,
    ReportArgs,
    SweepArgs,
    TrainArgs,
)
from regtune.command_help import COMMAND_HELP
from regtune.config import RunConfig
from regtune.errors import ConfigError

ArgsT = TypeVar("ArgsT")


def demo(argv: Sequence[str]) -> int:
    """`regtune demo`."""
    args = _parse("demo", DemoArgs, argv)
    _quiet()
    from regtune.experiments.demo import demo_text, run_demo

    print(demo_text(run_demo(args.output_dir)))
    return 0


def train(argv: Sequence[str]) -> int:
    """`regtune train`."""
    from regtune.experiments.recipes import load_recipe

    recipe = _first(argv)
    config = RunConfig() if recipe is None else load_recipe(recipe)
    args = _parse("train", TrainArgs, argv, TrainArgs(recipe=recipe, config=config))
    if args.recipe != recipe:
        raise ConfigError(f"Put the recipe first: regtune train {args.recipe} ...")
    _quiet()
    from regtune.experiments.describe import scores_text
    from regtune.experiments.experiment import run_experiment

    record = run_experiment(args.config)
    print(scores_text(record.metrics))
    print(f"Run directory: {args.config.output_dir}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """`regtune evaluate`."""
    from regtune.experiments.target import open_target

    target = _first(argv)
    if target is None:
        if not {"-h", "--help"} & set(argv):
            raise ConfigError("Name the run directory or model first: regtune evaluate DIR --data NAME ...")
        _parse("evaluate", EvaluateArgs, argv)
    base = open_target(str(target)).config
    default = EvaluateArgs(
        target=str(target),
        max_length=base.data.max_length,
        stride=base.data.stride,
        on_bad_record=base.data.on_bad_record,
        max_examples=base.data.max_eval_examples,
        precision=base.training.precision,
        answers=base.answers,
    )
    args = _parse("evaluate", EvaluateArgs, argv, default)
    _quiet()
    from regtune.experiments.evaluate import evaluate as run_evaluation
    from regtune.experiments.evaluate import evaluation_text

    data = dataclasses.replace(
        base.data,
        max_length=args.max_length,
        stride=args.stride,
        on_bad_record=args.on_bad_record,
        max_eval_examples=args.max_examples,
    )
    training = dataclasses.replace(base.training, precision=args.precision)
    config = dataclasses.replace(base, data=data, training=training, answers=args.answers)
    found, path = run_evaluation(args.target, args.data, config=config, output_dir=args.output_dir)
    print(evaluation_text(found))
    print(f"Details: {path}")
    return 0


def ask(argv: Sequence[str]) -> int:
    """`regtune ask`."""
    args = _parse("ask", AskArgs, argv)
    context = _context(args)
    _quiet()
    from regtune.experiments.ask import answers_text
    from regtune.experiments.ask import ask as put_question

    prediction = put_question(args.target, args.question, context, top_k=args.top_k)
    print(json.dumps(prediction.to_json(), ensure_ascii=False) if args.json else answers_text(prediction))
    return 0


def info(argv: Sequence[str]) -> int:
    """`regtune info`."""
    args = _parse("info", InfoArgs, argv)
    _quiet()
    from regtune.experiments.describe import describe, describe_text

    facts = describe(args.target)
    print(json.dumps(facts, ensure_ascii=False, indent=1) if args.json else describe_text(facts))
    return 0


def doctor(argv: Sequence[str]) -> int:
    """`regtune doctor`."""
    args = _parse("doctor", DoctorArgs, argv)
    _quiet()
    from regtune.experiments.doctor import examine, report_text

    report = examine(args.model, args.registers)
    print(report_text(report))
    return 0 if report.healthy else 1


def sweep(argv: Sequence[str]) -> int:
    """`regtune sweep`."""
    args = _parse("sweep", SweepArgs, argv)
    _quiet()
    from regtune.experiments.sweep_actions import carry_out

    report = carry_out(**{field.name: getattr(args, field.name) for field in dataclasses.fields(args)})
    print(report.text)
    return 0 if report.healthy else 1


def report(argv: Sequence[str]) -> int:
    """`regtune report`."""
    args = _parse("report", ReportArgs, argv)
    from regtune.report.page import write_report

    page = write_report(args.folder, output=args.output_dir, delta=args.delta, resamples=args.resamples)
    print(f"Report: {page}")
    return 0


def compare(argv: Sequence[str]) -> int:
    """`regtune compare`."""
    args = _parse("compare", CompareArgs, argv)
    from regtune.report.compare import compare_two, comparison_text

    found = compare_two(args.run_a, args.run_b, delta=args.delta, resamples=args.resamples)
    print(comparison_text(found, shown=args.flips))
    return 0


def explain(argv: Sequence[str]) -> int:
    """`regtune explain`."""
    args = _parse("explain", ExplainArgs, argv)
    context = _context(args)
    _quiet()
    from regtune.experiments.explain_question import explain_question
    from regtune.report.overlays import write_overlay
    from regtune.report.terminal_overlays import overlay_text

    found = explain_question(
        args.target,
        args.question,
        context,
        methods=args.methods or None,
        targets=args.targets,
        compare=args.compare,
    ).to_json()
    print(json.dumps(found, ensure_ascii=False) if args.json else overlay_text(found, palette=args.palette))
    if args.html is not None:
        path = write_overlay(args.html, found, palette=args.palette)
        print(f"Page: {path}", file=sys.stderr if args.json else sys.stdout)
    return 0


def diagnose(argv: Sequence[str]) -> int:
    """`regtune diagnose`."""
    args = _parse("diagnose", DiagnoseArgs, argv)
    _quiet()
    from regtune.experiments.diagnose import DIAGNOSIS_FILE, DiagnosisSettings
    from regtune.experiments.diagnose import diagnose as examine
    from regtune.experiments.diagnose_text import diagnosis_text

    settings = DiagnosisSettings(
        limit=args.limit, max_length=args.max_length, probes=args.probes, quantise=args.quantise
    )
    found = examine(
        *args.models,
        data=args.data,
        compare=args.compare,
        checkpoints=args.checkpoints,
        output_dir=args.output_dir,
        settings=settings,
    )
    print(diagnosis_text(found))
    print(f"Numbers: {found.folder / DIAGNOSIS_FILE}")
    return 0


def inside(argv: Sequence[str]) -> int:
    """`regtune inside`."""
    args = _parse("inside", InsideArgs, argv)
    _quiet()
    from regtune.experiments.inside import PARTS, look_inside

    found = look_inside(
        args.target,
        data=args.data,
        limit=args.limit,
        parts=args.parts or tuple(PARTS),
        output_dir=args.output_dir,
    )
    print("\n\n".join(found.texts))
    print(f"Numbers: {found.folder}")
    return 0


def _parse(name: str, kind: type[ArgsT], argv: Sequence[str], default: ArgsT | None = None) -> ArgsT:
    """The command's arguments; help ends with examples."""
    try:
        if default is None:
            return tyro.cli(kind, prog=f"regtune {name}", args=list(argv))
        return tyro.cli(kind, prog=f"regtune {name}", args=list(argv), default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            print("Examples:")
            print("\n".join(f"  {example}" for example in COMMAND_HELP[name][1]))
        raise


def _first(argv: Sequence[str]) -> str | None:
    """The argument that the defaults of all others depend on, if it stands where it belongs."""
    return argv[0] if argv and not argv[0].startswith("-") else None


def _context(args: AskArgs | ExplainArgs) -> str:
    if (args.context is None) == (args.context_file is None):
        raise ConfigError("Give the text with --context or with --context-file (one of them).")
    if args.context is not None:
        return args.context
    try:
        raw = sys.stdin.buffer.read() if args.context_file == "-" else Path(str(args.context_file)).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"--context-file {args.context_file} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--context-file {args.context_file} is not UTF-8 text (byte {error.start}).") from error


def _quiet() -> None:
    """Only errors from transformers, and none of its progress bars; regtune shows its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
