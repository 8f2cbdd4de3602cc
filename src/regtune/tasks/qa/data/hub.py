"""Rows of Hugging Face hub data sets, through the same strict checks as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from regtune.errors import DataError, MissingExtraError
from regtune.tasks.qa.data.squad_record import RecordCollector


def collect_hub(
    collector: RecordCollector,
    path: str,
    *,
    config: str | None,
    split: str,
    revision: str | None = None,
    id_prefix: str = "",
    empty_is_impossible: bool = False,
) -> None:
    """Downloads one split of a hub data set (or takes it from the cache) and adds its questions to the collector.

    No code from the hub is ever run: the sets are read from their Parquet files.

    Args:
        collector: takes the questions.
        path: the repository, `owner/name`.
        config: its configuration (sub-set), if it has several.
        split: the split.
        revision: branch or commit to read instead of `main`.
        id_prefix: keep only the questions whose id starts with this.
        empty_is_impossible: a question without answers is one that has none (SQuAD v2.0).

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: the set cannot be loaded, a record is bad, or no id has the prefix.
    """
    name = f"hub:{path}[{'/'.join(filter(None, (config, split)))}]"
    rows = _download(name, path, config, split, revision)
    collect_rows(collector, rows, name, id_prefix=id_prefix, empty_is_impossible=empty_is_impossible)


def collect_rows(
    collector: RecordCollector,
    rows: Iterable[Mapping[str, Any]],
    name: str,
    *,
    id_prefix: str = "",
    empty_is_impossible: bool = False,
) -> None:
    """Adds rows with the hub's SQuAD columns (`id`, `question`, `context`, `answers`, `title`) to the collector.

    `answers` is a mapping of the lists `text` and `answer_start`, or a list of mappings with both.

    Raises:
        DataError: as `collect_hub`.
    """
    before, last = collector.count, None
    for index, row in enumerate(rows):
        last = row.get("id")
        # A row without a usable id must reach the checks rather than be filtered away.
        if isinstance(last, str) and not last.startswith(id_prefix):
            continue
        record = {**row, "answers": _answer_list(row["answers"])} if "answers" in row else row
        collector.add(record, file=name, item=f"row[{index}]", empty_is_impossible=empty_is_impossible)
    if collector.count == before:
        wanted = f" whose id starts with {id_prefix!r} (the last id is {last!r})" if id_prefix else ""
        raise DataError(f"{name} holds no question{wanted}. Has the data set changed? Try a file instead.")


def _answer_list(answers: Any) -> Any:
    """The hub's columns as SQuAD's list of answers; anything else stays as it is, for the checks to name."""
    if not isinstance(answers, Mapping):
        return answers
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return answers
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _download(name: str, path: str, config: str | None, split: str, revision: str | None) -> Iterable[Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", f"Loading {name}") from error
    try:
        rows: Iterable[Any] = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:
        # The library raises a dozen kinds of error here, network and format alike; all mean the same to the user.
        detail = f"{type(error).__name__}: {error}".strip()
        raise DataError(
            f"{name} cannot be loaded ({detail}). Check the network (or HF_HUB_OFFLINE and the cache), or "
            "download the set and give the path of its SQuAD-format .json file instead."
        ) from error
    return rows
