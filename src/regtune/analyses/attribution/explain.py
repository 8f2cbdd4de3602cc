"""`explain`: why a model says what it says of a text, whatever its head: answers, classes, tags, or what it writes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.attribute import METHODS, attribute, check_inputs, options_of
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.attribution.batch import make_batch, writes_tokens
from regtune.analyses.attribution.simple import loss_when_hidden
from regtune.analyses.attribution.words import by_words
from regtune.analyses.pictures import data_uri
from regtune.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    UnknownNameError,
    UnsupportedModelError,
    shown,
    unknown_name,
)
from regtune.families import find_family
from regtune.families._family import LEDGER
from regtune.interfaces import Block, Examples, Rows, Shown, ShownByBlocks
from regtune.progress import each
from regtune.records import plain
from regtune.registers.surgery import backbone_of, find_decoder_registers, num_registers
from regtune.rows.targets import Target
from regtune.rows.texts import PlainText, text_rows
from regtune.session import Session, session_of

METHODS_SHOWN = ("attnlrp", "chefer", "integrated-gradients")
"""What is drawn unless other methods are named; those that a model has no rules for are left out, and it is said."""
_WITHOUT_RULES = ("gradient-input", "integrated-gradients")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "offset_mapping", "decoder_input_ids", "token_classes")
_OF_IMAGES = ("pixel_values", "attention_mask", "token_classes")


@dataclass(frozen=True, kw_only=True)
class ExplainedModel:
    """What one model says of a text, and which tokens matter for it."""

    name: str
    num_registers: int
    answer: Mapping[str, Any] | None
    """What it says: `text`, `probability`, and `start` and `end` in characters where that is a part of the text."""
    notes: tuple[str, ...]
    """What has to be known to read the scores: the window, "no answer", methods that were left out."""
    context_start: int
    """Number of entries before the text that the offsets of later ones count characters of."""
    attributions: tuple[Attribution, ...]
    """Method by method, target by target (`Attribution.asked`)."""
    picture: str | None = None
    """Of an image: what the model read, as a PNG in a data URI."""
    grid: tuple[int, int] | None = None
    """Of an image: rows and columns of its patches, which are the last tokens."""
    decoder_registers: int = 0
    """Of a decoder's own, beside the encoder's `num_registers`."""


@dataclass(frozen=True, kw_only=True)
class Explained(ShownByBlocks):
    """A text, and why one or two models say what they say of it."""

    id: str
    question: str | None
    """The first of two texts; None where there is one alone."""
    context: str
    """The text; what a model was made to write is at its end. Of an image its name."""
    models: tuple[ExplainedModel, ...]

    @property
    def attributions(self) -> list[Attribution]:
        """All of them, model by model."""
        return [found for model in self.models for found in model.attributions]

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said of the models together."""
        said = {model.name: model.answer["text"] for model in self.models if model.answer}
        if len(set(said.values())) < 2:
            return ()
        each = "; ".join(f"{name}: {text!r}" for name, text in said.items())
        return (f"The models say different things, and what each one says is explained. {each}.",)

    def __repr__(self) -> str:
        said = "; ".join(
            f"{one.name}: {shown(one.answer['text']) if one.answer else 'not said'}" for one in self.models
        )
        methods = ", ".join(dict.fromkeys(one.method for one in self.attributions))
        return f"<Explained {self.id}: {said}; by {methods}>"

    def blocks(self) -> list[Block]:
        """The scores drawn on the text."""
        return [Block(kind="figure", title=self.question or "What the model reads", data=self.to_json())]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: what `regtune explain --json` prints and the overlays draw."""
        found = {name: plain(value) for name, value in vars(self).items()}
        return {"schema_version": 1, "kind": "explanations", **found, "notes": list(self.notes)}


def explain(
    model: object,
    given: object,
    context: object = None,
    *,
    target: str | Sequence[str] = (),
    method: str | Sequence[str] = (),
    words: bool = False,
    write: int = 1,
    compare: object = None,
    **options: Any,
) -> Any:
    """Explains what a model says of texts, by any method and for any head.

    A text longer than the model's window is cut as for predicting; the notes say which part is explained. Where a
    question's answer is "no answer", its best answer *minus* "no answer" is explained.

    Args:
        model: a run directory, a folder, a hub name, a `Session`, or a pair of a model and its tokenizer.
        given: a text, a mapping with what the task reads (`text`; `question` and `context`; `image`), or a list of
            texts, of pairs of texts, of mappings, or of examples that were read (`Session.sample(...).items`). Write
            [MASK] where a masked language model is to find a word. A model of images takes paths for texts.
        context: the second text of a pair, or the text that holds the answer; then `given` is one text.
        target: what is explained, by name: `start`, `end`, `answer`, `answer-minus-runner-up` or `answer-minus-null` of
            an answer; `predicted`, a label, a word, or one minus another (`positive-negative`) elsewhere, with `@` and
            a token's number or word where a text has several (`PER@Ada`). By default what the model says itself: the
            start and end of its answer, its class, its tags, or the next token.
        method: of `attribute`; by default attnlrp, chefer and integrated-gradients, or what a model can have instead.
        words: scores by word instead of by token.
        write: so many tokens that a language model writes behind the text are explained one by one.
        compare: another model for the same texts.
        options: of the methods, each for those that have it: `baseline="mask"`, `start_layer=2`, `by="head"`.

    Returns:
        An `Explained`; a list of them for a list.

    Raises:
        ConfigError: an argument that is none of these; the value is named.
        DataError: a text that is none, or empty; or a record without what the task needs.
        CheckpointError: no such model.
        UnknownNameError: an unknown target, method or option, or a method that the model has no rules for.
        ConservationError: scores that break their method's law.
    """
    methods = (method,) if isinstance(method, str) else tuple(method)
    per_method = _options(methods, options)
    if write < 1:
        raise ConfigError(f"write={write} must be at least 1.")
    records = _records(given, context)
    sessions = [session_of(one) for one in ([model] if compare is None else [model, compare])]
    examples = [
        _example(sessions[0], {"id": str(number), **one}) if isinstance(one, Mapping) else one
        for number, one in enumerate(records, start=1)
    ]
    asked = (target,) if isinstance(target, str) else tuple(target)
    found = []
    for given_example in each(examples, "texts"):
        example = given_example if sessions[0].task is None else sessions[0].task.explained(given_example, sessions[0])
        made = [_explained(session, example, asked, methods, per_method, write) for session in sessions]
        (question, text), wrote = _texts(example), made[0][1]
        models = tuple(_in_words(one, (question, text + own)) if words else one for one, own in made)
        found.append(Explained(id=str(example.id), question=question, context=text + wrote, models=models))
    return found[0] if isinstance(given, (str, Mapping)) else found


# What is refused before a model is opened


def _options(methods: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each method."""
    for name in methods:
        if name not in METHODS:
            raise unknown_name("attribution method", name, METHODS)
    known = {name: options_of(name) for name in methods or (*METHODS_SHOWN, *_WITHOUT_RULES)}
    for name in options:
        if not any(name in each for each in known.values()):
            every = {each for found in known.values() for each in found}
            raise unknown_name(f"option of {', '.join(methods) or 'the methods that are shown'}", name, every)
    return {name: {one: value for one, value in options.items() if one in each} for name, each in known.items()}


