"""What a model says of texts that nobody labelled, for any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regtune.errors import DataError
from regtune.interfaces import Examples, Task
from regtune.noise import noise_of
from regtune.progress import begin_stage, stages
from regtune.rows.reading import perturbed
from regtune.session import open as open_session
from regtune.tasks.files import decoded, read_bytes, records_of


def predict(
    name: str | Path, records: Sequence[Mapping[str, Any]] | str | Path, *, progress: bool = False
) -> list[dict[str, Any]]:
    """The predictions of a run's model, or of any model with a task's head.

    Args:
        name: a run directory, a folder or a hub name.
        records: mappings with what the task reads (most often `text`), or a file of them: JSON lines,
            CSV or TSV with a header, or plain text with a text a line; `noise:KIND=STRENGTH:FILE` perturbs it. An image
            or a folder of them for a model of images.
        progress: say on standard error how far it is.

    Returns:
        One mapping of plain JSON types for each record, in order; `id` is the record's own, or its number.

    Raises:
        CheckpointError: no such model, or one without a head.
        DataError: nothing to predict, or a record without what the task needs.
    """
    with stages(2, shown=progress):
        begin_stage(f"opening {name}")
        session = open_session(name)
        noise, file = noise_of(str(records)) if isinstance(records, (str, Path)) else (None, "")
        given = read_records(Path(file), session.reads) if isinstance(records, (str, Path)) else list(records)
        if not given:
            raise DataError("There is nothing to predict: 0 records. Give at least one.")
        settings = session.task_settings
        items = tuple(session.reads.example({"id": str(index), **one}, settings) for index, one in enumerate(given, 1))
        begin_stage(f"predicting {len(items):,} records")
        examples = Examples(items=items, names=("records",))
        found = session.predict(examples if noise is None else perturbed(session.reads, examples, noise))
    return [one.to_json() for one in found]


def read_records(path: Path, task: Task | None = None) -> list[Mapping[str, Any]]:
    """The records of a `.json`, `.jsonl`, `.csv` or `.tsv` file, `{"text": line}` of others, or of a folder's files.

    Args:
        path: the file or folder.
        task: reads it itself where it reads no texts.
    """
    own = None if task is None else task.records(path)
    if path.is_dir() and own is None:
        files = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
        return [{"id": one.name, "text": decoded(read_bytes(one), str(one), "auto")} for one in files]
    found: list[Mapping[str, Any]] = []
    for record in (each for _, each in records_of(path)) if own is None else own:
        if isinstance(record, DataError):
            raise record
        if record and not (isinstance(record, str) and not record.strip()):
            found.append({"text": record} if isinstance(record, str) else record)
    return found
