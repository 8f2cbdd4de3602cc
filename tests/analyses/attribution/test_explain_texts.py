"""Explanations of classifiers by label names, in the library, on the terminal, as a page and as JSON lines."""

from __future__ import annotations

import json

import pytest

from regtune.analyses.attribution.explain_texts import explain_texts
from regtune.cli.main import main
from regtune.errors import DataError, UnknownNameError
from tiny_tokenizer import save_tiny

TEXT = "the cat lives in the house"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    return save_tiny(tmp_path_factory.mktemp("model"), head="sequence-classification", **labels)


def test_a_contrast_of_labels_is_the_difference_of_their_logits(folder):
    targets = ("positive", "negative", "positive-negative")
    (found,) = explain_texts(folder, [{"text": TEXT}], targets=targets, methods=("gradient-input",))
    (model,) = found["models"]
    values = {one["asked"]: one["value"] for one in model["attributions"]}
    assert values["positive-negative"] == pytest.approx(values["positive"] - values["negative"], abs=1e-5)
    relevance = {one["asked"]: one["relevance"] for one in model["attributions"]}
    for both, first, second in zip(*(relevance[name] for name in reversed(targets)), strict=True):
        assert both == pytest.approx(second - first, abs=1e-4)
    assert model["answer"]["text"] in ("negative", "positive")
    assert found["context"] == TEXT


def test_a_list_of_texts_gives_json_lines(folder, tmp_path, capsys):
    (tmp_path / "in.txt").write_text(f"{TEXT}\nwho is it\n")
    words = ["explain", str(folder), "--file", str(tmp_path / "in.txt"), "--methods", "attnlrp", "--json"]
    assert main([*words, "--target", "positive-negative", "--html", str(tmp_path / "why.html")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["context"] for line in lines] == [TEXT, "who is it"]
    assert {one["asked"] for line in lines for one in line["models"][0]["attributions"]} == {"positive-negative"}
    page = (tmp_path / "why.html").read_text()
    assert "lives" in page
    assert "positive-negative" in page


def test_the_terminal_shows_the_predicted_class_and_the_text(folder, capsys):
    assert main(["explain", str(folder), "--text", TEXT, "--methods", "attnlrp"]) == 0
    shown = capsys.readouterr().out
    assert "probability" in shown
    assert "predicted" in shown
    assert "lives" in shown


def test_wrong_targets_and_missing_texts_are_said(folder, capsys):
    with pytest.raises(UnknownNameError, match="positiv"):
        list(explain_texts(folder, [{"text": TEXT}], targets=("positiv",)))
    with pytest.raises(DataError, match="0 texts"):
        list(explain_texts(folder, []))
    assert main(["explain", str(folder)]) == 2
    assert "--question" in capsys.readouterr().err
