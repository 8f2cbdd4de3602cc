"""One forward pass of a model with registers: what belongs to it, and to no other.

A `Pass` is opened when a backbone runs and closed when it returns, also by an error. Each thread has its own, and a
pass that runs inside another (a hook that calls the model) lies on top of it. Nothing of a pass is kept on a module,
since threads, copies and other models share modules.

Gradient checkpointing runs layers again when their pass is long closed, perhaps in another thread. What a layer reads
then is stored where it was stored the first time, so the pass is found by that storage.
"""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from regtune.errors import InputError

if TYPE_CHECKING:
    from regtune.registers.registers import Registers, Setting


class Layout:
    """Where the registers of each row stand: at column `first` of the text, or at the front of all rows (None).

    `order[b, p]` is the column of `[registers, text]` that stands at position p of row b inside the model;
    `text_columns[b, t]` is the position of text token t. Both are None where all rows have the registers in front.
    """

    def __init__(self, num_registers: int, first: Int[Tensor, " batch"] | None, seq: int) -> None:
        self.num_registers = n = num_registers
        self.total = n + seq
        self.order: Tensor | None = None
        self.text_columns: Tensor | None = None
        if first is None:
            return
        k = first.unsqueeze(1)
        p = torch.arange(n + seq, device=first.device).unsqueeze(0)
        self.order = torch.where(p < k, p + n, torch.where(p < k + n, p - k, p))
        t = torch.arange(seq, device=first.device).unsqueeze(0)
        self.text_columns = torch.where(t < k, t, t + n)

    def insert(self, registers: Tensor, text: Tensor) -> Tensor:
        """Joins `[batch, registers, ...]` and `[batch, seq, ...]` to `[batch, total, ...]`."""
        joined = torch.cat([registers.to(text.dtype), text], dim=1)
        return joined if self.order is None else take_columns(joined, self.order)

    def strip(self, total: Tensor) -> Tensor:
        """The text's part `[batch, seq, ...]` of `[batch, total, ...]`."""
        return total[:, self.num_registers :] if self.text_columns is None else take_columns(total, self.text_columns)

    def registers_of(self, total: Tensor) -> Tensor:
        """The registers' part `[batch, registers, ...]` of `[batch, total, ...]`."""
        if self.order is None:
            return total[:, : self.num_registers]
        return take_columns(total, self.columns()[:, : self.num_registers])

    def columns(self) -> Int[Tensor, "batch total"]:
        """Positions inside the model of `[registers, text]`: the inverse of `order`."""
        assert self.order is not None
        return torch.argsort(self.order, dim=1)

    def registers_first(self, values: Tensor, *axes: int) -> Tensor:
        """Puts the named axes of `[batch, ...]`, `total` long inside the model, in the order `[registers, text]`."""
        if self.order is not None:
            columns = self.columns()
            for axis in axes:
                values = take_columns(values.transpose(1, axis), columns).transpose(1, axis)
        return values


