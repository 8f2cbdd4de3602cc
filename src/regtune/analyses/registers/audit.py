"""The register audit: what each register of a question-answering model does, and whether all do the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from regtune.analyses.attention.attention import attention_statistics
from regtune.analyses.attribution.explain import explain
from regtune.analyses.batches import Batch, question_batches
from regtune.analyses.registers.audit_result import RegisterAudit, audit_text
from regtune.analyses.registers.constants import export_constant_registers
from regtune.analyses.registers.effects import Scored, effects, score_logits
from regtune.analyses.registers.knock_out import HOWS, KnockOut, knocked_out
from regtune.analyses.registers.lens import register_lens
from regtune.analyses.registers.roles import ALPHA, judge_roles, rank_correlation
from regtune.analyses.registers.states import register_states
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.registers.surgery import num_registers
from regtune.session import open_target, require_answering_head
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.predict import predict_logits
from regtune.tasks.qa.question_answerer import QuestionAnswerer
from regtune.tasks.qa.windows import WindowSet, make_windows

__all__ = ["RegisterAudit", "audit_registers", "audit_text"]

_QUESTION_TOKENS = 64
"""Longer questions are cut, as `question_batches` does."""


def audit_registers(
    model: str | Path | QuestionAnswerer,
    *,
    data: Sequence[str] = (),
    limit: int | None = None,
    hows: Sequence[str] = HOWS,
    resamples: int = 10_000,
    seed: int = 0,
    head_from: nn.Module | str | Path | None = None,
    constants_dir: Path | None = None,
    progress: bool = False,
) -> RegisterAudit:
    """Knocks out every register by itself and all together, and looks at what each holds, attends to and is worth.

    The model runs over the questions 4 + len(hows) * (N + 1) times, and once with a backward pass. States, attention
    and relevance are of one window a question (the one that holds the answer), loss and answers of all.

    Args:
        model: a run directory, a folder or hub name of a model with registers, or a loaded one with its tokenizer.
        data: SQuAD-format files or names; by default the run's first evaluation set (`embedded:dev` without a run).
        limit: use only the first so many questions.
        hows: ways of knocking out (see `regtune.analyses.registers.knock_out`); the verdict is read from `mask`, or
            from the first if that isn't among them.
        resamples: bootstrap draws.
        seed: of all random draws.
        head_from: a masked or causal language model whose head the register lens borrows: the base that was
            fine-tuned. Without it the lens reads through the input embeddings alone.
        constants_dir: gets the registers that hardly vary, as constants, if there are any.
        progress: show a progress bar.

    Raises:
        UnsupportedModelError: a model without registers.
        CheckpointError: no such model, or one without a question-answering head.
        ConfigError: a setting out of range, an unknown way of knocking out.
        DataError: as reading the questions; fewer than two.
    """
    subject = _open(model, data, limit)
    count = num_registers(subject.model)
    hows = _check(hows, count, resamples)
    knock_outs = _knock_outs(hows, count)
    batches = subject.batches()
    states = register_states(subject.model, batches)
    attention = attention_statistics(subject.model, batches)
    untouched = subject.score()
    scored = {
        knock_out: subject.score(knock_out, states.means)
        for knock_out in tqdm(knock_outs, desc="knock-outs", disable=None if progress else True)
    }
    found = effects(untouched, scored, resamples=resamples, seed=seed)
    first = "mask" if "mask" in hows else hows[0]
    alone = [KnockOut(how=first, registers=(index,)) for index in range(count)]
    changes = np.stack([scored[knock_out].loss - untouched.loss for knock_out in alone], axis=1)
    relevance = _relevance(subject.model, batches, changes.shape)
    if constants_dir is not None and states.constant():
        held = KnockOut(how="mean", registers=states.constant())
        lost = effects(untouched, {held: subject.score(held, states.means)}, resamples=resamples, seed=seed)[
            0
        ].to_json()
        error = {"registers": list(states.constant()), **{name: lost[name] for name in lost if name != "register"}}
        export_constant_registers(subject.model, states, constants_dir, batch=batches[0], error=error)
    return RegisterAudit(
        model=subject.name,
        data=subject.data,
        questions=len(subject.examples),
        num_registers=count,
        f1=float(untouched.f1.mean()),
        loss=float(untouched.loss.mean()),
        effects=tuple(found),
        roles=judge_roles(
            changes, [e for e in found if e.knock_out.how == first], resamples=min(resamples, 2_000), seed=seed
        ),
        states=states,
        constant=states.constant(),
        attention_in=attention.register_share.mean(axis=1, dtype=np.float64),
        attention_out=attention.register_attention_out.mean(axis=1, dtype=np.float64),
        relevance=relevance.mean(axis=0),
        rank_correlation=rank_correlation(relevance, changes, seed=seed),
        lens=register_lens(subject.model, states.means, subject.answerer.tokenizer, head_from=head_from),
    )


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A model and the questions it is audited on."""

    name: str
    answerer: QuestionAnswerer
    data: tuple[str, ...]
    examples: tuple[QAExample, ...]
    windows: WindowSet

    @property
    def model(self) -> nn.Module:
        return self.answerer.model

    def batches(self) -> list[Batch]:
        """One window a question."""
        answerer = self.answerer
        return question_batches(
            self.examples,
            answerer.tokenizer,
            max_length=answerer.max_length,
            stride=answerer.stride,
            batch_size=answerer.config.batch_size,
        )

    def score(self, knock_out: KnockOut | None = None, means: Tensor | None = None) -> Scored:
        """How the model does on every question, untouched or with registers knocked out."""
        answerer, windows = self.answerer, self.windows.windows
        with nullcontext() if knock_out is None else knocked_out(self.model, knock_out, means=means):
            logits = predict_logits(
                self.model,
                windows,
                pad_token_id=answerer.tokenizer.pad_token_id,
                batch_size=answerer.config.batch_size,
                precision=answerer.precision,
            )
        return score_logits(windows, self.examples, logits, config=answerer.config, data=self.data[0])


