"""Every method × family × task, alone and with registers: trained, saved, opened, scored; for `regtune methods`.

python tests/methods/conformance.py [METHOD ...]     (from the repository's root; minutes)
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

import regtune
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError, InputError, UnsupportedModelError
from regtune.methods.listing import SUPPORT
from regtune.methods.used import methods_of
from regtune.records import versions
from regtune.registers.surgery import num_registers
from regtune.registry import METHODS
from regtune.session import SharedInputs
from regtune.sweeps.run import build_session, run_experiment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_images import folder_of
from tiny_images import save_tiny as save_images
from tiny_tokenizer import save_questions, save_tiny

KINDS = {"BERT": "bert", "ModernBERT": "modernbert", "DeBERTa": "deberta-v2", "Llama": "llama", "ViT": "vit"}
HEADS = {
    "qa": "question-answering",
    "classify": "sequence-classification",
    "lm": "causal-lm",
    "images": "image-classification",
}
SETS = {"qa": "qa.json", "classify": "classify.csv", "lm": "lm.txt", "images": "pets"}
SETTINGS = {
    "qa": {"stride": 8, "max_question_length": 20},
    "lm": {"stride": 8, "documents": "lines", "max_new_tokens": 0},
}
SMALLER = {"vera": {"r": 8}, "warm_up": {"steps": 2, "batch_size": 4}, "self_distil": {"steps": 2, "batch_size": 4}}
SMALLER["test_time_registers"] = {"sigmas": 1.0, "neurons": 2}
WORKS = "works"


class Cell(NamedTuple):
    method: str
    """A method, or several with `+` between."""
    kind: str
    task: str
    registers: bool

    @property
    def name(self) -> str:
        return f"{self.task}+registers" if self.registers else self.task


def tried() -> list[str]:
    """The methods that can be tried here: all, but QLoRA where its library isn't installed."""
    return [name for name in METHODS if name != "qlora" or find_spec("bitsandbytes")]


def tasks_of(kind: str) -> list[str]:
    """Next tokens are for decoders alone, and images for models that read them."""
    if kind == "ViT":
        return ["images"]
    return [task for task in HEADS if task != "images" and (task != "lm" or kind == "Llama")]


def cells() -> Iterator[Cell]:
    for method in tried():
        for kind in KINDS:
            for task in tasks_of(kind):
                for registers in (True,) if method == "registers" else (False, True):
                    yield Cell(method, kind, task, registers)


def prepare(folder: Path) -> Path:
    """Models and data for all cells."""
    for kind, family in KINDS.items():
        for task in tasks_of(kind):
            save = save_images if task == "images" else save_tiny
            save(folder / f"{family}-{task}", family, head=HEADS[task])
    save_questions(folder / "qa.json", 8)
    folder_of(folder / "pets", classes=("bird", "cat", "dog"), count=2)
    lines = [f"the cat is in house {number},{'ab'[number % 2]}\n" for number in range(8)]
    (folder / "classify.csv").write_text("text,label\n" + "".join(lines))
    (folder / "lm.txt").write_text("".join(line.replace(",", " ") for line in lines))
    return folder


def config_of(cell: Cell, folder: Path) -> RunConfig:
    sets = (str(folder / SETS[cell.task]),)
    return RunConfig(
        model=str(folder / f"{KINDS[cell.kind]}-{cell.task}"),
        output_dir=folder / "run",
        task=cell.task,
        registers=RegisterConfig(num_registers=2 if cell.registers else 0),
        data=DataConfig(train=sets, eval=sets, max_length=40),
        settings=SETTINGS.get(cell.task, {}),
        training=TrainConfig(epochs=1.0, batch_size=4, precision="float32", learning_rate=1e-2, warmup_ratio=0.0),
        methods={name: SMALLER.get(name, {}) for name in cell.method.split("+") if name != "registers"},
    )


def outcome(cell: Cell, folder: Path, inputs: SharedInputs) -> str:
    """`works`, or why the method is refused; anything else is an AssertionError."""
    config = config_of(cell, folder)
    shutil.rmtree(config.output_dir, ignore_errors=True)
    try:
        record = run_experiment(config, progress=False, inputs=inputs)
    except (UnsupportedModelError, ConfigError, InputError) as error:
        if (config.output_dir / "checkpoints").exists():
            raise AssertionError(f"{cell}: refused too late") from error
        return str(error).replace(config.model, cell.kind)
    assert record.training["steps"] == 2
    session = regtune.open(config.output_dir)
    answers = [prediction.to_json() for prediction in session.predict(session.sample())]
    with gzip.open(config.output_dir / next(iter(record.predictions.values()))) as file:
        assert_alike(answers, json.load(file), str(cell))
    built = build_session(config, inputs).model
    assert num_registers(session.model) == num_registers(built)
    start = built.state_dict()
    used = methods_of(config)
    kept = any(each.method.base == "kept" for each in used)
    if kept:
        assert_base_is_kept(cell, session, config)
    if not kept:
        moved = [name for name, value in session.model.state_dict().items() if not torch.equal(value, start[name])]
        assert moved, "nothing learnt"
    return WORKS


def assert_alike(found, expected, cell: str) -> None:
    """JSON values; numbers may differ by what other places in memory make of a sum."""
    for one, other in zip(found, expected, strict=True):
        for key, value in one.items():
            near(value, other[key], f"{cell}: {key}")


def near(value, expected, where: str) -> None:
    if isinstance(value, dict):
        assert value.keys() == expected.keys(), where
        for key in value:
            near(value[key], expected[key], f"{where}.{key}")
    elif isinstance(value, list):
        assert len(value) == len(expected), where
        for one, other in zip(value, expected, strict=True):
            near(one, other, where)
    elif isinstance(value, float):
        assert abs(value - expected) < 1e-5, (where, value, expected)
    else:
        assert value == expected, (where, value, expected)


def assert_base_is_kept(cell: Cell, session, config: RunConfig) -> None:
    """The adapter does something, and without it the base answers bit for bit (in 4 bits: with its own head)."""
    rows = session.rows(session.sample())
    batch = rows.batch(range(3))
    with torch.inference_mode():
        on = first(session.forward(batch))
        with session.model.disable_adapter():
            off = first(session.forward(batch))
    assert not torch.equal(on, off), "the adapter does nothing"
    if "qlora" not in cell.method:
        base = regtune.open(config.model, task=cell.task)
        with torch.inference_mode():
            assert torch.equal(first(base.forward(batch)), off), "disabled is not the base"
    weights = sum(file.stat().st_size for file in (config.output_dir / "model").glob("*.safetensors"))
    assert weights < sum(file.stat().st_size for file in Path(config.model).glob("*.safetensors"))


def first(output):
    return output.start_logits if "start_logits" in output else output.logits


def write(methods: tuple[str, ...] = ()) -> None:
    """Runs the cells of these methods (all by default) and writes `support.json`, method by method."""
    found = json.loads(SUPPORT.read_text())["cells"] if SUPPORT.is_file() else {}
    known = versions()
    kept = {name: known[name] for name in ("torch", "transformers", "peft")}
    with tempfile.TemporaryDirectory() as name:
        folder, inputs = prepare(Path(name)), SharedInputs()
        for method in methods or tried():
            found[method] = {}
            for cell in (cell for cell in cells() if cell.method == method):
                said = outcome(cell, folder, inputs)
                print(*cell, said, flush=True)
                found[method].setdefault(cell.kind, {})[cell.name] = said
            ordered = {each: found[each] for each in METHODS if each in found}
            SUPPORT.write_text(json.dumps({"versions": kept, "cells": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    write(tuple(sys.argv[1:]))
