"""The demo: a question to the ready adapter, a real model fine-tuned without and with registers, and one page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regtune.app.explorer import Change, open_explorer
from regtune.config import RunConfig, TrainConfig
from regtune.errors import TrainingError
from regtune.interfaces import Block, ShownByBlocks
from regtune.models.minilm import minilm_folder
from regtune.progress import begin_stage, stages
from regtune.report.collect import Group, collect
from regtune.report.page import PAGE, Report, build_report, draw
from regtune.report.rendering import environment, write
from regtune.report.scores import Settings
from regtune.report.sections import Part, Section
from regtune.sweeps.grid import SearchConfig, SweepConfig
from regtune.sweeps.sweep import run_sweep
from regtune.tables import Column
from regtune.tasks.qa.question_answerer import READY, ask

COUNTS = (0, 4)
"""Numbers of registers that are compared."""
SEEDS = (0, 1, 2)
QUESTION = "When was the bridge opened to traffic?"
CONTEXT = (
    "Work on the stone bridge began in 1862. It was opened to traffic in the spring of 1867, two years late, and "
    "closed again in 1931 for repairs."
)
_SET = "embedded"
_CARE = (
    "These texts are learnt in seconds, and nearly all of them by both arms: the demo shows how it works, and is no "
    "evidence on whether registers help. Questions (regtune demo --full) are, or texts that the plain model gets wrong."
)
_STATIC = re.compile(r' role="button"| tabindex="0"| aria-pressed="\w+"')
"""What the explorer's marks have because a click on one does something there."""


@dataclass(frozen=True, kw_only=True)
class DemoResult(ShownByBlocks):
    """What the demo found."""

    folder: Path
    report: Report
    page: Path
    """HTML; opens by its path."""
    answers: Block
    """What the adapter that comes with regtune answered to a question."""

    @property
    def sentence(self) -> str:
        """The verdict."""
        top = self.report.results[0].headline
        assert top is not None
        return top.sentence

    def blocks(self) -> list[Block]:
        """The scores with their intervals, and the verdict."""
        (section, *_) = self.report.results
        said = "\n".join(filter(None, (self.sentence, section.note)))
        return [self.answers, *section.blocks(""), Block(kind="text", title="Verdict", text=said)]

    def __repr__(self) -> str:
        return f"<DemoResult in {self.folder}: {self.sentence}>"

    def __str__(self) -> str:
        shown = "\n\n".join(map(str, self.blocks()))
        return f"{shown}\n\nPage, with an explanation and what to do next; open it in a browser:\n  {self.page}"


def demo_sweep(*, full: bool = False) -> SweepConfig:
    """The demo's runs; both learning rates as a search on held-out training data found (docs/log.md).

    Args:
        full: questions instead of classes of short texts.
    """
    task = "qa" if full else "classify"
    training = (
        TrainConfig(epochs=5.0, batch_size=8, learning_rate=2e-4, register_learning_rate=1e-2)
        if full
        else TrainConfig(epochs=2.0, batch_size=8, learning_rate=4e-4, register_learning_rate=1e-2)
    )
    return SweepConfig(
        base=RunConfig(model="minilm", task=task, training=training),
        arms=("baseline", "registers"),
        num_registers=COUNTS,
        seeds=SEEDS,
        training_sets={_SET: (f"{_SET}:train",)},
        evaluation_sets=(f"{_SET}:dev",),
        search=SearchConfig(
            learning_rates=(1e-4, 2e-4, 4e-4),
            register_learning_rates=(1e-3, 1e-2),
            num_registers=COUNTS[-1],
            epochs=training.epochs,
        ),
    )


