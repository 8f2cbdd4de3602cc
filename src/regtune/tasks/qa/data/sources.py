"""Data sets by name: the table of all of them, and the one entry that training and the command line use.

A new set is an entry of `DATASETS`. Hub sets are read from their Parquet files; no code from the hub is ever run. Their
rows pass the same checks as files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from regtune.errors import ConfigError, DataError, MissingExtraError, shown, unknown_name
from regtune.tasks.qa.data.files import MAX_UNPACKED, parse_json
from regtune.tasks.qa.data.records import OnBadRecord, OnDuplicateId, RecordCollector, SquadData
from regtune.tasks.qa.data.squad import collect_files, collect_parsed


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set that is loaded by name: its prefix, then its parts, with colons between (`tydiqa:dev:finnish`).

    Texts with `{part}` are filled in with the parts of the name.
    """

    prefix: str
    parts: Mapping[str, Mapping[str, str]]
    """For each further part, in order: what may be written, and the source's own word for it."""
    licence: str
    source: str
    """Where it comes from, for records and tables."""
    language: str
    """The language of the contexts and answers: an ISO 639-1 code, or the part that tells it."""
    languages: Mapping[str, str]
    """ISO 639-1 codes by what that part (or `language` itself) says."""
    repository: str = ""
    """On the hub, `owner/name`; without one the set is inside the package."""
    config: str = ""
    split: str = "{split}"
    revision: str | None = None
    id_prefix: str = ""
    """Keep only the questions whose id starts with this."""
    empty_is_impossible: bool = False
    """A question without answers is one that has none (SQuAD v2.0)."""

    @property
    def pattern(self) -> str:
        """How its names look, for messages."""
        return ":".join([self.prefix, *(f"<{part}>" for part in self.parts)])

    def parse(self, name: str) -> dict[str, str]:
        """The parts of a name, in the source's own words.

        Raises:
            ConfigError: a part is missing, left over or unknown; the message lists what there is.
        """
        given = name.split(":")[1:]
        if len(given) != len(self.parts):
            choices = "; ".join(f"{part}: {', '.join(known)}" for part, known in self.parts.items())
            raise ConfigError(f"The data set {shown(name)} must be written {self.pattern}, with {choices}.")
        parts = {}
        for (part, known), value in zip(self.parts.items(), given, strict=True):
            if value not in known:
                raise unknown_name(f"{part} in {shown(name)}:", value, known)
            parts[part] = known[value]
        return parts

    def language_of(self, parts: Mapping[str, str]) -> str:
        """The ISO 639-1 code of the contexts and answers."""
        return self.languages[self.language.format(**parts)]

    def load(self, parts: Mapping[str, str], collector: RecordCollector) -> None:
        """Adds every question of the set to the collector.

        Raises:
            MissingExtraError: it is on the hub and `datasets` is not installed.
            DataError: the set cannot be loaded, a record is bad, or no id has the prefix.
        """
        split, config = self.split.format(**parts), self.config.format(**parts)
        if not self.repository:
            name = f"{self.prefix}/{split}.json"
            raw = resources.files("regtune.tasks.qa.data").joinpath(name).read_bytes()
            collect_parsed(parse_json(raw, name), name, collector)
            return
        name = f"hub:{self.repository}[{'/'.join(filter(None, (config, split)))}]"
        rows = _download(name, self.repository, config or None, split, self.revision)
        collect_rows(
            collector,
            rows,
            name,
            id_prefix=self.id_prefix.format(**parts),
            empty_is_impossible=self.empty_is_impossible,
        )


def _same(*words: str) -> dict[str, str]:
    """A table in which each of these words stands for itself."""
    return {word: word for word in words}


