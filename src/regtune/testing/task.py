"""Does a task keep what `Task` promises? From a data set to figures, with a model that knows nothing yet."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from regtune.config import RunConfig
from regtune.interfaces import Examples, Rows, Task
from regtune.noise import Noise
from regtune.registry import TASKS
from regtune.rows.reading import perturbed
from regtune.session import Session, SharedInputs, fitted
from regtune.testing.broken import Broken


def check_task(name: str, data: str | Path | Sequence[str | Path], model: str | Path, *, settings: Any = None) -> None:
    """Checks everything that a task promises, on a small data set: a handful of labelled examples will do.

    Reading gives unique ids and keeps its limit; every example has a row; batches have the lengths that rows have, and
    roles as long as they; the labels give a loss; predictions come one an example, in order, as plain JSON, whatever
    the order of batches; scores are one number an example, and metrics lie within their bounds; noise, where a task has
    texts for it, keeps ids and labels.

    Args:
        name: of the registered task.
        data: labelled data sets, as the task's `read` takes them.
        model: a folder with a model and its tokenizer, a hub name or `minilm`; a tiny random one will do.
        settings: the task's; by default its defaults, cut to what the model has positions for.

    Raises:
        BrokenInvariantError: everything that doesn't hold, with what was measured.
    """
    task: Task = TASKS.get(name)
    names = [str(data)] if isinstance(data, (str, Path)) else list(map(str, data))
    wanted = task.settings() if settings is None else settings
    broken = Broken(f"The task {name!r}")
    broken.declared(task, wanted)
    broken.require(
        task.head.startswith("AutoModel") and hasattr(transformers, task.head), f"{task.head!r} is no Auto class"
    )
    if broken.require(bool(task.metrics), "it needs a metric"):
        with broken.trying("reading"):
            examples = task.read(names, wanted, training=True)
            _check_examples(broken, task, examples, task.read(names, wanted, limit=1, training=True))
            torch.manual_seed(0)
            config = RunConfig(model=str(model), task=name)
            session = SharedInputs().start(config, task.prepare(examples, wanted))
            session.model.eval()
            session.task_settings = fitted(wanted, session)
            _check_model(broken, task, examples, session)
            if task.perturbs:
                _check_noise(broken, task, examples, session)
    broken.tell()


def _check_examples(broken: Broken, task: Task, examples: Examples, one: Examples) -> None:
    ids = examples.ids
    broken.require(bool(ids), "no example was read")
    broken.require(len(set(ids)) == len(ids), f"ids must be unique; {len(ids) - len(set(ids))} come again")
    broken.require(one.ids == ids[:1], f"limit=1 must give the first example {ids[:1]}, not {one.ids}")
    for item in examples.items:
        with broken.trying(f"group and text of {item.id!r}"):
            words = (task.group(item), task.text(item))
            broken.require(all(isinstance(each, str) for each in words), f"group and text of {item.id!r} must be text")


def _check_model(broken: Broken, task: Task, examples: Examples, session: Session) -> None:
    with broken.trying("rows"):
        rows = session.rows(examples, training=True)
        _check_rows(broken, rows, len(examples), padded=task.modality == "text")
        batch = rows.batch(range(min(len(rows), 3)))
        with broken.trying("the loss of labelled rows"), torch.no_grad():
            loss = session.forward(batch, labels=True).loss
            broken.require(loss is not None and bool(torch.isfinite(loss)), f"labels must give a loss; it is {loss}")
    with broken.trying("predicting"):
        rows = session.rows(examples)
        _check_rows(broken, rows, len(examples), padded=task.modality == "text")
        outputs = list(session.outputs(rows))
        predictions = task.decode(rows, outputs, examples, session)
        found = [prediction.id for prediction in predictions]
        broken.require(found == list(examples.ids), "decode must give one prediction an example, in their order")
        plain = [prediction.to_json() for prediction in predictions]
        broken.require(
            all(each.get("id") == i for each, i in zip(plain, found, strict=True)), "to_json must hold the id"
        )
        broken.require(json.loads(json.dumps(plain)) == plain, "to_json must give plain JSON types")
        turned = task.decode(rows, outputs[::-1], examples, session)
        broken.require([each.to_json() for each in turned] == plain, "decode must not depend on the order of batches")
        _check_scores(broken, task, predictions, examples)
    with broken.trying("shown"):
        first = dataclasses.replace(examples, items=examples.items[:1])
        task.shown(session.rows(first), first, session)


def _check_noise(broken: Broken, task: Task, examples: Examples, session: Session) -> None:
    with broken.trying("noise"):
        same, noisy = (perturbed(task, examples, Noise(strengths=(("keyboard", s), ("words", s)))) for s in (0.0, 0.5))
        broken.require(noisy.ids == examples.ids, "noise must keep examples and their ids")
        told = [[[task.text(item), *task.described(item)] for item in found.items] for found in (examples, same, noisy)]
        broken.require(told[0] == told[1], "noise of strength 0 must change no text and no label")
        broken.require(told[0] != told[2], "noise of strength 0.5 must change a text")
        session.rows(noisy, training=True)


def _check_rows(broken: Broken, rows: Rows[Any], count: int, *, padded: bool) -> None:
    same = len(rows.rows) == len(rows.lengths) == len(rows.example)
    broken.require(same, f"{len(rows.rows)} rows, {len(rows.lengths)} lengths, {len(rows.example)} example numbers")
    strangers = set(rows.example) ^ set(range(count))
    broken.require(not strangers, f"every example needs a row, and every row an example: {sorted(strangers)[:5]}")
    if rows.main is not None:
        right = [rows.example[index] for index in rows.main] == list(range(count))
        broken.require(right, "main must name a row of each example, in their order")
    every, longest = range(len(rows)), max(rows.lengths)
    for pad_to in (None, longest + 3) if padded else (None,):
        mask = rows.batch(every, pad_to=pad_to)["attention_mask"]
        wanted = (len(rows), pad_to or mask.shape[-1])
        broken.require((mask.shape[0], mask.shape[-1]) == wanted, f"pad_to={pad_to} must give a mask of shape {wanted}")
        real = mask.sum(-1).flatten(1).amax(1).tolist() if mask.dim() > 2 else mask.sum(1).tolist()
        broken.require(
            real == list(rows.lengths), f"lengths are {list(rows.lengths)[:5]}, masks have {real[:5]} tokens"
        )
    classes = rows.roles(rows.rows).get("token_classes")
    shape = tuple(rows.batch(every)["attention_mask"].shape)
    fits = classes is not None and tuple(classes.shape) == shape
    broken.require(fits, f"roles need token_classes of shape {shape}")


def _check_scores(broken: Broken, task: Task, predictions: Sequence[Any], examples: Examples) -> None:
    scores = task.score(predictions, examples)
    for column, values in scores.items():
        numbers = [float(value) for value in values]
        right = len(numbers) == len(examples) and all(map(math.isfinite, numbers))
        broken.require(right, f"score column {column!r} needs a finite number for each of {len(examples)} examples")
    figures = task.figures(predictions, examples)
    for metric in task.metrics:
        value = metric.of(scores)
        least, most = metric.bounds
        broken.require(least <= value <= most, f"{metric.title} is {value}, outside its bounds {metric.bounds}")
        broken.require(figures.get(metric.name) == value, f"figures must hold {metric.name!r}: {value}")
