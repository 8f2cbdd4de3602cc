"""A diagnosis as a person reads it: one table of verdicts, then where special tokens stand, probes and differences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from regtune.analyses.artefacts.diagnose import Diagnosis, ModelDiagnosis
from regtune.analyses.artefacts.diagnose_compare import MeasureDifference
from regtune.analyses.artefacts.diagnose_verdicts import DEFINITIONS, Verdict
from regtune.analyses.artefacts.probes import Probe
from regtune.sweeps.evaluate import table

_SITES = {"norm_input": "norm input", "feed_forward": "feed-forward", "block": "block output", None: ""}
_WIDTH = 120


def diagnosis_text(found: Diagnosis, *, definitions: bool = True) -> str:
    """Everything that was found, as plain text.

    Args:
        found: the diagnosis.
        definitions: say at the end what each verdict means, and whose threshold it is.
    """
    everyone = [*found.models, *([found.other] if found.other is not None else [])]
    parts = [f"Read: {found.texts} texts of {', '.join(found.data)}. Layers count from 0."]
    parts += [_one(everyone[0])] if len(everyone) == 1 else [_side_by_side(everyone)]
    parts += [_special_tokens(model) for model in everyone]
    parts += [text for model in everyone if (text := _probes(model))]
    if found.other is not None:
        for model, differences in zip(found.models, found.differences, strict=True):
            parts.append(_differences(model.name, found.other.name, differences))
    if definitions:
        asked = [verdict.artefact for verdict in everyone[0].verdicts]
        parts.append("\n".join(_definitions(asked)))
    return "\n\n".join(parts)


def _one(model: ModelDiagnosis) -> str:
    rows = [[v.artefact, v.verdict, _where(v), v.strength] for v in model.verdicts]
    return f"{model.name}: {model.summary}\n\n{_left(['artefact', 'verdict', 'strongest in', 'how strong'], rows)}"


def _side_by_side(models: Sequence[ModelDiagnosis]) -> str:
    """One column a model, and what is behind each verdict below."""
    numbers = [f"[{number}] {model.name}: {model.summary}" for number, model in enumerate(models, 1)]
    names = list(dict.fromkeys(verdict.artefact for model in models for verdict in model.verdicts))
    by_name = [{verdict.artefact: verdict for verdict in model.verdicts} for model in models]
    rows = [[name, *(_short(verdicts.get(name)) for verdicts in by_name)] for name in names]
    head = ["artefact", *(f"[{number}]" for number in range(1, len(models) + 1))]
    details = [
        f"[{number}] {verdict.artefact}: {verdict.strength}{', ' + _where(verdict) if _where(verdict) else ''}"
        for number, model in enumerate(models, 1)
        for verdict in model.verdicts
        if verdict.verdict != "absent"
    ]
    return "\n".join([*numbers, "", _left(head, rows), "", *details])


def _short(verdict: Verdict | None) -> str:
    if verdict is None or verdict.value is None:
        return "not measured"
    layer = "" if verdict.layer is None else f", layer {verdict.layer}"
    return f"{verdict.verdict} ({verdict.value:.3g}{layer})"


def _where(verdict: Verdict) -> str:
    if verdict.layer is None:
        return ""
    return ", ".join(part for part in (f"layer {verdict.layer}", _SITES[verdict.site]) if part)


def _special_tokens(model: ModelDiagnosis) -> str:
    """Norms of special tokens beside content, at the layer where they differ most from it."""
    artefacts = model.artefacts
    rows = []
    for site, places in artefacts.sites.items():
        median, layer = max((place.max / max(place.median, 1e-30), n) for n, place in enumerate(places))
        place = places[layer]
        rows.append([_SITES[site], "content", str(layer), f"{place.median:.3g}", f"{place.max:.3g}", f"{median:.1f}"])
        for name, of_class in artefacts.special.items():
            relative, layer = max((each.relative, n) for n, each in enumerate(of_class[site]))
            special = of_class[site][layer]
            rows.append(
                ["", name, str(layer), f"{special.median:.3g}", f"{special.max:.3g}", f"{relative:.1f}"],
            )
    head = ["norms at", "tokens", "layer", "median", "max", "× content's median"]
    title = f"{model.name}: where large norms are (each row at its strongest layer; content: its largest norm)"
    return f"{title}\n{table(head, rows)}"


def _probes(model: ModelDiagnosis) -> str:
    if not model.probes:
        return ""
    rows = [
        [probe.information, probe.tokens, str(probe.count), str(probe.classes), probe.held_out, *_accuracy(probe)]
        for probe in model.probes
    ]
    head = ["knows its", "tokens", "number", "classes", "held out", "accuracy", "interval", "chance"]
    reasons = list(dict.fromkeys(f"- {p.information}: {p.reason}" for p in model.probes if p.reason))
    return "\n".join([f"{model.name}: what {model.probed} know, beside ordinary ones", table(head, rows), *reasons])


def _accuracy(probe: Probe) -> list[str]:
    if probe.accuracy is None or probe.low is None or probe.high is None or probe.chance is None:
        return ["too few", "", ""]
    return [f"{probe.accuracy:.1%}", f"{probe.low:.1%} to {probe.high:.1%}", f"{probe.chance:.1%}"]


def _differences(model: str, other: str, differences: Sequence[MeasureDifference]) -> str:
    rows = [
        [
            each.name + (f" ({each.over} over layers)" if each.over else ""),
            f"{each.model:.3g}",
            f"{each.other:.3g}",
            f"{each.difference:+.3g}",
            f"[{each.low:+.3g}, {each.high:+.3g}]",
            "differs" if each.clear else "",
        ]
        for each in differences
    ]
    title = (
        f"{other} minus {model}: means over texts, 95 % intervals over texts (not over training seeds, and not "
        f"corrected for {len(rows)} comparisons)"
    )
    return f"{title}\n{table(['measure', 'model', 'other', 'difference', 'interval', ''], rows)}"


def _definitions(artefacts: Sequence[str]) -> Iterator[str]:
    yield "What the verdicts mean:"
    for name in DEFINITIONS:
        if name in artefacts:
            yield textwrap.fill(f"- {name}: {DEFINITIONS[name]}", _WIDTH, subsequent_indent="  ")


def _left(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of words: all columns to the left."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )
