"""ONNX files and torch.export programs give what the model with registers gives, for any batch, length and padding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import invoke, prepare
from regtune.errors import MissingExtraError, UnsupportedModelError
from regtune.serving.export import export
from serving.placed_on import session_on

ONNX = (
    "onnx:bert:question-answering:prefix:input",
    "onnx:roberta:sequence-classification:after_cls:every_layer",
    "onnx:distilbert:token-classification:suffix:input",
    "onnx:deberta-v2:sequence-classification:prefix:input",
    "onnx:modernbert:token-classification:prefix:input",
    "onnx:llama:causal-lm:prefix:input",
)
TORCH = (
    "torch:bert:sequence-classification:suffix:every_layer",
    "torch:electra:token-classification:prefix:input",
    "torch:mpnet:question-answering:suffix:input",
    "torch:gpt2:sequence-classification:prefix:every_layer",
    "torch:gemma3_text:causal-lm:prefix:input",
    "torch:vit:image-classification:prefix:input",
)


def exported(folder: Path, cases: tuple[str, ...]) -> dict:
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("exported.py")), str(folder), *cases]
    path = {"PYTHONPATH": ":".join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=os.environ | path)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def check(found: dict) -> None:
    for case, measured in found.items():
        assert measured["largest"] <= 2e-5, case
        assert measured["again"] <= 2e-5, case
        assert measured["effect"] > 100 * 2e-5, case  # the registers matter
        assert len(measured["tried"]) >= 3, case
        assert measured["padded"] or "vit" in case
        assert "registers" not in measured["config"]
        assert "export.json" in measured["files"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_onnxruntime_gives_the_outputs_of_the_model(tmp_path):
    found = exported(tmp_path, ONNX)
    check(found)
    for case, measured in found.items():
        assert "model.onnx" in measured["files"], case
        assert all(axes == ["batch", "seq"] for axes in measured["axes"].values()), case
        segments = {"token_type_ids"} if "bert:question" in case else set()
        assert measured["axes"].keys() == {"input_ids", "attention_mask"} | segments, case


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_loaded_program_of_torch_export_gives_the_outputs_of_the_model(tmp_path):
    found = exported(tmp_path, TORCH)
    check(found)
    assert all("model.pt2" in measured["files"] for measured in found.values())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package_of_the_extra_it_says_which_one_brings_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'.*regtune\[onnx\]"):
        export("a model that isn't even opened", tmp_path / "out", format="onnx", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_model_that_can_t_be_traced_is_refused_with_the_reason_and_nothing_is_kept(tmp_path):
    session = session_on("bert")

    def stop(*_):
        raise RuntimeError("a step that no tracer can follow")

    session.model.register_forward_pre_hook(stop)
    with pytest.raises(UnsupportedModelError, match=r"can't be traced .*RuntimeError.*no tracer can follow.*`plain`"):
        export(session, tmp_path / "out", format="torch", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_refuses_and_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(prepare(tmp_path))
    code, out, err = invoke(capsys, ("export", "model", "out", "--format", "plain"))
    assert (code, out) == (1, "")
    assert "has no registers" in err
    code, _, err = invoke(capsys, ("export", "model", "model", "--format", "torch"))
    assert code == 2
    assert "exists and holds something" in err
