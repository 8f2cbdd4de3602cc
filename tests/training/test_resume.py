"""Claims about runs that were stopped: they continue, exactly, or say why not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regtune.errors import CheckpointError
from regtune.records import checksums
from regtune.training.checkpoints import SEAL
from tiny_windows import score, settings, tiny_run

KILLED_RUN = """
import sys, time, warnings
warnings.simplefilter("error")
from pathlib import Path
from tiny_windows import tiny_run

def stop_here(step):
    if step == 13:
        print("in the middle", flush=True)
        time.sleep(600)

tiny_run(Path(sys.argv[1]), after_step=stop_here)
"""


class _StopError(Exception):
    """Stands for anything that ends a process between two steps."""


def _stop_at(step, error=_StopError):
    def after_step(now):
        if now == step:
            raise error

    return after_step


def _stopped_run(folder, step, config=None, **options):
    with pytest.raises(_StopError):
        tiny_run(folder, config, after_step=_stop_at(step), **options)


def _assert_same(first, second):
    (one, model), (two, other) = first, second
    assert one.curve == two.curve
    assert (one.best_step, one.best_metrics, one.steps, one.text_tokens) == (
        two.best_step,
        two.best_metrics,
        two.steps,
        two.text_tokens,
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_run_killed_with_sigkill_continues_and_ends_like_one_that_was_never_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout.readline() == "in the middle\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    continued = tiny_run(tmp_path / "killed")
    assert continued[0].resumed_from == 10
    _assert_same(continued, tiny_run(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("precision", "step"),
    [
        ("float32", 6),
        ("bfloat16", 16),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("float32", 11), ("float32", 16))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("bfloat16", 6), ("bfloat16", 11))),
    ],
)
def test_a_run_stopped_anywhere_continues_in_the_same_order(tmp_path, precision, step):
    config = settings(precision=precision, gradient_accumulation_steps=2, batch_size=2)
    _stopped_run(tmp_path / "stopped", step, config)
    continued = tiny_run(tmp_path / "stopped", config)
    assert continued[0].resumed_from == (step - 1) // 5 * 5
    _assert_same(continued, tiny_run(tmp_path / "whole", config))


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path):
    _stopped_run(tmp_path, 3)
    assert tiny_run(tmp_path)[0].resumed_from is None


def test_ctrl_c_leaves_a_run_that_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, after_step=_stop_at(7, KeyboardInterrupt))
    assert tiny_run(tmp_path)[0].resumed_from == 5


@pytest.mark.parametrize("epochs", [2, 1.5])
def test_a_finished_run_is_not_trained_again(tmp_path, epochs):
    config = settings(epochs=epochs)
    first = tiny_run(tmp_path, config)
    again = tiny_run(tmp_path, config, after_step=_stop_at(1), evaluate=lambda _: pytest.fail("evaluated again"))
    _assert_same(first, again)
    assert again[0].seconds > 0


def test_training_time_of_a_stopped_run_is_counted(tmp_path):
    _stopped_run(tmp_path, 18)
    seal = json.loads((tmp_path / "checkpoints" / "checkpoint-15" / SEAL).read_text())
    assert tiny_run(tmp_path)[0].seconds > seal["seconds"] > 0


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random_0.json", "trainer_state.json"])
def test_a_checkpoint_cut_short_is_passed_over_with_a_message(tmp_path, name):
    _stopped_run(tmp_path, 18)
    path = tmp_path / "checkpoints" / "checkpoint-15" / name
    path.write_bytes(path.read_bytes()[:-20])
    result, _ = tiny_run(tmp_path)
    assert result.resumed_from == 10
    assert name in result.warnings[0]
    assert "cut short" in result.warnings[0]


def test_a_run_of_another_configuration_is_refused_and_left_alone(tmp_path):
    _stopped_run(tmp_path, 8)
    with pytest.raises(CheckpointError, match="another configuration"):
        tiny_run(tmp_path, fingerprint="other")
    assert tiny_run(tmp_path)[0].resumed_from == 5


class _Code:
    def __reduce__(self):
        return (print, ("a checkpoint ran code",))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_holds_code_is_passed_over_and_the_code_not_run(tmp_path, capfd, name):
    _stopped_run(tmp_path, 8)
    folder = tmp_path / "checkpoints" / "checkpoint-5"
    torch.save({"state": _Code()}, folder / name)
    seal = json.loads((folder / SEAL).read_text())
    seal["files"][name] = checksums(folder, [name])[name]
    (folder / SEAL).write_text(json.dumps(seal))
    result, _ = tiny_run(tmp_path)
    assert result.resumed_from is None
    assert f"{name} is neither safetensors nor JSON" in result.warnings[0]
    assert "ran code" not in capfd.readouterr().out


def test_the_evaluation_decides_nothing_but_the_best_checkpoint(tmp_path):
    """The same run with and without a stop, when the best checkpoint is the oldest."""
    falling = {5: 0.9, 10: 0.5, 15: 0.4, 20: 0.3}

    def evaluated(folder):
        seen = iter(sorted(falling))
        done = len(list((folder / "checkpoints").glob("checkpoint-*"))) if folder.exists() else 0
        for _ in range(done):
            next(seen)
        return lambda model: {"f1": falling[next(seen)], "loss": score(model)["f1"]}

    _stopped_run(tmp_path / "stopped", 12, evaluate=evaluated(tmp_path / "stopped"))
    continued = tiny_run(tmp_path / "stopped", evaluate=evaluated(tmp_path / "stopped"))
    whole = tiny_run(tmp_path / "whole", evaluate=evaluated(tmp_path / "whole"))
    assert continued[0].best_step == 5
    _assert_same(continued, whole)
