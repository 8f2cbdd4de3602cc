"""Claims about checkpoints: complete, or not there."""

import dataclasses
import errno
import json
import os
import pickle
import random
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import TrainerState

from damage import damage
from regtune.errors import CheckpointError, TrainingError
from regtune.records import write_json
from regtune.training.checkpoints import SEAL, CheckpointStore, read_state, save_model, write_state
from tiny import tiny_model
from tiny_windows import tiny_run


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "run" / "checkpoints", fingerprint="abc")
    made.open()
    return made


def _write(store, step, *, best=None):
    folder = store.unfinished(step)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "optimizer.safetensors").write_bytes(b"o" * step)
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
        (path / "optimizer.safetensors").unlink()
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


def fuzz(store, rounds):
    """Damages a seal, and a state before it is sealed; the checkpoint is read or passed over in words."""
    draw, passed_over = Random(0), 0
    state = {**json.loads(json.dumps(dataclasses.asdict(TrainerState(epoch=0.5, global_step=10)))), "best_metric": 0.5}
    state["log_history"] = [{"loss": 0.25, "step": 10}]
    for round_ in range(rounds):
        folder = store.unfinished(10)
        (folder / "model.safetensors").write_bytes(b"x")
        write_json(folder / "trainer_state.json", state)
        if round_ % 2:
            damage(folder / "trainer_state.json", draw)
        seal = store.seal(10, best_step=None, seconds=1.0) / SEAL
        if not round_ % 2:
            damage(seal, draw)
        if store.newest():
            TrainerState.load_from_json(str(store.path(10) / "trainer_state.json"))
        else:
            passed_over += 1
            assert str(store.path(10)) in store.skipped[0]
            assert len(store.skipped[0]) < 5_000
    return passed_over


def test_no_damage_to_a_seal_or_a_state_escapes_as_a_raw_error(store):
    assert fuzz(store, 200) > 130


@pytest.mark.slow
def test_no_damage_to_a_seal_or_a_state_escapes_as_a_raw_error_in_a_long_run(store):
    assert fuzz(store, 2_000) > 1_400


def test_what_a_killed_process_left_half_written_is_cleared(store):
    (store.unfinished(7) / "model.safetensors").write_bytes(b"half")
    assert store.newest() is None
    store.open()
    assert [path.name for path in store.root.iterdir()] == ["fingerprint"]


def test_a_folder_of_another_configuration_is_refused_with_both_fingerprints(store):
    with pytest.raises(CheckpointError, match=r"fingerprint has 'abc', this one has xyz.*another output_dir"):
        CheckpointStore(store.root, fingerprint="xyz").open()
    (store.root / "fingerprint").write_bytes(b"\xff\x1b[2J" + b"9" * 10**5)
    with pytest.raises(CheckpointError, match=r"another configuration") as caught:
        store.open()
    assert len(str(caught.value)) < 1_000


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


# No pickle, and nothing that isn't sealed


