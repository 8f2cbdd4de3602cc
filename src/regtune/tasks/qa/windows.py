"""Long contexts as overlapping tokenised windows, with labels and with offsets back into the text.

Each distinct context is tokenised once and cut afterwards: window k of a context starts `room - stride` tokens after
window k - 1, where room is what the question and the special tokens leave. These are the windows that
`tokenizer(question, context, truncation="only_second", stride=…, return_overflowing_tokens=True)` gives, without its
panic where a stride leaves no room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from regtune.errors import ConfigError, DataError, shown
from regtune.progress import each
from regtune.tasks.qa.data.records import is_unicode
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.tokens import (
    PairTemplate,
    TokenisedText,
    check_spans,
    pair_template,
    require_fast_tokenizer,
    token_range,
    tokenise,
)

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
    """Ids of questions that were cut to `max_question_length`, or further where the stride needs the room."""
    answers_without_window: tuple[str, ...] = ()
    """Ids of examples whose gold answer lies whole in none of their windows; all of them are labelled null."""
    answers_without_place: tuple[str, ...] = ()
    """Ids of examples with answers, of which none has a place. In training they have no windows."""

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
            "answers_without_place": len(self.answers_without_place),
        }

    @property
    def lines(self) -> tuple[str, ...]:
        """What was cut, for a person; empty where nothing was."""
        told = (
            (self.truncated_questions, "were too long and cut"),
            (self.unlabelled, "have no answer with a known place, so nothing is trained on them"),
        )
        return tuple(
            f"{len(ids)} of {len(self.examples)} questions {what}, the first: {ids[0]}" for ids, what in told if ids
        )

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Ids of examples that have no window."""
        seen = {window.example for window in self.windows}
        return tuple(example.id for index, example in enumerate(self.examples) if index not in seen)


def make_windows(
    examples: Sequence[QAExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int,
    max_question_length: int,
    on_long_question: OnLongQuestion = "truncate",
    extra_positions: int = 0,
    for_training: bool,
    called: Callable[[str], str] = str,
) -> WindowSet:
    """Cuts every example's context into windows of at most `max_length` tokens, question and special tokens included.

    Labels are the smallest token range that covers the first gold answer whose place is known, or `null_position` twice
    where it is not whole in the window. No example is left out, but in training those whose answers have no place.

    Args:
        examples: the questions, with ids that occur once.
        tokenizer: a fast Hugging Face tokenizer that puts [CLS] (or its like) first.
        max_length: longest window, in tokens.
        stride: tokens that two neighbouring windows of a context share.
        max_question_length: longest question, in tokens without special ones.
        on_long_question: "truncate" a longer question (and account for it), also one that would leave no room for more
            context than the stride, or "refuse" it.
        extra_positions: positions of `max_length` that registers take up, in models that count them (0 for most).
        for_training: every example needs an answer or `is_impossible`; otherwise labels are made where there is one.
        called: how a setting is called where the messages are read, for example `max_length`: `--max-length`.

    Raises:
        UnsupportedModelError: a slow tokenizer, or one without [CLS] or with an unknown way to join two texts.
        ConfigError: a setting that cannot work; above all a stride that leaves no room beside a question.
        DataError: no examples, an id that occurs twice, a long question (refused), a context without a single token,
            an example without an answer in training, or offsets that do not give the text back.
    """
    require_fast_tokenizer(tokenizer)
    counts = {"max_length": max_length, "stride": stride, "max_question_length": max_question_length}
    _check(examples, counts | {"extra_positions": extra_positions}, for_training)
    contexts = tokenise([example.context for example in examples], tokenizer)
    questions = tokenise([example.question for example in examples], tokenizer)
    template = _template(examples, tokenizer, questions, contexts)
    free = max_length - extra_positions - template.num_special
    budget = f"{called('max_length')}={max_length}, {extra_positions} for registers"
    longest = max_question_length
    if on_long_question == "truncate":
        longest = min(longest, free - stride - 1)
        if longest < 1:
            raise _no_room(stride, free - 1, "question of one token", budget, called)
    long = [index for index, question in enumerate(questions) if len(question.ids) > longest]
    if long and on_long_question == "refuse":
        raise _long_question(examples, questions, long, longest, called)
    rooms = free - np.array([min(len(question.ids), longest) for question in questions])
    if rooms.min() <= stride:
        raise _no_room(stride, int(rooms.min()), f"question {shown(examples[int(rooms.argmin())].id)}", budget, called)
    _check_offsets(tokenizer, examples, contexts)

    windows: list[Window] = []
    lost, unplaced = [], []
    for index, (example, context) in enumerate(each(list(zip(examples, contexts, strict=True)), "questions")):
        if example.answers and all(answer.start is None for answer in example.answers):
            unplaced.append(example.id)
            if for_training:
                continue
        gold = _gold_range(example, context)
        made = list(_cut(index, (questions[index], context), longest, gold, int(rooms[index]), stride, template))
        windows.extend(made)
        if example.answers and all(window.start_position == window.null_position for window in made):
            lost.append(example.id)
    if not windows:
        raise DataError("No question has an answer whose place is known, so there is nothing to train on.")
    return WindowSet(
        windows=windows,
        examples=tuple(examples),
        truncated_questions=tuple(examples[index].id for index in long),
        answers_without_window=tuple(lost),
        answers_without_place=tuple(unplaced),
    )


def _cut(
    index: int,
    texts: tuple[TokenisedText, TokenisedText],
    longest: int,
    gold: tuple[int, int] | None,
    room: int,
    stride: int,
    template: PairTemplate,
) -> Iterator[Window]:
    """The windows of one example: its question, cut to `longest` tokens, and pieces of its context."""
    question, context = texts
    asked = question.ids[:longest]
    shift = template.context_start(asked)
    size = len(context.ids)
    for first in range(0, max(size - stride, 1), room - stride):
        last = min(first + room, size)
        ids, types = template.join(asked, context.ids[first:last])
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
            question_cut=len(asked) < len(question.ids),
        )


