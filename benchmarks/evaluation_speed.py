"""How long does it take to answer and score all of SQuAD v1.1's dev set with MiniLM and eight registers?

Untrained heads, on which the time doesn't depend; the precision of training, as a sweep's cells evaluate. Reading and
tokenising are timed apart: the cells of a sweep share them.

python benchmarks/evaluation_speed.py [--data FILE] [--registers 8]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from minilm_windows import minilm
from record import write_result

from regtune.models.loading import MINILM, load_tokenizer
from regtune.models.precision import resolve_precision
from regtune.session import around
from regtune.tasks.qa.settings import QASettings

SQUAD = Path("../shared/data/squad-v1.1/dev.json.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SQUAD)
    parser.add_argument("--registers", type=int, default=8)
    asked = parser.parse_args()
    if not asked.data.is_file():
        sys.exit(f"{asked.data} is missing; name a SQuAD-format evaluation file with --data.")
    session = around(minilm(asked.registers), load_tokenizer(MINILM))
    session.task_settings = QASettings(max_length=384, stride=128, on_long_question="truncate")
    session.precision = resolve_precision("auto", session.device)
    began = time.perf_counter()
    examples = session.sample((str(asked.data),))
    rows = session.rows(examples)
    prepared = time.perf_counter()
    predictions = session.predict(examples, rows)
    answered = time.perf_counter()
    assert session.task is not None
    session.task.figures(predictions, examples)
    scored = time.perf_counter()
    path = write_result(
        "evaluation_speed",
        {
            "questions": len(examples),
            "windows": len(rows),
            "num_registers": asked.registers,
            "precision": session.precision,
            "seconds_reading_and_tokenising": round(prepared - began, 2),
            "seconds_answering": round(answered - prepared, 2),
            "seconds_scoring": round(scored - answered, 2),
            "limit_seconds": 100,
        },
    )
    print(f"{answered - prepared:.1f} s answering, {scored - answered:.1f} s scoring", path)


if __name__ == "__main__":
    main()
