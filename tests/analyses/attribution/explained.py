"""Tiny models for relevance tests: float64, with biases and norm weights that are not their neutral start values."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from regtune.analyses.attribution.rules import AttnLRP
from regtune.config import RegisterConfig
from regtune.registers.surgery import add_registers

ENCODERS = tuple(tiny.FAMILIES)
DECODERS = ("llama", "qwen2", "qwen3", "gpt2")
CHEFER = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert")
SINGLE = {"modernbert"}
_DECODER = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
_GPT2 = {
    "vocab_size": 120,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 66,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def attention_of(family: str) -> str:
    return "eager" if family in tiny.EAGER_ONLY else "sdpa"


def lively(model: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
    """Float64, with random vectors where a fresh model has zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "registers" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def encoder(family: str, head: str = "question-answering", *, num_registers: int = 0, attention=None, **registers):
    model = lively(tiny.tiny_model(family, head, attention or attention_of(family)))
    settings = {"num_registers": num_registers, "init_std": 0.5, **registers}
    return add_registers(model, RegisterConfig(**settings)).eval()


def decoder(family: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(_GPT2 if family == "gpt2" else _DECODER))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return lively(model)


def any_model(family: str, num_registers: int = 0):
    """A model of one's own."""
    return decoder(family) if family in DECODERS else encoder(family, num_registers=num_registers)


@functools.cache
def shared_model(family: str, num_registers: int = 0):
    """A model for tests that change nothing on it: that `explain` leaves it as it was is a test of its own."""
    return any_model(family, num_registers)


def without_biases(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def tolerance(family: str) -> float:
    """ModernBERT turns its queries and keys in float32 whatever the weights, so its ledger closes less tightly."""
    return 1e-6 if family in SINGLE else 1e-8


CASES = [(family, n) for family in ENCODERS for n in (0, 3)] + [(family, 0) for family in DECODERS]


def leave_out(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """A wrong rule set: the operations that one rule is about keep their plain derivative."""
    product = AttnLRP.product
    if rule in ("attention", "product"):  # of matrices, or elementwise

        def kept(self, function, a, b):
            meant = (function.__name__ in ("matmul", "__matmul__", "bmm")) == (rule == "attention")
            return function(a, b) if meant else product(self, function, a, b)

        monkeypatch.setattr(AttnLRP, "product", kept)
    elif rule == "layer_norm":
        monkeypatch.setattr(AttnLRP, rule, lambda self, module, x, function: self.linear(module, x, function(x)))
    else:
        monkeypatch.setattr(AttnLRP, rule, lambda _self, x, function: function(x))
