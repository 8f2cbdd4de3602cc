"""`look_inside`: everything that can be seen in one model, measured on the same questions and left beside its run.

Each part writes a file that `regtune report` draws; `measures.json` holds the headline numbers question by question,
which is what two models are compared by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from regtune.analyses.artefacts.artefacts import artefact_statistics
from regtune.analyses.artefacts.diagnose_inputs import Material, Patient, open_patient, read_material
from regtune.analyses.artefacts.diagnose_quantise import quantisation_loss
from regtune.analyses.attention.attention import attention_statistics
from regtune.analyses.attention.text import attention_text
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.attribution.explain import explain
from regtune.analyses.attribution.explain_question import explain_question
from regtune.analyses.batches import Batch
from regtune.analyses.faithfulness.compare import faithfulness_text
from regtune.analyses.faithfulness.measure import measure_faithfulness
from regtune.analyses.inside_measures import (
    ByExample,
    aligned,
    artefact_measures,
    attention_measures,
    explanation_measures,
)
from regtune.analyses.registers.audit import audit_registers, audit_text
from regtune.errors import ConfigError, unknown_name
from regtune.records import machine, now, versions, write_json
from regtune.registers.surgery import num_registers
from regtune.session import open_target
from regtune.targets import Answer as AnswerTarget
from regtune.token_classes import is_content

INSIDE = "inside"
MEASURES_FILE = "measures.json"
SCHEMA_VERSION = 1
METHODS = ("attnlrp", "chefer", "gradient-input")
"""Methods whose scores are measured on every question; integrated gradients would take tens of passes for each."""
FAITHFULNESS_METHODS = ("attnlrp", "chefer", "gradient-input", "attention", "random")
FAITHFULNESS_QUESTIONS = 12
"""Each is run hundreds of times with words taken out."""
_LENGTH = 384


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Where the files of a look inside are, and its tables for a terminal."""

    folder: Path
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One model, what it reads, and what has been found so far."""

    patient: Patient
    material: Material
    batches: Sequence[Batch]
    folder: Path
    resamples: int
    seed: int
    measures: dict[str, ByExample] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    """What a person reads."""

    @property
    def answers(self) -> bool:
        """Whether the model answers questions and there are questions."""
        return self.patient.answers is not None and bool(self.material.questions)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Leaves `inside/NAME.json`."""
        write_json(self.folder / f"{name}.json", content)


def _attention(look: _Look) -> None:
    found = attention_statistics(look.patient.model, look.batches)
    look.measures.update(attention_measures(found))
    look.texts.append(attention_text(found))
    look.write("attention", found.to_json())


def _artefacts(look: _Look) -> None:
    found = artefact_statistics(look.patient.model, look.batches)
    look.measures.update(artefact_measures(found))
    look.write("artefacts", found.to_json())


def _int8(look: _Look) -> None:
    if not look.answers:
        return
    found = quantisation_loss(look.patient, look.material, look.batches, resamples=look.resamples, seed=look.seed)
    look.measures["w8a8.f1_loss"] = dict(found.by_example)
    look.write("int8", {"schema_version": SCHEMA_VERSION, "kind": "int8", **found.to_json()})


def _explanations(look: _Look) -> None:
    if not look.answers:
        return
    content, gold = _places(look.batches)
    for method in METHODS:
        found: dict[int, Attribution] = {}
        for batch in look.batches:
            ranges = zip(batch["context_start"].tolist(), batch["context_end"].tolist(), strict=True)
            goals = [AnswerTarget(context=between) for between in ranges]
            scores = explain(look.patient.model, batch, method=method, target=goals, on_residual="warn")
            found.update(zip(batch["example"].tolist(), scores, strict=True))
        look.measures.update(explanation_measures(method, found, content, gold))
    first = look.material.questions[0]  # the first one, so that nobody chose it
    shown = explain_question(look.patient.name, first.question, first.context)
    look.write("explanations", shown.to_json())


