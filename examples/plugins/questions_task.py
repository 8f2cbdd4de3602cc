"""A task of your own: is a sentence a question? One sentence a line; the mark at its end is the label and is taken off.

regtune --plugin questions_task.py train --task questions --data.train lines.txt --data.eval more.txt
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regtune import Examples, Metric, Task, register, text_rows


@dataclass(frozen=True)
class Sentence:
    id: str
    text: str
    label: int


@dataclass(frozen=True)
class Guess:
    id: str
    label: int

    def to_json(self):
        return {"id": self.id, "label": self.label}


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    max_length: int = 64
    mark: str = "?"  # what a question ends with
    batch_size: int = 32


@register.task
class Questions(Task):
    name = "questions"
    title = "telling questions from statements"
    head = "AutoModelForSequenceClassification"
    settings = QuestionSettings
    reads_text = True
    metrics = (Metric(name="accuracy", title="accuracy", columns=("right",)),)

    def read(self, names, settings, *, limit=None, training=False):
        lines = [line for name in names for line in Path(name).read_text(encoding="utf-8").splitlines() if line]
        items = (Sentence(str(i), s.rstrip(".?!"), int(s.endswith(settings.mark))) for i, s in enumerate(lines[:limit]))
        return Examples(items=tuple(items), names=tuple(names))

    def rows(self, examples, session, *, training=False):
        texts, labels = [item.text for item in examples.items], [item.label for item in examples.items]
        return text_rows(texts, session.reader, max_length=session.task_settings.max_length, labels=labels)

    def decode(self, rows, outputs, examples, session):
        found = {index: int(logits.argmax()) for rows_, out in outputs for index, logits in zip(rows_, out.logits)}
        return [Guess(item.id, found[index]) for index, item in enumerate(examples.items)]

    def score(self, predictions, examples):
        return {"right": np.array([float(one.label == item.label) for one, item in zip(predictions, examples.items)])}
