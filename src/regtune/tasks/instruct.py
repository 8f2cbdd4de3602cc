"""Instruction pairs: a causal language model learns answers, and is scored on them; the loss is on the answer alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from regtune.config import Count, DataConfig, Tokens
from regtune.errors import DataError, MissingExtraError, shown
from regtune.interfaces import Examples, Rows, Shown, Task
from regtune.noise import Change
from regtune.rows.texts import NOT_SCORED, TextRow
from regtune.tasks.files import cell, hub_records, read_examples, records_of, text_of
from regtune.tasks.lm import (
    LanguageModelling,
    encoded,
    first_label,
    labelled_rows,
    start_token,
    token_row,
)
from regtune.tasks.qa.data.sources import load_questions
from regtune.typed import Checked

if TYPE_CHECKING:
    from regtune.session import Session

PROMPTS = ("prompt", "instruction", "question", "text")
ANSWERS = ("completion", "output", "response", "answer")
"""Columns that are looked for, in this order, where the settings name none."""
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class InstructSettings(Checked, section="settings"):
    """Which columns hold what, and how long answers may be."""

    prompt_column: str | None = None
    """Column of the instruction; the first of the usual names by default. A column `input` is put behind it, and
    `messages` are read instead where a record has them."""
    answer_column: str | None = None
    """Column of the answer."""
    max_new_tokens: Count = 64
    """Longest answer in tokens that `regtune predict` lets the model write (greedily, to the end token at most)."""
    max_length: Tokens = DataConfig.max_length
    """Longest prompt and answer together in tokens, registers not counted; the start of a longer prompt is cut."""
    batch_size: Count = 8
    """Rows in a batch at inference; each has logits over the whole vocabulary for every token."""
    encoding: str = "auto"
    """Of CSV and TSV files: UTF-8 or, where it isn't valid, latin-1; or a name that Python knows."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record, or leave it out, count it and list it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """What was said, and what is to be answered."""

    id: str
    messages: tuple[tuple[str, str], ...]
    """Role (`system`, `user`, `assistant`) and words, in order; the answer comes behind them."""
    answer: str | None = None

    @property
    def text(self) -> str:
        """The words, without roles."""
        return "\n\n".join(words for _, words in self.messages)

    @property
    def given(self) -> bool:
        """Whether the model is to answer."""
        return self.answer is None


