"""Tables of docs/results/inside.md, made from the looks inside in `docs/results/inside` and the ablation's cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ablation_results as ablation
import numpy as np

from regtune.analyses.faithfulness.compare import FaithfulnessDifference, compare_faithfulness
from regtune.analyses.faithfulness.results import Faithfulness, Row
from regtune.analyses.inside_compare import ALPHA, MeasureRow, compare_inside
from regtune.analyses.inside_measures import MEASURES
from regtune.records import read_json
from regtune.stats.holm import holm

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "inside"
PAGE = "docs/results/inside.md"
SETS = {"tydiqa-en": "TyDi QA English dev", "squad": "SQuAD v1.1 dev"}
_RESAMPLES = 1_000


@cache
def records(name: str) -> tuple[dict[str, Any], ...]:
    """Every look inside of one set of questions, those before fine-tuning first."""
    found = [read_json(path) for path in sorted((FOLDER / name).glob("*/measures.json"))]
    return tuple(sorted(found, key=lambda each: (each["seed"] is not None, each["num_registers"], each["seed"] or 0)))


@cache
def rows(name: str) -> tuple[MeasureRow, ...]:
    """Every measure of the trained models against N = 0."""
    trained = [record for record in records(name) if record["seed"] is not None]
    return tuple(compare_inside(trained, resamples=_RESAMPLES))


def row(name: str, measure: str) -> MeasureRow:
    """One measure at the smallest N that was compared."""
    return min((each for each in rows(name) if each.name == measure), key=lambda each: each.num_registers)


def before(name: str, measure: str) -> float | None:
    """A measure's mean before fine-tuning."""
    for record in records(name):
        if record["seed"] is None and measure in record["measures"]:
            values = [value for value in record["measures"][measure] if value is not None]
            return float(np.mean(values)) if values else None
    return None


def titles() -> dict[str, str]:
    """What a measure is called in a table."""
    return {measure.name: f"{measure.title} <sub>{measure.meaning}</sub>" for measure in MEASURES}


def number(value: float | None) -> str:
    """Three significant digits."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def signed(value: float) -> str:
    """The same with its sign."""
    return f"{value:+.3g}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned to the left."""
    made = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join(made + ["| " + " | ".join(line) + " |" for line in lines])


def table(name: str) -> str:
    """Measures before fine-tuning, without registers, and with each N."""
    counts = sorted({each.num_registers for each in rows(name)})
    known = [title for title in titles() if any(each.name == title for each in rows(name))]
    named = {each.name for each in rows(name)}
    known += sorted(named - set(known))
    lines = []
    for measure in known:
        line = [titles().get(measure, f"`{measure}`"), number(before(name, measure))]
        for n in counts:
            found = next((each for each in rows(name) if each.name == measure and each.num_registers == n), None)
            line += (
                ["", "", "", ""]
                if found is None
                else [
                    number(found.baseline),
                    number(found.arm),
                    f"{signed(found.difference)} ({signed(found.interval[0])} … {signed(found.interval[1])})",
                    found.verdict,
                ]
            )
        lines.append(line)
    header = ["", "before fine-tuning"]
    for n in counts:
        header += ["N = 0", f"N = {n}", "difference (95 % interval)", "verdict"]
    return f"{_basis(name)}\n\n{markdown(header, lines)}"


def _basis(name: str) -> str:
    first = records(name)[0]
    parts = []
    for n in sorted({each.num_registers for each in rows(name)}):
        found = next(each for each in rows(name) if each.num_registers == n)
        parts.append(f"N = {n}: {found.seeds} seeds")
    return (
        f"{SETS[name]}, {len(first['questions'])} questions spread evenly over the set; {'; '.join(parts)}. "
        f"Verdicts are corrected (Holm) over the {len(rows(name))} comparisons of this table; intervals are not."
    )


def claims() -> str:
    """The paper's claims and open questions, each with a measurement; N is the smallest that was compared."""
    name = "tydiqa-en"
    lines = [
        ["5 to 10 registers raise F1 and exact match", "[the ablation](ablation.md)", "", "", ablation.sentence()],
        *(_claim(claim, name, measure) for claim, measure in _CLAIMS),
        *_faithful(name),
        *_roles(name),
    ]
    return markdown(("claim or question", "measured", "N = 0 → N", "difference (95 % interval)", "verdict"), lines)


_CLAIMS: tuple[tuple[str, str], ...] = (
    ("registers clean up attention: less of it rests on [CLS] …", "attention.mass_text.cls"),
    ("… and on [SEP] …", "attention.mass_text.sep"),
    ("… fewer heads have a sink …", "attention.sink_rate_text"),
    ("… and attention is less spread", "attention.entropy_text"),
    ("registers take over high-norm tokens", "artefacts.norm_input.norm_max_over_median"),
    ("… massive activations", "artefacts.norm_input.max_over_median"),
    ("… the norm of [CLS]", "artefacts.feed_forward.cls_relative"),
    ("… outlier dimensions", "artefacts.norm_input.outlier_entries"),
    ("… heavy tails (kurtosis)", "artefacts.norm_input.kurtosis"),
    ("8 bits cost less", "w8a8.f1_loss"),
    ("relevance is more focused (AttnLRP, entropy)", "explanation.attnlrp.entropy"),
    ("relevance is more focused (Chefer 2021, the paper's method)", "explanation.chefer.entropy"),
    ("more relevance on the gold answer (AttnLRP)", "explanation.attnlrp.on_gold"),
    ("more relevance on the gold answer (Chefer 2021)", "explanation.chefer.on_gold"),
)


