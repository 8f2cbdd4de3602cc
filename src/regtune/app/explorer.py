"""What the explorer shows: from what a person set, to blocks. No page here, and nothing is kept between two looks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from regtune.analyses.attribution.explain import explain
from regtune.app.inside import attention_blocks, lens_blocks, norm_blocks, places_of
from regtune.errors import ConfigError, DataError, unknown_name
from regtune.interfaces import Batch, Block, Examples
from regtune.registers.registers import Registers
from regtune.registers.surgery import (
    active_sets,
    backbone_of,
    disable_registers,
    find_decoder_registers,
    find_registers,
    mask_registers,
    num_registers,
)
from regtune.report.collect import Cell, open_cell
from regtune.report.flips import examples_of, find_flips
from regtune.rows.texts import PlainText
from regtune.session import Session, open_target
from regtune.session import open as open_session
from regtune.tables import Column

MOST_CHARACTERS = 20_000
"""Of a text; a longer one would keep everybody waiting."""
_ANSWERS = 10
"""Shown of each model."""
LISTED = 200
"""Examples in a list."""
CHOICES = ("all", "right", "wrong", "won", "lost")
"""Which examples are listed; the last two where two runs are compared."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is done to the registers for one look."""

    off: bool = False
    """All are switched off: the model computes as if it had none."""
    knocked_out: tuple[str, ...] = ()
    """No token attends to these, each in its own set: `r3`, or `d0` of a decoder's own beside an encoder
    (`Explorer.registers`). Those that a model doesn't have are no change to it."""

    @contextmanager
    def on(self, session: Session) -> Iterator[None]:
        """Inside the context the model is changed, for this thread alone."""
        with ExitStack() as stack:
            if self.off:
                stack.enter_context(disable_registers(session.model))
            for owner, registers in [] if self.off else active_sets(session.model):
                stack.enter_context(mask_registers(owner, self._of(registers)))
            yield

    def words(self, session: Session) -> str:
        """What the model is then."""
        sets = _sets(session)
        if not sets:
            return "no registers"
        if self.off:
            return "registers off"
        found = [] if "r" in sets else ["0 registers"]
        for kind, registers in sets.items():
            found.append(
                f"{registers.num_registers} registers" if kind == "r" else f"decoder's {registers.num_registers}"
            )
            if chosen := self._of(registers):
                found.append(f"without {', '.join(map(str, chosen))}")
        return ", ".join(found)

    def _of(self, registers: Registers) -> list[int]:
        kind = "d" if registers.of_decoder else "r"
        return [index for index in range(registers.num_registers) if f"{kind}{index}" in self.knocked_out]


def _sets(session: Session) -> dict[str, Registers]:
    """The model's registers (`r`) and those of a decoder's own beside an encoder (`d`), as far as it has them."""
    num_registers(session.model)  # refuses a model that lost them
    both = {"r": find_registers(session.model), "d": find_decoder_registers(session.model)}
    return {kind: registers for kind, registers in both.items() if registers is not None}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Examples of a run's evaluation set."""

    ids: tuple[str, ...]
    block: Block


