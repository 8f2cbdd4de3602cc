"""The part `registers`: what each register holds, attends to and is worth, and whether all play the same role.

Every register is knocked out by itself and all together, in several ways (`regtune.analyses.registers.knock_out`). With
a head and labels the change in loss, in the task's first metric and in what is said is measured; otherwise how far the
last hidden state moves. The model runs over the rows 1 + ways × (N + 1) times. States, attention and relevance are of
one row an example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from regtune.analyses.attention.attention import attention_statistics, with_words
from regtune.analyses.attention.measures import CLASSES
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.outcomes import Outcomes, explained, outcomes, state_changes
from regtune.analyses.parts import estimate, progress, with_interval
from regtune.analyses.registers.knock_out import HOWS, KnockOut, knocked_out
from regtune.analyses.registers.lens import register_lens
from regtune.analyses.registers.roles import ALPHA, Change, Effect, judge_roles, rank_correlation
from regtune.analyses.registers.states import CONSTANT_BELOW, RegisterStates, export_constant_registers, register_states
from regtune.errors import ConfigError, UnsupportedModelError, unknown_name
from regtune.interfaces import Block, Examples, Need, Rows
from regtune.pictures import Estimate, dots, heat_map, matrix, numbered
from regtune.registers.surgery import num_registers
from regtune.session import Session
from regtune.stats.bootstrap import single_run_difference
from regtune.stats.holm import holm

_REGISTER = CLASSES.index("register")
_HOWS = {"mask": "hidden", "mean": "its mean state", "swap": "its neighbour's copy", "zero": "zeros"}


@dataclass(frozen=True, kw_only=True)
class RegisterSettings:
    """How registers are looked at."""

    hows: tuple[str, ...] = HOWS
    """Ways of knocking out: mask, mean, swap, zero. The verdict is read from `mask`, or the first."""
    resamples: int = 10_000
    """Bootstrap draws."""
    head_from: str | None = None
    """A masked or causal language model whose head the lens borrows: the base that was fine-tuned."""
    constants_dir: Path | None = None
    """Gets the registers that hardly vary, as constants, if there are any."""
    seed: int = 0
    """Of all random draws."""

    def __post_init__(self) -> None:
        if not self.hows or len(set(self.hows)) < len(self.hows):
            raise ConfigError(f"hows={list(self.hows)} must name at least one way of knocking out, each once.")
        for how in self.hows:
            if how not in HOWS:
                raise unknown_name("way to knock registers out", how, HOWS)


class RegisterAnalysis:
    """What each register holds and does."""

    name: ClassVar[str] = "registers"
    title: ClassVar[str] = "Registers"
    settings: ClassVar[type] = RegisterSettings
    needs: ClassVar[frozenset[Need]] = frozenset({"registers"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: RegisterSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`.

        Raises:
            UnsupportedModelError: a model without registers.
            ConfigError: too few draws to correct for so many registers.
        """
        count = num_registers(session.model)
        hows = _usable(settings, count)
        batches = [kept for batch in session.batches(rows.one_each()) if (kept := with_words(batch)) is not None]
        states = register_states(session.model, batches)
        attention = attention_statistics(session.model, batches)
        which: list[tuple[int, ...] | None] = [*((index,) for index in range(count)), None]
        knock_outs = [KnockOut(how=how, registers=chosen) for how in hows for chosen in which]
        untouched = _run(session, rows, examples, batches, None, states)
        scored = {
            one: _run(session, rows, examples, batches, one, states)
            for one in progress(knock_outs, "knock-outs of registers")
        }
        found = effects(untouched, scored, resamples=settings.resamples, seed=settings.seed)
        main = "mask" if "mask" in hows else hows[0]
        alone = [scored[KnockOut(how=main, registers=(index,))].change - untouched.change for index in range(count)]
        changes = np.stack(alone, axis=1)
        roles = judge_roles(
            changes[np.isfinite(changes).all(1)],
            [each for each in found if each.knock_out.how == main],
            resamples=min(settings.resamples, 2_000),
            seed=settings.seed,
        )
        relevance = _relevance(session, batches, changes.shape) if untouched.outcomes.loss is not None else None
        lens = register_lens(session.model, states.means, session.reader, head_from=settings.head_from)
        if settings.constants_dir is not None and states.constant():
            _export(session, rows, examples, batches, untouched, states, settings)
        content = _content(states, attention, found, untouched, hows)
        content |= {
            "roles": {**dataclasses.asdict(roles), "alpha": ALPHA},
            "verdict": roles.verdict,
            "lens": lens.to_json(),
            "examples": len(changes),
        }
        if relevance is not None:
            ranks = rank_correlation(relevance, changes, seed=settings.seed)
            content |= {
                "relevance": relevance.mean(axis=0).tolist(),
                "rank_correlation": {**dataclasses.asdict(ranks), "sentence": ranks.sentence},
            }
        measures = {
            f"registers.{main}.{'all' if one.registers is None else one.registers[0]}": dict(
                enumerate((scored[one].change - untouched.change).tolist())
            )
            for one in knock_outs
            if one.how == main
        }
        return {
            **content,
            "measures": measures,
            "titles": {
                name: f"change in {untouched.quantity} without register {name.rpartition('.')[2]}" for name in measures
            },
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        return _blocks(content)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """How a model does on each example."""

    change: Float64[np.ndarray, " examples"]
    """The loss or, without a head or labels, how far the last hidden state moved (0 for the untouched model)."""
    outcomes: Outcomes

    @property
    def quantity(self) -> str:
        """What `change` is."""
        return "loss" if self.outcomes.loss is not None else "the last hidden state"


def _usable(settings: RegisterSettings, count: int) -> list[str]:
    """The ways of knocking out that so many registers allow: a single one has none to be swapped with."""
    if not count:
        raise UnsupportedModelError("The model has no registers, so there is nothing to see of them.")
    usable = [how for how in settings.hows if how != "swap" or count > 1]
    if not usable:
        raise ConfigError("hows=['swap'] needs a second register to take the place of the first; this model has 1.")
    least = math.ceil(4 * count / ALPHA)
    if settings.resamples < least:
        raise ConfigError(
            f"resamples={settings.resamples} cannot show a p-value that passes {ALPHA} corrected for {count} "
            f"registers; use resamples={least} at least, 10,000 to publish."
        )
    return usable


def _run(
    session: Session,
    rows: Rows[Any],
    examples: Examples,
    batches: Sequence[Mapping[str, Tensor]],
    knock_out: KnockOut | None,
    states: RegisterStates,
) -> Scored:
    def context() -> Any:
        return nullcontext() if knock_out is None else knocked_out(session.model, knock_out, means=states.means)

    with context():
        found = outcomes(session, rows, examples)
    if found.loss is not None:
        return Scored(change=found.loss, outcomes=found)
    return Scored(change=state_changes(session, batches, context, len(examples)), outcomes=found)


def effects(
    untouched: Scored, knocked: Mapping[KnockOut, Scored], *, resamples: int = 10_000, seed: int = 0
) -> list[Effect]:
    """What every knock-out changed; the p-values of single registers are corrected together, each way by itself."""
    found: dict[KnockOut, dict[str, Any]] = {}
    for knock_out, scored in knocked.items():
        mine: dict[str, Any] = {"loss": _change(scored.change, untouched.change, resamples, seed)}
        before, after = untouched.outcomes, scored.outcomes
        if before.score is not None and after.score is not None:
            mine["score"] = _change(after.score, before.score, resamples, seed)
        if before.said is not None and after.said is not None:
            differs = np.array([a != b for a, b in zip(after.said, before.said, strict=True)], dtype=np.float64)
            mine["said"] = _change(differs, np.zeros_like(differs), resamples, seed)
        found[knock_out] = mine
    for how in {knock_out.how for knock_out in found}:
        family = [part for one, part in found.items() if one.how == how and one.registers is not None]
        for metric in ("loss", "score"):
            parts = [part for part in family if metric in part]
            if parts:
                for part, p_value in zip(parts, holm([part[metric].p_value for part in parts]), strict=True):
                    part[metric] = dataclasses.replace(part[metric], p_adjusted=float(p_value))
    return [Effect(knock_out=one, **part) for one, part in found.items()]


def _change(scores: np.ndarray, baseline: np.ndarray, resamples: int, seed: int) -> Change:
    known = np.isfinite(scores) & np.isfinite(baseline)
    difference = single_run_difference(scores[known], baseline[known], resamples=resamples, seed=seed)
    low, high = difference.interval(0.95)
    p_value = difference.p_value()
    return Change(difference=difference.estimate, low=low, high=high, p_value=p_value, p_adjusted=p_value)


def _relevance(
    session: Session, batches: Sequence[Mapping[str, Tensor]], shape: tuple[int, ...]
) -> Float64[np.ndarray, "examples registers"]:
    """|AttnLRP relevance| of each register for each example's prediction."""
    found = np.zeros(shape)
    for batch in batches:
        attributions = attribute(
            session.model,
            batch,
            method="attnlrp",
            target=explained(batch),
            on_residual="warn",
            tokenizer=session.reader,
        )
        for example, attribution in zip(batch["example"].tolist(), attributions, strict=True):
            found[example] = np.abs(attribution.registers)
    return found


def _export(
    session: Session,
    rows: Rows[Any],
    examples: Examples,
    batches: Sequence[Mapping[str, Tensor]],
    untouched: Scored,
    states: RegisterStates,
    settings: RegisterSettings,
) -> None:
    held = KnockOut(how="mean", registers=states.constant())
    scored = {held: _run(session, rows, examples, batches, held, states)}
    lost = effects(untouched, scored, resamples=settings.resamples, seed=settings.seed)[0].to_json()
    error = {"registers": list(states.constant()), **{name: lost[name] for name in lost if name != "register"}}
    assert settings.constants_dir is not None
    export_constant_registers(session.model, states, settings.constants_dir, batch=batches[0], error=error)


def _content(
    states: RegisterStates, attention: Any, found: Sequence[Effect], untouched: Scored, hows: Sequence[str]
) -> dict[str, Any]:
    out = attention.register_attention_out.mean(axis=1, dtype=np.float64)
    before = untouched.outcomes
    return {
        "num_registers": states.means.shape[1],
        "quantity": untouched.quantity,
        "loss": None if before.loss is None else float(np.nanmean(before.loss)),
        "metric": None if before.metric is None else {"name": before.metric.name, "title": before.metric.title},
        "score": None if before.score is None else float(before.score.mean()),
        "hows": list(hows),
        "knock_outs": [effect.to_json() for effect in found],
        "similarity_initial": states.similarity_initial.tolist(),
        "similarity_contextual": states.similarity.tolist(),
        "similarity_contextual_zscored": states.similarity_zscored.tolist(),
        "variation": states.variation.tolist(),
        "constant": list(states.constant()),
        "constant_below": CONSTANT_BELOW,
        "attention_in": attention.register_share.mean(axis=1, dtype=np.float64).tolist(),
        "attention_out": (1.0 - out[..., _REGISTER]).tolist(),
        "attention_out_by_class": {name: out[..., i].tolist() for i, name in enumerate(CLASSES)},
    }


# Blocks


def _blocks(content: Mapping[str, Any]) -> Iterator[Block]:
    count = int(content["num_registers"])
    unit = "nats" if content["quantity"] == "loss" else "relative"
    sentences = [content["verdict"]]
    if "rank_correlation" in content:
        sentences.append(content["rank_correlation"]["sentence"])
    if content["constant"]:
        sentences.append(
            f"Constant key and value biases (they vary by at most {content['constant_below']:.0%} of what tokens do): "
            f"register {', '.join(map(str, content['constant']))}."
        )
    yield Block(kind="text", title="Do all registers play the same role?", text=" ".join(sentences))
    single: dict[str, dict[str, Estimate]] = {}
    for entry in content["knock_outs"]:
        one = estimate({"value": entry["loss"]["difference"], **entry["loss"]})
        if entry["register"] is not None and one is not None:
            single.setdefault(_HOWS[entry["how"]], {})[str(entry["register"])] = one
    yield Block(
        kind="figure",
        title=f"Change in {content['quantity']} when one register is taken away, with its 95 % interval",
        text="; ".join(
            f"{how}, register {r}: {e.value:+.3g}" for how, found in single.items() for r, e in found.items()
        ),
        draw=dots(single, xlabel=f"change, {unit} (right of 0: it is missed)", ylabel="register"),
    )
    axes: dict[str, Any] = {"rows": numbered("register", count), "columns": numbered("register", count)}
    last = len(content["similarity_contextual"]) - 1
    for title, values in (
        ("Similarity (cosine) of the learned vectors", content["similarity_initial"]),
        (f"Similarity (cosine) of what layer {last} reads", content["similarity_contextual"][-1]),
    ):
        draw = heat_map(matrix(values), most=1.0, signed=True, form=_cosine, **axes)
        yield Block(kind="figure", title=title, text="Cosines between registers.", draw=draw)
    variation = matrix(content["variation"]).T
    yield Block(
        kind="figure",
        title="How much a register varies with the text, in % of what tokens do",
        text=f"Largest: {np.nanmax(variation):.1%}.",
        draw=heat_map(variation, rows=axes["rows"], columns=numbered("layer", variation.shape[1])),
    )
    yield _table(content, count)


def _cosine(value: float) -> str:
    text = f"{value:.1f}"
    return "0" if text in ("0.0", "-0.0") else text.replace("-", "−")


def _table(content: Mapping[str, Any], count: int) -> Block:
    main = content["roles"]["how"]
    others = [how for how in content["hows"] if how != main]
    metric = content["metric"]
    by_place = {(entry["how"], entry["register"]): entry for entry in content["knock_outs"]}
    attended = np.asarray(content["attention_in"])
    rows = []
    for index in (*range(count), None):
        mine = by_place[main, index]
        loss = {"value": mine["loss"]["difference"], **mine["loss"]}
        cells = ["all" if index is None else str(index), with_interval(estimate(loss), "+.4f")]
        cells.append(f"{mine['loss']['p_adjusted']:.3g}")
        cells.append("" if mine["score"] is None else f"{100 * mine['score']['difference']:+.1f}")
        cells.append("" if mine["said"] is None else f"{mine['said']['difference']:.1%}")
        cells += [f"{by_place[how, index]['loss']['difference']:+.4f}" for how in others]
        relevance = content.get("relevance")
        if index is None:
            cells += [
                "",
                f"{attended.sum(axis=1).mean():.1%}",
                "" if relevance is None else f"{sum(relevance):.3g}",
                "",
            ]
        else:
            words = content["lens"]["embedding"][index]
            cells += [
                f"{max(layer[index] for layer in content['variation']):.1%}",
                f"{attended[:, index].mean():.1%}",
                "" if relevance is None else f"{relevance[index]:.3g}",
                f"{words[0][0][0]} / {words[-1][0][0]}",
            ]
        rows.append(tuple(cells))
    before = [] if metric is None else [f"{metric['title']} {100 * content['score']:.1f}"]
    before += [] if content["loss"] is None else [f"loss {content['loss']:.4f}"]
    return Block(
        kind="table",
        title="Each register knocked out",
        text=(f"Untouched: {', '.join(before)}. " if before else "")
        + f"Change in {content['quantity']}, in the metric (points) and share of predictions changed, over "
        f"{content['examples']} examples; p: Holm's. varies: largest share, over layers, of the variance over tokens; "
        "attended: mean share of a token's attention; words: nearest input embedding of the mean state that the first "
        "layer reads / that the last one writes.",
        columns=(
            *("register", f"{_HOWS[main]} (95 %)", "p", metric["title"] if metric else "metric", "changed"),
            *(_HOWS[how] for how in others),
            *("varies", "attended", "relevance", "words"),
        ),
        rows=tuple(rows),
    )
