"""Long contexts as overlapping tokenised windows, with labels and with offsets back into the text.

Each distinct context is tokenised once and cut afterwards: window k of a context starts `room - stride` tokens after
window k - 1, where room is what the question and the special tokens leave. These are the windows that
`tokenizer(question, context, truncation="only_second", stride=…, return_overflowing_tokens=True)` gives, without its
panic where a stride leaves no room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from regtune.errors import ConfigError, DataError
from regtune.tasks.qa.data.squad_record import is_unicode
from regtune.tasks.qa.examples import Answer, QAExample, Window
from regtune.tasks.qa.offsets import check_spans, token_range
from regtune.tasks.qa.pairs import PairTemplate, TokenisedText, pair_template, require_fast_tokenizer, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnLongQuestion = Literal["refuse", "truncate"]

_CHECKED_TAIL = 8
"""Tokens at the end of each context that are decoded for the check; a drift of offsets is largest there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSet:
    """The windows of a data set in the order of its examples, and an account of what did not fit."""

    windows: list[Window]
    examples: tuple[QAExample, ...]
    truncated_questions: tuple[str, ...] = ()
    """Ids of questions that were cut to `max_question_length`."""
    answers_without_window: tuple[str, ...] = ()
    """Ids of examples whose first gold answer lies whole in none of their windows; all of them are labelled null."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def accounting(self) -> dict[str, int]:
        """Counts for a run's record: examples, windows, the longest window, truncated questions, lost answers."""
        return {
            "examples": len(self.examples),
            "windows": len(self.windows),
            "longest_window": max(len(window.input_ids) for window in self.windows),
            "truncated_questions": len(self.truncated_questions),
            "answers_without_window": len(self.answers_without_window),
        }


def make_windows(
    examples: Sequence[QAExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int,
    max_question_length: int,
    on_long_question: OnLongQuestion = "refuse",
    extra_positions: int = 0,
    for_training: bool,
) -> WindowSet:
    """Cuts every example's context into windows of at most `max_length` tokens, question and special tokens included.

    Labels are the smallest token range that covers the first gold answer, or `null_position` twice where the answer is
    not whole in the window. No example is ever left out.

    Args:
        examples: the questions, with ids that occur once.
        tokenizer: a fast Hugging Face tokenizer that puts [CLS] (or its like) first.
        max_length: longest window, in tokens.
        stride: tokens that two neighbouring windows of a context share.
        max_question_length: longest question, in tokens without special ones.
        on_long_question: "refuse" a longer question or "truncate" it (and account for it).
        extra_positions: positions of `max_length` that registers take up, in models that count them (0 for most).
        for_training: every example needs an answer or `is_impossible`; otherwise labels are made where there is one.

    Raises:
        UnsupportedModelError: a slow tokenizer, or one without [CLS] or with an unknown way to join two texts.
        ConfigError: a setting that cannot work; above all a stride that leaves no room beside the longest question.
        DataError: no examples, an id that occurs twice, a long question (refused), a context without a single token,
            an example without an answer in training, or offsets that do not give the text back.
    """
    require_fast_tokenizer(tokenizer)
    _check_settings(max_length, stride, max_question_length, on_long_question, extra_positions)
    _check_examples(examples, for_training)
    contexts = tokenise([example.context for example in examples], tokenizer)
    questions = tokenise([example.question for example in examples], tokenizer)
    template = _template(examples, tokenizer, questions, contexts)
    long = [index for index, question in enumerate(questions) if len(question.ids) > max_question_length]
    if long and on_long_question == "refuse":
        raise _long_question(examples, questions, long, max_question_length)
    question_ids = [question.ids[:max_question_length] for question in questions]
    rooms = max_length - extra_positions - template.num_special - np.array([len(ids) for ids in question_ids])
    _check_room(examples, rooms, stride, f"max_length={max_length}, {extra_positions} for registers")
    _check_offsets(tokenizer, examples, contexts)

    windows: list[Window] = []
    lost = []
    for index, context in enumerate(contexts):
        answers = examples[index].answers
        gold = _answer_range(answers[0], context) if answers else None
        made = list(_cut(index, question_ids[index], context, gold, int(rooms[index]), stride, template))
        windows.extend(made)
        if answers and all(window.start_position == window.null_position for window in made):
            lost.append(examples[index].id)
    return WindowSet(
        windows=windows,
        examples=tuple(examples),
        truncated_questions=tuple(examples[index].id for index in long),
        answers_without_window=tuple(lost),
    )


def _cut(
    index: int,
    question: np.ndarray,
    context: TokenisedText,
    gold: tuple[int, int] | None,
    room: int,
    stride: int,
    template: PairTemplate,
) -> Iterator[Window]:
    """The windows of one example."""
    shift = template.context_start(question)
    size = len(context.ids)
    for first in range(0, max(size - stride, 1), room - stride):
        last = min(first + room, size)
        ids, types = template.join(question, context.ids[first:last])
        start = end = template.null_position
        if gold is not None and first <= gold[0] and gold[1] < last:
            start, end = gold[0] - first + shift, gold[1] - first + shift
        yield Window(
            example=index,
            input_ids=ids,
            token_type_ids=types,
            context_start=shift,
            context_end=shift + last - first,
            offsets=context.offsets[first:last],
            start_position=start,
            end_position=end,
            null_position=template.null_position,
        )


def _answer_range(answer: Answer, context: TokenisedText) -> tuple[int, int] | None:
    """Tokens of a gold answer, spaces at its ends left out: most tokenizers have no token for them."""
    start = answer.start + len(answer.text) - len(answer.text.lstrip())
    return token_range(context.offsets, start, answer.start + len(answer.text.rstrip()))


def _check_settings(
    max_length: int, stride: int, max_question_length: int, on_long_question: str, extra_positions: int
) -> None:
    for name, value, least in (
        ("max_length", max_length, 1),
        ("stride", stride, 0),
        ("max_question_length", max_question_length, 1),
        ("extra_positions", extra_positions, 0),
    ):
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}.")
    if on_long_question not in ("refuse", "truncate"):
        raise ConfigError(f"on_long_question={on_long_question!r} is not one of refuse, truncate.")