_WHAT = "a text, a mapping, or a list of texts, pairs and mappings"


def _records(given: object, context: object) -> list[Any]:
    if context is not None:
        return [_record((given, context))]
    if isinstance(given, (str, Mapping)):
        given = [given]
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"explain was given {type(given).__name__} {shown(given)}; give {_WHAT}.")
    if not given:
        raise DataError("There is nothing to explain: 0 texts. Give at least one.")
    return [_record(one) for one in given]


def _record(one: object) -> Any:
    if isinstance(one, (list, tuple)) and len(one) == 2:
        question, context = _text("question", one[0]), _text("context", one[1])
        return {"question": question, "context": context, "text": question, "pair": context}
    if isinstance(one, str):
        return {"text": _text("text", one)}
    if isinstance(one, Mapping) or hasattr(one, "id"):
        return one
    raise ConfigError(f"One of the texts is {type(one).__name__} {shown(one)}; give {_WHAT}.")


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"The {what} is {shown(value)}; give it as text with at least one word.")
    return value


# What is read


def _example(session: Session, record: Mapping[str, Any]) -> Any:
    if session.task is not None:
        return session.task.example(record, session.task_settings)
    if session.modality == "image":
        raise CheckpointError(
            f"{session.name} has no head for a task, so it says nothing of an image. Train it first: regtune train "
            f"--model {session.name} --task {session.reads.name}"
        )
    text = _text("text", record.get("text")).replace("[MASK]", getattr(session.reader, "mask_token", None) or "[MASK]")
    return PlainText(id=str(record["id"]), text=text, pair=record.get("pair"))


