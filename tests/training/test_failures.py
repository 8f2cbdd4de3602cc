"""Claims about runs that cannot go on: they say why and what to try, and keep the last good checkpoint."""

import errno
import subprocess

import pytest
import torch
from safetensors import SafetensorError

from regtune.config import RegisterConfig
from regtune.errors import DataError, TrainingError
from regtune.registers.surgery import add_registers
from regtune.tasks.qa.task import check_labels
from regtune.training.trainer import RegisterTrainer
from tiny import tiny_model
from tiny_seq2seq import tiny_model as encoder_decoder
from tiny_windows import settings, tiny_run, tiny_window


def _left_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _poisoned(model, *, calls, value):
    """After so many training passes the model's logits are no numbers any more."""
    count = iter(range(10**6))

    def poison(module, args, output):
        if module.training and next(count) >= calls:
            return output * value
        return output

    model.qa_outputs.register_forward_hook(poison)
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_at_once_and_says_what_to_try(tmp_path, value):
    model = _poisoned(tiny_model("bert"), calls=7, value=value)
    with pytest.raises(TrainingError) as caught:
        tiny_run(tmp_path, model=model)
    message = str(caught.value)
    for part in ("at step 8 of 20", "weights 0.0016", "lower learning_rate", "warmup_ratio", "checkpoint-5"):
        assert part in message
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert _left_in(tmp_path) == ["checkpoint-5", "fingerprint"]


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(tmp_path):
    model = tiny_model("bert")
    count = iter(range(10**6))
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.register_hook(lambda gradient: gradient * (float("nan") if next(count) == 9 else 1.0))
    with pytest.raises(TrainingError, match=r"gradient norm became nan at step 10 .*checkpoint-5"):
        tiny_run(tmp_path, model=model)
    assert _left_in(tmp_path) == ["checkpoint-5", "fingerprint"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_ends_with_path_and_size_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, error):
    save = RegisterTrainer.save_model

    def full_at_ten(self, output_dir=None, _internal_call=False):
        save(self, output_dir, _internal_call)
        if self.state.global_step == 10:
            raise error

    monkeypatch.setattr(RegisterTrainer, "save_model", full_at_ten)
    with pytest.raises(TrainingError) as caught:
        tiny_run(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "checkpoints" / "checkpoint-10") in message
    assert str(error) in message
    assert "MB are free" in message
    assert message.endswith("checkpoint-5.")
    assert _left_in(tmp_path) == ["checkpoint-5", "fingerprint"]
    monkeypatch.undo()
    assert tiny_run(tmp_path)[0].resumed_from == 5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_that_really_is_full_is_handled_alike(small_disk):
    (small_disk / "other").write_bytes(b"x" * 700_000)
    with pytest.raises(TrainingError, match=r"could not be written to .*checkpoint-5.*There is no earlier checkpoint"):
        tiny_run(small_disk)
    assert _left_in(small_disk) == ["fingerprint"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_running_out_of_memory_names_the_sizes(tmp_path, error):
    def fail(module, args):
        raise error

    model = tiny_model("bert")
    model.bert.encoder.register_forward_pre_hook(fail)
    with pytest.raises(TrainingError, match=r"batch_size=4, max_length=40, num_registers=0.*smaller batch_size"):
        tiny_run(tmp_path, model=model)


def test_running_out_of_memory_names_registers_of_both_sets(tmp_path):
    def fail(module, args):
        raise MemoryError

    model = encoder_decoder("t5")
    add_registers(model, RegisterConfig(num_registers=1, decoder_registers=3))
    next(model.modules()).register_forward_pre_hook(fail)
    with pytest.raises(TrainingError, match=r"num_registers=1, decoder_registers=3"):
        tiny_run(tmp_path, model=model)


def test_other_errors_are_passed_on_as_they_are(tmp_path):
    def fail(module, args):
        raise RuntimeError("a bug")

    model = tiny_model("bert")
    model.bert.encoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        tiny_run(tmp_path, model=model)


def test_bad_windows_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="0 training rows"):
        tiny_run(tmp_path / "run", windows=[])
    with pytest.raises(DataError, match="start=2, end=12"):
        check_labels([tiny_window(12, end=12)])
    assert not (tmp_path / "run").exists()


def test_the_model_is_ready_for_inference_after_a_failure(tmp_path):
    model = _poisoned(tiny_model("bert"), calls=0, value=float("nan"))
    with pytest.raises(TrainingError, match="no earlier checkpoint"):
        tiny_run(tmp_path, settings(gradient_checkpointing=True), model=model)
    assert not model.training
    assert not model.is_activation_checkpointing
