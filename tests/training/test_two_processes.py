"""The claim that one run can be distributed over several processes with torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import prepare, train
from regtune.records import read_json
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


KILLED = """
import os, signal
from regtune.training.trainer import RunFlow

whole = RunFlow.on_step_end

def dies(self, args, state, control, **kwargs):
    if os.environ["RANK"] == "1" and state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, args, state, control, **kwargs)

RunFlow.on_step_end = dies
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_a_process_whose_partner_is_killed_says_so_in_words_and_the_same_command_goes_on(tmp_path):
    prepare(tmp_path)
    (tmp_path / "killed.py").write_text(KILLED)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "regtune", *train("--output-dir", "run"), "--training.epochs", "3"]
    command += ["--training.batch-size", "1", "--training.evals-per-epoch", "3"]

    def both(*more: str) -> list[tuple[int, str]]:
        started = []
        port = str(free_port())
        for rank in "01":
            environment = os.environ | shared | {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
            started.append(
                subprocess.Popen([*command, *more], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
            )
        said = [process.communicate(timeout=250)[1] for process in started]
        return [(process.returncode, err) for process, err in zip(started, said, strict=True)]

    (code, err), (killed, _) = both("--plugin", "killed.py")
    assert (code, killed) == (1, -signal.SIGKILL), err
    for words in (
        "error: Process 0 of 2 (counted from 0) can't reach another one any more",
        "Start the same command again, in all processes",
        "The last good checkpoint is run/checkpoints/checkpoint-",
    ):
        assert words in err
    for trace in ("Traceback", "pair.cc"):
        assert trace not in err
    again = both()
    assert [code for code, _ in again] == [0, 0], again
    assert read_json(tmp_path / "run" / "run.json")["training"]["resumed_from"] > 0


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_global_batch(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
        str(script),
        str(tmp_path),
    ]
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