def run_demo(output_dir: Path = Path("runs/demo"), *, full: bool = False, progress: bool = True) -> DemoResult:
    """Asks the ready adapter, fine-tunes MiniLM without and with registers, three seeds each, and writes a page.

    Stopped and started again, it continues.

    Two to three minutes on two cores; no hub, no GPU.

    Args:
        output_dir: gets a run directory for each of the six, and `report/report.html`.
        full: on questions instead of classes of short texts: half an hour.
        progress: say on standard error how far it is.

    Raises:
        MissingExtraError: the `demo` extra isn't installed.
        CheckpointError: `output_dir` holds runs with other settings.
        TrainingError: a run failed.
    """
    minilm_folder()  # a missing extra is told before anything is written
    environment()
    with stages(4, shown=progress):
        begin_stage(f"asking {READY}: {QUESTION}")
        answers = _answers()
        begin_stage(f"fine-tuning MiniLM {len(COUNTS) * len(SEEDS)} times")
        outcome = run_sweep(demo_sweep(full=full), output_dir)
        for label, why in outcome.failed.items():
            raise TrainingError(f"The demo's run {label} failed: {why}")
        begin_stage("comparing the runs")
        sweep = collect(output_dir)
        report = build_report(sweep, settings=Settings())
        begin_stage("explaining one text, and writing the page")
        first, *others, how = report.sections
        results = (first if full else dataclasses.replace(first, note=_CARE), *others)
        asked = Section(title="A question to the adapter that comes with regtune", parts=(_part(answers),))
        sections = (*results, asked, _inside(sweep.groups[0]), _next(sweep.groups[0]), how)
        report = dataclasses.replace(report, sections=sections)
        place = output_dir / "report"
        for name, text in draw(report).items():
            write(place / name, text)
    return DemoResult(folder=output_dir, report=report, page=place / PAGE, answers=answers)


def _answers() -> Block:
    """What the adapter that comes with regtune says to a question, best first."""
    rows = tuple((span.text, span.probability) for span in ask(READY, QUESTION, CONTEXT, top_k=3).n_best)
    columns = (Column("answer", align="left"), Column("probability", ".3f"))
    return Block(kind="table", title=QUESTION, columns=columns, rows=rows, text=CONTEXT)


def _first_seed(group: Group) -> list[Path]:
    """The run of the first seed of each arm, the one with registers first."""
    return [group.of(arm)[0].folder for arm in reversed(group.arms)]


def _inside(group: Group) -> Section:
    """One text: what both models say, why, and what attends to the registers."""
    explorer = open_explorer(*_first_seed(group))
    name = explorer.sets[0]
    given: Mapping[str, str] = explorer.given(name, next(iter(explorer.examples(name).ids)))
    relevance = explorer.relevance(given, Change())
    found = explorer.attention(given, Change(), layer=explorer.layers - 1)
    attention = [
        dataclasses.replace(block, html=_STATIC.sub("", block.html), text=block.text.replace(" Click another one.", ""))
        if block.html
        else block
        for block in found
    ]
    return Section(
        title="One text of the evaluation set, seed 0",
        parts=(
            Part(title="Which words matter for the prediction", blocks=tuple(relevance)),
            Part(title="Attention, with the registers set apart", blocks=tuple(attention)),
        ),
    )


def _next(group: Group) -> Section:
    with_registers, plain = _first_seed(group)
    own = "--data.train my.csv --data.eval my.dev.csv --output-dir runs/mine"
    commands = (
        ("ask the adapter about a text of your own", 'regtune ask --question "…" --context-file article.txt'),
        ("look into these two models in the browser", f"regtune explore {with_registers} --compare {plain}"),
        ("learn from your own texts (columns text and label)", f"regtune train --task classify {own}"),
        ("do the same in Python", "model = regtune.fit(texts, labels); model.predict(more_texts)"),
        ("find out whether registers help there", "regtune sweep my.yaml, then regtune report runs/my"),
    )
    table = Block(kind="table", title="Commands", columns=("to", "type"), rows=commands)
    return Section(title="What to do next", parts=(_part(table),))


def _part(block: Block) -> Part:
    return Part(title="", blocks=(block,))
