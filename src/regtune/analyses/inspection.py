"""`inspect`: measures the inside of a model, part by part, on one sample of examples, and leaves one record a part.

Parts are the registered analyses. All of them see the same examples, whose ids stand in every record; a costly part may
look at some of them, and has no number for the others. The records lie in `inspect` in the run directory, one file a
part, which no other command writes; `regtune report` draws them from the blocks that their analyses make.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

import numpy as np

from regtune.analyses.parts import table
from regtune.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError, unknown_name
from regtune.interfaces import Analysis, Block, Examples, Metric, Need, ShownByBlocks
from regtune.methods.used import label_of
from regtune.progress import begin_stage, stages
from regtune.records import file_name, machine, now, plain, read_typed, versions, write_json
from regtune.registers.surgery import backbone_of, find_decoder_registers, num_registers
from regtune.registry import ANALYSES
from regtune.rows.texts import PlainText
from regtune.session import MODEL_DIR, Session
from regtune.session import open as open_session
from regtune.stats.comparison import Comparison, compare_many
from regtune.stats.scores import measured
from regtune.tables import Column
from regtune.typed import hints_of, typed

FOLDER = "inspect"


@dataclass(frozen=True, kw_only=True)
class PartRecord(ShownByBlocks):
    """What one analysis found in one model."""

    schema_version: Literal[2] = 2
    kind: Literal["inspect"] = "inspect"
    part: str
    subject: dict[str, Any]
    """The model: `name`, `base`, `label` of its methods, `num_registers`, `seed`, `run` (hash of its config) and `code`
    (hash of the code that measured)."""
    data: dict[str, list[str]]
    """`names` of the sets and `ids` of the examples, in order."""
    settings: dict[str, Any]
    """Of the analysis."""
    measures: dict[str, list[float | None]]
    """Headline numbers by name: one for each id, or None."""
    titles: dict[str, str]
    """What each of them is called by a person."""
    content: dict[str, Any]
    """Everything else that was found."""
    made: dict[str, Any]
    """Versions, machine and time."""

    @property
    def label(self) -> str:
        """Of the model, for a table."""
        seed = self.subject.get("seed")
        return f"{self.subject['label']}" + ("" if seed is None else f", seed {seed}")

    def mean(self, measure: str) -> float | None:
        """Over the examples that have a number."""
        values = [value for value in self.measures.get(measure, ()) if value is not None]
        return float(np.mean(values)) if values else None

    def __repr__(self) -> str:
        return f"<PartRecord {self.part} of {self.subject['name']}: {len(self.data['ids'])} examples>"

    @property
    def sample(self) -> str:
        """How many of the examples have a number, and how more get one; a sentence, empty where nothing is measured."""
        count = len(self.data["ids"])
        used = sum(any(v is not None for v in values) for values in zip(*self.measures.values(), strict=True))
        if used == count or not self.measures:
            return f"Measured on all {count} examples." if self.measures else ""
        setting = next((name for name in ("examples", "texts") if (self.settings.get(name, count) or 0) < count), "")
        more = f" (--set {self.part}.{setting}={count} takes all)" if setting else ""
        return f"Measured on {used} of the {count} examples{more}."

    def blocks(self) -> list[Block]:
        """What a person sees of it.

        Raises:
            UnknownNameError: no such analysis is registered.
            DataError: a record that its analysis doesn't understand.
        """
        try:
            analysis: Analysis = ANALYSES.get(self.part)
            return list(analysis.blocks({**self.content, "measures": self.measures, "titles": self.titles}))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                f"The record of {self.part} can't be understood ({type(error).__name__}: {error}). Inspect the model "
                "again."
            ) from error


@dataclass(frozen=True, kw_only=True)
class Inspection(ShownByBlocks):
    """What `inspect` found and wrote."""

    folder: Path
    records: tuple[PartRecord, ...]
    notes: tuple[str, ...] = ()
    """Parts that were left out, and why."""
    others: tuple[Inspection, ...] = ()
    """The models it was compared with, or its checkpoints."""
    differences: tuple[Comparison, ...] = ()
    """Every measure of the others against this one (`compare_records`); not of checkpoints."""

    def __getitem__(self, part: str) -> PartRecord:
        """The record of a part."""
        for record in self.records:
            if record.part == part:
                return record
        raise unknown_name("part that was measured", part, [record.part for record in self.records])

    def blocks(self) -> list[Block]:
        """Verdicts of all models side by side if there are several, each part, and what differs."""
        found = [_side_by_side((self, *self.others))] if self.others else []
        for record in self.records:
            found.append(Block(kind="text", title=ANALYSES.get(record.part).title))
            found += [Block(kind="text", title="Sample", text=record.sample)] if record.sample else []
            found += record.blocks()
        return found + ([_differences_table(self.differences)] if self.differences else [])

    def __repr__(self) -> str:
        parts = ", ".join(record.part for record in self.records) or "nothing"
        count = len(self.records[0].data["ids"]) if self.records else 0
        beside = f", beside {len(self.others)} more" if self.others else ""
        return f"<Inspection in {self.folder}: {parts}; {count} examples{beside}>"

    def __str__(self) -> str:
        if not self.records:
            return "\n".join(self.notes)
        subject, data = self.records[0].subject, self.records[0].data
        head = (
            f"{subject['name']}: {subject['architecture']}, {subject['label']}; {len(data['ids'])} examples of "
            f"{', '.join(data['names'])}. Layers, heads and registers count from 0."
        )
        return "\n\n".join([head, *(str(block) for block in self.blocks() if block.kind != "figure"), *self.notes])


def inspect(
    model: str | Path | Session,
    *,
    parts: Sequence[str] = (),
    data: Sequence[str] = (),
    limit: int | None = 48,
    compare: str | Path | Sequence[str | Path] = (),
    checkpoints: bool = False,
    settings: Mapping[str, Any] | None = None,
    output_dir: Path | None = None,
) -> Inspection:
    """Measures attention, artefacts, 8 bits, explanations and their faithfulness, registers and heads of a model.

    Args:
        model: a run directory, a checkpoint, a model's folder, a hub name, `minilm`, or an open session.
        parts: names of analyses; by default all but those that take minutes (`faithfulness`). What a model or the data
            can't have is left out with a note.
        data: data sets of the model's task, or text files; by default the run's first evaluation set.
        limit: use so many examples, spread evenly over the data; None uses all.
        compare: other models; each is inspected alike, and what differs gets an interval over examples.
        checkpoints: inspect the run's checkpoints too, in the order of training.
        settings: part to its settings (an object of `Analysis.settings`, or a mapping of some of its fields).
        output_dir: gets the records; by default `inspect` in the run directory, runs/inspect/MODEL for others.

    Returns:
        The records, which `print` shows as tables.

    Raises:
        CheckpointError: no such model, or no checkpoints.
        UnknownNameError: an unknown part or setting.
        ConfigError: a setting out of range.
        DataError: as reading the data; no part can be measured.
    """
    chosen = settings_of_parts(parts, settings or {})
    found = _inspect_one(model, chosen, data, limit, output_dir)
    compared = [compare] if isinstance(compare, (str, Path)) else list(compare)
    others = [_inspect_one(each, chosen, found.records[0].data["names"], limit, None) for each in compared]
    rows = [row for other in others for row in compare_records([found.records], [other.records])]
    if checkpoints:
        name = model.name if isinstance(model, Session) else str(model)
        steps = checkpoints_of(name)
        others += [_inspect_one(path, chosen, data, limit, found.folder / Path(path).name) for path in steps]
    return dataclasses.replace(found, others=tuple(others), differences=tuple(rows))


def settings_of_parts(parts: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts in their order, each with its settings."""
    names = list(dict.fromkeys(parts)) or [name for name in ANALYSES if ANALYSES.get(name).by_default]
    for name in given:
        if name not in names:
            raise unknown_name("part to be inspected", name, names)
    return {name: _settings(ANALYSES.get(name), given.get(name, {})) for name in names}