def _claim(claim: str, name: str, measure: str) -> list[str]:
    found = row(name, measure)
    return [
        claim,
        f"`{measure}`",
        f"{number(found.baseline)} → {number(found.arm)} (N = {found.num_registers})",
        f"{signed(found.difference)} ({signed(found.interval[0])} … {signed(found.interval[1])})",
        found.verdict,
    ]


def faithfulness(name: str) -> list[FaithfulnessDifference]:
    """Each method and metric with the smallest N against N = 0, seeds paired; empty if it wasn't measured."""
    by_place: dict[tuple[int, int], Faithfulness] = {}
    for path in (FOLDER / name).glob("*/faithfulness.json"):
        record = read_json(path.parent / "measures.json")
        by_place[record["num_registers"], record["seed"]] = Faithfulness.from_json(read_json(path))
    counts = sorted({n for n, _ in by_place} - {0})
    seeds = sorted({s for n, s in by_place if n == 0} & {s for n, s in by_place if counts and n == counts[0]})
    if not seeds:
        return []
    return compare_faithfulness(
        [by_place[0, s] for s in seeds], [by_place[counts[0], s] for s in seeds], resamples=_RESAMPLES
    )


def table_faithfulness() -> str:
    """Normalised faithfulness, and agreement with the gold answer, of every method."""
    found = [each for each in faithfulness("tydiqa-en") if each.normalised or each.metric not in _NORMALISED]
    adjusted = holm([each.p_value for each in found])
    lines = [
        [
            f"{each.method}: {each.metric}{' (normalised)' if each.normalised else ''}",
            number(each.first),
            number(each.second),
            f"{signed(each.difference)} ({signed(each.low)} … {signed(each.high)})",
            _verdict(each, float(p)),
            str(each.n),
        ]
        for each, p in zip(found, adjusted, strict=True)
    ]
    return markdown(("", "N = 0", "with registers", "difference (95 % interval)", "verdict", "questions"), lines)


_NORMALISED = ("comprehensiveness", "sufficiency", "deletion", "deletion-lerf")


def _verdict(difference: FaithfulnessDifference, p_value: float) -> str:
    if p_value > ALPHA:
        return "not shown"
    return "higher" if difference.difference > 0 else "lower"


def _faithful(name: str) -> list[list[str]]:
    found = [each for each in faithfulness(name) if each.normalised and each.metric == "comprehensiveness"]
    adjusted = holm([each.p_value for each in found]) if found else []
    return [
        [
            f"explanations are better, not only cleaner ({each.method})",
            "normalised comprehensiveness",
            f"{number(each.first)} → {number(each.second)}",
            f"{signed(each.difference)} ({signed(each.low)} … {signed(each.high)})",
            _verdict(each, float(p)),
        ]
        for each, p in zip(found, adjusted, strict=True)
        if each.method in ("attnlrp", "chefer")
    ]


def _roles(name: str) -> list[list[str]]:
    return [
        ["do all registers play an equal role?", f"knock-outs, {path.parent.name}", "", "", read_json(path)["verdict"]]
        for path in sorted((FOLDER / name).glob("*/audit.json"))
    ]


def table_registers() -> str:
    """Every audited register: what hiding it does, how much it varies and how much attention it draws."""
    lines = []
    for path in sorted((FOLDER / "tydiqa-en").glob("*/audit.json")):
        audit = read_json(path)
        hidden = {each["register"]: each for each in audit["knock_outs"] if each["how"] == "mask"}
        fixed = {each["register"]: each for each in audit["knock_outs"] if each["how"] == "mean"}
        for index in [*range(audit["num_registers"]), None]:
            alone = index is not None
            lines.append(
                [
                    f"{path.parent.name}: {index if alone else 'all'}",
                    _effect(hidden[index]["loss"], 1),
                    _effect(hidden[index]["f1"], 100),
                    _effect(fixed[index]["f1"], 100),
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
    lines, header = [], [""]
    found = {
        (name, path.parent.name): Faithfulness.from_json(read_json(path))
        for name in ("sst2", "movies")
        for path in sorted((FOLDER / name).glob("*/faithfulness.json"))
    }
    labels = sorted({label for _, label in found})
    header += labels
    for name in ("sst2", "movies"):
        mine = {label: one.rows(resamples=_RESAMPLES) for (of, label), one in found.items() if of == name}
        for place in dict.fromkeys((one.method, one.metric) for rows in mine.values() for one in rows):
            line = [f"{name}: {place[0]}, {place[1]}"]
            for label in labels:
                one = next((each for each in mine.get(label, ()) if (each.method, each.metric) == place), None)
                line.append("" if one is None else _interval(one))
            lines.append(line)
    return markdown(header, lines)


def _interval(one: Row) -> str:
    value = one.normalised or one.raw
    return f"{number(value.value)} ({number(value.low)} … {number(value.high)})"
