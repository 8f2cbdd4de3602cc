"""How faithful are explanations of one model, and do they agree with people? One call from a model's folder to figures.

Three kinds of text:

- `sentiment`: sentences of an SST-2 file and a classifier that `train_sentiment` made; the predicted class is watched.
- `questions`: questions in SQuAD format and a model that regtune fine-tuned, one window each; the model's own best
  answer in the context is watched, and the scores of context tokens are compared with the gold answer and its
  sentence.
- `rationales`: the test reviews of ERASER's movies and a sentiment classifier. Agreement with the marked words alone:
  the gold class is explained, since it is what people marked words for, in all windows that hold a marked word; a
  review counts once, as the mean of its windows.

Texts are drawn with `seed`, the same for every model. Cost, for T texts, M methods, F fractions and C points of the
curve: at most 2 T M (F + C) copies of a text through the model, fewer where methods agree; the limits cost as much as
`random_orders` methods and the search at most 2 (n + width · g (g + 1) / 2) copies, for each of `limit_texts` texts
with n features in g groups (at most `max_groups`). How many went through is in `facts`. On long texts occlusion and
integrated gradients cost more than all the rest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regtune.analyses.attribution.explain import METHODS
from regtune.analyses.faithfulness.inputs import (
    KINDS,
    Kind,
    open_model,
    question_texts,
    review_windows,
    sentiment_texts,
)
from regtune.analyses.faithfulness.results import Faithfulness
from regtune.analyses.faithfulness.run import Measuring
from regtune.analyses.faithfulness.settings import SETTINGS, FaithfulnessSettings
from regtune.config import to_dict
from regtune.errors import unknown_name
from regtune.registers.surgery import num_registers

DEFAULT_METHODS = ("attnlrp", "chefer", "integrated-gradients", "gradient-input", "attention", "random")


def measure_faithfulness(
    model_dir: str | Path,
    *,
    kind: Kind,
    data: str | Path,
    methods: Sequence[str] = DEFAULT_METHODS,
    limit: int | None = 60,
    seed: int = 0,
    settings: FaithfulnessSettings | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 16,
) -> Faithfulness:
    """Measures explanations of one model.

    Args:
        model_dir: a run directory, the folder of a sentiment cell, or a model's folder.
        kind: `sentiment`, `questions` or `rationales`.
        data: the SST-2 file, the SQuAD-format file or set, or the folder in ERASER's format.
        methods: names from `regtune.analyses.attribution.explain.METHODS`; `random`
            and `attention` are there to compare with.
        limit: texts (reviews) to draw; None for all.
        seed: of the draw, of random scores and orders, and of the order of ties.
        settings: how to measure; `SETTINGS[kind]` by default.
        method_options: for `explain`, by method.
        batch_size: texts explained together.

    Raises:
        UnknownNameError: an unknown kind or method.
        DataError: files that can't be read, or no text left.
        CheckpointError: no such model, or one without the head that is needed.
    """
    began = time.perf_counter()
    if kind not in KINDS:
        raise unknown_name("kind of text", kind, KINDS)
    for method in methods:
        if method not in METHODS:
            raise unknown_name("attribution method", method, METHODS)
    settings = settings or SETTINGS[kind]
    model, tokenizer = open_model(model_dir, kind)
    options: dict[str, Any] = {
        "limit": limit,
        "seed": seed,
        "max_length": settings.max_length,
        "batch_size": batch_size,
    }
    if kind == "questions":
        texts = question_texts(str(data), tokenizer, **options)
    elif kind == "sentiment":
        texts = sentiment_texts(Path(data), tokenizer, **options)
    else:
        texts = review_windows(Path(data), tokenizer, **options)
    run = Measuring(
        model=model,
        tokenizer=tokenizer,
        texts=texts,
        settings=settings,
        methods=tuple(methods),
        seed=seed,
        options=method_options or {},
        notes=[],
    )
    found = run.reviews() if kind == "rationales" else run.texts_taken_apart()
    found["facts"] = {**texts.facts, **found.get("facts", {}), "seconds": round(time.perf_counter() - began, 1)}
    return Faithfulness(
        model=str(model_dir),
        kind=kind,
        data=str(data),
        num_registers=num_registers(model),
        seed=seed,
        settings=to_dict(settings)
        | {
            "limit": limit,
            "seed": seed,
            "methods": list(methods),  # they take part in the best order known
            "method_options": {name: dict(chosen) for name, chosen in (method_options or {}).items()},
        },
        notes=tuple(dict.fromkeys(run.notes)),
        **found,
    )