def _settings(analysis: Analysis, given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    hints = hints_of(analysis.settings)
    listed = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in given.items()}
    for name, value in listed.items():
        if get_origin(hints.get(name)) is tuple and not isinstance(value, list):
            listed[name] = [value]
    return typed(analysis.settings, listed, f"the settings of {analysis.name}")


def _inspect_one(
    model: str | Path | Session, parts: Mapping[str, Any], data: Sequence[str], limit: int | None, folder: Path | None
) -> Inspection:
    records, notes = [], []
    with stages(1 + len(parts)):
        begin_stage(f"opening {model.name if isinstance(model, Session) else model}")
        session = model if isinstance(model, Session) else open_session(model)
        examples = session.sample(data, limit)
        rows = session.rows(examples)
        if folder is None:
            ours = Path("runs") / FOLDER / file_name(session.name)
            folder = ours if session.run_dir is None else session.run_dir / FOLDER
        for name, settings in parts.items():
            analysis: Analysis = ANALYSES.get(name)
            reason = next((why for need in sorted(analysis.needs) if (why := lacks(session, examples, need))), "")
            begin_stage(f"{name} of {len(examples)} examples" if not reason else f"{name} is left out")
            if not reason:
                try:
                    content = plain(analysis.measure(session, rows, examples, settings))
                except UnsupportedModelError as error:
                    reason = str(error)
            if reason:
                notes.append(f"{name} is left out: {reason}")
                continue
            record = _record(session, examples, analysis, settings, content)
            write_json(folder / f"{name}.json", dataclasses.asdict(record))
            records.append(record)
    if not records:
        raise DataError(f"No part of {session.name} can be measured: {' '.join(notes)}")
    return Inspection(folder=folder, records=tuple(records), notes=tuple(notes))


