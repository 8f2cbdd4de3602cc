"""What `explain` refuses before it runs a model: models, inputs and lists of targets that cannot be explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, UnsupportedModelError, unknown_name
from regtune.families import family_of
from regtune.families._family import Family
from regtune.models.precision import device_of, has_bfloat16
from regtune.registers.surgery import backbone_of
from regtune.targets import Target

PEERS = (
    "attention",
    "attention-gradient",
    "gradient-input",
    "integrated-gradients",
    "occlusion",
    "random",
    "rollout",
)
"""Methods without rules, which every family has."""
_READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "token_classes", "offset_mapping")


def check_model(model: nn.Module, method: str) -> Family:
    """The model's family.

    Raises:
        UnknownNameError: a method that the family has no rules for.
        UnsupportedModelError: no family, training mode, or bfloat16 on a CPU that has none.
    """
    family = family_of(backbone_of(model).config, "relevance")
    known = (*family.relevance, *PEERS)
    if method not in known:
        raise unknown_name(f"attribution method for {family.name}", method, known)
    require_eval_mode(model)
    lacking = next((name for name, part in model.named_parameters() if part.dtype == torch.bfloat16), None)
    if lacking is not None and device_of(model).type == "cpu" and not has_bfloat16(device_of(model)):
        raise UnsupportedModelError(
            f"{lacking} is bfloat16, which this CPU cannot compute with. Call model.float() first."
        )
    return family


def check_inputs(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `explain` reads of the inputs, as tensors with an attention mask.

    Raises:
        ConfigError: embeddings, shapes that don't fit together, or padding anywhere but at the end.
    """
    embeddings = inputs.get("inputs_embeds")
    if embeddings is not None:
        given = torch.as_tensor(embeddings)
        advice = "" if given.is_floating_point() else " These are whole numbers: pass them as input_ids."
        raise ConfigError(
            f"explain needs input_ids; it was given inputs_embeds {given.dtype} {list(given.shape)}, from which no "
            f"token can be named.{advice}"
        )
    if inputs.get("input_ids") is None:
        raise ConfigError(f"explain needs input_ids; it was given {', '.join(inputs) or 'nothing'}.")
    names = [name for name in _READ if inputs.get(name) is not None]
    tensors = {name: torch.as_tensor(inputs[name]) for name in names}
    ids = tensors["input_ids"]
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ConfigError(f"input_ids must be whole numbers [rows, seq], at least one; these are {list(ids.shape)}.")
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    mask = tensors["attention_mask"]
    if mask.shape != ids.shape:
        raise ConfigError(f"attention_mask is {list(mask.shape)}, input_ids {list(ids.shape)}; they must be equal.")
    classes = tensors.get("token_classes", ids)
    if classes.shape != ids.shape:
        raise ConfigError(f"token_classes is {list(classes.shape)}, input_ids {list(ids.shape)}; they must be equal.")
    for row, text in enumerate(mask.bool()):
        if not text.any():
            raise ConfigError(f"row {row} is nothing but padding; leave it out.")
        if not text[: int(text.sum())].all():
            raise ConfigError(f"row {row} has padding before its end, which moves positions; pad on the right.")
    return tensors


def one_each(target: str | Target | Sequence[str | Target] | None, rows: int) -> Sequence[str | Target | None]:
    """A target for each row.

    Raises:
        ConfigError: another number of targets than rows.
    """
    if not isinstance(target, Sequence) or isinstance(target, str):
        return [target] * rows
    if len(target) != rows:
        raise ConfigError(f"{len(target)} targets for {rows} rows; give one target, or one for each row.")
    return target
