"""SQuAD v1.1 and v2.0 from the hub: questions about English Wikipedia; v2.0 adds questions without an answer.

Rajpurkar et al., 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822). CC BY-SA 4.0. Splits: train 87,599, dev 10,570
(v1.1); train 130,319, dev 11,873 (v2.0).
"""

from __future__ import annotations

from regtune.tasks.qa.data.data_source import SPLITS_TRAIN_DEV, DataSource, Parts
from regtune.tasks.qa.data.hub import collect_hub
from regtune.tasks.qa.data.squad_record import RecordCollector


def _load_v1(parts: Parts, collector: RecordCollector) -> None:
    collect_hub(collector, "rajpurkar/squad", config=None, split=parts["split"])


def _load_v2(parts: Parts, collector: RecordCollector) -> None:
    collect_hub(collector, "rajpurkar/squad_v2", config=None, split=parts["split"], empty_is_impossible=True)


SOURCE_V1 = DataSource(
    prefix="squad",
    parts={"split": SPLITS_TRAIN_DEV},
    licence="CC BY-SA 4.0",
    source="rajpurkar/squad (Rajpurkar et al., 2016)",
    language=lambda _: "en",
    load=_load_v1,
)

SOURCE_V2 = DataSource(
    prefix="squad_v2",
    parts={"split": SPLITS_TRAIN_DEV},
    licence="CC BY-SA 4.0",
    source="rajpurkar/squad_v2 (Rajpurkar et al., 2018)",
    language=lambda _: "en",
    load=_load_v2,
)
