"""Small sweeps of made-up records: no model, no training, any effect one likes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig, config_hash, to_dict
from regtune.methods.used import label_of, methods_of
from regtune.records import CONFIG_FILE, CURVE_FILE, RunRecord, save_record, set_name, write_json

QUESTIONS = 200
SETS = ("tydiqa-goldp/en.dev.json.gz", "xquad/xquad.en.json.gz")
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {"registers": {"num_registers": 0}},
    "registers": {},
    "random": {"registers": {"trainable": False}},
    "sep": {"registers": {"trainable": False, "init": "sep"}},
    "mask": {"registers": {"trainable": False, "init": "mask"}},
    "every_layer": {"registers": {"depth": "every_layer"}},
    "frozen": {"methods": {"linear_probe": {}}},
    "warm_up": {"methods": {"warm_up": {"steps": 100}}},
    "warm_up_control": {"registers": {"num_registers": 0}, "methods": {"warm_up": {"steps": 100}}},
}


def config_of(arm: str, num_registers: int, seed: int, *, sets: tuple[str, ...] = SETS, **training: Any) -> RunConfig:
    changes = ARMS[arm]
    return RunConfig(
        registers=RegisterConfig(**({"num_registers": num_registers} | changes.get("registers", {}))),
        data=DataConfig(train=("en.train.json.gz",), eval=sets),
        training=TrainConfig(seed=seed, data_seed=seed, **changes.get("training", {}), **training),
        methods=changes.get("methods", {}),
    )


def write_cell(
    folder: Path,
    config: RunConfig,
    *,
    effect: float | dict[str, float] = 0.0,
    questions: int = QUESTIONS,
    drop: int = 0,
    texts: dict[int, str] | None = None,
    prefix: str = "q",
    versions: dict[str, str] | None = None,
) -> Path:
    """A finished run whose chance of a right answer is 0.5 + effect, the same or set by set; all share difficulty."""
    run_dir = folder / config_hash(config)
    seed = config.training.seed
    metrics, files, data = {}, {}, {"train": {"examples": 400}}
    for number, source in enumerate(config.data.eval):
        name = set_name(source)
        difficulty = np.random.default_rng(number).normal(0, 1.0, questions)
        noise = np.random.default_rng([seed, number, config.registers.num_registers]).normal(0, 0.6, questions)
        luck = np.random.default_rng([seed, 99]).normal(0, 0.02)
        shift = effect.get(name, 0.0) if isinstance(effect, dict) else effect
        ability = difficulty + noise + 2.5 * (shift + luck)
        exact = (ability > 0.3).astype(float)
        f1 = np.where(exact > 0, 1.0, np.where(ability > -0.4, 0.5, 0.0))
        rows = [
            {
                "id": f"{prefix}{i}",
                "text": (texts or {}).get(i, f"{'right' if exact[i] else 'wrong'} answer {i}"),
                "exact_match": float(exact[i]),
                "f1": float(f1[i]),
            }
            for i in range(questions - drop)
        ]
        files[name] = f"predictions/{name}.json.gz"
        write_json(run_dir / files[name], rows)
        metrics[name] = {"exact_match": float(exact.mean()), "f1": float(f1.mean())}
        data[name] = {"examples": questions}
    first = next(iter(metrics.values()))
    curve = [{"step": s, "epoch": s / 100, "loss": 4 / (1 + s / 60) + 0.05 * seed} for s in range(10, 301, 10)]
    for share, row in ((0.9, curve[9]), (0.97, curve[19]), (1.0, curve[29])):
        row |= {key: share * value for key, value in first.items()}
    write_json(run_dir / CURVE_FILE, curve)
    write_json(run_dir / CONFIG_FILE, to_dict(dataclasses.replace(config, output_dir=Path("."))))
    count = config.registers.num_registers
    save_record(
        run_dir,
        RunRecord(
            config=to_dict(config),
            config_hash=config_hash(config),
            metrics=metrics,
            training={
                "steps": 300,
                "checkpoint": {"rule": "last", "step": 300},
                "seconds": 300.0 + count,
                "tokens_per_second": 4000.0 - 5 * count,
                "peak_memory_bytes": 2**31,
                "device": "cpu",
                "precision": "bfloat16",
            },
            data=data,
            parameters={"total": 22_000_000 + 768 * count, "trainable": 22_000_000, "registers": 768 * count},
            versions={"python": "3.11", "regtune_source": "0123456789ab", "torch": "2.13"} | (versions or {}),
            machine={"processor": "synthetic", "cores": 2, "memory_bytes": 2**33, "accelerator": None},
            predictions=files,
            started="2026-01-01T00:00:00+00:00",
            seconds=320.0,
            task=config.task,
            methods=[used.describe() for used in methods_of(config)],
            label=label_of(config),
        ),
    )
    return run_dir


def write_plan(folder: Path, *cells: tuple[Any, ...], best: dict[str, int] | None = None, **sweep: Any) -> None:
    """`sweep.json` with planned cells: key, arm, N, seed and training set of each."""
    keys = ("key", "arm", "num_registers", "seed", "training_set")
    content = {"schema_version": 1, "sweep": sweep, "cells": [dict(zip(keys, cell, strict=True)) for cell in cells]}
    write_json(folder / "sweep.json", content | {"best_num_registers": best or {}})


def write_sweep(
    folder: Path,
    *,
    counts: tuple[int, ...] = (0, 4, 16),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    effects: dict[int, float | dict[str, float]] | None = None,
    controls: tuple[str, ...] = (),
    sets: tuple[str, ...] = SETS,
    questions: int = QUESTIONS,
) -> Path:
    """Cells for every N and seed; `effects` maps N to a shift of ability; controls run at the last N."""
    for seed in seeds:
        for count in counts:
            config = config_of("registers" if count else "baseline", count, seed, sets=sets)
            write_cell(folder, config, effect=(effects or {}).get(count, 0.0), questions=questions)
        for control in controls:
            write_cell(folder, config_of(control, counts[-1], seed, sets=sets), questions=questions)
    return folder
