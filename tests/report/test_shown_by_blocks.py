"""Results in a notebook: explanation, comparison and inspection show themselves by the blocks of the pages."""

from __future__ import annotations

import re

import pytest

import regtune
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.attribution.explain import Explained, ExplainedModel
from regtune.analyses.inspection import Inspection, PartRecord
from regtune.errors import MissingExtraError
from regtune.interfaces import Block
from regtune.report import rendering
from report.measured import explanations


@pytest.fixture
def explained():
    one = explanations()
    models = []
    for model in one["models"]:
        made = {**model, "attributions": tuple(Attribution.from_json(each) for each in model["attributions"])}
        models.append(ExplainedModel(**{**made, "notes": tuple(made["notes"])}))
    return Explained(id="q1", question=one["question"], context=one["context"], models=tuple(models))


@pytest.fixture
def inspection(tmp_path):
    record = PartRecord(
        part="attention",
        subject={"name": "runs/n8", "label": "registers, N = 8"},
        data={"names": ["dev"], "ids": ["a", "b"]},
        settings={},
        measures={},
        titles={},
        content={},
        made={},
    )
    return Inspection(folder=tmp_path / "inspect", records=(record,))


def test_an_explanation_shows_its_overlay_and_has_a_short_repr(explained):
    html = explained._repr_html_()
    assert html.count("<mark") > 20
    assert 'class="ledger"' in html
    assert html.startswith('<div class="regtune">')
    text = repr(explained)
    assert text.startswith("<Explained q1: ")
    assert len(text) < 300
    assert "attnlrp" in text


def test_a_comparison_shows_scores_and_flips(sweep):
    cells = sorted(path.parent for path in sweep.rglob("run.json"))
    found = regtune.compare(cells[0], cells[-1], resamples=300)
    html = found._repr_html_()
    assert html.count("<table>") == 2 * (1 + 2)
    assert f"en.dev, {found.sets[0].results['f1'].examples} questions<" in html
    assert "<summary>Won on en.dev" in html
    assert repr(found) == f"<RunComparison of {found.first.folder} and {found.second.folder} on en.dev, xquad.en>"


def test_an_inspection_shows_its_parts(inspection, monkeypatch):
    table = Block(kind="table", title="Sinks", columns=("layer", "share"), rows=((0, 0.5),))
    monkeypatch.setattr(PartRecord, "blocks", lambda self: [table])
    assert "<figcaption>Sinks</figcaption>" in inspection["attention"]._repr_html_()
    assert "Attention" in inspection._repr_html_()
    assert repr(inspection) == f"<Inspection in {inspection.folder}: attention; 2 examples>"
    assert repr(inspection["attention"]) == "<PartRecord attention of runs/n8: 2 examples>"


def test_the_styles_touch_nothing_outside_and_ids_differ_between_cells(explained):
    style = rendering.scoped_style()
    assert style.startswith(".regtune {\n")
    assert style.count("{") == style.count("}")
    assert not re.search(r"(?m)^\s*(:root|body|html)\b", style)
    assert "--ground: #fdfdfb" in style
    first, second = (set(re.findall(r' id="([^"]+)"', explained._repr_html_())) for _ in range(2))
    assert first
    assert not first & second


def test_without_the_extra_a_notebook_shows_the_repr(explained, monkeypatch):
    def missing(*_):
        raise MissingExtraError("jinja2", "report", "The report")

    monkeypatch.setattr(rendering, "environment", missing)
    assert explained._repr_html_() is None