def _answer_range(text: str, start: int, context: TokenisedText) -> tuple[int, int] | None:
    """Tokens of a gold answer, spaces at its ends left out: most tokenizers have no token for them."""
    return token_range(context.offsets, start + len(text) - len(text.lstrip()), start + len(text.rstrip()))


def _gold_range(example: QAExample, context: TokenisedText) -> tuple[int, int] | None:
    """Tokens of the first answer whose place is known."""
    placed = [(answer.text, answer.start) for answer in example.answers if answer.start is not None]
    return _answer_range(*placed[0], context) if placed else None


def _check(examples: Sequence[QAExample], counts: Mapping[str, int], for_training: bool) -> None:
    for name, value in counts.items():
        least = 0 if name in ("stride", "extra_positions") else 1
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}.")
    if not examples:
        raise DataError("There are no examples to make windows from.")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"The id {shown(example.id)} occurs twice. Answers are kept by id; give every example its own."
            )
        seen.add(example.id)
        if for_training and not example.answers and not example.is_impossible:
            raise DataError(f"Example {shown(example.id)} has no answer to train on. Give one, or set is_impossible.")
        if not is_unicode(example.question) or not is_unicode(example.context):
            raise DataError(
                f"Example {shown(example.id)} holds half a surrogate pair, which is no valid Unicode. Remove it."
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
                f"The context of example {shown(example.id)} ({shown(example.context, 40)}) gives not one token with "
                "this tokenizer, so the example would be lost. Remove it, or use a model made for its script."
            )
    probe = next((index for index, question in enumerate(questions) if len(question.ids)), None)
    if probe is None:
        raise DataError(
            f"No question gives a token (the first: {shown(examples[0].question, 40)}). Use another tokenizer."
        )
    return pair_template(
        tokenizer, examples[probe].question, examples[probe].context, (questions[probe], contexts[probe])
    )


def _long_question(
    examples: Sequence[QAExample],
    questions: Sequence[TokenisedText],
    long: Sequence[int],
    limit: int,
    called: Callable[[str], str],
) -> DataError:
    worst = max(long, key=lambda index: len(questions[index].ids))
    length = len(questions[worst].ids)
    return DataError(
        f"{len(long)} of {len(questions)} questions have more than {called('max_question_length')}={limit} tokens; the "
        f"longest, {shown(examples[worst].id)}, has {length} ({shown(examples[worst].question, 60)}). Set "
        f"{called('max_question_length')} to {length}, or {called('on_long_question')} to truncate."
    )


def _no_room(stride: int, room: int, question: str, budget: str, called: Callable[[str], str]) -> ConfigError:
    lower = f"Set {called('stride')} below {room} or raise" if room > 0 else "Raise"
    return ConfigError(
        f"{called('stride')}={stride} leaves no room: beside {question} and the special tokens only {max(room, 0)} "
        f"context tokens fit into a window ({budget}), and they must be more than the stride. {lower} "
        f"{called('max_length')} by {stride - room + 1} or more."
    )


def _check_offsets(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[QAExample], contexts: Sequence[TokenisedText]
) -> None:
    """Every gold answer and the end of every context, decoded and compared with the text (each span once)."""
    spans: dict[tuple[str, tuple[int, int] | None], TokenisedText] = {}
    for example, context in zip(examples, contexts, strict=True):
        for answer in example.answers:
            if answer.start is not None:
                spans[example.context, _answer_range(answer.text, answer.start, context)] = context
        tail = int(context.offsets[-_CHECKED_TAIL:, 0][0])
        spans[example.context, token_range(context.offsets, tail, len(example.context))] = context
    ids, texts = [], []
    for (text, tokens), context in spans.items():
        if tokens is not None:
            first, last = tokens
            ids.append(context.ids[first : last + 1].tolist())
            texts.append(text[context.offsets[first, 0] : context.offsets[last, 1]])
    check_spans(tokenizer, ids, texts)
