"""Which family fits a model of an unlisted architecture: candidates made of the evidence, tried against the invariants.

The first candidate on which all invariants hold is kept, or else the one on which the most do. It comes with a file
that a person can read, correct and pass with `--plugin`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.attribute import attribute
from regtune.config import RegisterConfig
from regtune.errors import RegtuneError
from regtune.families._family import LEDGER, Family
from regtune.progress import each
from regtune.records import versions
from regtune.registers.surgery import add_registers, backbone_of, find_registers, max_text_length, remove_registers
from regtune.registry import FAMILIES
from regtune.rows.targets import TokenLogit
from regtune.tables import Column, Table
from regtune.testing.evidence import Choice, Evidence, Parts, read_parts, refused
from regtune.testing.invariants import Finding, proofs
from regtune.testing.subject import Subject

_MOST = 12
"""Candidates that are tried; each costs some forward passes at least."""
_LONG = 4096
"""Tokens up to which the longest text is tried."""
_SMALL = 1_000_000_000
"""Parameters up to which relevance rules are tried, on a copy in float64."""
_WIDTH = 110
_JOIN = "0 joining"
MakeBatch = Callable[[Any], tuple[dict[str, Tensor], str]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate, and how far it came."""

    changes: Choice
    """The fields in which it differs from the first candidate."""
    held: int
    """Invariants that held, or don't apply, before the first broken one."""
    broken: Finding | None
    """The first that didn't hold; None if all did."""


@dataclass(frozen=True, kw_only=True)
class FamilySearch:
    """The family that fits a model best, what spoke for it, and what was proved on it."""

    family: Family
    evidence: tuple[Evidence, ...]
    trials: tuple[Trial, ...]
    findings: tuple[Finding, ...]
    """Of the family that was kept, one an invariant."""
    origin: str
    """Of the inputs on which it was tried."""

    @property
    def file(self) -> str:
        """The family as a Python file for `--plugin`, with what showed each part."""
        return _file(self)

    def __str__(self) -> str:
        shown = tuple((part, _value(value), why) for part, value, why in self.evidence)
        rows = tuple(
            (number, _changes(trial.changes), "all" if trial.broken is None else trial.held, _broken(trial))
            for number, trial in enumerate(self.trials, start=1)
        )
        left = Column("", align="left")
        found = Table(columns=("part", "found", Column("because", align="left")), rows=shown)
        tried = Table(columns=("candidate", Column("differs", align="left"), "held", left), rows=rows)
        return f"{found.text}\n\n{tried.text}"


def search_family(model: Any, make_batch: MakeBatch, registers: RegisterConfig, **ids: int | None) -> FamilySearch:
    """Finds the family of a model whose architecture is in no table.

    Args:
        model: without registers, in evaluation mode, float32, on the CPU. It is left as it was.
        make_batch: makes a padded batch for the model, and says where it comes from.
        registers: those with which candidates are tried.
        ids: of special tokens, as `add_registers` takes them.

    Raises:
        UnsupportedModelError: there is nothing that registers could join.
    """
    base = backbone_of(model)
    name = _name(base)
    encoder = _encoder(base)
    first = Family(
        name=name,
        model_types=(base.config.model_type,),
        inputs=("pixel_values",) if model.main_input_name == "pixel_values" else ("input_ids", "inputs_embeds"),
        encoder=encoder,
        positions="absolute",
        position_offset=_hidden_rows(base),  # so that texts fit until it is known
    )
    with FAMILIES.lent(first):
        backbone = backbone_of(model)
        batch, origin = make_batch(model)
        try:
            parts = read_parts(model, backbone, batch)
        except RegtuneError:
            raise
        except Exception as error:  # somebody's model, which may refuse what is tried on it
            raise refused(model, f"it can't be read ({type(error).__name__}: {error}).") from error
    if encoder is not None:
        parts.evidence.insert(0, Evidence("encoder", encoder, "config.is_encoder_decoder, get_encoder()"))
    basis = dataclasses.replace(first, position_offset=0)
    candidates = list(_candidates(basis, parts))
    trials: list[Trial] = []
    best: tuple[Family, list[Finding]] | None = None
    for family in each(candidates, "candidates"):
        findings = _try(model, family, make_batch, registers, ids)
        broken = next((one for one in findings if one.passed is False), None)
        held = sum(one.passed is not False for one in findings)
        trials.append(Trial(changes=_differences(candidates[0], family), held=held, broken=broken))
        if best is None or held > max(trial.held for trial in trials[:-1]):
            best = family, findings
        if broken is None:
            break
    assert best is not None
    family, findings = best
    if trials[-1].broken is None:
        if not _reads_longest(model, family, registers, ids):
            family = dataclasses.replace(family, positions_run_out=True)
            parts.evidence.append(Evidence("positions_run_out", True, "the longest text and registers break off"))
        family = _with_relevance(model, family, make_batch)
    elif findings[0].name != _JOIN:
        findings = _try(model, family, make_batch, registers, ids, whole=True)
    return FamilySearch(
        family=family,
        evidence=tuple(_kept(parts.evidence, family)),
        trials=tuple(trials),
        findings=tuple(findings),
        origin=origin,
    )


