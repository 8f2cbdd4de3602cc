"""Tables of docs/results/inside.md, made from the records of `regtune inspect` in `docs/results/inside`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ablation_results as ablation
import numpy as np

from regtune.analyses.inspection import PartRecord, compare_records, direction, read_records
from regtune.analyses.parts import estimate
from regtune.stats.comparison import Comparison
from regtune.tables import Table, number

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "inside"
PAGE = "docs/results/inside.md"
SETS = {"tydiqa-en": "TyDi QA English dev", "squad": "SQuAD v1.1 dev"}
Place = tuple[int, int | None]
"""Number of registers and seed; seed None is the model before fine-tuning."""


@cache
def records(name: str) -> dict[Place, tuple[PartRecord, ...]]:
    """The records of every model that was inspected on one set of questions, those before fine-tuning first."""
    found: dict[Place, tuple[PartRecord, ...]] = {}
    for folder in sorted((FOLDER / name).iterdir()):
        parts, refused = read_records(folder)
        assert not refused, refused
        found[parts[0].subject["num_registers"], parts[0].subject["seed"]] = tuple(parts)
    return dict(sorted(found.items(), key=lambda each: (each[0][1] is not None, each[0][0], each[0][1] or 0)))


@cache
def compared(name: str, faithful: bool = False) -> dict[int, list[Comparison]]:
    """Every measure of the trained models with N registers against N = 0, seeds paired; one entry for each N.

    Args:
        name: of the set of questions.
        faithful: the measures of faithfulness, or all others; each is a table with its own correction.
    """
    places = [place for place in records(name) if place[1] is not None]
    found = {}
    for n in sorted({n for n, _ in places} - {0}):
        seeds = [s for m, s in places if m == n and (0, s) in places]
        if len(seeds) >= 2:
            arms = [[_parts(name, (m, s), faithful) for s in seeds] for m in (0, n)]
            if all(part for arm in arms for part in arm):
                found[n] = compare_records(*arms)
    return found


def _parts(name: str, place: Place, faithful: bool) -> list[PartRecord]:
    return [record for record in records(name)[place] if (record.part == "faithfulness") == faithful]


def row(name: str, measure: str) -> tuple[int, Comparison]:
    """One measure at the smallest N that was compared."""
    n, rows = min(compared(name).items())
    return n, next(each for each in rows if each.metric.name == measure)


def before(name: str, measure: str) -> float | None:
    """A measure's mean before fine-tuning."""
    means = [
        mean
        for place, parts in records(name).items()
        if place[1] is None
        for record in parts
        if (mean := record.mean(measure)) is not None
    ]
    return means[0] if means else None


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for a page."""
    return Table(columns=tuple(columns), rows=tuple(map(tuple, rows))).markdown().strip()


def signed(value: float) -> str:
    """The same with its sign."""
    return f"{value:+.3g}"


def table(name: str) -> str:
    """Measures before fine-tuning, without registers, and with each N."""
    found = compared(name)
    titles = {each.metric.name: each.metric.title for rows in found.values() for each in rows}
    lines = []
    for measure, title in titles.items():
        line: list[Any] = [title, before(name, measure)]
        for rows in found.values():
            mine = next((each for each in rows if each.metric.name == measure), None)
            line += [None] * 4 if mine is None else [mine.baseline_mean, *_changed(mine)]
        lines.append(line)
    header = ["", "before fine-tuning"]
    for n in found:
        header += ["N = 0", f"N = {n}", "difference (95 % interval)", "verdict"]
    return f"{_basis(name)}\n\n{markdown(header, lines)}"


def _changed(found: Comparison) -> list[str]:
    low, high = found.interval
    return [number(found.arm_mean), f"{signed(found.difference)} ({signed(low)} … {signed(high)})", direction(found)]


def _basis(name: str) -> str:
    found = compared(name)
    count = max(len(record.data["ids"]) for record in next(iter(records(name).values())))
    parts = [f"N = {n}: {rows[0].seeds} seeds" for n, rows in found.items()]
    return (
        f"{SETS[name]}, {count} questions spread evenly over the set; {'; '.join(parts)}. "
        f"Verdicts are corrected (Holm) over the {sum(map(len, found.values()))} comparisons of this table; intervals "
        "are not."
    )


def claims() -> str:
    """The paper's claims and open questions, each with a measurement; N is the smallest that was compared."""
    name = "tydiqa-en"
    lines = [
        ["5 to 10 registers raise F1 and exact match", "the ablation", "", "", ablation.sentence()],
        *(_claim(claim, name, measure) for claim, measure in _CLAIMS),
        *_faithful(name),
        *_roles(name),
    ]
    return markdown(("claim or question", "measured", "N = 0 → N", "difference (95 % interval)", "verdict"), lines)


