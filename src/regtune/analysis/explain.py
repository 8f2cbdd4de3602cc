"""`explain`: one call for every method, in batches, which refuses scores that break their own law."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from regtune.analysis.attnlrp import attnlrp_scores
from regtune.analysis.attribution import Attribution, ConservationError
from regtune.analysis.chefer import chefer_scores
from regtune.analysis.relevance_families import RelevanceFamily, relevance_family_of
from regtune.analysis.scores import Scores
from regtune.analysis.targets import END, LOGITS, START, Resolved, Row, Target, TargetError, target_named
from regtune.errors import ConfigError, UnsupportedModelError, unknown_name
from regtune.models.surgery import backbone_of

METHODS: dict[str, Callable[..., Scores]] = {
    "attnlrp": attnlrp_scores,
    "chefer": chefer_scores,
    "cp-lrp": functools.partial(attnlrp_scores, constant_attention=True),
}
"""What can be asked for; which of them a family has is in `regtune.analysis.relevance_families`."""
_FORWARDED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


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
            `offset_mapping`); what the model doesn't take is left out. Padding is on the right.
        method: `attnlrp` (Achtibat 2024), `cp-lrp` (Ali 2022) or `chefer` (Chefer 2021).
        target: one target for all rows or one for each, by name or as an object of `regtune.analysis.targets`; by
            default the answer, the predicted class or the next token, whichever the head gives.
        tokenizer: gives the tokens their text; without it they are ids.
        tolerance: largest residual, as a share of the sum of the parts' sizes (at least 1). By default 1e-8 in
            float64 (1e-6 for families that compute partly in float32), 1e-3 in float32, 5e-2 below.
        on_residual: what to do with a residual above it.
        batch_size: rows that run together; it changes no score.
        options: for the method, for example `{"start_layer": 11}` for `chefer`.

    Raises:
        UnknownNameError: a method that the family has no rules for, or an unknown target.
        UnsupportedModelError: a model in training mode, or one without relevance rules.
        TargetError: a target outside the text, in the padding, or that the head doesn't give.
        ConservationError: a residual above the tolerance.
    """
    family = _check_model(model, method)
    tensors = _check_inputs(inputs)
    rows = len(tensors["input_ids"])
    targets = _one_each(target, rows)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    if on_residual not in ("refuse", "warn"):
        raise unknown_name("on_residual", on_residual, ("refuse", "warn"))
    limit = _tolerance(model, family, method) if tolerance is None else tolerance
    score = functools.partial(METHODS[method], **(options or {}))
    found: list[Attribution] = []
    for first in range(0, rows, batch_size):
        batch = {name: value[first : first + batch_size] for name, value in tensors.items()}
        scores = _score(model, batch, targets[first : first + batch_size], score)
        _check_residual(scores, limit, method, on_residual, first)
        found.extend(_attributions(scores, batch, method, tokenizer))
    return found


def _check_model(model: nn.Module, method: str) -> RelevanceFamily:
    family = relevance_family_of(backbone_of(model).config)
    if method not in family.methods:
        raise unknown_name(f"attribution method for {family.name}", method, family.methods)
    training = next((name or type(model).__name__ for name, part in model.named_modules() if part.training), None)
    if training is not None:
        raise UnsupportedModelError(
            f"{training} is in training mode, where dropout makes every explanation a different one. "
            "Call model.eval() first."
        )
    return family


def _check_inputs(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    if inputs.get("input_ids") is None:
        raise ConfigError(f"explain needs input_ids; it was given {', '.join(inputs) or 'nothing'}.")
    names = [name for name in (*_FORWARDED, "offset_mapping") if inputs.get(name) is not None]
    tensors = {name: torch.as_tensor(inputs[name]) for name in names}
    ids = tensors["input_ids"]
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ConfigError(f"input_ids must be whole numbers [rows, seq], at least one; these are {list(ids.shape)}.")
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    mask = tensors["attention_mask"]
    if mask.shape != ids.shape:
        raise ConfigError(f"attention_mask is {list(mask.shape)}, input_ids {list(ids.shape)}; they must be equal.")
    for row, text in enumerate(mask.bool()):
        if not text.any():
            raise ConfigError(f"row {row} is nothing but padding; leave it out.")
        if not text[: int(text.sum())].all():
            raise ConfigError(f"row {row} has padding before its end, which moves positions; pad on the right.")
    return tensors


def _one_each(target: str | Target | Sequence[str | Target] | None, rows: int) -> Sequence[str | Target | None]:
    if not isinstance(target, Sequence) or isinstance(target, str):
        return [target] * rows
    if len(target) != rows:
        raise ConfigError(f"{len(target)} targets for {rows} rows; give one target, or one for each row.")
    return target


def _tolerance(model: nn.Module, family: RelevanceFamily, method: str) -> float:
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    if dtype != torch.float64:
        return 1e-3 if dtype == torch.float32 else 5e-2
    return 1e-6 if family.single_precision or method == "chefer" else 1e-8


def _score(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    targets: Sequence[str | Target | None],
    score: Callable[..., Scores],
) -> Scores:
    device = next(model.parameters()).device
    accepted = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {name: batch[name].to(device) for name in _FORWARDED if name in batch}
    arguments = {name: value for name, value in arguments.items() if name in accepted}
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    text = batch["attention_mask"].bool().cpu().numpy()

    def resolve(outputs: Mapping[str, Tensor]) -> list[Resolved]:
        logits = {
            name: outputs[name].detach().double().cpu().numpy() for name in (START, END, LOGITS) if name in outputs
        }
        rows = [
            Row(logits={name: value[index] for name, value in logits.items()}, text=text[index])
            for index in range(len(text))
        ]
        return [
            target_named(_default(row) if target is None else target).resolve(row)
            for target, row in zip(targets, rows, strict=True)
        ]

    with torch.inference_mode(False), torch.enable_grad():
        return score(model, lambda: model(**arguments, return_dict=True), resolve)


def _default(row: Row) -> str:
    if START in row.logits:
        return "answer"
    if LOGITS not in row.logits:
        raise TargetError("This model has no head, so it gives no logits to explain. Load it with a task's head.")
    return "class" if row.logits[LOGITS].ndim == 1 else "next-token"


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
                residual=float(scores.residual[row]),
            )
        )
    return found
