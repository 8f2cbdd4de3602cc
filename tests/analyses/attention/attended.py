"""Attention statistics of one window by hand: numpy loops over queries and keys, written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import torch

import tiny
from regtune.analyses.attention.measures import AttentionSettings
from regtune.config import RegisterConfig
from regtune.registers.surgery import add_registers

CLASSES = ("cls", "sep", "punctuation", "question", "context", "register")
NO_CONTENT = (0, 1, 2, 5)


def by_hand(weights, norms, classes, registers, *, queries="text", causal=False, settings=None):
    """One head of one window. `weights` `[total, total]`, `norms` and `classes` `[total]`, float64 arrays."""
    settings = settings or AttentionSettings()
    asking = [i for i, kind in enumerate(classes) if 0 <= kind <= 4 and (queries == "text" or kind >= 2)]
    keys = [k for k, kind in enumerate(classes) if kind >= 0]
    text = [k for k in keys if classes[k] <= 4]
    found = {name: np.zeros(6) for name in ("mass", "mass_text", "value_weighted_mass", "sink_rate_by_class")}
    entropies, text_entropies = [], []
    for i in asking:
        seen = [k for k in keys if not causal or k <= i]
        seen_text = [k for k in text if not causal or k <= i]
        on_text = sum(weights[i, k] for k in text)
        for k in keys:
            found["mass"][classes[k]] += weights[i, k] / len(asking)
            found["value_weighted_mass"][classes[k]] += weights[i, k] * norms[k] / len(asking)
            if k in text:
                found["mass_text"][classes[k]] += weights[i, k] / on_text / len(asking)
        if len(seen) > 1:
            entropies.append(entropy([weights[i, k] for k in seen]) / math.log(len(seen)))
        if len(seen_text) > 1:
            text_entropies.append(entropy([weights[i, k] / on_text for k in seen_text]) / math.log(len(seen_text)))
    written = found["value_weighted_mass"].sum()
    found["value_weighted_mass"] = found["value_weighted_mass"] / written
    found["entropy"], found["entropy_text"] = np.mean(entropies), np.mean(text_entropies)
    found["write"] = written / np.mean([norms[k] for k in keys if 2 <= classes[k] <= 4])
    found["idle"] = float(
        sum(found["mass"][kind] for kind in NO_CONTENT) >= settings.idle_mass and found["write"] <= settings.idle_write
    )
    found["sink_rate_by_class"], found["sink_lift"] = sinks_by_hand(weights, classes, asking, keys, causal, settings)
    found["sink_rate"] = float(found["sink_rate_by_class"].any())
    over_text = weights / weights[:, text].sum(1, keepdims=True).clip(1e-300)
    text_sinks, found["sink_lift_text"] = sinks_by_hand(over_text, classes, asking, text, causal, settings)
    found["sink_rate_text"] = float(text_sinks.any())
    found["register_share"] = np.array([np.mean([weights[i, r] for i in asking]) for r in registers])
    out = np.zeros((len(registers), 6))
    for number, r in enumerate(registers):
        for k in keys:
            out[number, classes[k]] += weights[r, k]
    found["register_attention_out"] = out
    return found


def sinks_by_hand(weights, classes, asking, keys, causal, settings):
    sinks, lifts = np.zeros(6), []
    for k in keys:
        looking = [i for i in asking if not causal or k <= i]
        if len(looking) < len(asking) / 2:
            continue
        alpha = np.mean([weights[i, k] for i in looking])
        uniform = np.mean([1 / len([m for m in keys if not causal or m <= i]) for i in looking])
        lifts.append(alpha / uniform)
        if alpha > settings.sink_above:
            sinks[classes[k]] = 1.0
    return sinks, max(lifts)


def entropy(shares):
    return -sum(share * math.log(share) for share in shares if share > 0)


def model_of(family, *, num_registers=0, attention="eager", head="question-answering", **registers):
    """Float64, with attention that is far from uniform."""
    model = tiny.tiny_model(family, head, attention).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embedding" not in name:
                parameter.mul_(4.0)
    return add_registers(model, RegisterConfig(num_registers=num_registers, **{"init_std": 0.5, **registers})).eval()


def analysis_batch(*, pad=5, seed=1, rows=3):
    """An analysis batch: [CLS], four tokens, [SEP], the rest, of random classes."""
    batch = tiny.inputs("bert", batch=rows, pad=pad, seed=seed)
    classes = torch.randint(2, 5, batch["input_ids"].shape, generator=torch.Generator().manual_seed(seed))
    classes[:, 0], classes[:, 5] = 0, 1
    classes[~batch["attention_mask"].bool()] = -1
    return {**batch, "token_classes": classes.to(torch.int8), "example": torch.arange(rows)}


def rows_of(batch, rows, length=None):
    return {name: value[rows] if value.dim() == 1 else value[rows, :length] for name, value in batch.items()}