def take_columns(values: Tensor, columns: Int[Tensor, "batch columns"]) -> Tensor:
    """The named columns of each row: `[batch, total, ...]` to `[batch, columns, ...]`."""
    index = columns.reshape(*columns.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return torch.gather(values, 1, index)


def hidden_score(mask: Tensor) -> bool | float:
    """What a full mask `[batch, 1, query, key]` holds where a key is hidden.

    Raises:
        InputError: an integer mask.
    """
    if mask.dtype == torch.bool:
        return False
    if not mask.is_floating_point():
        raise InputError(
            f"attention_mask of shape {tuple(mask.shape)} is {mask.dtype}; a full mask is added to the scores as "
            "it is, so it must be bool (SDPA) or floating point (0 where tokens are seen, else the lowest number)."
        )
    return torch.finfo(mask.dtype).min


def seen_places(mask: Any) -> Bool[Tensor, "batch keys"] | None:
    """The places that some token sees, in any form of a mask (of several the first); None where there is none."""
    if isinstance(mask, dict):
        mask = next((part for part in mask.values() if part is not None), None)
    if mask is None:
        return None
    if mask.dim() == 4:  # padding is a column that no token sees
        mask = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(2).any(1)
    seen: Tensor = mask.bool()
    return seen


class Pass:
    """What belongs to one forward pass of one backbone.

    Attributes:
        key: of the set of registers (`RegisterHooks.key`).
        backbone: the module that runs; a copy or a replica runs with its own registers.
        registers: the registers that act: of PEFT's copies the active one.
        setting: switched on or off, and which are masked, when the pass was opened.
        layout: where the registers stand; None where they are switched off.
        text_mask: the mask as it was given.
        joined: the registers are in the sequence.
        cache: a decoder's cache that they are written to in this pass.
        places: where distances are counted along the sequence, the places of registers before each text that doesn't
            start at place 0, `[batch, registers]`.
    """

    def __init__(self, key: str, backbone: nn.Module, registers: Registers, setting: Setting) -> None:
        self.key = key
        self.backbone: nn.Module | None = backbone
        self.registers = registers
        self.setting = setting
        self.layout: Layout | None = None
        self.text_mask: Tensor | None = None
        self.joined = False
        self.cache: Any = None
        self.places: Tensor | None = None

    @property
    def total(self) -> int:
        """Length inside the model; 0 where registers are switched off."""
        return 0 if self.layout is None else self.layout.total


class _Thread(threading.local):
    """What this thread does: its innermost open pass, and the backbone that torch has just called."""

    top: Pass | None = None
    called: Any = None
    aside: tuple[tuple[str, Layout | None, Tensor | None], ...] = ()
    """For each module that now runs without registers: of which set, and their states (None: they weren't in)."""


thread = _Thread()


def open_pass() -> Pass | None:
    """The innermost pass that is open in this thread."""
    return thread.top


class Unclear(enum.Enum):
    """What can't be told of states: nothing was noted, or two things that differ."""

    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"


_REMEMBERED: dict[tuple[int, str], tuple[StorageWeakRef, Any]] = {}
"""By storage and set of registers: what was known when it was first read. A storage's number is never given to another
one while its weak reference is here."""


def remember(states: Tensor, key: str, known: Any) -> None:
    """Notes for a recomputation in a backward pass what was known when these states were read."""
    reference = _storage(states)
    if reference is not None:
        found = _REMEMBERED.get((reference.cdata, key))
        agreed = found is None or found[1] == known
        _REMEMBERED[reference.cdata, key] = (reference, known if agreed else Unclear.AMBIGUOUS)


def recall(states: Tensor, key: str) -> Any:
    """What is remembered of the storage of these states, or that it's unclear."""
    reference = _storage(states)
    found = None if reference is None else _REMEMBERED.get((reference.cdata, key))
    return Unclear.UNKNOWN if found is None else found[1]


class Again(threading.local):
    """What was noted of a layer that a backward pass runs again in this thread, until a part of the layer takes it."""

    noted: Any = Unclear.UNKNOWN

    def find(self, states: Tensor, key: str, what: str) -> None:
        """Before that layer: looks up what `remember` was told of what it reads; `what` runs again, for the error.

        Raises:
            InputError: it was told two things.
        """
        found = recall(states, key)
        if found is Unclear.AMBIGUOUS:
            raise lost(what)
        if found is not Unclear.UNKNOWN:
            self.noted = found

    def take(self) -> Any:
        """What was noted, once; UNKNOWN where nothing was, or no backward pass runs."""
        if not in_backward():
            return Unclear.UNKNOWN
        noted, self.noted = self.noted, Unclear.UNKNOWN
        return noted


def _storage(states: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(states.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # torch.func's tensors and the like have none
        return None


def forget() -> None:
    """Lets go of what is remembered of storages that are gone."""
    for place, (reference, _) in list(_REMEMBERED.items()):
        if reference.expired():  # type: ignore[no-untyped-call]
            _REMEMBERED.pop(place, None)


def in_backward() -> bool:
    """Whether this thread is in a backward pass, so that a layer which runs is run again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def lost(what: str) -> InputError:
    """The error for a recomputation whose forward pass can't be found."""
    return InputError(
        f"{what} run again in a backward pass (gradient checkpointing), and it can't be told from which forward pass, "
        "so the registers' places aren't known. Checkpoint the layers (model.gradient_checkpointing_enable()) or the "
        "whole model, with its activations kept where they are."
    )
