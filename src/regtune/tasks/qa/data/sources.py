"""Data sets by name: the table of all of them, and the one entry that training and the command line use."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regtune.errors import ConfigError, unknown_name
from regtune.tasks.qa.data import embedded, mlqa, squad_hub, tydiqa, xquad
from regtune.tasks.qa.data.data_source import DataSource
from regtune.tasks.qa.data.squad import collect_files
from regtune.tasks.qa.data.squad_record import OnBadRecord, OnDuplicateId, RecordCollector, SquadData

DATASETS: Mapping[str, DataSource] = {
    source.prefix: source
    for source in (
        embedded.SOURCE,
        mlqa.SOURCE,
        squad_hub.SOURCE_V1,
        squad_hub.SOURCE_V2,
        tydiqa.SOURCE,
        xquad.SOURCE,
    )
}
"""Every named data set by its prefix; a new one is a file with a `SOURCE` and a line here."""

_LANGUAGES = frozenset({*tydiqa.LANGUAGES.values(), *mlqa.LANGUAGES, *xquad.LANGUAGES})


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What tables and records say about a data set. `language` is an ISO 639-1 code, empty where unknown."""

    name: str
    language: str
    licence: str
    source: str


def load_questions(
    names: Sequence[str],
    *,
    on_bad_record: OnBadRecord = "raise",
    max_examples: int | None = None,
    on_duplicate_id: OnDuplicateId = "refuse",
) -> SquadData:
    """Loads the questions of one or several data sets, in order, through the checks of `read_squad`.

    Args:
        names: SQuAD-format files (`.json`, `.json.gz`), or names such as `embedded:train`, `tydiqa:train:english`,
            `tydiqa:dev:finnish`, `xquad:en`, `squad:train`, `squad_v2:validation`, `mlqa:dev:en.de` (the hub's need
            the extra `hub` and, the first time, a network).
        on_bad_record: "raise" at the first bad record, or "skip" and list it.
        max_examples: keep only the first so many questions of all sets together.
        on_duplicate_id: "refuse" an id that is used twice, within a set or between sets, or "renumber" it.

    Raises:
        ConfigError: an unknown name (the nearest one is suggested), a name without all its parts, a set named twice,
            or no names at all.
        DataError: as `read_squad`, and when a hub set cannot be loaded.
        MissingExtraError: a hub set is named and `datasets` is not installed.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ConfigError(f"No data set is named. Give a file or one of {_patterns()}.")
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples={max_examples} must be at least 1, or unset.")
    collector = RecordCollector(on_bad_record, on_duplicate_id)
    resolved = [_resolve(name) for name in names]
    _refuse_repeats(names, resolved)
    for name, (source, parts) in zip(names, resolved, strict=True):
        if source is None:
            collect_files([name], collector)
        else:
            source.load(parts, collector)
    return collector.finish(max_examples)


def dataset_info(name: str) -> DatasetInfo:
    """Language, licence and source of a data set, without loading it.

    A file's language is guessed from its name (`xquad.de.json.gz`, `fi.dev.json`) and empty where that says nothing;
    in MLQA's names it is the language of the context.

    Raises:
        ConfigError: as `load_questions`.
    """
    source, parts = _resolve(name)
    if source is None:
        return DatasetInfo(name=name, language=_language_of_file(name), licence="", source=f"file {Path(name).name}")
    return DatasetInfo(name=name, language=source.language(parts), licence=source.licence, source=source.source)


def language_of(name: str) -> str:
    """The language of a data set's contexts as an ISO 639-1 code; empty where unknown. Raises as `dataset_info`."""
    return dataset_info(name).language


def _resolve(name: str) -> tuple[DataSource | None, dict[str, str]]:
    """The source behind a name and the parts of the name; no source for a file."""
    prefix = name.partition(":")[0]
    if prefix in DATASETS and not _looks_like_path(name):
        return DATASETS[prefix], DATASETS[prefix].parse(name)
    if _looks_like_path(name) or Path(name).is_file():
        return None, {}
    if ":" in name:
        raise unknown_name(f"data set {name!r}:", prefix, DATASETS)
    raise unknown_name("data set (and no such file)", name, [source.pattern for source in DATASETS.values()])


def _looks_like_path(name: str) -> bool:
    return "/" in name or os.sep in name or name.endswith((".json", ".gz"))


def _refuse_repeats(names: Sequence[str], resolved: Sequence[tuple[DataSource | None, dict[str, str]]]) -> None:
    first: dict[tuple[str, ...], str] = {}
    for name, (source, parts) in zip(names, resolved, strict=True):
        key = (source.prefix, *parts.values()) if source else ("file", os.path.realpath(name.replace("\0", "")))
        if key in first:
            raise ConfigError(f"The data set {name!r} is named twice (also as {first[key]!r}). Name every set once.")
        first[key] = name


def _language_of_file(name: str) -> str:
    words = re.split(r"[._\-]", Path(name).name.lower())
    if "context" in words[:-1]:
        words = [words[words.index("context") + 1]]
    found = {word for word in words if word in _LANGUAGES}
    return found.pop() if len(found) == 1 else ""


def _patterns() -> str:
    return ", ".join(source.pattern for source in DATASETS.values())
