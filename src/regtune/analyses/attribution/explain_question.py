"""Why a model answers a question as it does: several methods and targets on the window that holds its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.attribution.batch import make_batch
from regtune.analyses.attribution.explain import METHODS, check_inputs, explain
from regtune.analyses.attribution.simple import loss_when_hidden
from regtune.analyses.batches import Batch, question_batches
from regtune.config import AnswerConfig
from regtune.errors import DataError, MissingExtraError, UnknownNameError, UnsupportedModelError, shown, unknown_name
from regtune.families import find_family
from regtune.families._family import LEDGER
from regtune.models.precision import device_of
from regtune.registers.surgery import backbone_of, num_registers, register_positions
from regtune.session import open_target, require_answering_head
from regtune.targets import Answer, EndLogit, StartLogit, Target
from regtune.tasks.qa.answers import AnswerSpan, Prediction
from regtune.tasks.qa.examples import Answer as GoldAnswer
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.question_answerer import QuestionAnswerer

METHODS_SHOWN = ("attnlrp", "chefer", "integrated-gradients")
"""What is drawn unless other methods are named; those that a model has no rules for are left out, and it is said."""
NO_ANSWER = "answer-minus-null"
TARGETS_SHOWN = ("start", "end", "answer", NO_ANSWER, "answer-minus-runner-up")
"""What can be explained of an answer."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "offset_mapping")


