"""The part `registers`: what each register holds, attends to and is worth, and whether all play the same role.

Every register is knocked out by itself and all together, in several ways (`regtune.analyses.registers.knock_out`). With
a head and labels the change in loss, in the task's first metric and in what is said is measured; otherwise how far the
last hidden state moves. The model runs over the rows 1 + ways × (N + 1) times. States, attention and relevance are of
one row an example. A model with an encoder and a decoder has two sets: `regtune.analyses.registers.stacks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.attention.attention import attention_statistics
from regtune.analyses.attention.measures import CLASSES
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.batches import with_words
from regtune.analyses.outcomes import Outcomes, Runs, explained, outcomes
from regtune.analyses.parts import figure, table, text
from regtune.analyses.pictures import heat_map, matrix, numbered
from regtune.analyses.registers.effects import judged, judged_figure, judged_rows
from regtune.analyses.registers.knock_out import How, KnockOut, knocked_out
from regtune.analyses.registers.lens import register_lens
from regtune.analyses.registers.roles import rank_correlation
from regtune.analyses.registers.stacks import stack_blocks, stacks
from regtune.analyses.registers.states import CONSTANT_BELOW, register_states
from regtune.errors import ConfigError
from regtune.interfaces import Analysis, Batch, Block, Examples, Rows
from regtune.registers.surgery import decoder_of, num_registers
from regtune.session import Session
from regtune.typed import Checked

_REGISTER = CLASSES.index("register")


@dataclass(frozen=True, kw_only=True)
class RegisterSettings(Checked, section="registers"):
    """How registers are looked at."""

    hows: tuple[How, ...] = ("mask", "mean")
    """Ways of knocking out (`mask`, `mean`, `swap`, `zero`). The verdict is read from `mask`, or the first."""
    resamples: int = 10_000
    """Bootstrap draws; more where so many registers need them."""
    seed: int = 0
    """Of all random draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        once = bool(self.hows) and len(set(self.hows)) == len(self.hows)
        self.require(once, "hows", "must name at least one way of knocking out, each once.")


