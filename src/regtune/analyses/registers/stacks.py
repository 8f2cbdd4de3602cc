"""The part `registers` of a model with an encoder and a decoder: what each set is attended to, holds and is worth.

The encoder's registers stand among the text and the decoder's own among what it reads: the text again, where a head
for classes or answers does so, or what the model writes itself, greedily, which is then given to it again as a whole.
What each set holds on average is read in words as well (`lens.py`). A knock-out is judged by the task's loss; without
labels by how much less likely the model's own words become or, of one that doesn't write, by how far its logits move:
‖l' − l‖ / ‖l‖, an example's all together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regtune.analyses.attribution.batch import writes_tokens
from regtune.analyses.attribution.rollout import eager_attention
from regtune.analyses.batches import with_words
from regtune.analyses.outcomes import Floats, Outcomes, outcomes
from regtune.analyses.parts import figure, table, text
from regtune.analyses.pictures import heat_map, matrix, numbered
from regtune.analyses.registers.effects import judged, judged_figure, judged_rows
from regtune.analyses.registers.knock_out import How, KnockOut, knocked_out, layer_inputs, require_active_sets
from regtune.analyses.registers.lens import register_lens, words_blocks
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import UnsupportedModelError
from regtune.interfaces import Batch, Block, Examples, Rows
from regtune.registers.registers import Registers
from regtune.registers.surgery import base_of
from regtune.rows.targets import END, LOGITS, START
from regtune.session import Session

WRITTEN = 20
"""Most tokens that a model is let write."""
SETS = {"encoder": "The encoder's registers", "decoder": "The decoder's own registers"}
OWN_WORDS, MOVED = "loss on its own words", "logits"
"""What a change is measured in where there are no labels."""
_Sets = Mapping[str, tuple[nn.Module, Registers]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """A batch as both stacks read it."""

    example: Int[Tensor, " rows"]
    given: Mapping[str, Tensor]
    tokens: Mapping[str, Bool[Tensor, "rows _"]]
    """What is no padding in what each stack reads."""
    labels: Int[Tensor, "rows written"] | None
    """The token that the model wrote behind each place; None for one that doesn't write."""


def stacks(session: Session, rows: Rows[Any], examples: Examples, settings: Any) -> dict[str, Any]:
    """Measures each set of registers as `settings` (of the part) say.

    Raises:
        UnsupportedModelError: no head, registers that are switched off, or a model in training mode.
    """
    model = session.model
    require_eval_mode(model)
    sets = {"decoder" if one.of_decoder else "encoder": (stack, one) for stack, one in require_active_sets(model)}
    if model is base_of(model) and not writes_tokens(model):
        raise UnsupportedModelError(
            f"This {type(model).__name__} has no head, so nothing shows what its decoder makes of the registers. Open "
            "it with one, for example AutoModelForSeq2SeqLM."
        )
    readings = [_read(session, batch) for batch in with_words(session.batches(rows.one_each()))]
    looks, own = _look(model, sets, readings), _Own(model, readings, len(examples))

    def score(changed: AbstractContextManager[None]) -> Outcomes:
        with changed:
            scored = outcomes(session, rows, examples)
            return scored if scored.loss is not None else dataclasses.replace(scored, moved=own())

    untouched = score(nullcontext())
    quantity = own.quantity if untouched.loss is None else "loss"
    found: dict[str, Any] = {}
    measures: dict[str, Floats] = {}
    titles: dict[str, str] = {}
    for name, (stack, registers) in sets.items():
        count, means = registers.num_registers, looks[name].pop("means")
        hows: list[How] = [how for how in settings.hows if how != "swap" or count > 1] or ["mask"]

        def knocked(one: KnockOut, stack: Any = stack, means: Any = means) -> Outcomes:
            return score(knocked_out(stack, one, means=means))

        draws = {"resamples": settings.resamples, "seed": settings.seed}
        facts, alone = judged(untouched, knocked, count, hows, **draws, shown=f"knock-outs ({name})")
        found[name] = facts | looks[name]
        found[name] |= {"lens": register_lens(model, means, session.reader, stack=stack)}
        for register, values in alone.items():
            called = f"registers.{name}.{facts['roles']['how']}.{register}"
            measures[called] = values
            titles[called] = f"change in {quantity} without the {name}'s {register}"
    return {
        "sets": found,
        "quantity": quantity,
        "reads": "what it writes" if own.writes else "the text",
        "examples": len(examples),
        "loss": None if np.isnan(untouched.change).all() else float(np.nanmean(untouched.change)),
        "metric": untouched.metric and {"name": untouched.metric.name, "title": untouched.metric.title},
        "score": None if untouched.score is None else float(untouched.score.mean()),
        "measures": measures,
        "titles": titles,
    }