def _texts(example: Any) -> tuple[str | None, str]:
    if hasattr(example, "context"):
        return example.question, example.context
    if not hasattr(example, "text"):
        return None, str(getattr(example, "name", example.id))
    pair = getattr(example, "pair", None)
    return (None, example.text) if pair is None else (example.text, pair)


def _read(session: Session, example: Any) -> tuple[Rows[Any], Shown]:
    """Its rows, and what the model says of it as far as a task knows."""
    examples = Examples(items=(example,), names=("given",))
    if session.task is not None:
        rows = session.rows(examples)
        return rows, session.task.shown(rows, examples, session)
    pairs = None if getattr(example, "pair", None) is None else [example.pair]
    rows = text_rows([example.text], session.reader, max_length=session.text_limit or 512, pairs=pairs)
    cut = f"Only the first {rows.lengths[0]} tokens of the text were read."
    return rows, Shown(notes=(cut,) if rows.facts["truncated_texts"] else ())


def _explained(
    session: Session,
    example: Any,
    asked: Sequence[str],
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    write: int,
) -> tuple[ExplainedModel, str]:
    """One model's explanations, and what it wrote behind the text."""
    rows, said = _read(session, example)
    batch = rows.batch([said.row]) | rows.roles([rows.rows[said.row]])
    images = rows.pictures is not None
    inputs, wrote = {name: batch[name] for name in (_OF_IMAGES if images else _INPUTS) if name in batch}, ""
    names = said.default if said.only or not asked else asked
    goals = {name: said.targets.get(name, name) for name in names}
    mask = getattr(session.reader, "mask_token_id", None)
    masked = mask is not None and bool((inputs["input_ids"] == mask).any())
    if not said.default and not masked and writes_tokens(session.model) and hasattr(session.model, "generate"):
        inputs, pieces = _written(session, inputs, write)
        first = 0 if "decoder_input_ids" in inputs else inputs["input_ids"].shape[1] - len(pieces)
        written = {f"{piece.strip()}@{place}": f"predicted@{place}" for place, piece in enumerate(pieces, start=first)}
        places = range(first, first + len(pieces))
        goals = (
            {f"{name}@{at}": f"{name}@{at}" for at in places for name in goals if "@" not in name} or goals or written
        )
        said = dataclasses.replace(said, text="".join(pieces))
        wrote = "" if first == 0 else "".join(pieces[:-1])
    goals = goals or {"predicted": "predicted"}
    found, notes = explain_row(
        session.model, inputs, goals, methods=methods, reader=session.reader, options=options, answer=said.tokens
    )
    answer = None
    if said.text is not None:
        span = {} if said.span is None else {"start": said.span[0], "end": said.span[1]}
        answer = {"text": said.text, "probability": said.probability, **span}
    beside = find_decoder_registers(session.model)
    made = ExplainedModel(
        name=session.name,
        num_registers=num_registers(session.model),
        decoder_registers=0 if beside is None else beside.num_registers,
        answer=answer,
        notes=(*said.notes, *notes),
        context_start=int(batch["context_start"][0]) if "context_start" in batch else 0,
        attributions=found,
        picture=None if rows.pictures is None else data_uri(rows.pictures([rows.rows[said.row]])[0]),
        grid=(int(batch["patch_grid"][0, 0]), int(batch["patch_grid"][0, 1])) if images else None,
    )
    return made, wrote