def _check_examples(examples: Sequence[QAExample], for_training: bool) -> None:
    if not examples:
        raise DataError("There are no examples to make windows from.")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"The id {example.id!r} occurs twice. Answers are kept by id; give every example its own.")
        seen.add(example.id)
        if for_training and not example.answers and not example.is_impossible:
            raise DataError(f"Example {example.id!r} has no answer to train on. Give one, or set is_impossible.")
        if not is_unicode(example.question) or not is_unicode(example.context):
            raise DataError(
                f"Example {example.id!r} holds half a surrogate pair, which is no valid Unicode. Remove it."
            )


def _template(
    examples: Sequence[QAExample],
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[TokenisedText],
    contexts: Sequence[TokenisedText],
) -> PairTemplate:
    for example, context in zip(examples, contexts, strict=True):
        if not len(context.ids):
            raise DataError(
                f"The context of example {example.id!r} ({example.context[:40]!r}) gives not one token with this "
                "tokenizer, so the example would be lost. Remove it, or use a model made for its script."
            )
    probe = next((index for index, question in enumerate(questions) if len(question.ids)), None)
    if probe is None:
        raise DataError(f"No question gives a token (the first: {examples[0].question[:40]!r}). Use another tokenizer.")
    return pair_template(
        tokenizer, examples[probe].question, examples[probe].context, (questions[probe], contexts[probe])
    )


def _long_question(
    examples: Sequence[QAExample], questions: Sequence[TokenisedText], long: Sequence[int], limit: int
) -> DataError:
    worst = max(long, key=lambda index: len(questions[index].ids))
    length = len(questions[worst].ids)
    return DataError(
        f"{len(long)} of {len(questions)} questions have more than max_question_length={limit} tokens; the longest, "
        f"{examples[worst].id!r}, has {length} ({examples[worst].question[:60]!r}…). Set max_question_length to "
        f"{length}, or on_long_question=truncate."
    )


def _check_room(examples: Sequence[QAExample], rooms: np.ndarray, stride: int, budget: str) -> None:
    worst = int(rooms.argmin())
    room = int(rooms[worst])
    if room <= stride:
        raise ConfigError(
            f"stride={stride} leaves no room: beside question {examples[worst].id!r} and the special tokens only "
            f"{max(room, 0)} context tokens fit into a window ({budget}), and they must be more than the stride. "
            f"Set stride below {max(room, 1)}, raise max_length by {stride - room + 1} or more, or cut long questions "
            "(max_question_length with on_long_question=truncate)."
        )


def _check_offsets(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[QAExample], contexts: Sequence[TokenisedText]
) -> None:
    """Every gold answer and the end of every context, decoded and compared with the text (each span once)."""
    spans: dict[tuple[str, tuple[int, int] | None], TokenisedText] = {}
    for example, context in zip(examples, contexts, strict=True):
        for answer in example.answers:
            spans[example.context, _answer_range(answer, context)] = context
        tail = int(context.offsets[-_CHECKED_TAIL:, 0][0])
        spans[example.context, token_range(context.offsets, tail, len(example.context))] = context
    ids, texts = [], []
    for (text, tokens), context in spans.items():
        if tokens is not None:
            first, last = tokens
            ids.append(context.ids[first : last + 1].tolist())
            texts.append(text[context.offsets[first, 0] : context.offsets[last, 1]])
    check_spans(tokenizer, ids, texts)
