"""Occlusion: how much of the target's value goes when one token, or one register, is taken away."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from regtune.analyses.attribution.baselines import baseline_embeddings, word_embeddings
from regtune.analyses.attribution.batch import Batch
from regtune.analyses.attribution.given_embeddings import given_embeddings
from regtune.analyses.attribution.scores import Scores, lawless
from regtune.errors import ConfigError
from regtune.registers.surgery import mask_registers
from regtune.targets import values_of


def occlusion_scores(
    batch: Batch,
    *,
    baseline: str | Tensor = "pad",
    special_tokens: str = "held",
    internal_batch_size: int = 16,
) -> Scores:
    """The target's value less its value without the token, one token at a time.

    A token is taken away by putting the baseline's embedding in its place, so that positions and lengths stay. A
    register is taken away by hiding it from the attention.

    Args:
        batch: the texts; targets are found once, on the text itself.
        baseline, special_tokens: see `baseline_embeddings`; tokens that are held score 0.
        internal_batch_size: changed texts that run together.

    Raises:
        ConfigError: a baseline or size that cannot work; see `baseline_embeddings`.
    """
    if internal_batch_size < 1:
        raise ConfigError(f"internal_batch_size={internal_batch_size} must be at least 1.")
    with torch.no_grad(), ExitStack() as stack:
        outputs = batch.run()
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets).double()
        given = stack.enter_context(given_embeddings(batch.model, batch.family))
        count = 0 if given.active is None else given.active.num_registers
        registers = values.new_zeros(len(targets), count)
        for number in range(count):
            with mask_registers(batch.model, [number]):
                registers[:, number] = values - values_of(batch.run(), targets)
        text, absent = word_embeddings(batch), baseline_embeddings(batch, baseline, special_tokens=special_tokens)
        tokens = values.new_zeros(batch.text.shape)
        places = (~batch.held(special_tokens)).nonzero()
        places = places[torch.argsort(batch.text.sum(1)[places[:, 0]], stable=True)]
        for part in torch.split(places, internal_batch_size):
            rows, columns = part.unbind(1)
            length = int(batch.text[rows].sum(1).max())
            changed = text[rows].clone()
            changed[torch.arange(len(rows)), columns] = absent[rows, columns]
            given.words = changed[:, :length]
            found = values_of(batch.run_rows(rows, length), [targets[row] for row in rows.tolist()])
            tokens[rows, columns] = values[rows] - found.double()
    return lawless(targets, values, tokens, registers)