def lacks(session: Session, examples: Examples, need: Need) -> str:
    """What a model or its data lacks for a need, in a sentence; empty where it has it."""
    if need == "registers":
        some = num_registers(session.model) or find_decoder_registers(session.model) is not None
        return "" if some else "the model has no registers."
    if need == "attention":
        from regtune.families import family_of

        try:
            family_of(backbone_of(session.model).config, "relevance")
        except UnsupportedModelError as error:
            return str(error)
        return ""
    if session.task is None:
        return "the model has no head for a task."
    if isinstance(examples.items[0], PlainText):
        return f"{', '.join(examples.names)} is plain text; it needs a data set of {session.task.title}."
    return ""


def _record(
    session: Session, examples: Examples, analysis: Analysis, settings: Any, content: dict[str, Any]
) -> PartRecord:
    made = versions()
    return PartRecord(
        part=analysis.name,
        subject=subject_of(session, made),
        data={"names": list(examples.names), "ids": list(examples.ids)},
        settings=plain(settings),
        measures=aligned(content.pop("measures", {}), len(examples)),
        titles=content.pop("titles", {}),
        content=content,
        made={"versions": made, "machine": machine(), "time": now()},
    )


def subject_of(session: Session, made: Mapping[str, str]) -> dict[str, Any]:
    """What a record says of the model that was looked at (`PartRecord.subject`); `made` are the versions."""
    run, count = session.record, num_registers(session.model)
    own = find_decoder_registers(session.model)
    beside = f", decoder's {own.num_registers}" if own is not None else ""
    bare = f"registers, N = {count}{beside}" if count or beside else "no registers"
    return {
        "name": session.name,
        "architecture": type(session.model).__name__,
        "base": session.config.model,
        "label": label_of(session.config) if run is not None else bare,
        "num_registers": count,
        "seed": None if run is None else session.config.training.seed,
        "run": None if run is None else run.config_hash,
        "code": made["regtune_source"],
    }


def aligned(measures: Mapping[str, Any], count: int) -> dict[str, list[float | None]]:
    """The measures with one entry for each of `count` examples, to six digits; None where one has no number.

    Args:
        measures: name to index of an example to its number, or to one number (or None) for each.
        count: examples.
    """
    found: dict[str, list[float | None]] = {}
    for name, values in measures.items():
        numbered = values if isinstance(values, Mapping) else dict(enumerate(values))
        stranger = next((index for index in numbered if not 0 <= index < count), None)
        if stranger is not None:
            raise DataError(f"{name} has a number for example {stranger}, but there are {count} examples.")
        numbers = [numbered.get(index) for index in range(count)]
        found[name] = [None if n is None or not math.isfinite(n) else float(f"{n:.6g}") for n in numbers]
    return found


def read_record(path: Path) -> PartRecord:
    """Reads what `inspect` wrote."""
    record: PartRecord = read_typed(path, PartRecord, remedy=_AGAIN)
    ids = record.data.get("ids", [])
    if any(len(values) != len(ids) for values in record.measures.values()):
        raise DataError(f"{path}: the measures don't have one number for each example. {_AGAIN}")
    return record


_AGAIN = "Inspect the model again."


def read_records(folder: Path) -> tuple[list[PartRecord], list[tuple[str, str]]]:
    """The records in a folder, in the order of the registered analyses, and file and reason of what can't be used."""
    found: dict[str, PartRecord] = {}
    refused = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_record(path)
            ANALYSES.get(record.part)
            found[record.part] = record
        except (DataError, ConfigError) as error:
            refused.append((path.name, str(error)))
    return [found[name] for name in ANALYSES if name in found], refused


def checkpoints_of(name: str | Path) -> list[str]:
    """A run's checkpoints in the order of training."""
    folder = Path(name).parent if Path(name).name == MODEL_DIR else Path(name)
    found = [path for path in folder.glob("checkpoints/checkpoint-*") if (path / "config.json").is_file()]
    if not found:
        raise CheckpointError(f"{name} holds no checkpoints of a run (checkpoints/checkpoint-STEP).")
    return [str(path) for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))]


