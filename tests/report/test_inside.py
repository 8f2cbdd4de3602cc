"""Measurements of a model's inside join the report of a run, of a sweep, or stand alone; what is broken is named."""

import csv
import io
import re

import numpy as np
import pytest

from regtune.errors import DataError
from regtune.records import read_json, write_json
from regtune.report.collect import collect
from regtune.report.inside.blocks import estimate
from regtune.report.inside.heat_maps import Axis, heat_map, matrix, numbered
from regtune.report.page import build_report, write_report
from regtune.report.scores import Settings
from report.measured import artefacts, attention, audit, explanations, write_inside
from report.synthetic import config_of, write_cell, write_sweep
from report.test_page import Structure

FAST = Settings(resamples=100)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The page of a folder that holds measurements and no run."""
    folder = write_inside(tmp_path_factory.mktemp("alone") / "n4")
    return write_report(folder)


@pytest.fixture(scope="module")
def text(alone):
    return alone.read_text(encoding="utf-8")


def figure(alone, name):
    return (alone.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def cells(drawing):
    return [float(one) for one in re.findall(r">\s*(?:<!--.*?-->\s*)?<text[^>]*>([\d.]+)</text>", drawing)]


def test_measurements_alone_make_a_page(text):
    assert "<h1>Inside one model</h1>" in text
    for title in ("Attention by layer and head", "What each register does", "Norms by layer", "explanations faithful"):
        assert title in text
    assert "Not all registers are equal: register 3 is missed most." in text
    assert "How it was done" not in text
    found = Structure(text)
    assert (found.wrong, found.open) == ([], [])
    assert sorted(found.ids) == sorted(set(found.ids))
    assert "script" not in found.tags


def test_every_reference_inside_a_figure_has_its_target(text):
    wanted = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    assert wanted <= set(Structure(text).ids)


def test_figures_are_drawings_with_words_in_them(alone, text):
    assert "<image" not in text
    assert ">head</text>" in text
    assert not re.search(r"#010203|#040506", text)
    drawing = figure(alone, "inside-1-norms-block")
    assert "median" in drawing
    assert "currentColor" not in drawing


def test_a_heat_map_has_every_head_and_layer_with_its_number(alone):
    content = attention(4)
    shown = cells(figure(alone, "inside-1-attention-cls"))
    wanted = [round(100 * cell) for row in content["mass"]["cls"] for cell in row]
    assert sorted(shown) == sorted([*wanted, *range(12), *range(6)])


def test_registers_are_set_apart_on_the_same_scale(alone, text):
    apart = text.index('class="block apart"')
    assert text.index("Attention to [CLS]") < apart < text.index("Attention to all 4 registers")
    most = max(cell for rows in attention(4)["mass"].values() for row in rows for cell in row)
    assert f"darkest: {100 * most:.0f} %" in text


def test_the_usage_matrix_is_the_mean_over_heads(alone):
    share = np.asarray(attention(4)["register_share"]).mean(axis=2)
    drawing = figure(alone, "inside-1-usage")
    assert f"{100 * share.max():.0f}" in [f"{one:.0f}" for one in cells(drawing)]
    assert "4 rows (register) and 6 columns (layer)" in drawing


def test_usage_comes_from_the_audit_where_attention_was_not_measured(tmp_path):
    write_inside(tmp_path, attention=None)
    page = write_report(tmp_path, output=tmp_path / "out")
    assert "Register usage" in page.read_text(encoding="utf-8")
    assert "Attention by layer and head" not in page.read_text(encoding="utf-8")


def test_knock_outs_of_single_registers_are_drawn_and_all_are_in_the_table(alone):
    rows = list(csv.reader(io.StringIO((alone.parent / "tables/inside-1-registers.csv").read_text())))
    assert rows[0] == ["register", "hidden", "its mean state", "zeros", "mean relevance, logits"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "3", "all"]
    assert rows[5][1] == "'+0.3000 (+0.2970 to +0.3030)"
    drawing = figure(alone, "inside-1-knock-outs")
    assert "hidden, register 3: +0.008" in drawing
    assert "register all" not in drawing


def test_faithfulness_is_drawn_between_random_and_best(alone):
    drawing = figure(alone, "inside-1-faithful-1")
    assert "0: random ranking, 1: best found" in drawing
    assert "attnlrp: 0.62; chefer: 0.4; attention: 0.21; random: 0" in drawing


def test_norms_of_each_layer_are_listed(alone):
    rows = list(csv.reader(io.StringIO((alone.parent / "tables/inside-1-artefacts.csv").read_text())))
    assert len(rows) == 1 + 18
    assert {len(row) for row in rows} == {len(rows[0])}


def test_the_overlay_stands_in_the_section(text):
    assert "One scale a method" in text
    assert '<mark class="p' in text


def test_a_model_without_registers_has_no_register_block(tmp_path):
    write_inside(tmp_path, num_registers=0)
    page = write_report(tmp_path, output=tmp_path / "out").read_text(encoding="utf-8")
    assert "Attention by layer and head" in page
    assert 'class="block apart"' not in page
    assert "Register usage" not in page


def test_one_run_gets_its_measurements_behind_its_results(tmp_path):
    run = write_cell(tmp_path, config_of("registers", 4, 0), questions=40)
    write_inside(run)
    page = write_report(run, output=tmp_path / "out").read_text(encoding="utf-8")
    assert "there is one run only" in page
    assert "<h2>Inside: registers, N\u00a0=\u00a04</h2>" in page or "<h2>Inside: registers, N = 4</h2>" in page
    assert page.index("Training curves") < page.index("Inside: registers") < page.index("How it was done")


def test_a_run_without_measurements_gets_no_section(tmp_path):
    run = write_cell(tmp_path, config_of("registers", 4, 0), questions=40)
    page = write_report(run, output=tmp_path / "out").read_text(encoding="utf-8")
    assert "Inside" not in page
    assert ".overlay" not in page


def test_a_sweep_shows_its_own_and_the_first_measured_run_of_each_arm(tmp_path):
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1, 2), questions=30, sets=("dev.json",))
    only = {"artefacts": None, "faithfulness": None, "explanations": None}
    for cell in collect(tmp_path).cells:
        if (cell.arm.num_registers, cell.seed) in ((0, 0), (4, 1), (4, 2)):
            write_inside(cell.folder, num_registers=cell.arm.num_registers, **only)
    write_inside(tmp_path, num_registers=0, **only | {"attention": None, "faithfulness": {**FAITHFUL}})
    report = build_report(collect(tmp_path), settings=FAST)
    assert [one.title for one in report.inside] == ["the whole sweep", "baseline, seed 0", "registers, N = 4, seed 1"]
    assert report.inside[2].note == "Measured as well and not shown: seed 2 of this arm."
    names = [figure.name for one in report.inside for figure in one.figures]
    assert len(names) == len(set(names))


FAITHFUL = {
    "schema_version": 1,
    "kind": "faithfulness",
    "rows": [{"method": "attnlrp", "metric": "comprehensiveness", "raw": 0.3, "normalised": None}],
}


def test_raw_values_are_drawn_where_no_limits_were_measured(tmp_path):
    none = {"attention": None, "audit": None, "artefacts": None, "explanations": None}
    write_inside(tmp_path, faithfulness=FAITHFUL, **none)
    page = write_report(tmp_path, output=tmp_path / "out").read_text(encoding="utf-8")
    assert ">raw value</text>" in page
    assert "random ranking" not in page


BROKEN = {
    "attention": {"kind": "attention", "schema_version": 0},
    "audit": {"kind": "attention", "schema_version": 1},
    "artefacts": {"kind": "artefacts", "schema_version": 1},
    "faithfulness": [],
    "explanations": {"kind": "explanations", "schema_version": 1, "models": [{}]},
}
REASONS = {
    "attention": "schema_version=0; this regtune reads",
    "audit": "this regtune reads",
    "artefacts": "understood (KeyError",
    "faithfulness": "no JSON object but a list",
    "explanations": "understood (KeyError",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_of_another_schema_is_named_and_the_rest_is_shown(tmp_path, kind):
    run = write_cell(tmp_path, config_of("registers", 4, 0), questions=40)
    write_inside(run, **{kind: BROKEN[kind]})
    report = build_report(collect(run), settings=FAST)
    ((file, reason),) = report.skipped
    assert file == f"{run.name}/inside/{kind}.json"
    assert REASONS[kind] in reason
    assert len(report.inside) == 1


def test_a_file_that_was_cut_short_is_named(tmp_path):
    run = write_cell(tmp_path, config_of("registers", 4, 0), questions=40)
    path = write_inside(run) / "inside" / "audit.json"
    path.write_text(path.read_text()[:200])
    ((file, reason),) = build_report(collect(run), settings=FAST).skipped
    assert file.endswith("audit.json")
    assert "can't be read" in reason


def test_nothing_but_broken_files_is_refused_with_every_reason(tmp_path):
    none = dict.fromkeys(("artefacts", "audit", "faithfulness", "explanations"))
    write_inside(tmp_path, **none | {"attention": BROKEN["attention"]})
    with pytest.raises(DataError, match=r"can be used: .*attention\.json: kind='attention', schema_version=0"):
        write_report(tmp_path)


def test_the_same_files_give_the_same_bytes(alone, tmp_path):
    again = write_report(alone.parent.parent, output=tmp_path)
    assert again.read_bytes() == alone.read_bytes()


def test_what_others_wrote_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    write_inside(tmp_path, audit=audit() | {"verdict": evil}, explanations=explanations() | {"notes": [evil]})
    faithful = read_json(tmp_path / "inside" / "faithfulness.json")
    faithful["rows"][0]["method"] = faithful["rows"][0]["metric"] = f"{evil} $x$"
    write_json(tmp_path / "inside" / "faithfulness.json", faithful)
    page = write_report(tmp_path, output=tmp_path / "out")
    assert "script" not in Structure(page.read_text(encoding="utf-8")).tags


def test_a_large_map_has_a_legend_in_place_of_numbers():
    drawing = heat_map(
        "m", "t", np.linspace(0, 1, 480).reshape(20, 24), rows=numbered("layer", 20), columns=numbered("head", 24)
    )
    assert len(cells(drawing.svg)) < 60
    assert ">100</text>" in drawing.svg
    assert "<image" not in drawing.svg


def test_unknown_cells_are_blank():
    axis = Axis(name="x", labels=("a", "b"))
    drawing = heat_map("m", "t", matrix([[None, 0.5], [0.25, None]]), rows=axis, columns=axis)
    assert cells(drawing.svg) == [50.0, 25.0]
    assert "No values" in heat_map("m", "t", matrix([[None, None]] * 2), rows=axis, columns=axis).description


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (None, None),
        (0.5, (0.5, None, None)),
        ({"mean": 1, "low": 0, "high": 2}, (1.0, 0.0, 2.0)),
        ({"value": None}, None),
    ],
)
def test_numbers_come_with_or_without_interval(entry, found):
    one = estimate(entry)
    assert (one and (one.value, one.low, one.high)) == found


def test_kurtosis_that_is_unknown_is_left_blank(alone):
    assert artefacts()["sites"]["block"][0]["kurtosis"] is None
    rows = list(csv.reader(io.StringIO((alone.parent / "tables/inside-1-artefacts.csv").read_text())))
    assert rows[1][5] == ""


def test_a_metric_that_should_be_small_is_said_and_has_its_smallest_on_top(tmp_path):
    none = {"attention": None, "audit": None, "artefacts": None, "explanations": None}
    shared = {"metric": "sufficiency", "higher_is_better": False, "normalised": None}
    rows = [shared | {"method": method, "raw": raw} for method, raw in (("random", 0.3), ("attnlrp", -0.1))]
    write_inside(tmp_path, faithfulness=FAITHFUL | {"rows": rows}, **none)
    page = write_report(tmp_path, output=tmp_path / "out").read_text(encoding="utf-8")
    assert ">raw value, less is better</text>" in page
    assert "attnlrp: -0.1; random: 0.3" in page