@dataclass(frozen=True, kw_only=True)
class ExplainedModel:
    """One model's answer and what it rests on."""

    name: str
    num_registers: int
    answer: AnswerSpan
    """Its best answer, also where it would rather give none."""
    notes: tuple[str, ...]
    """What has to be known to read the scores: the window, "no answer", methods that were left out."""
    context_start: int
    """Number of attended tokens before the context: offsets of later ones count characters of the context."""
    attributions: tuple[tuple[str, Attribution], ...]
    """Pairs of a target's name and the scores; method by method."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; each attribution gets the target's name as `asked`."""
        return {
            "name": self.name,
            "num_registers": self.num_registers,
            "answer": self.answer._asdict(),
            "notes": list(self.notes),
            "context_start": self.context_start,
            "attributions": [{"asked": asked, **found.to_json()} for asked, found in self.attributions],
        }


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A question, its text, and one or two models' explanations."""

    question: str
    context: str
    models: tuple[ExplainedModel, ...]

    @property
    def attributions(self) -> list[Attribution]:
        """All of them, model by model."""
        return [found for model in self.models for _, found in model.attributions]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the models have in common to be said of them."""
        answers = {model.answer.text for model in self.models}
        if len(answers) < 2:
            return ()
        said = "; ".join(f"{model.name}: {model.answer.text!r}" for model in self.models)
        return (f"The models answer differently, and each one's own answer is explained. {said}.",)

    def to_json(self) -> dict[str, Any]:
        """What `inside/explanations.json` holds and `regtune.report.overlays.page` draws."""
        return {
            "schema_version": 1,
            "kind": "explanations",
            "question": self.question,
            "context": self.context,
            "notes": list(self.notes),
            "models": [model.to_json() for model in self.models],
        }


def explain_question(
    name: str,
    question: object,
    context: object,
    *,
    methods: Sequence[str] | None = None,
    targets: Sequence[str] = ("start", "end"),
    compare: str | None = None,
) -> Explained:
    """Answers the question and explains the answer, in the window that the answer comes from.

    A text longer than the model's window is cut as for answering; which part is explained is said in the notes. Where
    the model's settings allow "no answer" and it prefers that, the notes say so and its best answer *minus* "no
    answer" is explained instead of `targets`.

    Args:
        name: a run directory, a folder or a hub name.
        question: the question, as text.
        context: the text, of any length.
        methods: names of `regtune.analyses.attribution.explain.METHODS`; by default `METHODS_SHOWN`,
            less what a model can't have.
        targets: some of `TARGETS_SHOWN`.
        compare: another model for the same question, for example one without registers.

    Raises:
        DataError: a question or context that is no text, or empty.
        CheckpointError: no such model, or one without a question-answering head.
        UnknownNameError: an unknown target, or a method that doesn't exist or that the model has no rules for.
        ConservationError: scores that break their method's law.
    """
    asked_for, text = _text("question", question), _text("context", context)
    for wanted in methods or ():
        if wanted not in METHODS:
            raise unknown_name("attribution method", wanted, METHODS)
    for asked in targets:
        if asked not in TARGETS_SHOWN:
            raise unknown_name("target of question answering", asked, TARGETS_SHOWN)
    if not targets or (methods is not None and not methods):
        raise DataError(f"methods={methods} and targets={tuple(targets)}: name at least one of each.")
    names = [name] if compare is None else [name, compare]
    found = tuple(_explain_one(one, asked_for, text, methods=methods, targets=targets) for one in names)
    return Explained(question=asked_for, context=text, models=found)


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"The {what} is {shown(value)}; give it as text with at least one word.")
    return value


def _explain_one(
    name: str, question: str, context: str, *, methods: Sequence[str] | None, targets: Sequence[str]
) -> ExplainedModel:
    target = open_target(name)
    require_answering_head(target.model)
    config = target.config
    answerer = QuestionAnswerer.from_pretrained(
        target.model,
        config=dataclasses.replace(config.answers, top_k=1, null_answers=True),
        max_length=config.data.max_length,
        stride=config.data.stride,
    )
    (prediction,) = answerer.answer([QAExample(id="0", question=question, context=context, answers=())])
    answer = prediction.n_best[0]
    inputs, place = _window(answerer, question, context, answer)
    notes = [*_window_notes(inputs, place, context, question), *_null_notes(prediction, config.answers)]
    if prediction.question_cut:
        notes.append("The question is too long for the model's windows: only its start was read and is explained.")
    if config.answers.null_answers and not prediction.text:
        targets = (NO_ANSWER,)
    goals = [_goal(asked, place, config.answers.max_answer_tokens) for asked in targets]
    attributions, more = explain_row(
        answerer.model,
        inputs,
        dict(zip(targets, goals, strict=True)),
        methods=methods,
        tokenizer=answerer.tokenizer,
        answer=(place.start, place.end),
    )
    notes += more
    return ExplainedModel(
        name=str(name),
        num_registers=num_registers(answerer.model),
        answer=answer,
        notes=tuple(notes),
        context_start=place.context_start,
        attributions=attributions,
    )


def explain_row(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    goals: Mapping[str, Target],
    *,
    methods: Sequence[str] | None = None,
    tokenizer: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    answer: tuple[int, int] | None = None,
) -> tuple[tuple[tuple[str, Attribution], ...], tuple[str, ...]]:
    """Several methods and targets on one text of any task.

    Args:
        model: in eval mode, with the head that the targets are of.
        inputs: one row, `[1, seq]` each, without padding.
        goals: what is explained, by the name that a person gave it.
        methods: by default `METHODS_SHOWN`, less what the model can't have, which the notes say.
        tokenizer: names the tokens and says which are special.
        options: for some methods, by their names.
        answer: tokens, both ends inclusive, whose relevance is compared with what hiding them does.

    Returns:
        Pairs of a target's name and the scores, method by method; and what has to be known to read them.
    """
    rows = {key: value.repeat_interleave(len(goals), dim=0) for key, value in inputs.items()}
    found: list[tuple[str, Attribution]] = []
    notes: list[str] = []
    for method in METHODS_SHOWN if methods is None else methods:
        chosen = (options or {}).get(method)
        try:
            scores = explain(
                model, rows, method=method, target=list(goals.values()), tokenizer=tokenizer, options=chosen
            )
        except (UnknownNameError, UnsupportedModelError, MissingExtraError) as error:
            if methods is not None:
                raise
            notes.append(f"{method} is left out: {error}")
            continue
        found.extend(zip(goals, scores, strict=True))
    if answer is not None:
        notes.extend(_against_themselves(model, rows, goals, tokenizer, answer, found))
    return tuple(found), tuple(notes)


def _against_themselves(
    model: nn.Module,
    rows: Mapping[str, Tensor],
    goals: Mapping[str, Target],
    tokenizer: Any,
    answer: tuple[int, int],
    found: Sequence[tuple[str, Attribution]],
) -> Iterator[str]:
    """A sentence where a ledger method books the answer's own words against the answer, and hiding them says no."""
    own = slice(answer[0], answer[1] + 1)
    booked = [(asked, one.method, float(one.relevance[own].sum())) for asked, one in found if one.method in LEDGER]
    if not any(amount < 0 for *_, amount in booked):
        return
    family = find_family(backbone_of(model).config)
    wanted = list(goals.values())
    batch = make_batch(model, family, check_inputs(rows), wanted, tolerance=0.0, tokenizer=tokenizer)
    if batch.token_ids["pad"] is None:
        return
    hidden = torch.zeros_like(batch.text)
    hidden[:, own] = True
    losses = dict(zip(goals, loss_when_hidden(batch, hidden).tolist(), strict=True))
    for asked, method, amount in booked:
        if amount < 0 < losses[asked]:
            yield (
                f"{method} books the answer's own words at {amount:+.2f} logits for {asked}, yet hiding them costs "
                f"{losses[asked]:.2f}. A ledger splits the logit against everything else that it books; whether words "
                "matter is what hiding them tells (occlusion)."
            )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the answer lies: tokens of the window (both inclusive), the context's tokens, and how many windows."""

    start: int
    end: int
    context_start: int
    context_end: int
    windows: int