@dataclass(kw_only=True, eq=False)
class Explorer:
    """One model, or two of one task. Looks of several people take turns: a look changes how a model runs."""

    sessions: tuple[Session, ...]
    cells: tuple[Cell, ...]
    """Their runs with their predictions; none for models that are no runs."""
    _turn: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """What a person gives: the fields that the task reads."""
        task = self.sessions[0].task
        return self.sessions[0].reads.given if self.reads_images else ("text",) if task is None else task.given

    @property
    def reads_images(self) -> bool:
        """Whether a person gives images, by their files."""
        return self.sessions[0].modality == "image"

    @property
    def layers(self) -> int:
        """Of the first model."""
        return int(self._config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Of one layer of the first model."""
        return int(self._config.num_attention_heads)

    @property
    def _config(self) -> Any:
        model = self.sessions[0].model
        return backbone_of(model).config if self.reads_images else model.config.get_text_config()

    @property
    def registers(self) -> dict[str, str]:
        """Key and name of every register that a model has: `r0`, and `d0` of a decoder's own."""
        counts: dict[str, int] = {}
        for session in self.sessions:
            for kind, registers in _sets(session).items():
                counts[kind] = max(counts.get(kind, 0), registers.num_registers)
        names = {"r": "encoder register", "d": "decoder register"} if "d" in counts else {"r": "register"}
        return {f"{kind}{n}": f"{names[kind]} {n}" for kind, count in counts.items() for n in range(count)}

    @property
    def sets(self) -> tuple[str, ...]:
        """Evaluation sets whose examples can be listed."""
        return tuple(self.cells[0].scored) if self.cells else ()

    # One text

    def predictions(self, given: Mapping[str, str], change: Change) -> list[Block]:
        """What each model says, with probabilities; beside it what it says with its registers off.

        Args:
            given: field to text.
            change: of the registers.

        Raises:
            DataError: a text that is empty or too long, or as the task reads it.
        """
        example, columns = self._example(given), {}
        task = self.sessions[0].task
        if task is None:
            words = (
                f"{self.sessions[0].name} has no head for a task, so it predicts nothing. Relevance shows what it says."
            )
            return [Block(kind="text", title="No predictions", text=words)]
        with self._turn:
            for letter, session in zip("AB", self.sessions, strict=False):
                changes = [change] if change.off or not _sets(session) else [change, Change(off=True)]
                for one in changes:
                    with one.on(session):
                        (found,) = session.predict(Examples(items=(example,), names=("given",)))
                    name = f"{letter}: {one.words(session)}" if len(self.sessions) > 1 else one.words(session)
                    columns[name] = _ranked(found.to_json(), task.said)
        answers = list(dict.fromkeys(answer for column in columns.values() for answer in list(column)[:_ANSWERS]))
        table = Block(
            kind="table",
            title="Predictions",
            columns=(Column(task.said, align="left", strong=True), *(Column(name, ".3f") for name in columns)),
            rows=tuple(
                (answer or "(nothing)", *(column.get(answer) for column in columns.values())) for answer in answers
            ),
            text=f"Probabilities, the {_ANSWERS} likeliest of each. " + self._names,
        )
        return [table]

    @property
    def _names(self) -> str:
        if len(self.sessions) == 1:
            return ""
        return " ".join(f"{letter}: {one.name}." for letter, one in zip("AB", self.sessions, strict=False))

    def relevance(
        self, given: Mapping[str, str], change: Change, methods: Sequence[str] = ("attnlrp",), target: str = ""
    ) -> list[Block]:
        """What each model's prediction rests on, drawn on the text, with its ledger.

        Args:
            given: field to text.
            change: of the registers.
            methods: of `regtune.attribute`; those of `regtune.explain` if none is named.
            target: of `regtune.explain`; what the model says if empty.

        Raises:
            DataError, UnknownNameError, TargetError: as `regtune.explain`.
        """
        self._example(given)
        with self._turn, ExitStack() as stack:
            for session in self.sessions:
                stack.enter_context(change.on(session))
            compare = self.sessions[1] if len(self.sessions) > 1 else None
            record = _filled(given)
            made = explain(self.sessions[0], record, method=methods, target=target.strip() or (), compare=compare)
        if not (change.off or change.knocked_out):
            return list(made.blocks())
        words = "\n".join(f"{session.name}: {change.words(session)}." for session in self.sessions)
        return [Block(kind="text", title="Changed for this look", text=words), *made.blocks()]

    def places(self, given: Mapping[str, str], change: Change) -> dict[str, str]:
        """Key and name of every token and register of the first model."""
        session = self.sessions[0]
        with self._turn, change.on(session):
            return places_of(session, self._batch(session, given))

    def attention(
        self, given: Mapping[str, str], change: Change, *, layer: int = 0, head: int | None = None, place: str = "0"
    ) -> list[Block]:
        """What one token attends to; see `attention_blocks`."""
        return self._inside(given, change, lambda *one: attention_blocks(*one, layer=layer, head=head, place=place))

    def norms(self, given: Mapping[str, str], change: Change) -> list[Block]:
        """See `norm_blocks`."""
        return self._inside(given, change, norm_blocks)

    def lens(self, given: Mapping[str, str], change: Change) -> list[Block]:
        """See `lens_blocks`; models without registers are left out where another one has some.

        Raises:
            UnsupportedModelError: no model has registers that are switched on.
        """
        having = [session for session in self.sessions if _sets(session)] or self.sessions[:1]
        return self._inside(given, change, lens_blocks, having)

    def _inside(
        self, given: Mapping[str, str], change: Change, look: Any, sessions: Sequence[Session] | None = None
    ) -> list[Block]:
        found: list[Block] = []
        with self._turn:
            for session in sessions or self.sessions:
                with change.on(session):
                    blocks = look(session, self._batch(session, given))
                if len(self.sessions) > 1:
                    found.append(Block(kind="text", title=f"{session.name} ({change.words(session)})"))
                found += blocks
        return found

    def _example(self, given: Mapping[str, str]) -> Any:
        for name, text in given.items():
            if len(text) > MOST_CHARACTERS:
                raise DataError(
                    f"The {name} has {len(text):,} characters; the page takes at most {MOST_CHARACTERS:,}. Give the "
                    "part that matters, or use regtune predict, which reads texts of any length."
                )
        record = _filled(given)
        task = self.sessions[0].task
        if self.reads_images and not given.get("image"):
            raise DataError("There is no image; choose or drop one.")
        if task is not None or self.reads_images:
            return self.sessions[0].reads.example(record, self.sessions[0].task_settings)
        if "text" not in record:
            raise DataError("The text is empty; give one with at least one word.")
        return PlainText(id=record["id"], text=record["text"])

    def _batch(self, session: Session, given: Mapping[str, str]) -> Batch:
        """The row that shows the example best, with its roles."""
        examples = Examples(items=(self._example(given),), names=("given",))
        rows = session.rows(examples)
        row = 0 if session.task is None else session.task.shown(rows, examples, session).row
        batch = rows.batch([row]) | rows.roles([rows.rows[row]])
        if rows.pictures is not None:
            batch["picture"] = torch.from_numpy(rows.pictures([rows.rows[row]]))
        return batch

    # A run's examples

    def examples(self, name: str, which: str = "all", search: str = "") -> Listed:
        """Examples of an evaluation set, with what the run predicted, and the other run where there is one.

        Args:
            name: of the set.
            which: `all`, `right`, `wrong`; `won` (wrong in the first run, right in the second) or `lost`.
            search: what their text, id or prediction has to contain, in any case.

        Raises:
            UnknownNameError: no such set or choice.
            DataError: nothing is right or wrong in this task, or only one run is open.
        """
        if name not in self.sets:
            raise unknown_name("evaluation set", name, self.sets)
        cells, known = self.cells, self._known[name]
        ids, needle = self._chosen(name, which), search.strip().lower()
        described = {one: self._task.described(item) for one, item in known.items()}
        rows = []
        for one in ids:
            text, gold = described.get(one, ("", ()))
            sides = [cell.scored[name] for cell in cells]
            said = [side.said[side.place[one]] for side in sides]
            right = [
                "" if side.right is None else ("right" if side.right[side.place[one]] else "wrong") for side in sides
            ]
            row = (one, text, " · ".join(gold[:3]), *(cell for pair in zip(said, right, strict=True) for cell in pair))
            if needle in " ".join(row).lower():
                rows.append(row)
        letters = [""] if len(cells) == 1 else [" A", " B"]
        block = Block(
            kind="table",
            title=f"{name}: {len(rows):,} {self._task.examples}"
            + (f", the first {LISTED}" if len(rows) > LISTED else ""),
            columns=(
                *("id", Column("text", align="left"), Column("gold", align="left")),
                *(Column(f"{what}{one}", align="left") for one in letters for what in ("prediction", "right")),
            ),
            rows=tuple(rows[:LISTED]),
            text="Click a row to look at it."
            if known
            else "The set's file can't be read from here, so texts are left out.",
        )
        return Listed(ids=tuple(row[0] for row in rows[:LISTED]), block=block)

    def given(self, name: str, id_: str) -> dict[str, str]:
        """What a person would have to type in to ask for an example of a set; empty where its text isn't known."""
        item = self._known[name].get(id_) if name in self.sets else None
        if self.reads_images:
            return {"image": str(item.source)} if item is not None and isinstance(item.source, Path) else {}
        return {} if item is None else {field: str(getattr(item, field, None) or "") for field in self.fields}

    @property
    def _task(self) -> Any:
        return self.sessions[0].reads

    @cached_property
    def _known(self) -> dict[str, dict[str, Any]]:
        return {name: {str(item.id): item for item in examples_of(self.cells[0], name)} for name in self.sets}

    def _chosen(self, name: str, which: str) -> list[str]:
        if which not in CHOICES:
            raise unknown_name("choice of examples", which, CHOICES)
        scored = self.cells[0].scored[name]
        if which == "all":
            return list(scored.place)
        if which in ("won", "lost"):
            if len(self.cells) < 2:
                raise DataError("Only one run is open, so nothing flips. Open another one with --compare.")
            flips = find_flips(self.cells[:1], self.cells[1:], name)
            if flips is None:
                raise DataError(f"{name} has no right and wrong in both runs, so nothing flips.")
            return [flip.id for flip in (flips.gained if which == "won" else flips.lost)]
        if scored.right is None:
            raise DataError(f"{name} has no right and wrong, so all of its {self._task.examples} are listed alike.")
        return [one for one, row in scored.place.items() if bool(scored.right[row]) == (which == "right")]


def _filled(given: Mapping[str, str]) -> dict[str, str]:
    return {"id": "given"} | {name: text for name, text in given.items() if text.strip()}


def _ranked(said: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """What a prediction says, the likeliest first, with probabilities where the task gives some."""
    found: dict[str, float | None] = dict(said.get("probabilities") or {})
    for one in said.get("n_best") or ():
        found.setdefault(str(one["text"]), one["probability"])
    if "null_probability" in said:
        found["(no answer)"] = said["null_probability"]
    if not found:
        return {str(said.get(name, "")): None}
    return dict(sorted(found.items(), key=lambda pair: -(pair[1] or 0.0)))


def open_explorer(folder: str | Path, compare: str | Path | None = None) -> Explorer:
    """Opens one model, or two of the same task.

    Args:
        folder: a run directory; a model's folder or hub name has no predictions to list.
        compare: another one.

    Raises:
        CheckpointError: no such run or model.
        ConfigError: the same one twice.
        DataError: models of two tasks.
    """
    names = [str(folder)] if compare is None else [str(folder), str(compare)]
    if len(names) == 2 and Path(names[0]).resolve() == Path(names[1]).resolve():
        raise ConfigError(f"{names[0]} and {names[1]} are the same; name two different ones.")
    recorded = {name: record.task for name in names if (record := open_target(name).record) is not None}
    if len(recorded) == len(names):  # so that two models of different tasks needn't be opened
        _one_task(names, list(recorded.values()))
    sessions = tuple(open_session(name) for name in names)
    _one_task(names, [None if session.task is None else session.task.name for session in sessions])
    cells = [open_cell(session.run_dir) for session in sessions if session.run_dir is not None]
    shared = len(cells) == len(sessions)
    if shared and len(cells) == 2:
        shared = cells[0].scored.keys() == cells[1].scored.keys() and all(
            cells[0].scored[name].place.keys() == cells[1].scored[name].place.keys() for name in cells[0].scored
        )
    return Explorer(sessions=sessions, cells=tuple(cells if shared else cells[:1] if sessions[0].run_dir else ()))


def _one_task(names: Sequence[str], tasks: Sequence[str | None]) -> None:
    if len(set(tasks)) > 1:
        said = " and ".join(f"{name} is for {task or 'no task'}" for name, task in zip(names, tasks, strict=True))
        raise DataError(f"{said}. Compare two models of one task.")
