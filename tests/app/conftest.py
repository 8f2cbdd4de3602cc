"""Two tiny runs on six questions, and what the explorer makes of them."""

import dataclasses

import pytest

import regtune
from regtune.app.explorer import open_explorer
from regtune.config import RegisterConfig
from tiny_sweep import tiny_sweep
from tiny_tokenizer import save_tiny


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A run with two registers, and one without."""
    folder = tmp_path_factory.mktemp("explored")
    sweep = tiny_sweep(folder)
    data = dataclasses.replace(sweep.base.data, train=(str(folder / "train.json"),), eval=(str(folder / "dev.json"),))
    found = []
    for count in (2, 0):
        registers = RegisterConfig(num_registers=count)
        config = dataclasses.replace(sweep.base, data=data, registers=registers, output_dir=folder / f"n{count}")
        regtune.train(config, progress=False)
        found.append(folder / f"n{count}")
    return found


@pytest.fixture(scope="session")
def explorer(runs):
    return open_explorer(*runs)


@pytest.fixture(scope="session")
def alone(runs):
    return open_explorer(runs[0])


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("classifier"), head="sequence-classification")
    return open_explorer(folder)
