"""`explain`: one call for every method, in batches, which refuses scores that break their own law."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from regtune.analyses.attribution.attnlrp import attnlrp_scores
from regtune.analyses.attribution.attribution import Attribution, ConservationError
from regtune.analyses.attribution.batch import Batch, make_batch
from regtune.analyses.attribution.chefer import chefer_scores
from regtune.analyses.attribution.explain_checks import check_inputs, check_model, one_each
from regtune.analyses.attribution.gradient_input import gradient_input_scores, random_scores
from regtune.analyses.attribution.integrated_gradients import integrated_gradients_scores
from regtune.analyses.attribution.occlusion import occlusion_scores
from regtune.analyses.attribution.rollout import attention_gradient_scores, attention_scores, rollout_scores
from regtune.analyses.attribution.scores import Scores
from regtune.errors import ConfigError, unknown_name
from regtune.families._family import Family
from regtune.registers.surgery import backbone_of
from regtune.targets import Target


def _attnlrp(batch: Batch, *, without: Sequence[str] = ()) -> Scores:
    return attnlrp_scores(batch.model, batch.run, batch.resolve, without=without)


def _cp_lrp(batch: Batch, *, without: Sequence[str] = ()) -> Scores:
    return attnlrp_scores(batch.model, batch.run, batch.resolve, constant_attention=True, without=without)


def _chefer(batch: Batch, *, start_layer: int = 0) -> Scores:
    return chefer_scores(batch.model, batch.run, batch.resolve, start_layer=start_layer)


METHODS: dict[str, Callable[..., Scores]] = {
    "attention": attention_scores,
    "attention-gradient": attention_gradient_scores,
    "attnlrp": _attnlrp,
    "chefer": _chefer,
    "cp-lrp": _cp_lrp,
    "gradient-input": gradient_input_scores,
    "integrated-gradients": integrated_gradients_scores,
    "occlusion": occlusion_scores,
    "random": random_scores,
    "rollout": rollout_scores,
}
"""What can be asked for, each with its options as keyword arguments; which of them a family has is in
`Family.relevance`."""

_KEEPS_WEIGHTS = ("attention", "attention-gradient", "attnlrp", "chefer", "cp-lrp", "rollout")
_WEIGHTS_AT_ONCE = 2**22
"""Attention weights of one layer; twice as many rows take twice as long for each of them on two cores."""


def explain(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    method: str = "attnlrp",
    target: str | Target | Sequence[str | Target] | None = None,
    tokenizer: Any = None,
    tolerance: float | None = None,
    on_residual: Literal["refuse", "warn"] = "refuse",
    batch_size: int = 16,
    options: Mapping[str, Any] | None = None,
) -> list[Attribution]:
    """Explains one value of the model's output for every row of `inputs`.

    Args:
        model: a Hugging Face model with a head, with or without registers, in eval mode. It is left as it was.
        inputs: `input_ids` `[rows, seq]` and what else the tokenizer made (`attention_mask`, `token_type_ids`,
            `offset_mapping`) or an analysis batch holds (`token_classes`); what the model doesn't take is left out.
            Padding is on the right.
        method: `attnlrp` (Achtibat 2024), `cp-lrp` (Ali 2022), `chefer` (Chefer 2021), `integrated-gradients`,
            `gradient-input`, `occlusion`, `rollout`, `attention`, `attention-gradient` or `random`.
        target: one target for all rows or one for each, by name or as an object of
            `regtune.targets`; by default the answer, the predicted class, the next
            token or the token at [MASK], whichever the head gives.
        tokenizer: gives the tokens their text, without it they are ids; and says which tokens are special.
        tolerance: largest residual. For relevance propagation it is a share of the sum of the parts' sizes (at least
            1), by default 1e-8 in float64 (1e-6 for families that compute partly in float32), 1e-3 in float32, 5e-2
            below. For integrated gradients it is a share of the change from baseline to text, by default 0.01.
        on_residual: what to do with a residual above it.
        batch_size: most rows that run together; it changes no score.
        options: for the method, for example `{"start_layer": 11}` for `chefer` or `{"baseline": "mask"}` for
            `integrated-gradients`; they are the keyword arguments of the method's own function.

    Raises:
        UnknownNameError: a method that the family has no rules for, an unknown target or an unknown option.
        UnsupportedModelError: a model in training mode, one without relevance rules, or one in bfloat16 on a CPU that
            has none.
        TargetError: a target outside the text, in the padding, or that the head doesn't give.
        ConservationError: a residual above the tolerance.
    """
    family = check_model(model, method)
    tensors = check_inputs(inputs)
    rows = len(tensors["input_ids"])
    targets = one_each(target, rows)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    if on_residual not in ("refuse", "warn"):
        raise unknown_name("on_residual", on_residual, ("refuse", "warn"))
    limit = _tolerance(model, family, method) if tolerance is None else tolerance
    score = _with_options(method, options or {})
    found: list[Attribution] = []
    size = min(batch_size, _rows_in_cache(model, method, tensors["input_ids"].shape[1]))
    for first in range(0, rows, size):
        batch = {name: value[first : first + size] for name, value in tensors.items()}
        wanted = targets[first : first + size]
        with torch.inference_mode(False), torch.enable_grad():
            scores = score(make_batch(model, family, batch, wanted, tolerance=limit, tokenizer=tokenizer))
        _check_residual(scores, limit, method, on_residual, first)
        found.extend(_attributions(scores, batch, method, tokenizer))
    return found


def _with_options(method: str, options: Mapping[str, Any]) -> Callable[[Batch], Scores]:
    known = set(inspect.signature(METHODS[method]).parameters) - {"batch"}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {method}", name, known)
    return functools.partial(METHODS[method], **options)


def _rows_in_cache(model: nn.Module, method: str, length: int) -> int:
    """How many rows' attention weights a processor holds without asking the system for memory at every step."""
    if method not in _KEEPS_WEIGHTS or next(model.parameters()).device.type != "cpu":
        return sys.maxsize
    heads = int(backbone_of(model).config.num_attention_heads)
    return max(1, _WEIGHTS_AT_ONCE // (heads * length**2))


def _tolerance(model: nn.Module, family: Family, method: str) -> float:
    if method == "integrated-gradients":
        return 0.01
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    if dtype != torch.float64:
        return 1e-3 if dtype == torch.float32 else 5e-2
    return 1e-6 if family.single_precision or method == "chefer" else 1e-8


def _check_residual(scores: Scores, limit: float, method: str, on_residual: str, first: int) -> None:
    share = (scores.residual.abs() / scores.scale).cpu().numpy()
    broken = np.flatnonzero(~(share <= limit))
    if not len(broken):
        return
    worst = int(broken[np.nan_to_num(share[broken], nan=np.inf).argmax()])
    message = (
        f"{method} doesn't conserve: row {first + worst} ({scores.targets[worst].label}) has a residual of "
        f"{float(scores.residual[worst]):.3g} against a value of {float(scores.values[worst]):.6g}, a share of "
        f"{share[worst]:.3g} where {limit:.3g} is allowed. Run the model in float32 or float64, or raise tolerance."
    )
    if on_residual == "refuse":
        raise ConservationError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _attributions(scores: Scores, batch: Mapping[str, Tensor], method: str, tokenizer: Any) -> list[Attribution]:
    found = []
    for row, target in enumerate(scores.targets):
        text = batch["attention_mask"][row].bool().cpu()
        ids = batch["input_ids"][row].cpu()[text].tolist()
        offsets = batch["offset_mapping"][row].cpu()[text].tolist() if "offset_mapping" in batch else None
        found.append(
            Attribution(
                method=method,
                target=target.label,
                value=float(scores.values[row]),
                tokens=tuple(map(str, ids if tokenizer is None else tokenizer.convert_ids_to_tokens(ids))),
                offsets=None if offsets is None else tuple((int(start), int(end)) for start, end in offsets),
                relevance=scores.tokens[row].detach().cpu()[text].numpy().copy(),
                registers=scores.registers[row].detach().cpu().numpy().copy(),
                positions=float(scores.positions[row]),
                types=float(scores.types[row]),
                biases=float(scores.biases[row]),
                softmax=float(scores.softmax[row]),
                baseline=0.0 if scores.baselines is None else float(scores.baselines[row]),
                residual=float(scores.residual[row]),
                steps=None if scores.steps is None else scores.steps[row],
            )
        )
    return found
