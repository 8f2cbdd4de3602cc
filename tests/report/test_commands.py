"""`regtune report` and `regtune compare` on the command line."""

import pytest

from command_line import invoke
from report.synthetic import config_of, write_cell


@pytest.fixture
def run(capsys):
    return lambda *arguments: invoke(capsys, arguments)


def test_report_writes_a_page_and_prints_where(run, sweep, tmp_path):
    code, out, _ = run("report", sweep, "--output-dir", tmp_path / "page", "--resamples", 600)
    assert code == 0
    assert out == f"Report: {tmp_path / 'page' / 'report.html'}\n"
    assert (tmp_path / "page" / "report.html").is_file()


def test_report_of_an_empty_folder_exits_with_1(run, tmp_path):
    code, _, err = run("report", tmp_path)
    assert code == 1
    assert "holds no runs" in err


def test_compare_prints_the_comparison(run, tmp_path):
    one = write_cell(tmp_path, config_of("baseline", 0, 0, sets=("dev.json",)), questions=60)
    other = write_cell(tmp_path, config_of("registers", 4, 0, sets=("dev.json",)), questions=60, effect=0.4)
    code, out, _ = run("compare", one, other, "--flips", 1)
    assert code == 0
    assert f"A  {one}  (baseline, seed 0)" in out
    assert out.count("  won   q") == 1


def test_compare_of_a_run_with_itself_exits_with_2(run, tmp_path):
    one = write_cell(tmp_path, config_of("baseline", 0, 0), questions=20)
    code, _, err = run("compare", one, one)
    assert code == 2
    assert "are the same run" in err
