"""The embedded set: short English passages and questions written for regtune, inside the package (no download).

Apache-2.0, like the package. Splits: train and dev, with no passage in common.
"""

from __future__ import annotations

from importlib import resources

from regtune.tasks.qa.data.data_source import DataSource, Parts, same
from regtune.tasks.qa.data.squad import collect_document
from regtune.tasks.qa.data.squad_files import parse_json
from regtune.tasks.qa.data.squad_record import RecordCollector


def _load(parts: Parts, collector: RecordCollector) -> None:
    name = f"embedded/{parts['split']}.json"
    raw = resources.files("regtune.tasks.qa.data").joinpath(name).read_bytes()
    collect_document(parse_json(raw, name), name, collector)


SOURCE = DataSource(
    prefix="embedded",
    parts={"split": same("train", "dev")},
    licence="Apache-2.0",
    source="written for regtune",
    language=lambda _: "en",
    load=_load,
)
