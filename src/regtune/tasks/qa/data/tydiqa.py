"""TyDi QA, secondary task (GoldP): eleven languages' questions by people who wanted to know, nine of them here.

Clark et al., 2020 (arXiv 2003.05002). Apache-2.0, text from Wikipedia CC BY-SA 3.0. Splits: train 49,881, dev 5,077
over all languages; English 3,696 and 440. A question's language is the first part of its id (`english-588…-2`). Some
copies cut the ids short, so that many questions share one: reading refuses these (`on_duplicate_id="renumber"` repairs
them).
"""

from __future__ import annotations

from regtune.tasks.qa.data.data_source import SPLITS_TRAIN_DEV, DataSource, Parts, same
from regtune.tasks.qa.data.hub import collect_hub
from regtune.tasks.qa.data.squad_record import RecordCollector

LANGUAGES = {
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
"""The languages of the GoldP task and their ISO 639-1 codes."""


def _load(parts: Parts, collector: RecordCollector) -> None:
    collect_hub(
        collector,
        "google-research-datasets/tydiqa",
        config="secondary_task",
        split=parts["split"],
        id_prefix=f"{parts['language']}-",
    )


SOURCE = DataSource(
    prefix="tydiqa",
    parts={"split": SPLITS_TRAIN_DEV, "language": same(*LANGUAGES)},
    licence="Apache-2.0 (text CC BY-SA 3.0)",
    source="google-research-datasets/tydiqa, secondary_task (Clark et al., 2020)",
    language=lambda parts: LANGUAGES[parts["language"]],
    load=_load,
)
