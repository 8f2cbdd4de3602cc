"""Whatever happens to a file of a sweep's: the report is made without it and says so, or ends in a sentence."""

from __future__ import annotations

from random import Random

import pytest

from damage import damage, refusal
from regtune.records import write_json
from regtune.report.collect import collect
from regtune.report.page import build_report, draw
from regtune.report.scores import Settings
from regtune.sweeps.cell_run import record_failure
from report.synthetic import write_plan, write_sweep
from report.test_page import search


def sweep(folder):
    """Two arms, two seeds, a plan with a cell that failed and one that has not begun, and a search."""
    write_sweep(folder, counts=(0, 4), seeds=(0, 1), sets=("dev.json",), questions=12)
    planned = (("failed", "registers", 4, 2, "t"), ("new", "registers", 4, 3, "t"))
    content = {"training_sets": {"t": ["en.train.json.gz"]}, "at_best": ["sep_copies"]}
    write_plan(folder, *planned, best={"t": 4}, **content)
    rates = {"learning_rate": 2e-4, "register_learning_rate": 1e-3}
    rows = [{"arm": "registers", "num_registers": 4, "f1": f1, **rates} for f1 in (0.5, 0.6)]
    write_json(folder / "search.json", search(rows, registers=tuple(rates.values())))
    write_json(folder / "failed" / "config.json", {"registers": {}, "training": {}})
    record_failure(folder / "failed", ValueError("no"))
    return folder


def damage_everything(folder, rounds):
    """How many times a file was listed, and how many times the report was refused; a raw error fails the test."""
    random, listed, refused = Random(11), 0, 0
    sweep(folder)
    cell = next(iter(sorted(folder.glob("*/run.json")))).parent
    files = [cell / name for name in ("run.json", "curve.json", "predictions/dev.json.gz")]
    files += [folder / name for name in ("sweep.json", "search.json", "failed/config.json", "failed/error.json")]
    usual = len(collect(folder).skipped)

    def look():
        nonlocal listed
        found = collect(folder)
        listed += len(found.skipped) != usual
        if len(found.skipped) == usual:  # the damage went unnoticed: whatever is drawn of it has to hold
            draw(build_report(found, settings=Settings(resamples=100)))

    for path in files:
        whole = path.read_bytes()
        for number in range(rounds):
            damage(path, random)
            try:
                refused += refusal(look, folder) != ""
            except Exception as error:
                raise AssertionError(f"{path}, round {number}: {error!r}\n{path.read_bytes()[:3000]!r}") from error
            path.write_bytes(whole)
    return listed, refused


def test_no_damage_to_a_sweep_escapes_from_the_report(tmp_path, monkeypatch):
    def blank(drawing, stream, **_):
        stream.write('<svg viewBox="0 0 1 1"></svg>')  # laying out takes most of the time

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", blank)
    listed, refused = damage_everything(tmp_path, 3)
    assert listed > 7
    assert refused < 5


@pytest.mark.slow
def test_no_damage_to_a_sweep_escapes_from_the_report_in_a_long_run(tmp_path):
    damage_everything(tmp_path, 10)
