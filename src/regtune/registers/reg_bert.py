"""RegBERT, by the names and with the defaults of the paper (Parihar et al., University of Michigan, 2024).

Thin: BERT with registers already in it. For any other model use `add_registers`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertModel

from regtune.config import RegisterConfig
from regtune.registers.registers import Registers
from regtune.registers.surgery import CONFIG_KEY, add_registers

PAPER = RegisterConfig(num_registers=5)
"""The paper's best: five prepended vectors with learned positions, behind the LayerNorm, normal(0, 0.02)."""


def registers_of(config: BertConfig) -> RegisterConfig:
    """The registers that a BERT config asks for; the paper's where it says nothing."""
    settings: dict[str, Any] | None = getattr(config, CONFIG_KEY, None)
    return RegisterConfig(**settings) if settings else PAPER


def with_registers(config: BertConfig, registers: RegisterConfig) -> BertConfig:
    """A copy of a BERT config that asks for these registers."""
    changed = BertConfig.from_dict(config.to_dict())
    setattr(changed, CONFIG_KEY, dataclasses.asdict(registers))
    return changed


class RegBertModel(BertModel):  # type: ignore[no-untyped-call]
    """BERT with registers: `RegBertModel.from_pretrained("bert-base-uncased")` adds the paper's five.

    Other registers: `RegBertModel(with_registers(config, RegisterConfig(num_registers=8)))`. What `save_pretrained`
    writes is read back here and by `regtune.from_pretrained`.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        add_registers(self, registers_of(config))

    def _init_weights(self, module: nn.Module) -> None:
        """Start values where a checkpoint has none; transformers' own doesn't know registers."""
        if isinstance(module, Registers):
            module.reset_parameters()
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]


class RegBertForQuestionAnswering(BertForQuestionAnswering):  # type: ignore[no-untyped-call]
    """RegBERT with the span head; logits and labels have the length of the text."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = RegBertModel(config, add_pooling_layer=False)
