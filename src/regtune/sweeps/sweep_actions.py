"""What `regtune sweep` can be asked to do with a recipe and a folder, each giving a text for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from regtune.errors import ConfigError
from regtune.records import read_json
from regtune.sweeps.estimate import plan_text
from regtune.sweeps.export import export_cells
from regtune.sweeps.grid import SweepConfig, load_sweep
from regtune.sweeps.ray import ClusterConfig
from regtune.sweeps.search import search_learning_rates
from regtune.sweeps.sweep import Engine, check_folder, outcome_text, plan_lines, plan_sweep, run_sweep


class Report(NamedTuple):
    """What to print, and whether all went well."""

    text: str
    healthy: bool = True


def carry_out(
    recipe: str,
    folder: Path | None = None,
    *,
    dry_run: bool = False,
    search: bool = False,
    search_only: bool = False,
    export: Path | None = None,
    engine: Engine = "local",
    cluster: ClusterConfig | None = None,
) -> Report:
    """Runs a sweep recipe, or one part of the work.

    Args:
        recipe: the YAML file, or the name of one in `./recipes`.
        folder: the sweep's folder; `runs/NAME-OF-THE-RECIPE` by default.
        dry_run: list the cells and how long they will take, and do nothing.
        search: search for learning rates first.
        search_only: and do nothing else.
        export: copy the finished cells there, small, and do nothing else.
        engine: as in `run_sweep`.
        cluster: as in `run_sweep`.

    Raises:
        ConfigError: two of the things to do instead are asked for; and as `load_sweep` and `run_sweep`.
    """
    if sum((dry_run, search_only, export is not None)) > 1:
        raise ConfigError("--dry-run, --search-only and --export each do one thing alone; give one of them.")
    sweep = load_sweep(recipe)
    folder = folder or Path("runs") / Path(recipe).stem
    if dry_run:
        plan, waiting = plan_sweep(sweep, folder)
        return Report("\n".join([*plan_lines(sweep, folder), plan_text(plan, waiting=waiting)]))
    if export is not None:
        return _export(folder, export)
    if search or search_only:
        found = _search(sweep, folder)
        if search_only:
            return Report(found)
    outcome = run_sweep(sweep, folder, engine=engine, cluster=cluster)
    return Report("\n".join([outcome_text(outcome), *plan_lines(sweep, folder)]), not outcome.failed)


def _export(folder: Path, target: Path) -> Report:
    cells, left_out = export_cells(folder, target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    lines = [f"{len(cells)} cells in {target}, {size / 1e6:.1f} MB."]
    if left_out:
        lines += [f"{len(left_out)} of {len(cells) + len(left_out)} finished cells are left out:"]
        lines += [f"{name}: {why}" for name, why in left_out.items()]
    return Report("\n".join(lines), not left_out)


def _search(sweep: SweepConfig, folder: Path) -> str:
    check_folder(sweep, folder)
    path = search_learning_rates(sweep, folder)
    best = read_json(path)["best"]
    return "\n".join([*(f"{arm}: {json.dumps(rates)}" for arm, rates in best.items()), f"All rates: {path}"])