def _open(model: str | Path | QuestionAnswerer, data: Sequence[str], limit: int | None) -> _Subject:
    names = tuple([data] if isinstance(data, str) else data)
    if isinstance(model, QuestionAnswerer):
        answerer, name = model, type(model.model).__name__
        names = names or ("embedded:dev",)
    else:
        target = open_target(model)
        require_answering_head(target.model)
        config = target.config
        names, name = names or config.data.eval[:1], target.name
        answerer = QuestionAnswerer.from_pretrained(
            target.model, config=config.answers, max_length=config.data.max_length, stride=config.data.stride
        )
    if not num_registers(answerer.model):
        raise UnsupportedModelError(
            f"{name} has no registers, so there is nothing to audit. Name a run or model that was trained with "
            "num_registers of 1 or more."
        )
    examples = load_questions(names, max_examples=limit, for_training=False).examples
    if len(examples) < 2:
        raise DataError(f"{len(examples)} question shows nothing about a difference; give at least 2, better hundreds.")
    windows = make_windows(
        examples,
        answerer.tokenizer,
        max_length=answerer.max_length,
        stride=answerer.stride,
        max_question_length=min(_QUESTION_TOKENS, answerer.max_length - 1),
        on_long_question="truncate",
        for_training=False,
    )
    return _Subject(name=name, answerer=answerer, data=names, examples=tuple(examples), windows=windows)


def _check(hows: Sequence[str], count: int, resamples: int) -> list[str]:
    """The ways of knocking out that so many registers allow: a single one has none to be swapped with."""
    if not hows or len(set(hows)) < len(hows):
        raise ConfigError(f"hows={list(hows)} must name at least one way of knocking out, each once.")
    usable = [how for how in hows if how != "swap" or count > 1]
    if not usable:
        raise ConfigError("hows=['swap'] needs a second register to take the place of the first; this model has 1.")
    least = math.ceil(4 * count / ALPHA)
    if resamples < least:
        raise ConfigError(
            f"resamples={resamples} cannot show a p-value that passes {ALPHA} corrected for {count} registers; use "
            f"resamples={least} at least, 10,000 to publish."
        )
    return usable


def _knock_outs(hows: Sequence[str], count: int) -> list[KnockOut]:
    """Each register alone and then all of them, in every way."""
    which: list[tuple[int, ...] | None] = [*((index,) for index in range(count)), None]
    return [KnockOut(how=how, registers=chosen) for how in hows for chosen in which]


def _relevance(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], shape: tuple[int, ...]) -> np.ndarray:
    """|AttnLRP relevance| of each register for each question's answer (start + end logit)."""
    found = np.zeros(shape)
    for batch in batches:
        attributions = explain(model, batch, method="attnlrp", target="answer", on_residual="warn")
        for example, attribution in zip(batch["example"].tolist(), attributions, strict=True):
            found[example] = np.abs(attribution.registers)
    return found