_CLAIMS: tuple[tuple[str, str], ...] = (
    ("registers clean up attention: less of it is on [CLS] …", "attention.mass_text.cls"),
    ("… and on [SEP] …", "attention.mass_text.sep"),
    ("… fewer heads have a sink …", "attention.sink_rate_text"),
    ("… and attention is less spread", "attention.entropy_text"),
    ("registers take over high-norm tokens", "artefacts.norm_input.norm_max_over_median"),
    ("… massive activations, by Sun's definition (any token)", "artefacts.feed_forward.massive_ratio"),
    ("… large activations of content tokens", "artefacts.norm_input.max_over_median"),
    ("… the norm of [CLS]", "artefacts.feed_forward.cls_relative"),
    ("… outlier dimensions", "artefacts.norm_input.outlier_entries"),
    ("… heavy tails (kurtosis)", "artefacts.norm_input.kurtosis"),
    ("8 bits cost less (linear layers' inputs)", "int8.linear.f1_loss"),
    ("… by the published scheme (every site)", "int8.bondarenko.f1_loss"),
    ("relevance is more focused (AttnLRP, entropy)", "explanation.attnlrp.entropy"),
    ("relevance is more focused (Chefer 2021, the paper's method)", "explanation.chefer.entropy"),
    ("more relevance on the gold answer (AttnLRP)", "explanation.attnlrp.on_gold"),
    ("more relevance on the gold answer (Chefer 2021)", "explanation.chefer.on_gold"),
)


def _claim(claim: str, name: str, measure: str) -> list[str]:
    n, found = row(name, measure)
    shown, difference, verdict = _changed(found)
    return [claim, measure, f"{number(found.baseline_mean)} → {shown} (N = {n})", difference, verdict]


def table_faithfulness() -> str:
    """Normalised faithfulness, and agreement with the gold answer, of every method."""
    found = compared("tydiqa-en", faithful=True)
    if not found:
        return "Not measured."
    lines = [
        [each.metric.title, each.baseline_mean, *_changed(each), each.examples]
        for each in min(found.items())[1]
        if each.metric.name.endswith(".normalised") or each.metric.name.rpartition(".")[2] not in _NORMALISED
    ]
    return markdown(("", "N = 0", "with registers", "difference (95 % interval)", "verdict", "questions"), lines)


_NORMALISED = ("comprehensiveness", "sufficiency", "deletion", "deletion-lerf")


def _faithful(name: str) -> list[list[str]]:
    found = compared(name, faithful=True)
    lines = []
    for each in min(found.items())[1] if found else ():
        method = each.metric.name.split(".")[1]
        if each.metric.name.endswith(".comprehensiveness.normalised") and method in ("attnlrp", "chefer"):
            shown, difference, verdict = _changed(each)
            claim = f"explanations are better, not only cleaner ({method})"
            lines.append(
                [claim, "normalised comprehensiveness", f"{number(each.baseline_mean)} → {shown}", difference, verdict]
            )
    return lines


def _registers(name: str) -> list[tuple[str, PartRecord]]:
    return [
        (f"n{n}-seed{seed}", record)
        for (n, seed), parts in records(name).items()
        for record in parts
        if record.part == "registers"
    ]


def _roles(name: str) -> list[list[str]]:
    return [
        ["do all registers play an equal role?", f"knock-outs, {label}", "", "", record.content["verdict"]]
        for label, record in _registers(name)
    ]


def table_registers() -> str:
    """Every audited register: what hiding it does, how much it varies and how much attention it draws."""
    lines = []
    for label, record in _registers("tydiqa-en"):
        audit = record.content
        hidden = {each["register"]: each for each in audit["knock_outs"] if each["how"] == "mask"}
        fixed = {each["register"]: each for each in audit["knock_outs"] if each["how"] == "mean"}
        for index in [*range(audit["num_registers"]), None]:
            alone = index is not None
            lines.append(
                [
                    f"{label}: {index if alone else 'all'}",
                    _effect(hidden[index]["loss"], 1),
                    _effect(hidden[index]["score"], 100),
                    _effect(fixed[index]["score"], 100),
                    f"{100 * max(layer[index] for layer in audit['variation']):.1f} %" if alone else "",
                    f"{100 * np.mean([layer[index] for layer in audit['attention_in']]):.1f} %" if alone else "",
                ]
            )
    header = (
        "register",
        "hidden: loss (nats)",
        "hidden: F1 (points)",
        "held at its mean: F1 (points)",
        "varies with the text",
        "attention it draws",
    )
    return markdown(header, lines)


def _effect(found: dict[str, float], scale: float) -> str:
    return f"{scale * found['difference']:+.2f} ({scale * found['low']:+.2f} … {scale * found['high']:+.2f})"


def table_sentiment() -> str:
    """Faithfulness on single sentences and agreement with people's marks, of one sentiment model for each N."""
    found: dict[str, dict[str, str]] = {}
    for (n, seed), parts in records("sst2").items():
        for record in parts:
            reviews = record.content["rationales"]["rows"]
            for name, rows in (("SST-2", record.content["rows"]), ("reviews", reviews)):
                for each in rows:
                    shown = estimate(each["normalised"] or each["raw"])
                    if shown is not None:
                        value = shown.value if abs(shown.value) > 1e-9 else 0.0  # random orders are 0 by definition
                        text = f"{number(value)} ({number(shown.low or 0)} … {number(shown.high or 0)})"
                        line = found.setdefault(f"{name}: {each['method']}, {each['metric']}", {})
                        line[f"N = {n}, seed {seed}"] = text
    columns = sorted({label for line in found.values() for label in line})
    lines = [[title, *(line.get(label, "") for label in columns)] for title, line in found.items()]
    sentences, reviews = sentiment_counts()
    head = f"SST-2: {sentences} sentences, of which those with a limit are normalised; reviews: {reviews} documents."
    return f"{head}\n\n{markdown(('', *columns), lines)}"


def sentiment_counts() -> tuple[int, int]:
    """Sentences and documents that the sentiment models were asked about."""
    ((record, *_), *_) = records("sst2").values()
    return record.content["facts"]["texts"], record.content["rationales"]["documents"]
