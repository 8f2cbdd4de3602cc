"""The simplest explanations: gradient times input, one token hidden at a time, and numbers drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from regtune.analyses.attribution.attribution import Scores
from regtune.analyses.attribution.batch import Batch, baseline_embeddings, given_embeddings, word_embeddings
from regtune.analyses.attribution.rules import relevance_of
from regtune.analyses.reversible import freeze, only_reader
from regtune.errors import ConfigError
from regtune.registers.surgery import active_sets, mask_registers
from regtune.rows.targets import Resolved, values_of


def gradient_input_scores(batch: Batch) -> Scores:
    """Word embedding times the target's gradient with regard to it; for registers their vectors, over all depths.

    Equals the change to first order when the vector shrinks, and the contribution itself where a model is linear.
    """
    with ExitStack() as stack:
        stack.enter_context(only_reader(batch.model))
        freeze(batch.model, stack)
        given = stack.enter_context(given_embeddings(batch))
        given.words = words = word_embeddings(batch).requires_grad_()
        rows = len(words)
        given.registers = [
            learned.expand(rows, -1, -1).clone().requires_grad_() for learned in given.learned_registers()
        ]
        outputs = batch.run()
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets)
        leaves = [words, *given.registers]
        gradients = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
    found = [relevance_of(leaf.detach(), gradient) for leaf, gradient in zip(leaves, gradients, strict=True)]
    registers = given.by_register(found[1:]) if given.registers else found[0][:, :0]
    return Scores(targets=targets, values=values, tokens=found[0], registers=registers)


def occlusion_scores(
    batch: Batch,
    *,
    baseline: str | Tensor = "pad",
    special_tokens: str = "held",
    internal_batch_size: int = 16,
) -> Scores:
    """The target's value less its value without the token, one token at a time.

    A token is taken away by putting the baseline's embedding in its place, so that positions and lengths stay. A
    register is taken away by hiding it from the attention. `baseline`, `special_tokens`: see `baseline_embeddings`;
    tokens that are held score 0. `internal_batch_size`: changed texts that run together.
    """
    if internal_batch_size < 1:
        raise ConfigError(f"internal_batch_size={internal_batch_size} must be at least 1.")
    with torch.no_grad():
        outputs = batch.run()
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets).double()
        losses = []
        for owner, found in active_sets(batch.model):
            for number in range(found.num_registers):
                with mask_registers(owner, [number]):
                    losses.append(values - values_of(batch.run(), targets).double())
        registers = torch.stack(losses, dim=1) if losses else values.new_zeros(len(targets), 0)
        absent = baseline_embeddings(batch, baseline, special_tokens=special_tokens)
        places = (~batch.held(special_tokens)).nonzero()
        places = places[torch.argsort(batch.text.sum(1)[places[:, 0]], stable=True)]
        tokens = values.new_zeros(batch.text.shape)
        for part in torch.split(places, internal_batch_size):
            rows, columns = part.unbind(1)
            hidden = torch.zeros_like(batch.text[rows])
            hidden[torch.arange(len(rows)), columns] = True
            tokens[rows, columns] = values[rows] - _values_without(batch, targets, absent, rows, hidden)
    return Scores(targets=targets, values=values, tokens=tokens, registers=registers)


def loss_when_hidden(batch: Batch, hidden: Bool[Tensor, "batch seq"]) -> Float64[Tensor, " batch"]:
    """The target's value less its value with several tokens of each row hidden at once, behind padding's embedding."""
    with torch.no_grad():
        outputs = batch.run()
        targets = batch.resolve(outputs)
        absent = baseline_embeddings(batch, "pad", special_tokens="moved")
        rows = torch.arange(len(targets), device=absent.device)
        return values_of(outputs, targets).double() - _values_without(batch, targets, absent, rows, hidden)


def _values_without(
    batch: Batch, targets: Sequence[Resolved], absent: Tensor, rows: Tensor, hidden: Tensor
) -> Float64[Tensor, " rows"]:
    length = int(batch.text[rows].sum(1).max())
    words = torch.where(hidden.to(absent.device).unsqueeze(-1), absent[rows], word_embeddings(batch)[rows])
    with given_embeddings(batch) as given:
        given.words = words[:, :length]
        return values_of(batch.run_rows(rows, length), [targets[row] for row in rows.tolist()]).double()


def random_scores(batch: Batch, *, seed: int = 0) -> Scores:
    """Numbers between -1 and 1 that know nothing of the model: what every other method has to beat.

    The same text gets the same scores for the same seed, whatever stands beside it.
    """
    with torch.no_grad():
        outputs = batch.run()
    targets = batch.resolve(outputs)
    count = sum(registers.num_registers for _, registers in active_sets(batch.model))
    tokens = torch.zeros(batch.text.shape, dtype=torch.float64)
    of_registers = torch.zeros(len(targets), count, dtype=torch.float64)
    for row, text in enumerate(batch.text.cpu()):
        length = int(text.sum())
        drawn = torch.from_numpy(np.random.default_rng([seed, *batch.content(row)]).uniform(-1, 1, length + count))
        tokens[row, text], of_registers[row] = drawn[:length], drawn[length:]
    return Scores(targets=targets, values=values_of(outputs, targets), tokens=tokens, registers=of_registers)