def _name(base: nn.Module) -> str:
    """A name that no family has, after the class: `Falcon` of a FalconModel."""
    name = type(base).__name__.removesuffix("Model") or type(base).__name__
    return f"{name} ({base.config.model_type})" if name in FAMILIES else name  # type: ignore[union-attr]


def _encoder(base: Any) -> str | None:
    """The encoder of a model that has a decoder too, as a path."""
    if not getattr(base.config, "is_encoder_decoder", False):
        return None
    encoder = base.get_encoder()
    return next((path for path, module in base.named_modules() if module is encoder and path), None)


def _hidden_rows(base: nn.Module) -> int:
    """Rows of a table of positions that no token uses where it starts behind padding, as RoBERTa's does."""
    named = (module for path, module in base.named_modules() if "position" in path)
    padding = (module.padding_idx for module in named if isinstance(module, nn.Embedding))
    return max((row + 1 for row in padding if row is not None), default=0)


# Candidates


def _candidates(first: Family, parts: Parts) -> Iterator[Family]:
    """Families made of every choice, the likeliest first."""
    ranked = sorted(
        itertools.product(*(enumerate(options) for options in parts.choices)),
        key=lambda chosen: sum(rank for rank, _ in chosen),
    )
    made: list[Family] = []
    for chosen in ranked:
        fields = dict(parts.settled)
        for _, choice in chosen:
            fields |= choice
        family = dataclasses.replace(first, **fields)
        if (family.masks_first and family.causal) or family in made:  # a decoder's masks are made beforehand
            continue
        made.append(family)
        yield family
        if len(made) == _MOST:
            return


def _differences(first: Family, other: Family) -> Choice:
    return {
        field.name: getattr(other, field.name)
        for field in dataclasses.fields(Family)
        if getattr(first, field.name) != getattr(other, field.name)
    }


def _try(
    model: Any,
    family: Family,
    make_batch: MakeBatch,
    registers: RegisterConfig,
    ids: dict[str, int | None],
    *,
    whole: bool = False,
) -> list[Finding]:
    """What holds on one candidate, up to the first invariant that doesn't, or `whole`; the model is left as it was."""
    findings: list[Finding] = []
    with FAMILIES.lent(family):
        subject = Subject(model=model, inputs=make_batch(model)[0])
        attention = model.config._attn_implementation
        try:
            subject.add(registers, **ids)
            for finding in proofs(subject):
                findings.append(finding)
                if finding.passed is False and not whole:
                    break
        except Exception as error:  # a wrong family can break in any way
            findings.append(Finding(name=_JOIN, passed=False, text=f"{type(error).__name__}: {error}"))
        finally:
            if find_registers(model) is not None:
                remove_registers(model)
            if model.config._attn_implementation != attention:
                model.set_attn_implementation(attention)
    return findings


