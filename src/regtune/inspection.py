"""`inspect`: looks inside a model, part by part, on one sample of examples, and leaves one record a part.

Parts are the registered analyses. All of them see the same examples, whose ids stand in every record; a costly part may
look at some of them, and has no number for the others. The records lie in `inspect` in the run directory, one file a
part, which no other command writes; `regtune report` draws them from the blocks that their analyses make.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from regtune.blocks import as_text
from regtune.config import to_dict
from regtune.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError, unknown_name
from regtune.interfaces import Analysis, Block, Examples, Need
from regtune.methods.used import label_of
from regtune.records import file_name, machine, now, read_json, versions, write_json
from regtune.registers.surgery import backbone_of, num_registers
from regtune.registry import ANALYSES
from regtune.session import MODEL_DIR, Session
from regtune.session import open as open_session
from regtune.stats.bootstrap import paired_difference, resampled_means, single_run_difference
from regtune.stats.holm import holm
from regtune.texts import PlainText

FOLDER = "inspect"
KIND = "inspect"
SCHEMA_VERSION = 2
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What one analysis found in one model."""

    part: str
    subject: Mapping[str, Any]
    """The model: `name`, `base`, `label` of its methods, `num_registers`, `seed`, `run` (hash of its config) and `code`
    (hash of the code that measured)."""
    data: Mapping[str, Any]
    """`names` of the sets and `ids` of the examples, in order."""
    settings: Mapping[str, Any]
    """Of the analysis."""
    measures: Mapping[str, Sequence[float | None]]
    """Headline numbers by name: one for each id, or None."""
    titles: Mapping[str, str]
    """What each of them is called by a person."""
    content: Mapping[str, Any]
    """Everything else that was found."""
    made: Mapping[str, Any]
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

    def blocks(self) -> list[Block]:
        """What a person sees of it.

        Raises:
            UnknownNameError: no such analysis is registered.
            DataError: a record that its analysis doesn't understand.
        """
        try:
            found: list[Block] = ANALYSES.get(self.part).blocks(
                {**self.content, "measures": self.measures, "titles": self.titles}
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                f"The record of {self.part} can't be understood ({type(error).__name__}: {error}). Inspect the model "
                "again."
            ) from error
        return found


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One measure of one model, or arm, against another; both means are over the same seeds and examples."""

    name: str
    title: str
    label: str
    """The second one's."""
    base: float
    other: float
    difference: float
    """The second minus the first."""
    interval: tuple[float, float]
    """95 %, not corrected; over examples, and over seeds where there are several."""
    p_value: float
    """Two-sided, corrected by Holm over all rows of the comparison."""
    seeds: int
    examples: int

    @property
    def verdict(self) -> str:
        """`higher`, `lower` or `not shown`, after the correction."""
        if self.p_value > ALPHA:
            return "not shown"
        return "higher" if self.difference > 0 else "lower"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` found and wrote."""

    folder: Path
    records: tuple[PartRecord, ...]
    notes: tuple[str, ...] = ()
    """Parts that were left out, and why."""
    others: tuple[Inspection, ...] = ()
    """The models it was compared with, or its checkpoints."""
    differences: tuple[MeasureRow, ...] = ()

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
            found += record.blocks()
        return found + ([_differences_table(self.differences)] if self.differences else [])

    def __str__(self) -> str:
        if not self.records:
            return "\n".join(self.notes)
        subject, data = self.records[0].subject, self.records[0].data
        head = (
            f"{subject['name']}: {subject['architecture']}, {subject['label']}; {len(data['ids'])} examples of "
            f"{', '.join(data['names'])}. Layers, heads and registers count from 0."
        )
        return "\n\n".join([head, as_text(self.blocks()), *self.notes])


def inspect(
    model: str | Path | Session,
    *,
    parts: Sequence[str] = (),
    data: Sequence[str] = (),
    limit: int | None = 200,
    compare: str | Path | Sequence[str | Path] = (),
    checkpoints: bool = False,
    settings: Mapping[str, Any] | None = None,
    output_dir: Path | None = None,
) -> Inspection:
    """Looks inside a model: attention, artefacts, 8 bits, explanations and their faithfulness, registers, heads.

    Args:
        model: a run directory, a checkpoint, a model's folder, a hub name, `minilm`, or an open session.
        parts: names of analyses; all by default. What a model or the data can't have is left out with a note.
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
    """The parts in their order, each with its settings.

    Raises:
        UnknownNameError, ConfigError: as `inspect`.
    """
    names = list(dict.fromkeys(parts)) or list(ANALYSES)
    for name in given:
        if name not in names:
            raise unknown_name("part to be inspected", name, names)
    return {name: _settings(ANALYSES.get(name), given.get(name, {})) for name in names}


def _settings(analysis: Analysis, given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    fields = {field.name: field for field in dataclasses.fields(analysis.settings)}
    for name in given:
        if name not in fields:
            raise unknown_name(f"setting of {analysis.name}", name, fields)
    values: dict[str, Any] = {}
    for name, value in given.items():
        kind = str(fields[name].type)
        listed = (value if isinstance(value, (list, tuple)) else [value]) if kind.startswith("tuple") else value
        values[name] = tuple(listed) if isinstance(listed, list) else listed
        if "Path" in kind and value is not None:
            values[name] = Path(str(value))
    try:
        return analysis.settings(**values)
    except TypeError as error:
        raise ConfigError(f"{analysis.name}: {error}. It was given {dict(given)}.") from error


def _inspect_one(
    model: str | Path | Session, parts: Mapping[str, Any], data: Sequence[str], limit: int | None, folder: Path | None
) -> Inspection:
    session = model if isinstance(model, Session) else open_session(model)
    examples = session.sample(data, limit)
    rows = session.rows(examples)
    if folder is None:
        folder = (
            Path("runs") / FOLDER / file_name(session.name) if session.run_dir is None else session.run_dir / FOLDER
        )
    records, notes = [], []
    bar = tqdm(parts.items(), desc=f"inspect {session.name}", disable=None, leave=False)
    for name, settings in bar:
        bar.set_postfix_str(name)
        analysis: Analysis = ANALYSES.get(name)
        reason = next((why for need in sorted(analysis.needs) if (why := lacks(session, examples, need))), "")
        if not reason:
            try:
                content = dict(analysis.measure(session, rows, examples, settings))
            except UnsupportedModelError as error:
                reason = str(error)
        if reason:
            notes.append(f"{name} is left out: {reason}")
            continue
        record = _record(session, examples, analysis, settings, content)
        write_json(folder / f"{name}.json", record_json(record))
        records.append(record)
    if not records:
        raise DataError(f"No part of {session.name} can be measured: {' '.join(notes)}")
    return Inspection(folder=folder, records=tuple(records), notes=tuple(notes))


def lacks(session: Session, examples: Examples, need: Need) -> str:
    """What a model or its data lacks for a need, in a sentence; empty where it has it."""
    if need == "registers":
        return "" if num_registers(session.model) else "the model has no registers."
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
    run = session.record
    made = versions()
    return PartRecord(
        part=analysis.name,
        subject={
            "name": session.name,
            "architecture": type(session.model).__name__,
            "base": session.config.model,
            "label": label_of(session.config) if run is not None else _bare_label(session),
            "num_registers": num_registers(session.model),
            "seed": None if run is None else session.config.training.seed,
            "run": None if run is None else run.config_hash,
            "code": made["regtune_source"],
        },
        data={"names": list(examples.names), "ids": list(examples.ids)},
        settings=to_dict(settings),
        measures=content.pop("measures", {}),
        titles=content.pop("titles", {}),
        content=content,
        made={"versions": made, "machine": machine(), "time": now()},
    )


def _bare_label(session: Session) -> str:
    count = num_registers(session.model)
    return f"registers, N = {count}" if count else "no registers"


def record_json(record: PartRecord) -> dict[str, Any]:
    """The content of `inspect/PART.json`."""
    return {"schema_version": SCHEMA_VERSION, "kind": KIND, **dataclasses.asdict(record)}


def read_record(path: Path) -> PartRecord:
    """Reads what `inspect` wrote.

    Raises:
        DataError: no such file, a broken one, or one of another kind or schema.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("schema_version") != SCHEMA_VERSION:
        have = [content.get(name) for name in ("kind", "schema_version")] if isinstance(content, dict) else content
        raise DataError(
            f"{path} is no record of `regtune inspect` that this version reads ({KIND!r}, {SCHEMA_VERSION}); it has "
            f"{str(have)[:80]}. Inspect the model again."
        )
    fields = {field.name for field in dataclasses.fields(PartRecord)}
    given = {name: value for name, value in content.items() if name not in ("kind", "schema_version")}
    wrong = sorted(fields ^ given.keys())
    if wrong:
        raise DataError(f"{path}: {wrong[0]!r} is missing or unknown. Inspect the model again.")
    shapes = dict.fromkeys(fields - {"part"}, dict) | {"part": str}
    for name, kind in shapes.items():
        if not isinstance(given[name], kind):
            raise DataError(f"{path}: {name!r} is {type(given[name]).__name__}. Inspect the model again.")
    ids = given["data"].get("ids")
    if not isinstance(ids, list) or any(len(values) != len(ids) for values in given["measures"].values()):
        raise DataError(f"{path}: the measures don't have one number for each example. Inspect the model again.")
    return PartRecord(**given)


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
    """A run's checkpoints in the order of training.

    Raises:
        CheckpointError: not a run, or one that kept no checkpoint.
    """
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
    seed: int = 0,
) -> list[MeasureRow]:
    """Every measure that all models have, the second arm's minus the first's; p-values are corrected over all of them.

    One pair of models gets a bootstrap over examples, which says nothing about other training seeds. Several pairs get
    the paired, corrected multi-bootstrap over seeds × examples. Examples for which one model has no number are left
    out of that measure.

    Args:
        base: the records of each seed's model of the first arm.
        other: of the second arm, seeds in the same order.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: other numbers of models, other examples or settings, or nothing to compare.
    """
    if not base or len(base) != len(other):
        raise DataError(f"{len(base)} and {len(other)} models; give as many of each, in the seeds' order.")
    everyone = [_by_measure(records) for records in (*base, *other)]
    names = [name for name in everyone[0] if all(name in each for each in everyone)]
    found = []
    for name in names:
        records = [each[name] for each in everyone]
        for record in records[1:]:
            _check_alike(records[0], record)
        values = np.array([[np.nan if v is None else v for v in r.measures[name]] for r in records], dtype=np.float64)
        whole = np.isfinite(values).all(axis=0)
        if whole.sum() >= 2:
            first, second = values[: len(base), whole], values[len(base) :, whole]
            found.append((records[0], records[-1], name, first, second))
    if not found:
        raise DataError("There is nothing to compare: the models share no measure with two examples or more.")
    differences = [_difference(first, second, resamples, seed) for *_, first, second in found]
    corrected = holm([difference.p_value() for difference in differences])
    return [
        MeasureRow(
            name=name,
            title=record.titles.get(name, name),
            label=last.subject["label"],
            base=float(first.mean()),
            other=float(second.mean()),
            difference=difference.estimate,
            interval=difference.interval(),
            p_value=float(p),
            seeds=len(first),
            examples=first.shape[1],
        )
        for (record, last, name, first, second), difference, p in zip(found, differences, corrected, strict=True)
    ]


def _by_measure(records: Sequence[PartRecord]) -> dict[str, PartRecord]:
    return {name: record for record in records for name in record.measures}


def _check_alike(first: PartRecord, other: PartRecord) -> None:
    if first.data["ids"] != other.data["ids"]:
        raise DataError(
            f"{other.subject['name']} was inspected on other examples than {first.subject['name']}. Inspect both with "
            "the same --data and --limit."
        )
    if json.dumps(first.settings, sort_keys=True) != json.dumps(other.settings, sort_keys=True):
        raise DataError(
            f"{first.part}: {first.subject['name']} was inspected with {dict(first.settings)}, "
            f"{other.subject['name']} with {dict(other.settings)}; the difference would be one of settings."
        )


def _difference(
    first: Float64[np.ndarray, "seeds examples"],
    second: Float64[np.ndarray, "seeds examples"],
    resamples: int,
    seed: int,
) -> Any:
    if len(first) == 1:
        return single_run_difference(second[0], first[0], resamples=resamples, seed=seed)
    means = resampled_means(np.concatenate([first, second]), resamples=resamples, seed=seed)
    return paired_difference(second, first, (means[len(first) :], means[: len(first)]), seed=seed + 1)


def _differences_table(rows: Sequence[MeasureRow]) -> Block:
    return Block(
        kind="table",
        title="What differs",
        text="Means over the same examples and 95 % intervals over examples (one model a side says nothing about other "
        f"training seeds); verdicts are corrected (Holm) over {len(rows)} rows, intervals are not.",
        columns=("measure", "model", "other", "difference", "interval", "verdict"),
        rows=tuple(
            (
                row.title,
                f"{row.base:.3g}",
                f"{row.other:.3g}",
                f"{row.difference:+.3g}",
                f"{row.interval[0]:+.3g} to {row.interval[1]:+.3g}",
                row.verdict,
            )
            for row in rows
        ),
        data=[dataclasses.asdict(row) for row in rows],
    )


def _side_by_side(found: Sequence[Inspection]) -> Block:
    """Verdicts, one column a model."""
    columns = [dict(_verdicts(each)) for each in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    labels = [each.records[0].subject["name"] for each in found]
    return Block(
        kind="table",
        title="Known artefacts, model by model",
        columns=("artefact", *labels),
        rows=tuple((name, *(column.get(name, "not measured") for column in columns)) for name in names),
    )


def _verdicts(found: Inspection) -> Iterator[tuple[str, str]]:
    for record in found.records:
        for verdict in record.content.get("verdicts", ()):
            value = "" if verdict["value"] is None else f" ({verdict['value']:.3g}"
            layer = "" if verdict["layer"] is None else f", layer {verdict['layer']}"
            yield verdict["artefact"], verdict["verdict"] + (f"{value}{layer})" if value else "")