class InstructionTuning(LanguageModelling):
    """The answer, given the prompt."""

    name: ClassVar[str] = "instruct"
    title: ClassVar[str] = "answering instructions"
    settings: ClassVar[type] = InstructSettings
    reads_text: ClassVar[bool] = False
    examples: ClassVar[str] = "instructions"
    gold: ClassVar[str | None] = "answer"
    given: ClassVar[tuple[str, ...]] = ("prompt",)
    perturbs: ClassVar[tuple[str, ...]] = ("prompt",)

    def perturb(self, example: Instruction, change: Change) -> Instruction:
        """Noise in what the user says."""
        messages = tuple(
            (role, change("prompt", words)[0] if role == "user" else words) for role, words in example.messages
        )
        return replace(example, messages=messages)

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads records with a prompt and an answer, or with `messages`, of which the last is the assistant's.

        Sets are `.jsonl`, `.json`, `.csv` and `.tsv` files, each with or without `.gz`, `hub:NAME[:CONFIG]:SPLIT`, and
        `embedded:train` and `embedded:dev`: passages with a question, to be answered in words of the passage.

        Raises:
            DataError: a file that can't be read or is empty, a column, a prompt or an answer that is missing; with its
                place.
        """
        del training
        return read_examples(
            names,
            _records,
            _instruction,
            settings,
            limit=limit,
            one="instruction with an answer",
            many=self.examples,
        )

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[TextRow]:
        """Prompt and answer, as the tokenizer's chat template writes them or, without one, with a blank line between.

        An answer ends with what the template writes behind it, or with the tokenizer's end token.
        """
        del training
        longest, rows, cut = session.task_settings.max_length, [], [0, 0]
        for item in examples.items:
            prompt, places, answer = _tokens(item, session.reader)
            rest = max(longest - len(answer), 1)
            cut[0] += len(prompt) > rest
            cut[1] += len(answer) > longest - 1
            prompt, places, answer = prompt[-rest:], places[-rest:], answer[: longest - 1]
            labels = np.array([*[NOT_SCORED] * len(prompt), *answer], dtype=np.int64)
            offsets = np.concatenate([places, np.zeros((len(answer), 2), dtype=np.int32)])
            rows.append(token_row(np.array([*prompt, *answer], dtype=np.int32), offsets, labels))
        what = ("prompts lost their start", "answers their end")
        notes = tuple(f"{n} {words} (max_length={longest})." for n, words in zip(cut, what, strict=True) if n)
        facts = {"cut_prompts": cut[0], "cut_answers": cut[1]}
        explains = None if any(item.given for item in examples.items) else first_label
        return labelled_rows(rows, range(len(rows)), session.reader, explains=explains, facts=facts, notes=notes)

    def scored_text(self, example: Instruction) -> str:
        """The answer."""
        return example.answer or ""

    def shortened(self, settings: InstructSettings, limit: int) -> InstructSettings:
        """Rows of at most `limit` tokens."""
        found: InstructSettings = Task.shortened(self, settings, limit)
        return found

    def described(self, example: Instruction) -> tuple[str, tuple[str, ...]]:
        """The prompt and the answer."""
        return example.text, () if example.answer is None else (example.answer,)

    def example(self, record: Mapping[str, Any], settings: Any) -> Instruction:
        """From `prompt` (or another usual name), or from `messages`; an answer that is there is left out."""
        return _instruction(str(record.get("id", "0")), record, "the prompt given", settings, need_answer=False)

    def shown(self, rows: Rows[TextRow], examples: Examples, session: Session) -> Shown:
        """The first token of the answer that the example has; without one, what the model writes."""
        del session
        if examples.items[0].answer is None:
            return Shown()
        note = "Explained is the first token of the answer that the example has."
        return Shown(targets={"answer": first_label(rows.rows[0])}, default=("answer",), notes=(note,))


# Reading


def _records(name: str, settings: InstructSettings) -> Iterator[tuple[str, Any]]:
    if name.startswith("embedded:"):
        for item in load_questions(name).items:
            for answer in item.answers[:1]:
                yield f"{name}, {item.id}", {"prompt": f"{item.context}\n\n{item.question}", "answer": answer.text}
    elif name.startswith("hub:"):
        yield from hub_records(name)
    else:
        yield from records_of(Path(name), encoding=settings.encoding)


def _instruction(
    id_: str, record: Any, place: str, settings: InstructSettings, *, need_answer: bool = True
) -> Instruction:
    if isinstance(record, str):
        raise DataError(
            f"{place}: {shown(record)} is a line of text. Give records with {PROMPTS[0]} and {ANSWERS[0]}, or with "
            "messages: a .jsonl, .json, .csv or .tsv file."
        )
    if record.get("messages") is not None and settings.prompt_column is None:
        messages = _messages(record["messages"], place)
        if messages[-1][0] == "assistant":
            *before, (_, answer) = messages
            if before:
                return Instruction(id=id_, messages=tuple(before), answer=answer if need_answer else None)
        if need_answer or messages[-1][0] != "user":
            roles = ", ".join(role for role, _ in messages)
            wanted = "the assistant's answer, behind others" if need_answer else "the user's"
            raise DataError(f"{place}: the messages are of {roles}; the last one must be {wanted}.")
        return Instruction(id=id_, messages=messages)
    prompt = text_of(cell(record, settings.prompt_column, PROMPTS, "prompt_column", place), place)
    more = record.get("input")
    if isinstance(more, str) and more.strip():
        prompt = f"{prompt}\n\n{more}"
    if not need_answer:
        return Instruction(id=id_, messages=(("user", prompt),))
    answer = text_of(cell(record, settings.answer_column, ANSWERS, "answer_column", place), place)
    return Instruction(id=id_, messages=(("user", prompt),), answer=answer)


def _messages(value: Any, place: str) -> tuple[tuple[str, str], ...]:
    found = value if isinstance(value, list) else []
    pairs = [(one.get("role"), one.get("content")) if isinstance(one, Mapping) else (None, None) for one in found]
    right = [role in _ROLES and isinstance(words, str) and bool(words.strip()) for role, words in pairs]
    if not pairs or not all(right):
        wrong = value if not pairs else found[right.index(False)]
        raise DataError(
            f"{place}: messages holds {shown(wrong)}; give a list of objects with a role ({', '.join(_ROLES)}) and a "
            "content, a text with at least one word."
        )
    return tuple((str(role), str(words)) for role, words in pairs)


# Tokens


def _tokens(item: Instruction, reader: Any) -> tuple[list[int], Int[np.ndarray, "tokens 2"], list[int]]:
    """Ids of the prompt, the characters of `item.text` that they spell, and ids of the answer."""
    if getattr(reader, "chat_template", None) is None:
        first, prompt = start_token(reader), f"{item.text}\n\n"
        answer = item.answer
        end = [] if reader.eos_token_id is None else [int(reader.eos_token_id)]
    else:
        first, end = [], []
        prompt = rendered(item.messages, reader)
        answer = None if item.answer is None else _behind(prompt, item, reader)
    ids, places = encoded(prompt, reader)
    places = _in_text(places, prompt, item)
    after = [] if answer is None else [*encoded(answer, reader)[0], *end]
    return [*first, *ids], np.pad(places, ((len(first), 0), (0, 0))), after


def rendered(messages: Sequence[tuple[str, str]], reader: Any, answer: str | None = None) -> str:
    """Messages as the tokenizer's chat template writes them, with the start of an answer or with a whole one.

    Raises:
        MissingExtraError: templates need jinja2.
        DataError: the template refuses these messages, and why.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "The tokenizer's chat template") from error
    said = [{"role": role, "content": words} for role, words in messages]
    said += [] if answer is None else [{"role": "assistant", "content": answer}]
    try:
        return str(reader.apply_chat_template(said, tokenize=False, add_generation_prompt=answer is None))
    except jinja2.TemplateError as error:
        roles = ", ".join(role for role, _ in messages)
        raise DataError(
            f"The tokenizer's chat template refuses messages of {roles} ({error}). Give them in an order that it takes."
        ) from error


def _behind(prompt: str, item: Instruction, reader: Any) -> str:
    whole = rendered(item.messages, reader, item.answer)
    if not whole.startswith(prompt):
        again = whole[max(0, len(prompt) - 60) :][:60]
        raise DataError(
            f"The instruction {item.id}: the tokenizer's chat template writes the prompt {shown(prompt[-60:])} and, "
            f"with the answer, {shown(again)}, so where the answer begins can't be told. Give the tokenizer a template "
            "whose text grows message by message (tokenizer.chat_template)."
        )
    return whole[len(prompt) :]


def _in_text(places: Int[np.ndarray, "tokens 2"], prompt: str, item: Instruction) -> Int[np.ndarray, "tokens 2"]:
    """Characters of the rendered prompt as characters of `item.text`; (0, 0) for what the template added."""
    found = np.zeros_like(places)
    at = base = 0
    for _, words in item.messages:
        inner = words.strip()  # templates trim
        start = prompt.find(inner, at)
        if start < 0:
            continue
        at = start + len(inner)
        own = (places[:, 0] >= start) & (places[:, 1] <= at) & (places[:, 1] > places[:, 0])
        found[own] = places[own] - start + base + words.find(inner)
        base += len(words) + 2
    return found
