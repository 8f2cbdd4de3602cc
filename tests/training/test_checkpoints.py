"""Claims about checkpoints: complete, or not there."""

import errno
import json

import pytest

from regtune.errors import CheckpointError
from regtune.training.checkpoints import SEAL, CheckpointStore


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "run" / "checkpoints", fingerprint="abc")
    made.open()
    return made


def _write(store, step, *, best=None):
    folder = store.unfinished(step)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "optimizer.pt").write_bytes(b"o" * step)
    return store.seal(step, best_step=best, seconds=float(step))


def test_the_newest_complete_checkpoint_is_found(store):
    for step in (9, 10, 100):
        _write(store, step, best=9)
    found = store.newest()
    assert (found.step, found.best_step, found.seconds) == (100, 9, 100.0)
    assert store.skipped == []


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no seal", "broken seal", "pickled weights"])
def test_a_damaged_checkpoint_is_passed_over_and_named(store, damage):
    _write(store, 5)
    path = _write(store, 10)
    weights = path / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:50])
    elif damage == "changed":
        weights.write_bytes(b"x" * 200)
    elif damage == "missing":
        (path / "optimizer.pt").unlink()
    elif damage == "no seal":
        (path / SEAL).unlink()
    elif damage == "broken seal":
        (path / SEAL).write_text('{"fingerprint": ')
    else:
        weights.rename(path / "pytorch_model.bin")
        seal = json.loads((path / SEAL).read_text())
        seal["files"]["pytorch_model.bin"] = seal["files"].pop("model.safetensors")
        (path / SEAL).write_text(json.dumps(seal))
    assert store.newest().step == 5
    assert len(store.skipped) == 1
    assert "checkpoint-10 was passed over" in store.skipped[0]


def test_a_checkpoint_whose_best_is_damaged_is_passed_over(store):
    (_write(store, 5, best=5) / "model.safetensors").unlink()
    _write(store, 10, best=5)
    assert store.newest() is None
    assert len(store.skipped) == 2


def test_what_a_killed_process_left_half_written_is_cleared(store):
    (store.unfinished(7) / "model.safetensors").write_bytes(b"half")
    assert store.newest() is None
    store.open()
    assert [path.name for path in store.root.iterdir()] == ["fingerprint"]


def test_a_folder_of_another_configuration_is_refused_with_both_fingerprints(store):
    with pytest.raises(CheckpointError, match=r"fingerprint abc, this one has xyz.*another output_dir"):
        CheckpointStore(store.root, fingerprint="xyz").open()


def test_only_what_is_kept_remains(store):
    for step in (1, 2, 3):
        _write(store, step)
    store.keep([1, 3])
    assert store.steps() == [1, 3]


def test_too_little_room_is_seen_before_anything_is_written(store):
    with pytest.raises(OSError, match="No space left") as caught:
        store.unfinished(3, needed=1 << 60)
    assert caught.value.errno == errno.ENOSPC
    assert store.steps() == []