_TRAIN_DEV = {"train": "train", "dev": "validation", "validation": "validation"}
_ENGLISH = {"en": "en"}
_TYDIQA = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
}
_XQUAD = _same("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
_MLQA = ("ar", "de", "en", "es", "hi", "vi", "zh")
_MLQA_PAIRS = {f"{context}.{question}": context for context in _MLQA for question in _MLQA}

DATASETS: Mapping[str, DataSource] = {
    source.prefix: source
    for source in (
        # Short English passages and questions, inside the package; the splits have no passage in common.
        DataSource(
            prefix="embedded",
            parts={"split": _same("train", "dev")},
            licence="Apache-2.0",
            source="written for regtune",
            language="en",
            languages=_ENGLISH,
        ),
        # Parallel questions, context and question in the same language or not; for evaluation. `mlqa:dev:en.de` has
        # English contexts, answers and metric. The main branch holds only a script: take the hub's own Parquet.
        DataSource(
            prefix="mlqa",
            parts={
                "split": {"dev": "validation", "validation": "validation", "test": "test"},
                "pair": _same(*_MLQA_PAIRS),
            },
            licence="CC BY-SA 3.0",
            source="facebook/mlqa (Lewis et al., 2020)",  # arXiv 1910.07475
            language="{pair}",
            languages=_MLQA_PAIRS,
            repository="facebook/mlqa",
            config="mlqa.{pair}",
            revision="refs/convert/parquet",
        ),
        # English Wikipedia: train 87,599, dev 10,570.
        DataSource(
            prefix="squad",
            parts={"split": _TRAIN_DEV},
            licence="CC BY-SA 4.0",
            source="rajpurkar/squad (Rajpurkar et al., 2016)",  # arXiv 1606.05250
            language="en",
            languages=_ENGLISH,
            repository="rajpurkar/squad",
        ),
        # The same with questions that have no answer: train 130,319, dev 11,873.
        DataSource(
            prefix="squad_v2",
            parts={"split": _TRAIN_DEV},
            licence="CC BY-SA 4.0",
            source="rajpurkar/squad_v2 (Rajpurkar et al., 2018)",  # arXiv 1806.03822
            language="en",
            languages=_ENGLISH,
            repository="rajpurkar/squad_v2",
            empty_is_impossible=True,
        ),
        # The secondary task (GoldP): train 49,881, dev 5,077 in all languages; English 3,696 and 440. The language is
        # the first part of an id (`english-588…-2`). Some copies cut the ids short: on_duplicate_id="renumber".
        DataSource(
            prefix="tydiqa",
            parts={"split": _TRAIN_DEV, "language": _same(*_TYDIQA)},
            licence="Apache-2.0 (text CC BY-SA 3.0)",
            source="google-research-datasets/tydiqa, secondary_task (Clark et al., 2020)",  # arXiv 2003.05002
            language="{language}",
            languages=_TYDIQA,
            repository="google-research-datasets/tydiqa",
            config="secondary_task",
            id_prefix="{language}-",
        ),
        # 1,190 questions of SQuAD dev, translated by people; for evaluation. All languages share their ids. English is
        # a part of SQuAD dev: never train on one and test on the other.
        DataSource(
            prefix="xquad",
            parts={"language": _XQUAD},
            licence="CC BY-SA 4.0",
            source="google/xquad (Artetxe et al., 2020)",  # arXiv 1910.11856
            language="{language}",
            languages=_XQUAD,
            repository="google/xquad",
            config="xquad.{language}",
            split="validation",
        ),
    )
}
"""Every named data set by its prefix."""

_LANGUAGES = frozenset({*_TYDIQA.values(), *_MLQA, *_XQUAD})


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
    for_training: bool = True,
    max_bytes: int = MAX_UNPACKED,
) -> SquadData:
    """Loads the questions of one or several data sets, in order, through the checks of `read_squad`.

    Args:
        names: files of questions as `read_squad` takes them, or names such as `embedded:train`, `tydiqa:train:english`,
            `tydiqa:dev:finnish`, `xquad:en`, `squad:train`, `squad_v2:validation`, `mlqa:dev:en.de` (the hub's need
            the extra `hub` and, the first time, a network).
        on_bad_record: "raise" at the first bad record, "skip" and list it, or "mend" near offsets.
        max_examples: keep only the first so many questions of all sets together.
        on_duplicate_id: "refuse" an id that is used twice, within a set or between sets, or "renumber" it.
        for_training: False where answers are only compared with: their text is enough then.
        max_bytes: most bytes that a gzip file may unpack to.

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
    collector = RecordCollector(on_bad_record, on_duplicate_id, for_training=for_training)
    resolved = [_resolve(name) for name in names]
    _refuse_repeats(names, resolved)
    for name, (source, parts) in zip(names, resolved, strict=True):
        if source is None:
            collect_files([name], collector, max_bytes)
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
    return DatasetInfo(name=name, language=source.language_of(parts), licence=source.licence, source=source.source)


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
        raise unknown_name(f"data set {shown(name)}:", prefix, DATASETS)
    raise unknown_name("data set (and no such file)", name, [source.pattern for source in DATASETS.values()])


def _looks_like_path(name: str) -> bool:
    return "/" in name or os.sep in name or name.endswith((".json", ".jsonl", ".gz"))


def _refuse_repeats(names: Sequence[str], resolved: Sequence[tuple[DataSource | None, dict[str, str]]]) -> None:
    first: dict[tuple[str, ...], str] = {}
    for name, (source, parts) in zip(names, resolved, strict=True):
        key = (source.prefix, *parts.values()) if source else ("file", os.path.realpath(name.replace("\0", "")))
        if key in first:
            raise ConfigError(
                f"The data set {shown(name)} is named twice (also as {shown(first[key])}). Name every set once."
            )
        first[key] = name


def _language_of_file(name: str) -> str:
    words = re.split(r"[._\-]", Path(name).name.lower())
    if "context" in words[:-1]:
        words = [words[words.index("context") + 1]]
    found = {word for word in words if word in _LANGUAGES}
    return found.pop() if len(found) == 1 else ""


def _patterns() -> str:
    return ", ".join(source.pattern for source in DATASETS.values())


def collect_rows(
    collector: RecordCollector,
    rows: Iterable[Mapping[str, Any]],
    name: str,
    *,
    id_prefix: str = "",
    empty_is_impossible: bool = False,
) -> None:
    """Adds rows with the hub's columns (`id`, `question`, `context`, `answers`, `title`); raises as `DataSource.load`.

    With `id_prefix` only the questions whose id starts with it are kept.
    """
    before, last = collector.count, None
    for index, row in enumerate(rows):
        last = row.get("id")
        if id_prefix and not isinstance(last, str):
            collector.reject(f"id must be text, but it is {shown(last)}.", file=name, item=f"row[{index}]")
        elif not id_prefix or str(last).startswith(id_prefix):
            collector.add(row, file=name, item=f"row[{index}]", empty_is_impossible=empty_is_impossible)
    if collector.count == before:
        wanted = f" whose id starts with {id_prefix!r} (the last id is {shown(last)})" if id_prefix else ""
        raise DataError(f"{name} holds no question{wanted}. Has the data set changed? Try a file instead.")


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
