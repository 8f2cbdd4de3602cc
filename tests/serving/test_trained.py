"""Exports of really trained models: the ready adapter, and MiniLM on the classes that come with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regtune
from regtune.session import Session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

READY = "minilm-questions"
TOLERANCE = 1e-4


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`regtune …` in a process of its own: the shape checks of the tests can't be traced."""
    path = Path(regtune.__file__).parents[1]
    call = [sys.executable, "-W", "ignore", "-m", "regtune", *map(str, arguments)]
    return subprocess.run(call, cwd=path, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Depth to the folder of a classifier with that many registers, as `regtune demo` trains one."""
    folder = tmp_path_factory.mktemp("trained")
    for depth in ("input", "every_layer"):
        flags = ["--task", "classify", "--registers.num-registers", 4, "--registers.depth", depth]
        flags += ["--training.epochs", 2, "--training.batch-size", 8, "--training.learning-rate", 4e-4]
        flags += ["--training.register-learning-rate", 1e-2]
        done = command("train", *flags, "--output-dir", folder / depth)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads((folder / depth / "run.json").read_text())["metrics"]["embedded-dev"]["accuracy"] > 0.8
    return folder


def real_batches(session: Session):
    """What the model reads of its evaluation set, with its own outputs."""
    for batch in session.batches(session.rows(session.sample(["embedded:dev"], 24)), batch_size=8):
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            output = session.model(**given)
        yield given, {name: value for name, value in output.items() if name.endswith("logits")}


def agree(found, expected, mask):
    """Outputs are near and name the same answer."""
    assert expected
    for name, value in expected.items():
        seen = mask.bool() if value.shape == mask.shape else ...
        assert (found[name] - value)[seen].abs().max() <= TOLERANCE, name
        assert found[name].argmax(-1).equal(value.argmax(-1)), name


@pytest.mark.parametrize("model", [READY, "input"])
def test_onnx_and_torch_export_answer_as_the_trained_model_does(model, trained, tmp_path):
    import onnxruntime

    name = model if model == READY else trained / model
    for form in ("onnx", "torch"):
        done = command("export", name, tmp_path / form, "--format", form)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads((tmp_path / form / "export.json").read_text())["largest"] <= TOLERANCE
    engine = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "torch" / "model.pt2").module()
    names = [one.name for one in engine.get_outputs()]
    for given, expected in real_batches(regtune.open(name, device="cpu")):
        made = engine.run(names, {name: value.numpy() for name, value in given.items()})
        agree(
            {name: torch.from_numpy(value) for name, value in zip(names, made, strict=True)},
            expected,
            given["attention_mask"],
        )
        agree(program(**given), expected, given["attention_mask"])


def test_registers_fresh_at_every_layer_become_a_prefix_that_peft_reads(trained, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    done = command("export", trained / "every_layer", tmp_path / "plain", "--format", "plain")
    assert done.returncode == 0, done.stderr[-2000:]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    model = PeftModel.from_pretrained(plain, str(tmp_path / "plain" / "prefix")).eval()
    changes = []
    for given, expected in real_batches(regtune.open(trained / "every_layer", device="cpu")):
        with torch.no_grad():
            agree(model(**given), expected, given["attention_mask"])
            changes.append((model.get_base_model()(**given).logits - expected["logits"]).abs().max().item())
    assert max(changes) > 100 * TOLERANCE  # the prefix matters


@pytest.mark.parametrize("model", [READY, "input"])
def test_trained_registers_that_read_the_text_are_no_biases_and_plain_says_so(model, trained, tmp_path):
    name = model if model == READY else trained / model
    done = command("export", name, tmp_path / "plain", "--format", "plain", "--data", "embedded:dev", "--limit", 16)
    assert done.returncode == 1
    assert "vary with the text" in done.stderr
    assert "`onnx`" in done.stderr
    assert list(tmp_path.iterdir()) == []
