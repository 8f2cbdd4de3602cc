"""A sweep of tiny models on six questions: a cell takes a fraction of a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from regtune.config import DataConfig, RunConfig, TrainConfig, config_hash, to_dict
from regtune.methods.used import label_of, methods_of
from regtune.records import RunRecord, load_record, now, save_record, set_name
from regtune.sweeps import run as experiment
from regtune.sweeps.grid import SweepConfig
from tiny_tokenizer import save_questions, save_tiny


def tiny_sweep(folder: Path, *, epochs: float = 1.0, **changes) -> SweepConfig:
    """Two arms and one seed, unless changed; model and questions are put into the folder."""
    if not (folder / "base").is_dir():
        save_tiny(folder / "base")
        save_questions(folder / "train.json", 8)
        save_questions(folder / "dev.json", 6)
    base = RunConfig(
        model=str(folder / "base"),
        data=DataConfig(max_length=64),
        settings={"stride": 16, "max_question_length": 30, "top_k": 2},
        training=TrainConfig(epochs=epochs, batch_size=4, precision="float32"),
    )
    settings = {
        "arms": ("baseline", "registers"),
        "num_registers": (2,),
        "seeds": (0,),
        "training_sets": {"tiny": (str(folder / "train.json"),)},
        "evaluation_sets": (str(folder / "dev.json"),),
        "base": base,
    }
    return SweepConfig(**(settings | changes))


def with_base(sweep: SweepConfig, **changes) -> SweepConfig:
    return dataclasses.replace(sweep, base=dataclasses.replace(sweep.base, **changes))


def fake_runs(monkeypatch) -> list[str]:
    """Replaces training by a record with invented scores; gives the list of the keys that were run, as it grows."""
    keys: list[str] = []

    def fake(config, *, progress=True, inputs=None):
        if experiment.open_run(config.output_dir, config):
            return load_record(config.output_dir)
        keys.append(config.output_dir.name)
        record = invented(config)
        save_record(config.output_dir, record)
        return record

    monkeypatch.setattr(experiment, "run_experiment", fake)
    return keys


def invented(config, *, f1: float | None = None, seconds: float = 100.0) -> RunRecord:
    n = config.registers.num_registers
    scores = {"f1": 0.5 - abs(n - 4) / 100 if f1 is None else f1, "exact_match": 0.4}
    return RunRecord(
        config=to_dict(config),
        config_hash=config_hash(config),
        metrics={set_name(name): scores for name in config.data.eval},
        training={"text_tokens": 1000, "tokens_per_second": 20.0, "resumed_from": None, "seconds": 50.0},
        data={},
        parameters={},
        versions={},
        machine={},
        started=now(),
        seconds=seconds,
        task=config.task,
        methods=[used.describe() for used in methods_of(config)],
        label=label_of(config),
    )
