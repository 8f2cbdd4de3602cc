"""Puts a trained run's adapter into the package: half precision, no folder of one machine, scores, a model card.

    regtune train recipes/minilm-questions.yaml
    python recipes/pack_adapter.py runs/minilm-questions

The adapter goes to `src/regtune/models/ready/`, in a folder with the run's name, and with it a card. What the card and
the documentation say comes from `docs/results/NAME`: the run's record, and `evaluation.json`, which is made here with
the packed adapter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import regtune
from regtune.models.loading import READY
from regtune.records import RunRecord, load_record, now, read_predictions, set_name, versions, write_bytes, write_json
from regtune.session import Session
from regtune.tables import Column, Table

ROOT = Path(__file__).resolve().parents[1]
SETS = (
    "../shared/data/tydiqa-goldp/en.dev.json.gz",
    "../shared/data/squad-v1.1/dev.json.gz",
    "../shared/data/noiseqa/asr.json.gz",
    "../shared/data/noiseqa/keyboard.json.gz",
    "../shared/data/noiseqa/translation.json.gz",
)
LIMIT_BYTES = 2_000_000


def pack(run: str | Path, folder: Path) -> dict[str, int]:
    """Saves the adapter of a run in half precision, and counts the answers that this changes.

    Args:
        run: the run directory.
        folder: gets the adapter; what is there goes.

    Returns:
        `bytes` of the weights, and of the run's first evaluation set `examples` and how many answers `changed`.
    """
    session = regtune.open(run)
    examples, record = session.sample(), load_record(Path(run))
    (name, *_) = record.predictions
    before = [row["text"] for row in read_predictions(Path(run), record, name)]
    shutil.rmtree(folder, ignore_errors=True)
    session.model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    packed = regtune.open(folder, task=session.task, settings=session.task_settings)
    after = [one.to_json()["text"] for one in packed.predict(examples)]
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    return {"bytes": file.stat().st_size, "examples": len(examples), "changed": changed}


def scores(session: Session, sets: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
    """Of each set its figures, on all examples or on at most `limit`, spread evenly over it."""
    found = []
    for name in sets:
        count, chosen = len(session.sample([name])), session.sample([name], limit)
        print(f"{set_name(name)}: {len(chosen):,} of {count:,} examples", flush=True)
        figures = session.reads.figures(session.predict(chosen), chosen)
        found.append({"name": set_name(name), "data": name, "examples": len(chosen), "of": count, "metrics": figures})
    return found


def placeless(record: RunRecord, name: str) -> RunRecord:
    """The record without what isn't kept here: the files of the run, and where they were."""
    config = {**record.config, "output_dir": f"runs/{name}"}
    return dataclasses.replace(record, config=config, files={}, predictions={})


def card(name: str, record: RunRecord, evaluation: Mapping[str, Any]) -> str:
    """The model card: what it is, what it learnt from under which licences, what it scores, and how it is used."""
    config, training = record.config, record.training
    facts = (
        ("base model", "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), not in this folder"),
        ("methods", record.label),
        ("weights", f"{evaluation['bytes'] / 1e6:.1f} MB, half precision"),
        ("learnt from", "TyDi QA GoldP English, training set (Apache-2.0; texts of Wikipedia, CC BY-SA 3.0)"),
        ("", "SquadShifts, new Wikipedia (CC BY 4.0; Miller et al. 2020)"),
        ("rows", f"{record.data['train']['rows']:,}"),
        ("epochs", f"{config['training']['epochs']:g}, seed {config['training']['seed']}"),
        ("learning rate", f"{config['training']['learning_rate']:g}"),
        ("registers' rate", f"{config['training']['register_learning_rate']:g}"),
        ("trained in", f"{training['seconds'] / 60:.0f} minutes on one processor core, {training['precision']}"),
        ("config", record.config_hash),
        ("trained on", record.started[:10]),
    )
    rows = [
        (one["name"], one["examples"], one["of"], 100 * one["metrics"]["exact_match"], 100 * one["metrics"]["f1"])
        for one in evaluation["sets"]
    ]
    columns = ("set", Column("questions", ",d"), Column("of", ",d"), Column("EM", ".1f"), Column("F1", ".1f"))
    return f"""---
base_model: sentence-transformers/all-MiniLM-L6-v2
language: en
library_name: peft
license: apache-2.0
pipeline_tag: question-answering
tags: [regtune, registers, lora]
---

# {name}

An adapter (registers and LoRA in one) that answers English questions with a passage of a given text. It comes with
regtune, is opened by its name, and needs `pip install 'regtune[demo]'`; without regtune, peft refuses it.

```sh
regtune ask --question "Who built it?" --context "It was built by Ada."
```

```python
import regtune

answerer = regtune.QuestionAnswerer("{name}")
answerer(question="Who built it?", context="It was built by Ada.").text
```

{Table(columns=("", ""), rows=facts).markdown().strip()}

## Scores

{Table(columns=columns, rows=tuple(rows)).markdown().strip()}

By the rules of SQuAD v1.1, measured with the weights of this folder. One run: how much other seeds differ can't be read
from it. It always gives an answer, also where the text holds none, and a small model's answers are often wrong.

## Licence

Apache-2.0, as regtune. No text of its training data is in this folder.
"""


def main() -> None:
    """Packs, scores and describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, help="score at most so many questions of a set, spread evenly over it")
    args = parser.parse_args()
    name = args.run.resolve().name
    folder, results = READY / name, ROOT / "docs" / "results" / name
    facts = pack(args.run, folder)
    print(json.dumps(facts), flush=True)
    if facts["bytes"] > LIMIT_BYTES:
        raise SystemExit(f"{facts['bytes']:,} bytes; {LIMIT_BYTES:,} are allowed. Take a smaller rank.")
    record = placeless(load_record(Path(args.run)), name)
    session = regtune.open(name)
    evaluation = facts | {"sets": scores(session, SETS, args.limit), "versions": versions(), "finished": now()}
    write_json(results / "run.json", dataclasses.asdict(record))
    write_json(results / "evaluation.json", evaluation)
    write_bytes(folder / "README.md", card(name, record, evaluation).encode())


if __name__ == "__main__":
    main()
