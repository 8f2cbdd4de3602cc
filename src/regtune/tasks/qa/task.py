"""Span question answering: a question and a context in, the part of the context that answers it out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from regtune.errors import DataError, shown
from regtune.interfaces import Batch, Examples, Floats, Metric, Published, Rows, Shown, Task
from regtune.noise import Change, split_name
from regtune.registers.surgery import register_positions
from regtune.rows.texts import pad_tokens
from regtune.rows.token_classes import token_classes
from regtune.tasks.qa.answers import Prediction, extract_answers, span_logits
from regtune.tasks.qa.data.sources import language_of, load_questions
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.metrics import best_thresholds, by_answerability, normalize_answer, score_answers
from regtune.tasks.qa.settings import QASettings
from regtune.tasks.qa.shown import answer_shown
from regtune.tasks.qa.windows import make_windows

if TYPE_CHECKING:
    from regtune.session import Session

F1 = Metric(name="f1", title="F1", columns=("f1",))
EXACT_MATCH = Metric(name="exact_match", title="EM", columns=("exact_match",))
_CHART = "paper (bert-base, one seed), read off the chart"
_NOTE = (
    "Open squares are points that can be read off the paper's chart (another model, one seed, 440 questions), good to "
    "about half a point; what lies between them is not known."
)
# Parihar, Kapnadak, Gautam, Ksheersagar, Agarwal, "Register-Augmented LLM Fine-Tuning" (University of Michigan, 2024),
# Figure 2: bert-base-uncased on TyDi QA GoldP English, one seed, 440 questions.
PUBLISHED = (
    Published(
        metric="f1",
        label=_CHART,
        points=((0, 57.0), (5, 65.2), (100, 56.4)),
        note=_NOTE,
        gain=0.08,
        claim="A gain of eight points, as the course report of 2024 claims for 5 to 10 registers on BERT,",
    ),
    Published(metric="exact_match", label=_CHART, points=((0, 44.0), (5, 50.5), (15, 51.3), (100, 43.8)), note=_NOTE),
)


class QuestionAnswering(Task):
    """SQuAD's task (Rajpurkar et al. 2016, arXiv 1606.05250), and 2.0's where "no answer" is one (1806.03822)."""

    name: ClassVar[str] = "qa"
    title: ClassVar[str] = "question answering"
    head: ClassVar[str] = "AutoModelForQuestionAnswering"
    settings: ClassVar[type] = QASettings
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ("pad", "sep")
    labels: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    metrics: ClassVar[tuple[Metric, ...]] = (F1, EXACT_MATCH)
    titles: ClassVar[Mapping[str, str]] = {
        "HasAns_exact": "HasAns EM",
        "HasAns_f1": "HasAns F1",
        "NoAns_exact": "NoAns EM",
        "NoAns_f1": "NoAns F1",
        "best_exact": "best EM",
        "best_f1": "best F1",
    }
    examples: ClassVar[str] = "questions"
    said: ClassVar[str] = "text"
    given: ClassVar[tuple[str, ...]] = ("question", "context")
    perturbs: ClassVar[tuple[str, ...]] = ("question", "context")
    distracted: ClassVar[str] = "context"
    published: ClassVar[tuple[Published, ...]] = PUBLISHED

    def read(
        self, names: Sequence[str], settings: QASettings, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """See `load_questions`."""
        bad = settings.on_bad_record
        return load_questions(list(names), on_bad_record=bad, max_examples=limit, for_training=training)

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[Window]:
        """The windows of every question."""
        settings: QASettings = session.task_settings
        found = make_windows(
            examples.items,
            session.reader,
            max_length=settings.max_length,
            stride=settings.stride,
            max_question_length=settings.max_question_length,
            on_long_question=settings.on_long_question if training else "truncate",
            extra_positions=register_positions(session.model),
            for_training=training,
            called=session.setting,
        )
        if training:
            check_labels(found.windows)
        return window_rows(
            found.windows,
            int(session.reader.pad_token_id or 0),
            roles=partial(roles, examples.items, session.reader),
            facts=found.accounting,
            notes=found.lines,
        )

    def decode(
        self,
        rows: Rows[Window],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[Prediction]:
        """See `extract_answers`."""
        logits = span_logits(rows, outputs)
        found = extract_answers(rows.rows, examples.items, *logits, config=session.task_settings)
        cut = {window.example for window in rows.rows if window.question_cut}
        return [replace(one, question_cut=True) if index in cut else one for index, one in enumerate(found)]

    def score(self, predictions: Sequence[Prediction], examples: Examples) -> Mapping[str, Floats]:
        """`exact_match` and `f1` by the official rules of the set's kind."""
        only = (
            split_name(examples.names[0])[1] if len(examples.names) == 1 else ""
        )  # several sets together are scored by SQuAD's
        mlqa = language_of(only) if only.startswith("mlqa:") else ""
        return score_answers([one.text for one in predictions], examples.items, mlqa=mlqa)

    def choices(self, predictions: Sequence[Prediction], examples: Examples) -> list[tuple[Floats, int]]:
        """The best spans of questions that have an answer, and the first that is one (SQuAD's rule)."""
        found = []
        for one, example in zip(predictions, examples.items, strict=True):
            gold = {normalize_answer(answer.text) for answer in example.answers}
            if gold and one.texts:
                places = (place for place, text in enumerate(one.texts) if normalize_answer(text) in gold)
                found.append((np.asarray(one.scores, dtype=np.float64), next(places, -1)))
        return found

    def figures(self, predictions: Sequence[Prediction], examples: Examples) -> dict[str, float]:
        """The metrics and, for SQuAD v2.0, those of questions with and without an answer and of the best threshold."""
        scores = self.score(predictions, examples)
        found = {name: float(column.mean()) for name, column in scores.items()}
        if all(example.answers for example in examples.items):
            return found
        found |= by_answerability(scores, examples.items)
        differences = [one.null_difference for one in predictions]
        if None not in differences:
            found |= best_thresholds([one.best_text for one in predictions], np.array(differences), examples.items)
        return found

    def shortened(self, settings: QASettings, limit: int) -> QASettings:
        """Windows of at most `limit` tokens have room for a third of stride and a half of question."""
        if settings.max_length <= limit:
            return settings
        stride, asked = min(settings.stride, limit // 3), max(1, min(settings.max_question_length, limit // 2))
        return replace(settings, max_length=limit, stride=stride, max_question_length=asked)

    def language(self, name: str) -> str:
        """See `language_of`."""
        return language_of(name)

    def group(self, example: QAExample) -> str:
        """The passage, as it was before noise."""
        return example.passage or example.context

    def perturb(self, example: QAExample, change: Change) -> QAExample:
        """Noise in question and context; gold answers stay as they are, and their offsets move with them."""
        placed = [answer for answer in example.answers if answer.start is not None]
        keep = [(int(answer.start or 0), int(answer.start or 0) + len(answer.text)) for answer in placed]
        for answer in example.answers:
            if answer.start is None:
                keep += [found.span() for found in re.finditer(re.escape(answer.text), example.context)]
        context, moved = change("context", example.context, keep)
        starts = iter(start for start, _ in moved)
        return replace(
            example,
            question=change("question", example.question)[0],
            context=context,
            passage=self.group(example),
            answers=tuple(
                answer if answer.start is None else replace(answer, start=next(starts)) for answer in example.answers
            ),
        )

    def text(self, example: QAExample) -> str:
        """The passage."""
        return example.context

    def described(self, example: QAExample) -> tuple[str, tuple[str, ...]]:
        """The question and its gold answers."""
        return example.question, tuple(dict.fromkeys(answer.text for answer in example.answers))

    def shown(self, rows: Rows[Window], examples: Examples, session: Session) -> Shown:
        """The best answer and its window; see `answer_shown`."""
        return answer_shown(rows, examples.items[0], session)

    def example(self, record: Mapping[str, Any], settings: QASettings) -> QAExample:
        """From `question` and `context`."""
        del settings
        for name in ("question", "context"):
            value = record.get(name)
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"{name!r} is {shown(value)}; question answering needs a question and a context, texts with at "
                    f"least one word. The fields given are {', '.join(map(repr, record)) or 'none'}."
                )
        return QAExample(
            id=str(record.get("id", "0")), question=record["question"], context=record["context"], answers=()
        )