def _audit(look: _Look) -> None:
    if look.answers and num_registers(look.patient.model):
        found = audit_registers(
            look.patient.name,
            data=look.material.names,
            limit=len(look.material.questions),
            resamples=look.resamples,
            seed=look.seed,
            constants_dir=look.folder / "constants",
        )
        look.texts.append(audit_text(found))
        look.write("audit", found.to_json())


def _faithfulness(look: _Look) -> None:
    if look.answers:
        found = measure_faithfulness(
            look.patient.name,
            kind="questions",
            data=look.material.names[0],
            methods=FAITHFULNESS_METHODS,
            limit=min(FAITHFULNESS_QUESTIONS, len(look.material.questions)),
            seed=look.seed,
        )
        look.texts.append(faithfulness_text(found))
        look.write("faithfulness", found.to_json())


PARTS: dict[str, Callable[[_Look], None]] = {
    "attention": _attention,
    "artefacts": _artefacts,
    "int8": _int8,
    "explanations": _explanations,
    "audit": _audit,
    "faithfulness": _faithfulness,
}


def look_inside(
    name: str,
    *,
    data: Sequence[str] = (),
    limit: int | None = 200,
    parts: Sequence[str] = tuple(PARTS),
    output_dir: Path | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> Inside:
    """Measures attention, artefacts, 8-bit loss, explanations, their faithfulness, and registers of one model.

    Parts that a model can't have (the audit without registers, F1 without a question-answering head) are left out.

    Args:
        name: a run directory, a model's folder, a hub name or `minilm`.
        data: questions or plain text; by default the run's first evaluation set (`embedded:dev` without a run).
        limit: use so many questions, spread evenly over the set; None uses all.
        parts: names of `PARTS`.
        output_dir: gets the files; by default `inside` in the run directory, `runs/inside` for other models.
        resamples: bootstrap draws.
        seed: of all random draws.
        batch_size: windows in one batch.
        progress: show a progress bar.

    Returns:
        The folder with `measures.json` and the parts' files, and the tables.

    Raises:
        CheckpointError: no such model.
        UnknownNameError: an unknown part.
        ConfigError: no part at all, or a setting out of range.
        DataError: as reading the data.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    if not parts:
        raise ConfigError(f"parts={tuple(parts)} is empty; name at least one of {', '.join(PARTS)}.")
    target = open_target(name)
    names = tuple(data) or (target.config.data.eval[:1] if target.run_dir is not None else ())
    patient, material = open_patient(name), read_material(names, limit=limit)
    folder = output_dir or (target.run_dir / INSIDE if target.run_dir is not None else Path("runs") / INSIDE)
    look = _Look(
        patient=patient,
        material=material,
        batches=material.batches(patient, max_length=_LENGTH, batch_size=batch_size),
        folder=folder,
        resamples=resamples,
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for part in tqdm(parts, desc="inside", disable=None if progress else True, leave=False):
        PARTS[part](look)
    ids = [question.id for question in material.questions] or [str(index) for index in range(len(material.texts))]
    training = target.config.training if target.run_dir is not None else None
    look.write(
        MEASURES_FILE.removesuffix(".json"),
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "measures",
            "model": target.config.model,
            "run": None if target.record is None else target.record.config_hash,
            "num_registers": num_registers(patient.model),
            "registers": None if target.run_dir is None else dataclasses.asdict(target.config.registers),
            "seed": None if training is None else training.seed,
            "data": list(material.names),
            "questions": ids,
            "measures": aligned(look.measures, ids),
            "versions": versions(),
            "machine": machine(),
            "time": now(),
        },
    )
    return Inside(folder=folder, texts=tuple(look.texts))


def _places(batches: Sequence[Batch]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """For each question the content tokens of its window, and those of its gold answer."""
    content, gold = {}, {}
    for batch in batches:
        kinds, lengths = is_content(batch["token_classes"]).numpy(), batch["attention_mask"].sum(1).tolist()
        for row, example in enumerate(batch["example"].tolist()):
            length = lengths[row]
            content[example] = kinds[row, :length]
            marked = np.zeros(length, dtype=bool)
            start, end = int(batch["start_positions"][row]), int(batch["end_positions"][row])
            if start > 0:
                marked[start : end + 1] = True
            gold[example] = marked
    return content, gold
