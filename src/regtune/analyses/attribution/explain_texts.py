"""Why a model says what it says of texts, for any task: several methods and targets on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regtune.analyses.attribution.explain_question import explain_row
from regtune.errors import DataError
from regtune.interfaces import Examples
from regtune.registers.surgery import num_registers
from regtune.session import Session
from regtune.session import open as open_session

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "offset_mapping")


def explain_texts(
    name: str | Path,
    records: Sequence[Mapping[str, Any]],
    *,
    targets: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compare: str | Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Explains texts one after the other; the models are opened once.

    Args:
        name: a run directory, a folder or a hub name.
        records: what the task reads: `{"text": ...}`, with `pair` for two texts.
        targets: what `Task.targets` names: labels, or `positive-negative`; by default the first of them.
        methods: of attribution; by default those that are shown for questions, less what a model can't have.
        options: for single methods, by their names.
        compare: another model for the same texts, side by side.

    Yields:
        An explanations document for each record, plain JSON types.

    Raises:
        CheckpointError: no such model, or one without a head.
        DataError: no record, or one without what the task needs.
        UnknownNameError: an unknown target or method.
    """
    if not records:
        raise DataError("There is nothing to explain: 0 texts. Give at least one.")
    sessions = [open_session(one) for one in ([name] if compare is None else [name, compare])]
    for number, record in enumerate(records, start=1):
        example = sessions[0].reads.example({"id": str(number), **record}, sessions[0].task_settings)
        found = Examples(items=(example,), names=("text",))
        models = [_explained(session, found, targets, methods, options) for session in sessions]
        pair = getattr(example, "pair", None)
        yield {
            "schema_version": 1,
            "kind": "explanations",
            "id": example.id,
            "question": None if pair is None else example.text,
            "context": example.text if pair is None else pair,
            "notes": [],
            "models": models,
        }


def _explained(
    session: Session,
    examples: Examples,
    targets: Sequence[str],
    methods: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    task, rows = session.reads, session.rows(examples)
    (prediction,) = session.predict(examples, rows)
    rows = rows.one_each()
    (batch,) = session.batches(rows)
    goals = {asked: task.target(asked, 0, rows, session) for asked in targets or task.targets(session)[:1]}
    inputs = {key: batch[key] for key in _INPUTS if key in batch}
    attributions, notes = explain_row(
        session.model, inputs, goals, methods=methods, tokenizer=session.reader, options=options
    )
    cut = [f"Only the first {rows.lengths[0]} tokens of the text were read."] * bool(rows.facts.get("truncated_texts"))
    said = prediction.to_json()
    answer = None
    if "label" in said:
        answer = {"text": said["label"], "start": 0, "end": 0, "probability": said["probabilities"][said["label"]]}
    return {
        "name": session.name,
        "num_registers": num_registers(session.model),
        "answer": answer,
        "notes": [*cut, *notes],
        "context_start": int(batch["context_start"][0]) if "context_start" in batch else 0,
        "attributions": [{"asked": asked, **one.to_json()} for asked, one in attributions],
    }
