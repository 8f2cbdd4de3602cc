"""What every attribution method returns: a score for each part of the input, and how well its own law holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from regtune.errors import DataError, RegtuneError
from regtune.records import plain
from regtune.rows.targets import Resolved

SCHEMA_VERSION = 1
"""Of `Attribution.to_json`."""


class ConservationError(RegtuneError, ArithmeticError):
    """The scores don't add up to what they explain, so they explain something else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """One explained value of one text. Padding has no scores: `tokens` are the attended tokens alone.

    For the ledger methods (`attnlrp`, `cp-lrp`) and for `integrated-gradients` the parts are in the units of `value`
    (logits) and `value = total + residual`. For `chefer` the scores of tokens and registers are shares of a
    probability that sum to 1 (of a contrast: the shares of its first side less those of its second, which sum to 0),
    the other parts are 0 and `residual` is what a side's relevance lost or gained on the way to the embeddings. For
    `rollout` and `attention` they are shares as well. These two, `attention-gradient`, `gradient-input`, `occlusion`
    and `random` have no law that could be broken: their residual is 0 and says nothing.
    """

    method: str
    asked: str = ""
    """What the person called the target."""
    target: str
    """What was explained, in words and positions, for example "start+end of tokens 7 to 9"."""
    value: float
    """The target's value, a linear combination of logits."""
    tokens: tuple[str, ...]
    """The attended tokens: the tokenizer's pieces, or the ids as text if none was given."""
    offsets: tuple[tuple[int, int], ...] | None
    """Half-open character ranges of the tokens, in the text that the tokenizer was given; None if unknown."""
    relevance: Float64[np.ndarray, " tokens"]
    """A score for each token."""
    registers: Float64[np.ndarray, " registers"]
    """A score for each register, over all depths; empty without registers. Of a model with an encoder and a decoder the
    encoder's and then the decoder's own, which the decoder's attention over the text gives nothing (`attention`)."""
    decoder_registers: int = 0
    """How many of them, the last, are a decoder's own."""
    positions: float = 0.0
    """Position embeddings and relative position biases."""
    types: float = 0.0
    """Token-type (segment) embeddings."""
    biases: float = 0.0
    """Biases of linear layers, convolutions and LayerNorms."""
    softmax: float = 0.0
    """What the attention's softmax absorbed: relevance of the weights that the scores cannot account for."""
    baseline: float = 0.0
    """Integrated gradients: the value at the start of the path, which no score accounts for. 0 for other methods."""
    residual: float = 0.0
    """How far the method's own law is from holding; 0 is perfect."""
    steps: int | None = None
    """Integrated gradients: points of the path at which gradients were taken for these scores."""
    error: float | None = None
    """Integrated gradients: the largest error of a token's or register's score, a share of the largest score; an
    estimate from two rules. None for other methods; infinite where `max_steps` left no room for an estimate."""
    options: Mapping[str, str | int | float | None] = field(default_factory=dict)
    """The method's options, those that were left at their defaults among them."""
    read_from: tuple[int, ...] = ()
    """Tokens whose last states the target is read from; empty where that is no token of this text."""
    by: str | None = None
    """What `inner` is about: `layer`, `head` or `neuron`."""
    inner: Float64[np.ndarray, ...] | None = None
    """`layer`: `[depths, registers + tokens]`, relevance of what each layer reads, the last one's output too. `head`:
    `[layers, heads, registers + tokens]`, of what each head writes. `neuron`: `[layers, neurons]`."""
    inner_residual: Float64[np.ndarray, " depths"] | None = None
    """How far each depth's own law is from holding. `layer`: relevance there and all that joins or is lost behind it
    add up to `value`. `head`, `neuron`: they and their projection's bias add up to what it hands on."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.relevance):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.relevance)} scores.")
        if self.offsets is not None and len(self.offsets) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.offsets)} offsets.")
        if not 0 <= self.decoder_registers <= len(self.registers):
            raise ValueError(
                f"{len(self.registers)} registers, but {self.decoder_registers} of the decoder's among them."
            )
        for scores in (self.relevance, self.registers):
            scores.setflags(write=False)

    @property
    def register_names(self) -> tuple[str, ...]:
        """r0, r1, ... and, of a decoder's own beside an encoder's, d0, d1, ..."""
        first = len(self.registers) - self.decoder_registers
        return (*(f"r{index}" for index in range(first)), *(f"d{index}" for index in range(self.decoder_registers)))

    def merged(self, groups: Sequence[Sequence[int]]) -> Attribution:
        """The scores of groups of neighbouring tokens (their indices, in order, each once), added up."""
        starts = [group[0] for group in groups]
        home = {token: number for number, group in enumerate(groups) for token in group}

        def total(scores: np.ndarray) -> np.ndarray:
            return np.add.reduceat(scores, starts, axis=-1)

        inner = self.inner
        if inner is not None and self.by != "neuron":
            count = len(self.registers)
            inner = np.concatenate([inner[..., :count], total(inner[..., count:])], axis=-1)
        return replace(
            self,
            tokens=tuple("".join(self.tokens[token] for token in group) for group in groups),
            offsets=self.offsets and tuple((self.offsets[g[0]][0], self.offsets[g[-1]][1]) for g in groups),
            relevance=total(self.relevance),
            read_from=tuple(dict.fromkeys(home[token] for token in self.read_from if token in home)),
            inner=inner,
        )

    def parts(self) -> dict[str, float]:
        """The ledger: what each kind of input contributed, summed over tokens and over registers."""
        return {
            "tokens": float(self.relevance.sum()),
            "registers": float(self.registers.sum()),
            "positions": self.positions,
            "types": self.types,
            "biases": self.biases,
            "softmax": self.softmax,
            "baseline": self.baseline,
        }

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(self.parts().values())

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; a number that is none (NaN, infinite) becomes None."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "attribution",
            **{each.name: plain(getattr(self, each.name)) for each in fields(self)},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Attribution:
        """Reads what `to_json` wrote; every number comes back as it was, but infinite ones as NaN.

        Raises:
            DataError: not such a record, or one of a later version.
        """
        if record.get("kind") != "attribution" or record.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"kind={record.get('kind')!r}, schema_version={record.get('schema_version')!r} is no attribution that "
                f"this regtune reads ('attribution', {SCHEMA_VERSION}). Explain the text again."
            )
        try:
            kept: dict[str, Any] = {each.name: record[each.name] for each in fields(cls) if each.name in record}
            for name in _NUMBERS:
                kept[name] = math.nan if record[name] is None else float(record[name])
            for name in ("relevance", "registers", "inner", "inner_residual"):
                kept[name] = None if kept.get(name) is None else np.array(kept[name], dtype=np.float64)
            if kept.get("offsets") is not None:
                kept["offsets"] = tuple((int(start), int(end)) for start, end in kept["offsets"])
            kept |= {"tokens": tuple(record["tokens"]), "read_from": tuple(kept.get("read_from", ()))}
            return cls(**kept)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"This attribution can't be read: {error!r}. Explain the text again.") from error


_NUMBERS = ("value", "positions", "types", "biases", "softmax", "baseline", "residual")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a method hands back for one batch, before it becomes one `Attribution` a row."""

    targets: Sequence[Resolved]
    values: Tensor
    """`[batch]`, as all below unless they say more."""
    tokens: Tensor
    """`[batch, seq]`, padding included."""
    registers: Tensor
    """`[batch, registers]`."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the method's law counts, by the name that it has in `Attribution`."""
    residual: Tensor | None = None
    """None: the method has no law."""
    scale: Tensor | None = None
    """What the residual is to be small against."""
    remedy: str = "Run the model in float32 or float64, or raise tolerance."
    """What to do where it isn't."""
    kept: Tensor | None = None
    """The sizes of all relevance together, as a share of what it started from. A law can hold while the result is
    nothing; where this is next to nothing, the residual says nothing."""
    steps: Sequence[int] | None = None
    error: Tensor | None = None
    inner: Tensor | None = None
    """`[batch, ...]`, registers first."""
    inner_residual: Tensor | None = None