class RegisterAnalysis(Analysis):
    """What each register holds and does."""

    name = "registers"
    title = "Registers"
    settings = RegisterSettings
    needs = frozenset({"registers"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: RegisterSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        if decoder_of(session.model) is not None:
            return stacks(session, rows, examples, settings)
        count = num_registers(session.model)
        hows = [how for how in settings.hows if how != "swap" or count > 1]  # a single one has none to be swapped with
        if not hows:
            raise ConfigError("hows=['swap'] needs a second register to take the place of the first; this model has 1.")
        batches = list(with_words(session.batches(rows.one_each())))
        states = register_states(session.model, batches)
        attention = attention_statistics(session.model, batches)
        moved = Runs(session, batches, len(examples), states=True)

        def score(one: KnockOut | None) -> Outcomes:
            def changed(_batch: int = 0) -> AbstractContextManager[None]:
                return nullcontext() if one is None else knocked_out(session.model, one, means=states.means)

            with changed():
                scored = outcomes(session, rows, examples)
            return scored if scored.loss is not None else dataclasses.replace(scored, moved=moved(changed))

        untouched = score(None)
        quantity = "the last hidden state" if untouched.loss is None else "loss"
        facts, alone = judged(untouched, score, count, hows, resamples=settings.resamples, seed=settings.seed)
        changes = np.stack(list(alone.values())[:-1], axis=1)
        names = {register: f"registers.{facts['roles']['how']}.{register}" for register in alone}
        out = attention.means["register_attention_out"].mean(axis=1, dtype=np.float64)
        return {
            **facts,
            "quantity": quantity,
            "examples": len(changes),
            "loss": None if untouched.loss is None else float(np.nanmean(untouched.loss)),
            "metric": untouched.metric and {"name": untouched.metric.name, "title": untouched.metric.title},
            "score": None if untouched.score is None else float(untouched.score.mean()),
            "similarity_initial": states.similarity_initial,
            "similarity_contextual": states.similarity,
            "similarity_contextual_zscored": states.similarity_zscored,
            "variation": states.variation,
            "constant": states.constant(),
            "constant_below": CONSTANT_BELOW,
            "attention_in": attention.means["register_share"].mean(axis=1, dtype=np.float64),
            "attention_out": 1.0 - out[..., _REGISTER],
            "attention_out_by_class": dict(zip(CLASSES, np.moveaxis(out, -1, 0), strict=True)),
            "lens": None if session.modality == "image" else register_lens(session.model, states.means, session.reader),
            **({} if untouched.loss is None else _relevance(session, batches, changes, settings.seed)),
            "measures": {names[register]: values for register, values in alone.items()},
            "titles": {name: f"change in {quantity} without register {one}" for one, name in names.items()},
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        if "sets" in content:
            yield from stack_blocks(content)
            return
        count = int(content["num_registers"])
        unit = "nats" if content["quantity"] == "loss" else "relative"
        sentences = [content["verdict"]]
        if "rank_correlation" in content:
            sentences.append(content["rank_correlation"]["sentence"])
        if content["constant"]:
            sentences.append(
                f"Constant key and value biases (they vary by at most {content['constant_below']:.0%} of what tokens "
                f"do): register {', '.join(map(str, content['constant']))}."
            )
        yield text("Do all registers play the same role?", " ".join(sentences))
        title = f"Change in {content['quantity']} when one register is taken away, with its 95 % interval"
        yield judged_figure(title, content["knock_outs"], unit)
        axis = numbered("register", count)
        last = len(content["similarity_contextual"]) - 1
        for title, values in (
            ("Similarity (cosine) of the learned vectors", content["similarity_initial"]),
            (f"Similarity (cosine) of what layer {last} reads", content["similarity_contextual"][-1]),
        ):
            draw = heat_map(matrix(values), most=1.0, signed=True, form=_cosine, rows=axis, columns=axis)
            yield figure(title, draw, "Cosines between registers.")
        variation = matrix(content["variation"]).T
        yield figure(
            "How much a register varies with the text, in % of what tokens do",
            heat_map(variation, rows=axis, columns=numbered("layer", variation.shape[1])),
            f"Largest: {np.nanmax(variation):.1%}.",
        )
        yield _table(content, count)


def _relevance(
    session: Session, batches: Sequence[Batch], changes: Float64[np.ndarray, "examples registers"], seed: int
) -> dict[str, Any]:
    """|AttnLRP relevance| of each register for each example's prediction, and whether it ranks them as `changes`."""
    found = np.zeros(changes.shape)
    for batch in batches:
        attributions = attribute(
            session.model,
            batch,
            method="attnlrp",
            target=explained(session, batch),
            on_residual="warn",
            tokenizer=session.reader,
        )
        found[batch["example"].numpy()] = [np.abs(attribution.registers) for attribution in attributions]
    ranks = rank_correlation(found, changes, seed=seed)
    return {"relevance": found.mean(axis=0), "rank_correlation": {**vars(ranks), "sentence": ranks.sentence}}


def _cosine(value: float) -> str:
    text = f"{value:.1f}"
    return "0" if text in ("0.0", "-0.0") else text.replace("-", "−")


def _table(content: Mapping[str, Any], count: int) -> Block:
    metric = content["metric"]
    titles, first = judged_rows(content, metric)
    attended, variation = matrix(content["attention_in"]), matrix(content["variation"])
    relevance = content.get("relevance")
    rows = []
    for index, cells in zip((*range(count), None), first, strict=True):
        alone = [""] * 4
        if index is not None:
            words = [[("",)]] if content["lens"] is None else content["lens"]["embedding"][index]
            alone = [f"{variation[:, index].max():.1%}", f"{attended[:, index].mean():.1%}"]
            alone += ["" if relevance is None else f"{relevance[index]:.3g}", f"{words[0][0][0]} / {words[-1][0][0]}"]
        else:
            alone[1:3] = [f"{attended.sum(axis=1).mean():.1%}", "" if relevance is None else f"{sum(relevance):.3g}"]
        rows.append((*cells, *alone))
    before = [] if metric is None else [f"{metric['title']} {100 * content['score']:.1f}"]
    before += [] if content["loss"] is None else [f"loss {content['loss']:.4f}"]
    return table(
        "Each register knocked out",
        (*titles, "varies", "attended", "relevance", "words"),
        rows,
        (f"Untouched: {', '.join(before)}. " if before else "")
        + f"Change in {content['quantity']}, in the metric (points) and share of predictions changed, over "
        f"{content['examples']} examples; p: Holm's. varies: largest share, over layers, of the variance over tokens; "
        "attended: mean share of a token's attention; words: nearest input embedding of the mean state that the first "
        "layer reads / that the last one writes.",
    )
