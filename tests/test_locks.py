"""One process writes to a run's folder at a time, and the other is told so."""

from __future__ import annotations

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import regtune
from regtune.errors import CheckpointError
from regtune.locks import lock_holder, owned
from regtune.sweeps.run import run_experiment
from tiny_sweep import tiny_sweep

HOLDER = """
import sys, time
from pathlib import Path
from regtune.locks import owned
with owned(Path(sys.argv[1]), "regtune train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_a_folder_is_refused_with_the_process_that_has_it(tmp_path):
    config = tiny_sweep(tmp_path).cells()[0].config
    config = dataclasses.replace(config, output_dir=tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(
            CheckpointError, match=rf"Another regtune train is at work .*process {holder.pid} on .*Wait"
        ):
            run_experiment(config, progress=False)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", ".lock.holder"]
        holder.kill()
    assert lock_holder(tmp_path / "run" / ".lock") is None


def test_partners_of_one_training_do_not_lock_each_other_out(tmp_path, monkeypatch):
    with owned(tmp_path, "regtune train"):
        assert lock_holder(tmp_path / ".lock").pid == os.getpid()
        monkeypatch.setenv("RANK", "1")
        with owned(tmp_path, "regtune train"):
            pass


def test_no_part_of_regtune_imports_at_start_what_windows_lacks():
    names = {"fcntl", "resource", "pwd", "grp", "termios"}
    files = list(Path(regtune.__file__).parent.rglob("*.py"))
    starts = [(file, node) for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    found = {alias.name for _, node in starts if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for _, node in starts if isinstance(node, ast.ImportFrom)}
    assert "pathlib" in found
    assert not found & names