class Mark:
    """A pickle of this runs code that leaves a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_run_leaves_numbers_and_json_alone(tmp_path):
    tiny_run(tmp_path)
    files = [file for file in (tmp_path / "checkpoints").rglob("*") if file.is_file() and file.name != "fingerprint"]
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    assert {"optimizer.safetensors", "lr_scheduler.json", "random_0.json"} <= {file.name for file in files}


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state.pth", "training_args.bin", ".metadata", "x/.metadata", "a"]
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_checkpoint_with_a_pickle_is_passed_over_and_the_pickle_isnt_run(store, tmp_path, name, sealed):
    _write(store, 5)
    folder = store.unfinished(10)
    (folder / "model.safetensors").write_bytes(b"x")
    pickled = store.path(10) / name
    if sealed:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    store.seal(10, best_step=None, seconds=0.0)
    if not sealed:
        pickled.parent.mkdir(exist_ok=True)
        pickled.write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    assert store.newest().step == 5
    assert str(pickled) in store.skipped[0] or f"holds {name}, which isn't in its seal" in store.skipped[0]
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd"])
def test_a_seal_names_files_of_its_own_folder_alone(store, name):
    path = _write(store, 5)
    (path.parent / "outside.safetensors").write_bytes(b"x")
    seal = json.loads((path / SEAL).read_text())
    seal["files"][name] = seal["files"]["model.safetensors"]
    (path / SEAL).write_text(json.dumps(seal))
    assert store.newest() is None


@pytest.fixture
def sharded(store):
    """A checkpoint as FSDP writes it, made by one process."""
    import torch.distributed.checkpoint as dcp

    state = {"model": tiny_model("bert").state_dict(), "step": 3, "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}
    folder = store.unfinished(5) / "pytorch_model_fsdp_0"
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        dcp.save(state, checkpoint_id=folder)
    finally:
        torch.distributed.destroy_process_group()
    return folder


def test_the_metadata_that_fsdp_writes_are_accepted(store, sharded):
    assert (sharded / ".metadata").is_file()
    store.seal(5, best_step=None, seconds=0.0)
    found = store.newest()
    assert (found and found.step, store.skipped) == (5, [])


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'mkdir mark'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"ctorch.distributed.checkpoint.metadata\nos.system\n(S'mkdir mark'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"",
        b"\x80\x05garbage",
    ],
)
def test_metadata_that_would_run_code_are_refused(store, sharded, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (sharded / ".metadata").write_bytes(content)
    store.seal(5, best_step=None, seconds=0.0)
    assert store.newest() is None
    assert "is not the description of a sharded checkpoint" in store.skipped[0]
    assert not (tmp_path / "mark").exists()


# States


def test_a_state_comes_back_as_it_was_bit_for_bit(tmp_path):
    model = tiny_model("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 + 0.2)
    sum(p.double().pow(2).sum() for p in model.parameters()).backward()
    optimizer.step()
    given = {
        "optimizer": optimizer.state_dict(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "odd": [None, True, float("inf"), 1e-320, "\u00e9\n", (), {}, {3: (1, [2])}, torch.tensor(2.5)],
    }
    write_state(tmp_path / "state", given)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    _same(read_state(tmp_path / "state"), given)


def _same(found, given):
    assert type(found) is type(given)
    if isinstance(given, dict):
        assert list(found) == list(given)
        for key in given:
            _same(found[key], given[key])
    elif isinstance(given, (list, tuple)):
        for one, other in zip(found, given, strict=True):
            _same(one, other)
    elif isinstance(given, torch.Tensor):
        assert torch.equal(found, given)
        assert found.dtype == given.dtype
    elif isinstance(given, np.ndarray):
        assert np.array_equal(found, given)
        assert found.dtype == given.dtype
    else:
        assert found == given


def test_what_a_state_cant_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="can't hold a set"):
        write_state(tmp_path / "state", {"groups": [{1, 2}]})


BROKEN = ["{", "[" * 99_999, "{}", '{"tensor": "7"}', '{"tensor": [1]}', '{"dict": 3}', '{"call": "os.system"}']
BROKEN += [
    '{"array": [1], "dtype": "O,,"}',
    '{"array": ["a"], "dtype": "int32"}',
    '{"array": [1]}',
    '{"dict": [[[], 1]]}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_state_is_refused_in_words(tmp_path, content):
    write_state(tmp_path / "state", {"step": 3})
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json and .*state\.safetensors can't be read"):
        read_state(tmp_path / "state")


# The trained model


class FullDisk:
    """A tokenizer whose folder has no room left."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_model_that_found_no_room_leaves_what_was_there_and_says_that_nothing_is_lost(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, tiny_model("bert"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(TrainingError, match=r"No space left.*MB are free.*same command again.*isn't lost"):
        save_model(folder, tiny_model("bert", seed=1), FullDisk())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
