"""XQuAD: 1,190 questions of SQuAD v1.1 dev, translated by people into eleven languages (evaluation only).

Artetxe et al., 2020 (arXiv 1910.11856). CC BY-SA 4.0. One split. All languages share their ids, so they are loaded one
by one; English is a subset of SQuAD dev, never train on one and test on the other.
"""

from __future__ import annotations

from regtune.tasks.qa.data.data_source import DataSource, Parts, same
from regtune.tasks.qa.data.hub import collect_hub
from regtune.tasks.qa.data.squad_record import RecordCollector

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")


def _load(parts: Parts, collector: RecordCollector) -> None:
    collect_hub(collector, "google/xquad", config=f"xquad.{parts['language']}", split="validation")


SOURCE = DataSource(
    prefix="xquad",
    parts={"language": same(*LANGUAGES)},
    licence="CC BY-SA 4.0",
    source="google/xquad (Artetxe et al., 2020)",
    language=lambda parts: parts["language"],
    load=_load,
)