def _window(
    answerer: QuestionAnswerer, question: str, context: str, answer: AnswerSpan
) -> tuple[dict[str, Tensor], _Place]:
    """The window whose logits gave the answer, as one row without padding."""
    gold = GoldAnswer(text=answer.text, start=answer.start)
    batches = question_batches(
        [QAExample(id="0", question=question, context=context, answers=(gold,))],
        answerer.tokenizer,
        max_length=answerer.max_length - register_positions(answerer.model),
        stride=answerer.stride,
        windows="all",
        max_question_length=answerer.max_question_length,
    )
    holding = [found for batch in batches for found in _rows_with_answer(answerer, batch)]
    if not holding:
        raise DataError(
            f"The answer {answer.text[:60]!r} is whole in no window of {answerer.max_length} tokens, so there is none "
            "to explain. Ask a shorter question, or give the part of the text that holds the answer."
        )
    _, batch, row = max(holding, key=lambda one: one[0])
    length = int(batch["attention_mask"][row].sum())
    inputs = {key: batch[key][row : row + 1, :length] for key in _INPUTS if key in batch}
    names = ("start_positions", "end_positions", "context_start", "context_end")
    start, end, context_start, context_end = (int(batch[key][row]) for key in names)
    return inputs, _Place(
        start=start,
        end=end,
        context_start=context_start,
        context_end=context_end,
        windows=sum(len(batch["example"]) for batch in batches),
    )


@torch.inference_mode()
def _rows_with_answer(answerer: QuestionAnswerer, batch: Batch) -> Iterator[tuple[float, Batch, int]]:
    """The rows that hold the answer, with its score there."""
    rows = batch["start_positions"].nonzero().flatten()
    if not len(rows):
        return
    device = device_of(answerer.model)
    inputs = {key: batch[key][rows].to(device) for key in _INPUTS[:3] if key in batch}
    output = answerer.model(**inputs)
    starts = output.start_logits.float().cpu().gather(1, batch["start_positions"][rows, None])
    ends = output.end_logits.float().cpu().gather(1, batch["end_positions"][rows, None])
    for row, score in zip(rows.tolist(), (starts + ends).flatten().tolist(), strict=True):
        yield score, batch, row


def _goal(asked: str, place: _Place, max_tokens: int) -> Target:
    """The target at the answer's own tokens."""
    if asked == "start":
        return StartLogit(position=place.start)
    if asked == "end":
        return EndLogit(position=place.end)
    minus = asked.removeprefix("answer-minus-") if asked != "answer" else None
    context = (place.context_start, place.context_end)
    return Answer(start=place.start, end=place.end, context=context, max_tokens=max_tokens, minus=minus)


def _window_notes(inputs: dict[str, Tensor], place: _Place, context: str, question: str) -> Iterator[str]:
    offsets = inputs["offset_mapping"][0]
    if place.windows > 1:
        first = int(offsets[place.context_start, 0])
        last = int(offsets[place.context_end - 1, 1])
        yield (
            f"The text is longer than the model's window and was read in {place.windows} overlapping parts. Explained "
            f"is the one that holds the answer, characters {first:,} to {last:,} of {len(context):,}."
        )
    read = int(offsets[: place.context_start, 1].max())
    if read < len(question.rstrip()):
        yield f"The question was cut to its first {read} of {len(question)} characters."


def _null_notes(prediction: Prediction, answers: AnswerConfig) -> Iterator[str]:
    difference, best = prediction.null_difference or 0.0, prediction.best_text
    if answers.null_answers and not prediction.text:
        yield (
            f"The model says that the text holds no answer: its logits for that are {difference:+.2f} against its best "
            f"answer {best!r}, and {answers.null_threshold:g} is the threshold. Explained is that answer minus no "
            "answer: positive scores speak for the answer, negative ones for there being none."
        )
    elif difference > 0 and not answers.null_answers:
        yield (
            f"This model may not say that there is no answer, but its logits for that are {difference:.2f} higher than "
            f"for {best!r}; don't trust this answer."
        )
