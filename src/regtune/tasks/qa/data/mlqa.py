"""MLQA: parallel questions in seven languages, context and question in the same language or not (evaluation only).

Lewis et al., 2020 (arXiv 1910.07475). CC BY-SA 3.0. Splits: dev and test. `mlqa:dev:en.de` is English contexts with
German questions; the answers are in the context's language, and so is the metric.
"""

from __future__ import annotations

from regtune.tasks.qa.data.data_source import DataSource, Parts, same
from regtune.tasks.qa.data.hub import collect_hub
from regtune.tasks.qa.data.squad_record import RecordCollector

LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")


def _load(parts: Parts, collector: RecordCollector) -> None:
    # The repository's main branch holds only a loading script; the hub's own conversion to Parquet needs no code.
    revision = "refs/convert/parquet"
    collect_hub(collector, "facebook/mlqa", config=f"mlqa.{parts['pair']}", split=parts["split"], revision=revision)


SOURCE = DataSource(
    prefix="mlqa",
    parts={
        "split": {"dev": "validation", "validation": "validation", "test": "test"},
        "pair": same(*(f"{context}.{question}" for context in LANGUAGES for question in LANGUAGES)),
    },
    licence="CC BY-SA 3.0",
    source="facebook/mlqa (Lewis et al., 2020)",
    language=lambda parts: parts["pair"].partition(".")[0],
    load=_load,
)