# What differs


def compare_records(
    base: Sequence[Sequence[PartRecord]],
    other: Sequence[Sequence[PartRecord]],
    *,
    resamples: int = 10_000,
) -> list[Comparison]:
    """Every measure that all models have, the second arm's minus the first's; p-values are corrected over all of them.

    One pair of models gets a bootstrap over examples, which says nothing about other training seeds. Several pairs get
    the paired, corrected multi-bootstrap over seeds × examples. Examples for which one model has no number are left
    out of that measure.

    `base` and `other` are the records of each seed's model of an arm, seeds in the same order. More than `resamples`
    draws are made where so many measures need them.
    """
    if not base or len(base) != len(other):
        raise DataError(f"{len(base)} and {len(other)} models; give as many of each, in the seeds' order.")
    everyone = [{name: record for record in records for name in record.measures} for records in (*base, *other)]
    families = {}
    for name in everyone[0]:
        records = [each[name] for each in everyone if name in each]
        for record in records[1:]:
            _check_alike(records[0], record)
        known = zip(*(record.measures[name] for record in records), strict=True)
        if len(records) == len(everyone) and sum(None not in values for values in known) >= 2:
            metric = Metric(
                name=name,
                title=records[0].titles.get(name, name),
                columns=(name,),
                scale=1.0,
                unit="",
                bounds=(-math.inf, math.inf),
            )
            first, second = records[: len(base)], records[len(base) :]
            label = second[-1].subject["label"]
            families[name] = (_scores(first, metric, "the first"), {label: _scores(second, metric, label)})
    if not families:
        raise DataError("There is nothing to compare: the models share no measure with two examples or more.")
    enough = math.ceil(4 * len(families) / 0.05)
    compared = compare_many(families, resamples=max(resamples, enough))
    return [comparison for (comparison,) in compared.values()]


def _scores(records: Sequence[PartRecord], metric: Metric, name: str) -> Any:
    numbers = [dict(zip(record.data["ids"], record.measures[metric.name], strict=True)) for record in records]
    return measured(dict(enumerate(numbers)), metric, name=name)


def _check_alike(first: PartRecord, other: PartRecord) -> None:
    if first.data["ids"] != other.data["ids"]:
        raise DataError(
            f"{other.subject['name']} was inspected on other examples than {first.subject['name']}. Inspect both with "
            "the same --data and --limit."
        )
    if first.settings != other.settings:
        raise DataError(
            f"{first.part}: {first.subject['name']} was inspected with {first.settings}, {other.subject['name']} with "
            f"{other.settings}; the difference would be one of settings."
        )


def direction(found: Comparison) -> Literal["higher", "lower", "not shown"]:
    """What is shown of a measure that has no good direction, after the correction over all of them."""
    if found.p_adjusted > found.alpha:
        return "not shown"
    return "higher" if found.difference > 0 else "lower"


def _differences_table(rows: Sequence[Comparison]) -> Block:
    between = Column("interval", lambda ends: f"{ends[0]:+.3g} to {ends[1]:+.3g}")
    return table(
        "What differs",
        (
            "measure",
            *(Column(name, ".3g") for name in ("model", "other")),
            Column("difference", "+.3g"),
            between,
            "verdict",
        ),
        [
            (row.metric.title, row.baseline_mean, row.arm_mean, row.difference, row.interval, direction(row))
            for row in rows
        ],
        "Means over the same examples and 95 % intervals over examples (one model a side says nothing about other "
        f"training seeds); verdicts are corrected (Holm) over {len(rows)} rows, intervals are not.",
    )


def _side_by_side(found: Sequence[Inspection]) -> Block:
    """Verdicts, one column a model."""
    columns = [dict(_verdicts(each)) for each in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    labels = [each.records[0].subject["name"] for each in found]
    rows = [(name, *(column.get(name, "not measured") for column in columns)) for name in names]
    return table("Known artefacts, model by model", ("artefact", *labels), rows)


def _verdicts(found: Inspection) -> Iterator[tuple[str, str]]:
    for record in found.records:
        for verdict in record.content.get("verdicts", ()):
            value = "" if verdict["value"] is None else f" ({verdict['value']:.3g}"
            layer = "" if verdict["layer"] is None else f", layer {verdict['layer']}"
            yield verdict["artefact"], verdict["verdict"] + (f"{value}{layer})" if value else "")
