"""Two of the simplest explanations: gradient times input, and numbers drawn at random."""

from __future__ import annotations

import numpy as np
import torch

from regtune.analyses.attribution.batch import Batch
from regtune.analyses.attribution.ledger import Ledger, relevance_of
from regtune.analyses.attribution.lrp import REGISTERS, TOKENS, relevance_rules
from regtune.analyses.attribution.lrp_rules import PlainGradient
from regtune.analyses.attribution.scores import Scores, lawless
from regtune.registers.surgery import find_registers
from regtune.targets import values_of


def gradient_input_scores(batch: Batch) -> Scores:
    """Word embedding times the target's gradient with regard to it; for registers their vectors, over all depths.

    Equals the change to first order when the vector shrinks, and the contribution itself where a model is linear.
    """
    ledger = Ledger()
    with relevance_rules(batch.model, PlainGradient(), ledger):
        outputs = batch.run()
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets)
        words, registers = ledger.leaves[TOKENS][0], ledger.leaves.get(REGISTERS, [])
        gradients = torch.autograd.grad(values.sum(), [words, *registers], materialize_grads=True)
    found = [
        relevance_of(leaf.detach(), gradient) for leaf, gradient in zip([words, *registers], gradients, strict=True)
    ]
    return lawless(targets, values, found[0], torch.stack(found[1:]).sum(0) if registers else found[0][:, :0])


def random_scores(batch: Batch, *, seed: int = 0) -> Scores:
    """Numbers between -1 and 1 that know nothing of the model: what every other method has to beat.

    The same text gets the same scores for the same seed, whatever stands beside it.
    """
    with torch.no_grad():
        outputs = batch.run()
    targets = batch.resolve(outputs)
    registers = find_registers(batch.model)
    count = 0 if registers is None or not registers.enabled else registers.num_registers
    tokens = torch.zeros(batch.text.shape, dtype=torch.float64)
    of_registers = torch.zeros(len(targets), count, dtype=torch.float64)
    for row, text in enumerate(batch.text.cpu()):
        ids = batch.inputs["input_ids"][row].cpu()[text].tolist()
        drawn = torch.from_numpy(np.random.default_rng([seed, *ids]).uniform(-1, 1, len(ids) + count))
        tokens[row, text], of_registers[row] = drawn[: len(ids)], drawn[len(ids) :]
    values = values_of(outputs, targets)
    return lawless(targets, values, tokens.to(values.device), of_registers.to(values.device))
