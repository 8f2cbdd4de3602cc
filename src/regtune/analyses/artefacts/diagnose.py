"""`diagnose`: which of the known artefacts a model has, how strong, and where; and what differs in another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regtune.analyses.artefacts.artefacts import Artefacts, artefact_statistics
from regtune.analyses.artefacts.columns import column_deviation
from regtune.analyses.artefacts.diagnose_compare import MeasureDifference, compare_diagnoses
from regtune.analyses.artefacts.diagnose_inputs import Material, Patient, open_patient, read_material, with_checkpoints
from regtune.analyses.artefacts.diagnose_quantise import QuantisationLoss, quantisation_loss
from regtune.analyses.artefacts.diagnose_verdicts import (
    Verdict,
    artefact_verdicts,
    attention_verdicts,
    not_measured,
    over_smoothing,
    quantisation_verdict,
)
from regtune.analyses.artefacts.places import ArtefactSettings
from regtune.analyses.artefacts.probes import Probe, probe_tokens, token_states
from regtune.analyses.attention.attention import AttentionStatistics, attention_statistics
from regtune.analyses.batches import Batch
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.records import file_name, now, versions, write_json

DIAGNOSIS_FILE, ARTEFACTS_FILE = "diagnosis.json", "artefacts.json"


@dataclass(frozen=True, kw_only=True)
class DiagnosisSettings:
    """What a diagnosis looks at, and how hard."""

    limit: int | None = 100
    """Questions or paragraphs, spread over the data; None takes all."""
    max_length: int = 256
    """Longest text in tokens."""
    batch_size: int = 16
    """Texts that run together; it changes no number but by rounding."""
    probes: bool = True
    """Probe outlier tokens for what they know (needs scikit-learn)."""
    quantise: bool = True
    """Measure what rounding to 8 bits costs."""
    resamples: int = 2000
    """Bootstrap draws."""
    seed: int = 0
    """Of samples and draws."""
    thresholds: ArtefactSettings = dataclasses.field(default_factory=ArtefactSettings)

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelDiagnosis:
    """One model's findings."""

    name: str
    summary: str
    verdicts: tuple[Verdict, ...]
    artefacts: Artefacts
    attention: AttentionStatistics | None
    """None where the family's attention can't be read."""
    columns: np.ndarray | None
    """Column deviation of attention, `[texts, layers]`."""
    columns_examples: tuple[int, ...]
    quantisation: QuantisationLoss | None
    probes: tuple[Probe, ...]
    probed: str
    """Which tokens counted as outliers in the probes, and where."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; the artefacts' histograms are in a file of their own."""
        return {
            "name": self.name,
            "summary": self.summary,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "column_deviation": None if self.columns is None else self.columns.mean(0).tolist(),
            "quantisation": None if self.quantisation is None else self.quantisation.to_json(),
            "probed": self.probed,
            "probes": [probe.to_json() for probe in self.probes],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """What `diagnose` found and wrote."""

    models: tuple[ModelDiagnosis, ...]
    other: ModelDiagnosis | None
    """The model that the others were compared with."""
    differences: tuple[tuple[MeasureDifference, ...], ...]
    """For each of `models` its comparison with `other`; empty without one."""
    data: tuple[str, ...]
    texts: int
    settings: DiagnosisSettings
    folder: Path
    """Holds diagnosis.json, and artefacts.json of the first model; of others in folders of their own."""

    def to_json(self) -> dict[str, Any]:
        """The contents of diagnosis.json."""
        return {
            "schema_version": 1,
            "kind": "diagnosis",
            "data": list(self.data),
            "texts": self.texts,
            "settings": dataclasses.asdict(self.settings),
            "models": [model.to_json() for model in self.models],
            "other": None if self.other is None else self.other.to_json(),
            "differences": [[each.to_json() for each in of_model] for of_model in self.differences],
            "versions": versions(),
            "finished": now(),
        }


def diagnose(
    models: str | Path | Sequence[str | Path],
    *,
    data: Sequence[str] = (),
    compare: str | Path | None = None,
    checkpoints: bool = False,
    settings: DiagnosisSettings | None = None,
    output_dir: Path | None = None,
) -> Diagnosis:
    """Looks for the known artefacts in a model, or in several side by side, and writes what it found.

    Args:
        models: run directories, checkpoints, model folders, hub names or `minilm`; with or without registers and head.
        data: SQuAD-format files or names of sets, or plain-text files (`.txt`, a paragraph a line); the embedded
            questions if none is given.
        compare: another model; its differences from each of `models` get intervals over texts.
        checkpoints: take each model for a run and look at its checkpoints in the order of training, too.
        settings: how much is looked at.
        output_dir: `inside` in the run directory, or runs/diagnosis/MODEL for other models.

    Raises:
        CheckpointError: a model that can't be loaded, or a run without checkpoints.
        ConfigError, DataError: data that doesn't exist, can't be read or has no words in it.
        UnsupportedModelError: a model whose blocks can't be found.
    """
    settings = settings or DiagnosisSettings()
    given = [models] if isinstance(models, (str, Path)) else list(models)
    names = [step for name in given for step in with_checkpoints(name)] if checkpoints else list(map(str, given))
    if not names:
        raise ConfigError("No model is named; give a run directory, a folder, a hub name or minilm.")
    material = read_material(data, limit=settings.limit)
    found: list[ModelDiagnosis] = []
    first_run: Path | None = None
    for name in [*names, *([str(compare)] if compare is not None else [])]:
        patient = open_patient(name)
        first_run = patient.run_dir if not found else first_run
        found.append(examine_model(patient, material, settings))
        del patient
    other = found.pop() if compare is not None else None
    folder = output_dir or (first_run / "inside" if first_run else Path("runs/diagnosis") / file_name(str(given[0])))
    diagnosis = Diagnosis(
        models=tuple(found),
        other=other,
        differences=tuple(
            tuple(compare_diagnoses(model, other, resamples=settings.resamples, seed=settings.seed)) for model in found
        )
        if other is not None
        else (),
        data=material.names,
        texts=len(found[0].artefacts.examples),
        settings=settings,
        folder=folder,
    )
    _write(diagnosis)
    return diagnosis


def _write(diagnosis: Diagnosis) -> None:
    write_json(diagnosis.folder / DIAGNOSIS_FILE, diagnosis.to_json())
    others = [*diagnosis.models[1:], *([diagnosis.other] if diagnosis.other is not None else [])]
    write_json(diagnosis.folder / ARTEFACTS_FILE, diagnosis.models[0].artefacts.to_json())
    for number, model in enumerate(others, 2):
        write_json(diagnosis.folder / f"{number}-{file_name(model.name)}" / ARTEFACTS_FILE, model.artefacts.to_json())


def examine_model(patient: Patient, material: Material, settings: DiagnosisSettings) -> ModelDiagnosis:
    """Everything about one model; it is left as it was. Raises as `diagnose` does."""
    batches = material.batches(patient, max_length=settings.max_length, batch_size=settings.batch_size)
    artefacts = artefact_statistics(patient.model, batches, settings.thresholds)
    verdicts = artefact_verdicts(artefacts)
    attention: AttentionStatistics | None = None
    columns: np.ndarray | None = None
    columns_examples: tuple[int, ...] = ()
    try:
        attention = attention_statistics(patient.model, batches)
        columns, columns_examples = column_deviation(patient.model, batches)
        verdicts += attention_verdicts(attention)
    except UnsupportedModelError as error:
        verdicts += not_measured(["attention sinks", "do-nothing heads"], str(error))
    verdicts.append(over_smoothing(artefacts, None if columns is None else columns.mean(0)))
    loss = None
    if settings.quantise:
        loss = quantisation_loss(
            patient,
            material,
            batches,
            max_length=settings.max_length,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        verdicts.append(quantisation_verdict(loss))
    probes, probed = _probe(patient, material, batches, artefacts, settings) if settings.probes else ([], "")
    return ModelDiagnosis(
        name=patient.name,
        summary=_summary(patient, artefacts),
        verdicts=tuple(verdicts),
        artefacts=artefacts,
        attention=attention,
        columns=columns,
        columns_examples=columns_examples,
        quantisation=loss,
        probes=tuple(probes),
        probed=probed,
    )


def _probe(
    patient: Patient, material: Material, batches: list[Batch], artefacts: Artefacts, settings: DiagnosisSettings
) -> tuple[list[Probe], str]:
    """Probes at the place whose largest norm is furthest from its median; outliers are those above 5 × the median.

    Where no token is, those above median + k·MAD are taken, which any model has, so that the numbers can be compared.
    """
    site, layer = max(
        ((site, layer) for site, places in artefacts.sites.items() for layer in range(len(places))),
        key=lambda each: artefacts.sites[each[0]][each[1]].max / max(artefacts.sites[each[0]][each[1]].median, 1e-30),
    )
    place = artefacts.sites[site][layer]
    limit, words = 5 * place.median, "5 × the median"
    if not place.tokens_beyond["5x_median"]:
        limit = place.median + settings.thresholds.mad_factor * place.mad
        words = f"median + {settings.thresholds.mad_factor:g} × MAD"
    tokens = token_states(patient.model, batches, layer=layer, site=site, norm_above=limit, seed=settings.seed)
    found = probe_tokens(
        tokens,
        labels=material.labels(),
        texts=material.text_numbers(),
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return found, f"{int(tokens.outlier.sum())} tokens with a norm above {words} ({limit:.3g}), {site} of layer {layer}"


def _summary(patient: Patient, found: Artefacts) -> str:
    config: Any = patient.model.config
    registers = f"{found.num_registers} registers" if found.num_registers else "no registers"
    return f"{type(patient.model).__name__} ({config.model_type}), {found.layers} layers × {found.hidden}, {registers}"
