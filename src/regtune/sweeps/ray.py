"""The cells of a sweep as Ray tasks: the same function, the same record files in a folder that all machines share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from regtune.errors import ConfigError, MissingExtraError
from regtune.sweeps.cell_run import Status, record_failure, run_cell
from regtune.sweeps.grid import Cell
from regtune.typed import Checked, Range


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Checked, section="cluster"):
    """Where cells run on Ray, and what each one takes."""

    address: str | None = None
    """`HOST:PORT` of a running cluster, `auto` for the one that this machine belongs to; unset starts Ray here."""
    num_cpus: Annotated[float, Range(0, 10**6)] = 1.0
    """CPU cores for a cell."""
    num_gpus: Annotated[float, Range(0, 10**6)] = 0.0
    """GPUs for a cell, or a fraction: 0.25 lets four cells share one."""
    retries: Annotated[int, Range(0, 10**6)] = 3
    """How often a cell is started again when its worker dies."""
    timeout: Annotated[float, Range(0, 10**6, above=True)] = 10.0
    """Seconds to wait for the cluster to answer."""


def run_on_ray(
    cells: Sequence[Cell],
    folder: Path,
    *,
    cluster: ClusterConfig,
    keep_seeds: Collection[int],
    tell: Callable[[Cell, Status], None],
) -> None:
    """Runs cells on a Ray cluster until all have ended; a cell whose worker dies is continued on another.

    Every machine needs regtune, the data under the same paths and the same shared `folder`.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "cluster", "engine='ray'") from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, cluster)
    try:
        _require_resources(ray, cluster)
        task = ray.remote(_run_remotely).options(
            num_cpus=cluster.num_cpus, num_gpus=cluster.num_gpus, max_retries=cluster.retries
        )
        place, target = os.getcwd(), str(folder.resolve())
        running = {task.remote(cell, target, place, cell.seed in keep_seeds): cell for cell in cells}
        while running:
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(ended)
            tell(cell, _result(ray, ended, folder / cell.key))
    finally:
        if ours:
            ray.shutdown()


def _run_remotely(cell: Cell, folder: str, place: str, keep_model: bool) -> Status:
    """Inside a worker; relative data paths mean what they mean where the sweep was started."""
    if Path(place).is_dir():
        os.chdir(place)
    return run_cell(cell, Path(folder), keep_model=keep_model, progress=False)


def _result(ray: Any, ended: Any, run_dir: Path) -> Status:
    try:
        status: Status = ray.get(ended)
        return status
    except ray.exceptions.RayError as error:  # the worker died more often than it is started again
        record_failure(run_dir, error)
        return "failed"


def _connect(ray: Any, cluster: ClusterConfig) -> None:
    if cluster.address is not None:
        require_answer(cluster.address, cluster.timeout)
    try:
        ray.init(address=cluster.address, log_to_driver=False, include_dashboard=None if cluster.address else False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The Ray cluster at {cluster.address or 'this machine'} can't be joined: {error}. Start one with "
            "`ray start --head`, or leave the address out to start Ray here."
        ) from error


def require_answer(address: str, timeout: float) -> None:
    """Knocks at an address, because Ray itself would keep trying for a long time."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"The Ray address {address!r} is not HOST:PORT. Ray's own port is 6379: for example head:6379."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except OSError as error:
        raise ConfigError(
            f"No Ray cluster answers at {address} within {timeout:g} s ({error}). Check that `ray start --head` runs "
            "there and that the port is open."
        ) from error


def _require_resources(ray: Any, cluster: ClusterConfig) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, wanted in (("CPU", cluster.num_cpus), ("GPU", cluster.num_gpus)):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise ConfigError(
                f"A cell asks for {wanted:g} {name}, but the largest machine of the cluster has {most:g}. "
                f"Ask for less with --cluster.num-{name.lower()}s."
            )