@torch.inference_mode()
def _read(session: Session, batch: Batch) -> _Reading:
    """What the encoder reads of a batch and what the decoder does, which a model that writes has written itself."""
    model = session.model
    given = {name: batch[name].to(session.device) for name in ("input_ids", "attention_mask")}
    tokens = {"encoder": given["attention_mask"].bool()}
    if not writes_tokens(model):
        return _Reading(
            example=batch["example"], given=given, tokens=tokens | {"decoder": tokens["encoder"]}, labels=None
        )
    ids = model.generate(**given, max_new_tokens=WRITTEN, do_sample=False, num_beams=1)
    labels, end = ids[:, 1:], model.generation_config.eos_token_id
    ended = torch.isin(labels, torch.as_tensor([] if end is None else end, device=labels.device))
    before = ended.cumsum(1) - ended.int() == 0
    return _Reading(
        example=batch["example"],
        given={**given, "decoder_input_ids": ids[:, :-1]},
        tokens={**tokens, "decoder": before},
        labels=labels.masked_fill(~before, -100),
    )


class _Own:
    """What each example loses without labels: nats on the model's own words, or how far its logits move."""

    def __init__(self, model: Any, readings: Sequence[_Reading], count: int) -> None:
        self.model, self.readings, self.count = model, readings, count
        self.writes = writes_tokens(model)
        self.quantity = OWN_WORDS if self.writes else MOVED
        self.first: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self) -> Floats:
        """One number an example, NaN for those without a word; of logits the first call is what others are held to."""
        found = np.full(self.count, np.nan)
        for index, reading in enumerate(self.readings):
            output = self.model(**reading.given, use_cache=False, return_dict=True)
            if reading.labels is not None:
                losses = cross_entropy(output[LOGITS].double().mT, reading.labels, reduction="none")
                values = losses.sum(1) / (reading.labels != -100).sum(1)
            else:
                logits = [output[name].double().flatten(1) for name in (START, END, LOGITS) if name in output]
                joined = torch.cat(logits, dim=1).nan_to_num()
                if index == len(self.first):
                    self.first.append(joined)
                values = (joined - self.first[index]).norm(dim=1) / self.first[index].norm(dim=1).clamp(min=1e-30)
            found[reading.example.numpy()] = values.cpu().numpy()
        return found


@torch.inference_mode()
def _look(model: Any, sets: _Sets, readings: Sequence[_Reading]) -> dict[str, dict[str, Any]]:
    """Of each set: attention to it, its norms and its mean states, over all tokens of all readings."""
    seen = {name: _Seen(name, registers) for name, (_, registers) in sets.items()}
    with ExitStack() as stack:
        stack.enter_context(eager_attention(model))
        for name, (backbone, _) in sets.items():
            stack.enter_context(layer_inputs(backbone, seen[name].states))
        for reading in readings:
            for one in seen.values():
                one.tokens = reading.tokens[one.name]
            output = model(**reading.given, use_cache=False, output_attentions=True, return_dict=True)
            for one in seen.values():
                one.attention(output.get(f"{one.name}_attentions"))
    return {name: one.result() for name, one in seen.items()}


