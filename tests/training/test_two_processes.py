"""The claim that one run can be shared out to several processes with torchrun."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import tiny_model
from tiny_windows import even_windows, settings, tiny_run

PROCESS = """
import json, os, sys
from pathlib import Path
from tiny import tiny_model
from tiny_windows import even_windows, settings, tiny_run

folder = Path(sys.argv[1])
model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
config = settings(batch_size=2, precision="float32")
result, _ = tiny_run(folder, config, model=model, windows=even_windows(40))
if os.environ["RANK"] == "0":
    (folder / "curve.json").write_text(json.dumps([result.curve, result.text_tokens, result.steps]))
"""


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_global_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", str(script), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    curve, tokens, steps = json.loads((tmp_path / "curve.json").read_text())
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = settings(batch_size=4, precision="float32")
    alone, _ = tiny_run(tmp_path / "alone", config, model=model, windows=even_windows(40))
    assert (steps, tokens) == (alone.steps, alone.text_tokens)
    for two, one in zip(curve, alone.curve, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["f1"] == pytest.approx(one["f1"], rel=1e-4)
