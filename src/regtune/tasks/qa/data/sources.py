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

from regtune.errors import ConfigError, DataError, shown, unknown_name
from regtune.interfaces import Examples
from regtune.tasks.files import MAX_UNPACKED, hub_rows, parse_json, read_bytes
from regtune.tasks.qa.data.records import OnBadRecord, OnDuplicateId, RecordCollector
from regtune.tasks.qa.data.squad import collect_parsed


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
        rows = hub_rows(name, self.repository, config or None, split=split, revision=self.revision)
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


def load_questions(
    names: str | Path | Sequence[str | Path],
    *,
    on_bad_record: OnBadRecord = "raise",
    max_examples: int | None = None,
    on_duplicate_id: OnDuplicateId = "refuse",
    for_training: bool = True,
    max_bytes: int = MAX_UNPACKED,
) -> Examples:
    """Loads the questions of one or several data sets, in order, and checks every question.

    A file is `.json`, `.jsonl` or either with `.gz`; its shape (SQuAD, MRQA, CMRC, rows) is found from the content. A
    record is bad when a field is missing or of the wrong type, a question or context is empty, no answer is usable, or
    its id was used before (in any set). An answer is usable when it has a text and, in training, an offset that gives
    it. Beside a usable one, answers without a text are left out and answers with a wrong offset keep their text alone
    (`start` is None). Ids and offsets of another type, `is_impossible` as a number or text, and missing ids are
    converted. All of that is counted. `plausible_answers` and unknown fields are ignored.

    Args:
        names: files, or names such as `embedded:train`, `tydiqa:train:english`, `tydiqa:dev:finnish`, `xquad:en`,
            `squad:train`, `squad_v2:validation`, `mlqa:dev:en.de` (the hub's need the extra `hub` and, the first time,
            a network).
        on_bad_record: "raise" at the first bad record; "skip": leave it out and list it in `skipped`; "mend": move a
            wrong offset to the only near occurrence of its answer (within 3 characters, or where it counts UTF-16
            units or UTF-8 bytes; case and kinds of space may differ), list that too, and skip what stays bad.
        max_examples: keep only the first so many questions of all sets together.
        on_duplicate_id: "refuse" a second use of an id, or "renumber" it (`id#2`).
        for_training: False where answers are only compared with: their text is enough then.
        max_bytes: most bytes that a gzip file may unpack to.

    Returns:
        The questions (`QAExample`), and the account: `notes` in words, `facts` with every record that was left out
        (`skipped`) or moved (`mended`).

    Raises:
        ConfigError: an unknown name (the nearest one is suggested), a name without all its parts, a set named twice,
            or no names at all.
        DataError: a bad record (unless skipped), a file that cannot be read, is broken, is of no known shape or holds
            no question, or a hub set that cannot be loaded; the message names the place and what to do.
        MissingExtraError: a hub set is named and `datasets` is not installed.
    """
    asked = [str(name) for name in ([names] if isinstance(names, str | Path) else names)]
    if not asked:
        raise ConfigError(f"No data set is named. Give a file or one of {_patterns()}.")
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples={max_examples} must be at least 1, or unset.")
    collector = RecordCollector(on_bad_record, on_duplicate_id, for_training=for_training)
    resolved = [_resolve(name) for name in asked]
    _refuse_repeats(asked, resolved)
    for name, (source, parts) in zip(asked, resolved, strict=True):
        if source is None:
            collect_parsed(parse_json(read_bytes(Path(name), max_bytes), name), name, collector)
        else:
            source.load(parts, collector)
    return collector.finish(asked, max_examples)


def language_of(name: str) -> str:
    """The language of a data set's contexts as an ISO 639-1 code, without loading it; empty where unknown.

    A file's is guessed from its name (`xquad.de.json.gz`, `fi.dev.json`).

    Raises:
        ConfigError: as `load_questions`.
    """
    source, parts = _resolve(name)
    return _language_of_file(name) if source is None else source.languages[source.language.format(**parts)]


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
            collector.reject(f"id must be text, but it is {shown(last)}.", f"{name}: row[{index}]")
        elif not id_prefix or str(last).startswith(id_prefix):
            collector.add(row, f"{name}: row[{index}]", empty_is_impossible=empty_is_impossible)
    if collector.count == before:
        wanted = f" whose id starts with {id_prefix!r} (the last id is {shown(last)})" if id_prefix else ""
        raise DataError(f"{name} holds no question{wanted}. Has the data set changed? Try a file instead.")