class _Seen:
    """Sums over the tokens of one stack."""

    def __init__(self, name: str, registers: Registers) -> None:
        self.name, self.registers = name, registers
        self.tokens = torch.empty(0, 0, dtype=torch.bool)
        self.queries = self.rows = 0
        self.shares: list[Tensor] = []
        """For each layer `[heads, registers]`: attention of tokens to registers."""
        self.sizes: dict[int, Tensor] = {}
        """For each depth the norms of registers, and behind them of tokens, `[registers + 1]`."""
        self.means: dict[int, Tensor] = {}

    def states(self, depth: int, states: Float[Tensor, "rows total hidden"]) -> None:
        """See `layer_inputs`."""
        mine, read = self.registers.registers_of(states).double(), self.registers.strip(states).double()
        sizes = torch.cat([mine.norm(dim=-1).sum(0), read[self.tokens].norm(dim=-1).sum()[None]])
        self.sizes[depth] = self.sizes.get(depth, 0.0) + sizes
        self.means[depth] = self.means.get(depth, 0.0) + mine.sum(0)

    def attention(self, maps: Sequence[Tensor] | None) -> None:
        """Takes a batch's maps, `[rows, heads, registers + seq, registers + seq]` each."""
        if not maps:
            raise UnsupportedModelError(f"This model doesn't hand the attention of its {self.name} back.")
        count = self.registers.num_registers
        chosen = self.tokens.double()[:, None, :, None]
        sums = [(weights[:, :, count:, :count].double() * chosen).sum((0, 2)) for weights in maps]
        self.shares = [one + more for one, more in zip(self.shares, sums, strict=True)] if self.shares else sums
        self.queries += int(self.tokens.sum())
        self.rows += len(self.tokens)

    def result(self) -> dict[str, Any]:
        """Shares `[layers, registers]` (mean over heads, and of the head that attends most), norms, mean states."""
        shares = (torch.stack(self.shares) / self.queries).cpu().numpy()
        sizes = torch.stack([self.sizes[depth] for depth in sorted(self.sizes)]).cpu().numpy()
        return {
            "attention_in": shares.mean(1),
            "attention_in_head": shares.max(1),
            "norm": sizes[:, :-1] / self.rows / (sizes[:, -1:] / self.queries),
            "means": torch.stack([self.means[depth] for depth in sorted(self.means)]).float() / self.rows,
        }


def stack_blocks(content: Mapping[str, Any]) -> Iterator[Block]:
    """See `Analysis.blocks`."""
    unit = "relative" if content["quantity"] == MOVED else "nats"
    yield text(
        "Two sets of registers" if len(content["sets"]) > 1 else SETS[next(iter(content["sets"]))],
        f"The encoder reads the text and the decoder {content['reads']}; changes are in {content['quantity']}, {unit}. "
        + " ".join(f"{SETS[name]}: {one['verdict']}" for name, one in content["sets"].items()),
    )
    for name, one in content["sets"].items():
        axis, title = numbered("register", int(one["num_registers"])), SETS[name]
        taken = f"{title}: change in {content['quantity']} when one is taken away, with its 95 % interval"
        yield judged_figure(taken, one["knock_outs"], unit)
        shares, norms = matrix(one["attention_in"]).T, matrix(one["norm"]).T
        yield figure(
            f"{title}: share of a token's attention, in %",
            heat_map(shares, rows=axis, columns=numbered("layer", shares.shape[1])),
            f"Mean over tokens and heads; largest: {shares.max():.1%}.",
        )
        yield figure(
            f"{title}: norm of what each layer reads, as a multiple of a token's, in %",
            heat_map(norms, rows=axis, columns=numbered("depth", norms.shape[1])),
            f"Largest: {norms.max():.3g}. The last depth is what the last layer writes.",
        )
        yield _table(content, name)
        if "lens" in one:  # earlier records have none
            yield from words_blocks(one["lens"])


def _table(content: Mapping[str, Any], name: str) -> Block:
    one, metric = content["sets"][name], content["metric"]
    titles, first = judged_rows(one, metric)
    attended, head, norms = (matrix(one[key]) for key in ("attention_in", "attention_in_head", "norm"))
    rows = []
    for index, cells in zip((*range(len(first) - 1), None), first, strict=True):
        share = attended.sum(1).mean() if index is None else attended[:, index].mean()
        rows.append(
            (
                *cells,
                f"{share:.1%}",
                "" if index is None else f"{head[:, index].max():.1%}",
                "" if index is None else f"{norms[0, index]:.2f} to {norms[-1, index]:.2f}",
            )
        )
    before = [] if metric is None else [f"{metric['title']} {100 * content['score']:.1f}"]
    before += [] if content["loss"] is None or content["quantity"] == MOVED else [f"loss {content['loss']:.4f}"]
    return table(
        f"{SETS[name]} knocked out",
        (*titles, "attended", "by a head", "norm"),
        rows,
        (f"Untouched: {', '.join(before)}. " if before else "")
        + f"Change in {content['quantity']}, in the metric (points) and share of predictions changed, over "
        f"{content['examples']} examples; p: Holm's, within this set. attended: mean share of a token's attention; by "
        "a head: that of the head which attends most; norm: against a token's, of what the first layer reads and of "
        "what the last one writes.",
    )