def _in_words(model: ExplainedModel, texts: tuple[str | None, str]) -> ExplainedModel:
    merged = [by_words(one, texts, model.context_start) for one in model.attributions]
    start = merged[0][1] if merged else model.context_start
    return dataclasses.replace(model, attributions=tuple(one for one, _ in merged), context_start=start)


# Heads that no task is for


@torch.inference_mode()
def _written(session: Session, inputs: dict[str, Tensor], count: int) -> tuple[dict[str, Tensor], list[str]]:
    """The inputs with what the model writes next (greedily) but for the last token, and the text of each new token."""
    model, reader, length = session.model, session.reader, inputs["input_ids"].shape[1]
    given = {name: inputs[name].to(session.device) for name in ("input_ids", "attention_mask")}
    pad = reader.pad_token_id or 0
    ids = model.generate(**given, max_new_tokens=count, do_sample=False, num_beams=1, pad_token_id=pad).cpu()
    new = ids[0, 1 if model.config.is_encoder_decoder else length :]
    every = ["", *(reader.decode(new[: n + 1]) for n in range(len(new)))]
    pieces = [text[len(before) :] for before, text in itertools.pairwise(every)]
    if model.config.is_encoder_decoder:
        return {**inputs, "decoder_input_ids": ids[:, :-1]}, pieces
    inputs, at = {**inputs, "input_ids": ids[:, :-1], "attention_mask": torch.ones_like(ids[:, :-1])}, 0
    at = int(inputs["offset_mapping"].max())
    for piece in pieces[:-1]:
        span = torch.tensor([[[at, at + len(piece)]]]).to(inputs["offset_mapping"])
        inputs["offset_mapping"] = torch.cat([inputs["offset_mapping"], span], 1)
        inputs["token_classes"] = torch.cat([inputs["token_classes"], inputs["token_classes"][:, -1:]], 1)
        at += len(piece)
    return inputs, pieces


# One row


def explain_row(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    goals: Mapping[str, str | Target],
    *,
    methods: Sequence[str] = (),
    reader: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    answer: tuple[int, int] | None = None,
) -> tuple[tuple[Attribution, ...], tuple[str, ...]]:
    """Several methods and targets on one text of any task.

    Returns:
        The scores, method by method; and what has to be known to read them.
    """
    rows = {key: value.repeat_interleave(len(goals), dim=0) for key, value in inputs.items()}
    wanted, found, notes = list(goals.values()), [], []
    family = find_family(backbone_of(model).config)
    for method in methods or (METHODS_SHOWN if family is not None and family.relevance else _WITHOUT_RULES):
        more = (options or {}).get(method, {})
        try:
            scores = attribute(model, rows, method=method, target=wanted, tokenizer=reader, **more)
        except (UnknownNameError, UnsupportedModelError, MissingExtraError) as error:
            if methods:
                raise
            notes.append(f"{method} is left out: {error}")
            continue
        found += [dataclasses.replace(one, asked=name) for name, one in zip(goals, scores, strict=True)]
    if answer is not None:
        notes.extend(_against_themselves(model, rows, goals, reader, answer, found))
    return tuple(found), tuple(notes)


def _against_themselves(
    model: nn.Module,
    rows: Mapping[str, Tensor],
    goals: Mapping[str, str | Target],
    reader: Any,
    answer: tuple[int, int],
    found: Sequence[Attribution],
) -> Iterator[str]:
    """A sentence where a ledger method books the answer's own words against the answer, and hiding them says no."""
    own = slice(answer[0], answer[1] + 1)
    booked = [(one.asked, one.method, float(one.relevance[own].sum())) for one in found if one.method in LEDGER]
    if not any(amount < 0 for *_, amount in booked):
        return
    family = find_family(backbone_of(model).config)
    batch = make_batch(model, family, check_inputs(rows), list(goals.values()), tolerance=0.0, tokenizer=reader)
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