def check_labels(windows: Sequence[Window]) -> None:
    """Refuses windows whose label lies outside the text.

    Raises:
        DataError: which one, and its label.
    """
    for index, window in enumerate(windows):
        size, start, end = len(window.input_ids), window.start_position, window.end_position
        if not 0 <= start <= end < size:
            raise DataError(
                f"training window {index} (example {window.example}) has the label start={start}, end={end}, which is "
                f"no span of its {size} tokens. Labels count text tokens only: never add the number of registers."
            )


def window_rows(
    windows: Sequence[Window],
    pad_token_id: int,
    *,
    roles: Callable[[Sequence[Window]], Batch] = lambda _: {},
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Rows[Window]:
    """Windows as the rows that training reads."""
    return Rows(
        rows=windows,
        lengths=[len(window.input_ids) for window in windows],
        example=[window.example for window in windows],
        collate=lambda chosen, pad_to: collate(chosen, pad_token_id, pad_to=pad_to),
        roles=roles,
        main=_main(windows),
        facts=facts or {},
        notes=tuple(notes),
    )


def collate(windows: Sequence[Window], pad_token_id: int, *, pad_to: int | None = None) -> Batch:
    """Pads windows on the right to their longest, or to `pad_to` tokens.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` (where the tokenizer makes them), each `[batch, seq]`, and
        `start_positions`, `end_positions`, `[batch]`.
    """
    batch = pad_tokens(windows, pad_token_id, pad_to)
    batch["start_positions"] = torch.tensor([window.start_position for window in windows])
    batch["end_positions"] = torch.tensor([window.end_position for window in windows])
    return batch


def roles(examples: Sequence[QAExample], reader: Any, windows: Sequence[Window]) -> Batch:
    """What analyses need besides a batch of windows.

    Returns:
        `token_classes` int8 and `offset_mapping` (characters of the context, in context tokens; of the question, in
        question tokens), `[batch, seq]` and `[batch, seq, 2]`, and `context_start`, `context_end`, `[batch]`.
    """
    batch = pad_tokens(windows, int(reader.pad_token_id or 0))
    starts = torch.tensor([window.context_start for window in windows])
    classes = token_classes(batch["input_ids"], batch["attention_mask"], reader, context_start=starts)
    offsets = np.zeros((*batch["input_ids"].shape, 2), dtype=np.int64)
    for row, window in enumerate(windows):
        offsets[row, window.context_start : window.context_end] = window.offsets
        places = (classes[row, : window.context_start] > 1).nonzero().flatten().numpy()
        question = reader(examples[window.example].question, add_special_tokens=False, return_offsets_mapping=True)
        offsets[row, places] = np.asarray(question["offset_mapping"][: len(places)], dtype=np.int64).reshape(-1, 2)
    return {
        "token_classes": classes,
        "offset_mapping": torch.from_numpy(offsets),
        "context_start": starts,
        "context_end": torch.tensor([window.context_end for window in windows]),
    }


def _main(windows: Sequence[Window]) -> list[int]:
    """For each question the first window that holds its answer, or its first."""
    kept: dict[int, int] = {}
    for index, window in enumerate(windows):
        best = kept.get(window.example)
        if best is None or (_holds_answer(window) and not _holds_answer(windows[best])):
            kept[window.example] = index
    return list(kept.values())


def _holds_answer(window: Window) -> bool:
    return window.start_position != window.null_position