@torch.no_grad()
def _reads_longest(model: Any, family: Family, registers: RegisterConfig, ids: dict[str, int | None]) -> bool:
    """Whether the longest text for which the model has positions is still read with registers."""
    with FAMILIES.lent(family):
        add_registers(model, registers, **ids)
        try:
            backbone, length = backbone_of(model), max_text_length(model)
            if length is not None and length <= _LONG:
                backbone(input_ids=torch.full((1, length), _usable(model)))
        except Exception:  # somebody's model, which may look beyond a table in any way
            return False
        finally:
            remove_registers(model)
    return True


def _usable(model: Any) -> int:
    """A token that is no padding."""
    return next(token for token in range(2) if token != model.config.pad_token_id)


def _with_relevance(model: Any, family: Family, make_batch: MakeBatch) -> Family:
    """The family with the relevance rules that balance on this model, if any do."""
    if model is backbone_of(model) or sum(parameter.numel() for parameter in model.parameters()) > _SMALL:
        return family
    exact = copy.deepcopy(model).double()
    for way in ("interface", "scope"):
        tried = dataclasses.replace(family, relevance=LEDGER, attention_by=way)
        with FAMILIES.lent(tried):
            inputs = make_batch(exact)[0]
            try:
                logits = exact(**inputs).get("logits")
                target = TokenLogit(position=1) if logits is not None and logits.dim() == 3 else None
                for method in LEDGER:
                    attribute(exact, inputs, method=method, target=target)
            except Exception:  # rules that don't fit can break in any way; the family then has none
                continue
        return tried
    return family


def _kept(evidence: list[Evidence], family: Family) -> Iterator[Evidence]:
    """The evidence with the values of the family that was kept; another than the likeliest was shown by trying."""
    order = [field.name for field in dataclasses.fields(Family)]
    for part, value, why in sorted(evidence, key=lambda one: order.index(one.part)):
        mine = getattr(family, part)
        yield Evidence(part, mine, why if mine == value else "by trying: others broke an invariant")
    if family.relevance:
        yield Evidence("relevance", family.relevance, "the rules balance on this model")


# What a person reads


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_value, value)) or "none"
    return "none" if value is None else str(value)


def _changes(changes: Choice) -> str:
    told = (f"{name}={_literal(value)}" for name, value in changes.items() if name != "unsupported")
    return ", ".join(told) or "the likeliest"


def _broken(trial: Trial) -> str:
    if trial.broken is None:
        return ""
    return textwrap.shorten(f"{trial.broken.name}: {trial.broken.text}", _WIDTH, placeholder=" …")


def _file(search: FamilySearch) -> str:
    family, told = search.family, {part: why for part, _, why in search.evidence}
    kinds = ", ".join(family.model_types)
    failed = [finding for finding in search.findings if finding.passed is False]
    state = (
        f"These invariants did NOT hold: {', '.join(one.name for one in failed)}. Correct what is wrong below, and try "
        f"again: regtune --plugin THIS_FILE doctor MODEL."
        if failed
        else "All invariants that apply held on the model."
    )
    library = f"transformers {versions()['transformers']}"
    head = f"Where models with model_type={kinds} keep their parts, found by `regtune doctor` ({library})."
    lines = ['"""' + textwrap.fill(head, _WIDTH), "", textwrap.fill(state, _WIDTH), '"""', ""]
    lines += ["from regtune import Family, register", "", "register.family(", "    Family("]
    for field in dataclasses.fields(Family):
        value = getattr(family, field.name)
        default = None if field.default is dataclasses.MISSING else field.default
        if value == default and field.name not in told:
            continue
        if field.name in told:
            comment = textwrap.wrap(told[field.name], _WIDTH - 2, break_long_words=False)
            lines += [f"        # {line}" for line in comment]
        lines.append(f"        {field.name}={_literal(value)},")
    return "\n".join([*lines, "    )", ")", ""])


def _literal(value: Any) -> str:
    """A value as Python source, texts in double quotes."""
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    assert not (isinstance(value, float) and not math.isfinite(value))
    return repr(value)
