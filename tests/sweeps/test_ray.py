"""A sweep on a Ray cluster: the same records, nothing lost with a killed worker, clear words when nothing answers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import pytest

from regtune.errors import ConfigError, MissingExtraError
from regtune.locks import lock_holder
from regtune.sweeps.cell_run import finished_record, lock_file
from regtune.sweeps.ray import ClusterConfig, require_answer
from regtune.sweeps.sweep import run_sweep
from tiny_sweep import tiny_sweep


@pytest.fixture
def silent_port():
    """A port at which no one listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_an_address_that_does_not_answer_is_named_after_one_knock_of_the_time_that_was_given(monkeypatch):
    knocks = []

    def silent(place, timeout):
        knocks.append((place, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(ConfigError, match=r"No Ray cluster answers at head:6379 within 3 s \(timed out\)"):
        require_answer("head:6379", 3.0)
    assert knocks == [(("head", 6379), 3.0)]


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:70000"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        require_answer(address, 1.0)


def test_an_address_that_answers_is_taken(silent_port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_answer(f"ray://127.0.0.1:{server.getsockname()[1]}", 3.0)


@pytest.mark.parametrize("changes", [{"num_cpus": -1.0}, {"num_gpus": -0.5}, {"retries": -1}, {"timeout": 0.0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ClusterConfig(**changes)


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'regtune\[cluster\]'"):
        run_sweep(tiny_sweep(tmp_path), tmp_path / "s", engine="ray", progress=False)


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_on_an_address_that_does_not_answer_is_refused_before_any_cell(tmp_path, silent_port):
    pytest.importorskip("ray")
    cluster = ClusterConfig(address=f"127.0.0.1:{silent_port}", timeout=3.0)
    with pytest.raises(ConfigError, match="No Ray cluster answers"):
        run_sweep(tiny_sweep(tmp_path), tmp_path / "s", engine="ray", cluster=cluster, progress=False)
    assert not list((tmp_path / "s").glob("*/run.json"))


PATIENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_register_timeout_seconds": "300",  # a worker imports torch, which takes long where others compute
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "20",
    "RAY_memory_monitor_refresh_ms": "0",  # others' memory is no reason to kill these workers
    "OMP_NUM_THREADS": "1",
}
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_two_nodes_finish_every_cell_though_a_worker_is_killed_in_the_middle(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    import ray
    from ray.cluster_utils import Cluster

    sweep = tiny_sweep(tmp_path, epochs=8.0)
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(sweep, tmp_path / "s", killed), daemon=True)
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        killer.start()
        outcome = run_sweep(sweep, tmp_path / "s", engine="ray", progress=False)
        with pytest.raises(ConfigError, match="asks for 3 CPU, but the largest machine of the cluster has 1"):
            run_sweep(
                tiny_sweep(tmp_path, seeds=(5,)),
                tmp_path / "other",
                engine="ray",
                cluster=ClusterConfig(num_cpus=3.0),
                progress=False,
            )
    finally:
        ray.shutdown()
        cluster.shutdown()
        killer.join(1)
    assert killed
    assert killed[0] != os.getpid()
    assert outcome.failed == {}
    assert {cell.key for cell in outcome.finished} == {cell.key for cell in sweep.cells()}
    run_sweep(sweep, tmp_path / "local", progress=False)
    for cell in sweep.cells():
        mine, theirs = (finished_record(tmp_path / name, cell) for name in ("s", "local"))
        assert mine.metrics == theirs.metrics


def kill_a_worker(sweep, folder, killed):
    """Kills the first process that has written a checkpoint of a cell and is still at it."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        for cell in sweep.cells():
            if any((folder / cell.key).glob("checkpoints/checkpoint-*")):
                holder = lock_holder(lock_file(folder, cell.key))
                if holder and holder.pid:
                    os.kill(holder.pid, signal.SIGKILL)
                    killed.append(holder.pid)
                    return
        time.sleep(0.05)
