"""`attribute`: one call for every method, in batches, which refuses scores that break their own law."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.attribution import Attribution, ConservationError, Scores
from regtune.analyses.attribution.batch import Batch, make_batch, word_table
from regtune.analyses.attribution.chefer import chefer_scores
from regtune.analyses.attribution.integrated_gradients import TOKEN_ERROR, TOLERANCE, integrated_gradients_scores
from regtune.analyses.attribution.lrp import attnlrp_scores, cp_lrp_scores
from regtune.analyses.attribution.rollout import attention_gradient_scores, attention_scores, rollout_scores
from regtune.analyses.attribution.simple import gradient_input_scores, occlusion_scores, random_scores
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, UnsupportedModelError, shown, unknown_name
from regtune.families import family_of, find_family
from regtune.families._family import LEDGER, Family, patch_grid
from regtune.models.precision import device_of, has_bfloat16
from regtune.registers.surgery import backbone_of, base_of, find_decoder_registers
from regtune.rows.targets import Target
from regtune.rows.token_classes import patch_classes

METHODS: dict[str, Callable[..., Scores]] = {
    "attention": attention_scores,
    "attention-gradient": attention_gradient_scores,
    "attnlrp": attnlrp_scores,
    "chefer": chefer_scores,
    "cp-lrp": cp_lrp_scores,
    "gradient-input": gradient_input_scores,
    "integrated-gradients": integrated_gradients_scores,
    "occlusion": occlusion_scores,
    "random": random_scores,
    "rollout": rollout_scores,
}
"""What can be asked for, each with its options as keyword arguments."""
RULES = (*LEDGER, "chefer")
"""Methods with relevance rules, which an architecture has or has not (`Family.relevance`)."""
PEERS = tuple(name for name in METHODS if name not in RULES)
"""Methods without rules, which every model that embeds tokens has."""

_KEEPS_WEIGHTS = (*RULES, "attention", "attention-gradient", "rollout")
_WEIGHTS_AT_ONCE = 2**22
"""Attention weights of one layer; twice as many rows take twice as long for each of them on two cores."""
_SMALLEST_KEPT = 0.01
"""Less relevance than this share of what a method started from is nothing, and the law that it obeys says nothing."""
_UNSEEN = ("by", "internal_batch_size", "max_steps")
"""Options that say nothing about what was computed."""


def attribute(
    model: nn.Module,
    inputs: object,
    *,
    method: str = "attnlrp",
    target: object = None,
    tokenizer: Any = None,
    tolerance: float | None = None,
    on_residual: Literal["refuse", "warn"] = "refuse",
    batch_size: int = 16,
    **options: Any,
) -> list[Attribution]:
    """Explains one value of the model's output for every row of `inputs`.

    Args:
        model: a Hugging Face model with a head, with or without registers, in eval mode. It is left as it was. The
            methods with relevance rules (`RULES`) need a known architecture; the others take any.
        inputs: a mapping, as the tokenizer makes it: `input_ids` `[rows, seq]`, `attention_mask`, `offset_mapping` and
            the like, or an analysis batch with `token_classes`; what the model doesn't take is left out. Padding is on
            the right. Of images `pixel_values` `[rows, channels, height, width]`, whose patches are the tokens.
            A model that writes text from text (T5) is explained at a token of `decoder_input_ids`, or at the first one
            that it would write.
        method: `attnlrp` (Achtibat 2024), `cp-lrp` (Ali 2022), `chefer` (Chefer 2021), `integrated-gradients`,
            `gradient-input`, `occlusion`, `rollout`, `attention`, `attention-gradient` or `random`.
        target: one target for all rows or a list of one for each, by name or as an object of `regtune.rows.targets`; by
            default the answer, the predicted class, the next token or the token at [MASK], whichever the head gives.
        tokenizer: gives the tokens their text, without it they are ids; finds words that a target names; and says which
            tokens are special.
        tolerance: largest residual. For relevance propagation it is a share of the sum of the parts' sizes (at least
            1), by default 1e-8 in float64 (1e-6 for families that compute partly in float32), 1e-3 in float32, 5e-2
            below. For integrated gradients it is a share of the change from baseline to text, by default 0.001; ten
            times as much, as a share of the largest score, is what a token's score may be off.
        on_residual: what to do with a residual above it, or with relevance that vanished on the way.
        batch_size: most rows that run together; it changes no score.
        options: the method's, for example `start_layer=11` for `chefer` or `baseline="mask"` for
            `integrated-gradients`: the keyword arguments of its own function.

    Raises:
        UnknownNameError: a method that the family has no rules for, an unknown target or an unknown option.
        UnsupportedModelError: a model in training mode, one without relevance rules, or one in bfloat16 on a CPU that
            has none.
        ConfigError: inputs that are no tensors of token ids, or do not fit together.
        TargetError: a target outside the text, in the padding, or that the head doesn't give.
        ConservationError: a residual above the tolerance.
    """
    family = check_model(model, method)
    tensors = check_inputs(inputs)
    if "pixel_values" in tensors:
        tensors = with_patches(model, tensors)
    rows = len(tensors["attention_mask"])
    targets = _one_each(target, rows)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    if on_residual not in ("refuse", "warn"):
        raise unknown_name("on_residual", on_residual, ("refuse", "warn"))
    limit = _tolerance(model, family, method) if tolerance is None else tolerance
    given = options_of(method)
    for name in options:
        if name not in given:
            raise unknown_name(f"option of {method}", name, given)
    given |= options
    found: list[Attribution] = []
    size = min(batch_size, _rows_in_cache(model, method, tensors["attention_mask"].shape[1]))
    for first in range(0, rows, size):
        part = {name: value[first : first + size] for name, value in tensors.items()}
        wanted = targets[first : first + size]
        with torch.inference_mode(False), torch.enable_grad():
            batch = make_batch(model, family, part, wanted, tolerance=limit, tokenizer=tokenizer)
            scores = METHODS[method](batch, **given)
        message = " ".join(_broken(scores, limit, method, first))
        if message and on_residual == "refuse":
            raise ConservationError(message)
        if message:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        found.extend(_attributions(scores, batch, part, method, given))
    return found


# What is refused before a model runs


def check_model(model: nn.Module, method: str) -> Family | None:
    """The model's family, None if it isn't known."""
    config = backbone_of(model).config
    family = find_family(config)
    if method in RULES and (family is None or not family.relevance):
        try:
            family_of(config, "relevance")
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{error} Methods without rules take any model: {', '.join(PEERS)}.") from None
    known = PEERS if family is None else (*family.relevance, *PEERS)
    if method not in known:
        raise unknown_name(
            f"attribution method for {type(model).__name__ if family is None else family.name}", method, known
        )
    require_eval_mode(model)
    word_table(model)
    lacking = next((name for name, part in model.named_parameters() if part.dtype == torch.bfloat16), None)
    if lacking is not None and device_of(model).type == "cpu" and not has_bfloat16(device_of(model)):
        raise UnsupportedModelError(
            f"{lacking} is bfloat16, which this CPU cannot compute with. Call model.float() first."
        )
    return family


_HOW = "Give what the tokenizer makes: tokenizer(texts, padding=True, return_tensors='pt')."


def check_inputs(inputs: object) -> dict[str, Tensor]:
    """The inputs as tensors with an attention mask, each with a row a text."""
    if not isinstance(inputs, Mapping):
        raise ConfigError(f"attribute needs input_ids; it was given {type(inputs).__name__} {shown(inputs)}. {_HOW}")
    if inputs.get("pixel_values") is not None:
        return _check_images({str(name): _tensor(str(name), value) for name, value in inputs.items()})
    return _check_texts(inputs)


def _check_texts(inputs: Mapping[Any, Any]) -> dict[str, Tensor]:
    if inputs.get("inputs_embeds") is not None:
        raise ConfigError(
            "attribute needs input_ids; it was given inputs_embeds, from which no token can be named. Whole numbers "
            "are input_ids."
        )
    if inputs.get("input_ids") is None:
        raise ConfigError(f"attribute needs input_ids; it was given {', '.join(map(str, inputs)) or 'nothing'}. {_HOW}")
    tensors = {str(name): _tensor(str(name), value) for name, value in inputs.items() if value is not None}
    ids = tensors["input_ids"]
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ConfigError(f"input_ids must be whole numbers [rows, seq], at least one; these are {list(ids.shape)}.")
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    for name in ("attention_mask", "token_classes"):
        if tensors.get(name, ids).shape != ids.shape:
            shape = list(tensors[name].shape)
            raise ConfigError(f"{name} is {shape}, input_ids {list(ids.shape)}; they must be equal.")
    for row, text in enumerate(tensors["attention_mask"].bool()):
        if not text.any():
            raise ConfigError(f"row {row} is nothing but padding; leave it out.")
        if not text[: int(text.sum())].all():
            raise ConfigError(f"row {row} has padding before its end, which moves positions; pad on the right.")
    return {name: value for name, value in tensors.items() if value.dim() and len(value) == len(ids)}


def _check_images(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pixels = tensors["pixel_values"]
    if pixels.dim() != 4 or not pixels.is_floating_point() or not pixels.numel():
        raise ConfigError(
            f"pixel_values must be numbers [rows, channels, height, width], as the image processor makes them; these "
            f"are {pixels.dtype} {list(pixels.shape)}."
        )
    return {name: value for name, value in tensors.items() if value.dim() and len(value) == len(pixels)}


def with_patches(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of images with the mask and the classes of what the model makes of them, where it has none.

    Raises:
        UnsupportedModelError: an architecture whose patches aren't known.
    """
    config = backbone_of(model).config
    family, pixels = family_of(config, "parts"), tensors["pixel_values"]
    rows, columns = patch_grid(config, *pixels.shape[-2:])
    classes = patch_classes(family.leading, rows * columns).expand(len(pixels), -1)
    made = {"attention_mask": torch.ones(classes.shape, dtype=torch.long), "token_classes": classes}
    return made | dict(tensors)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is {shown(value)}, no tensor of numbers ({error}). {_HOW}") from None


def _one_each(target: object, rows: int) -> Sequence[str | Target | None]:
    """A target for each row."""
    several = isinstance(target, Sequence) and not isinstance(target, str)
    found: Any = target if several else [target] * rows
    if len(found) != rows:
        raise ConfigError(f"{len(found)} targets for {rows} rows; give one target, or one for each row.")
    for one in found:  # None is the head's default
        if one is not None and not isinstance(one, (str, Target)):
            raise ConfigError(f"{type(one).__name__} {shown(one)} is no target; give a name, like predicted.")
    checked: Sequence[str | Target | None] = found
    return checked


def options_of(method: str) -> dict[str, Any]:
    """A method's options with their defaults."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def _rows_in_cache(model: nn.Module, method: str, length: int) -> int:
    """How many rows' attention weights a processor holds without asking the system for memory at every step."""
    heads = getattr(backbone_of(model).config, "num_attention_heads", None)
    if method not in _KEEPS_WEIGHTS or not isinstance(heads, int) or next(model.parameters()).device.type != "cpu":
        return sys.maxsize
    return max(1, _WEIGHTS_AT_ONCE // (heads * length**2))


# Laws


def _tolerance(model: nn.Module, family: Family | None, method: str) -> float:
    if method == "integrated-gradients":
        return TOLERANCE
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    if dtype != torch.float64:
        return 1e-3 if dtype == torch.float32 else 5e-2
    return 1e-6 if (family is not None and family.single_precision) or method == "chefer" else 1e-8


def _broken(scores: Scores, limit: float, method: str, first: int) -> Iterator[str]:
    """A sentence for each way in which the law doesn't hold, or holds and says nothing."""
    if scores.residual is None or scores.scale is None:
        return

    def worst(shares: Tensor) -> tuple[str, int, float]:
        row = int(shares.detach().double().nan_to_num(nan=torch.inf).argmax())
        return f"row {first + row} ({scores.targets[row].label})", row, float(shares[row])

    where, row, share = worst(scores.residual.abs() / scores.scale)
    conserves = share <= limit
    if not conserves:
        yield (
            f"{method} doesn't conserve: {where} has a residual of {float(scores.residual[row]):.3g} against a value "
            f"of {float(scores.values[row]):.6g}, a share of {share:.3g} where {limit:.3g} is allowed. "
            f"{scores.remedy}"
        )
    if scores.kept is not None:
        where, _, share = worst(-scores.kept)
        if not -share >= _SMALLEST_KEPT:
            yield (
                f"{method} lost its relevance: {where} is left with a share of {-share:.3g} of what it started from, "
                "so its residual says nothing. Choose another target or method."
            )
    if scores.inner_residual is not None:
        where, _, share = worst(scores.inner_residual.abs().amax(1) / scores.scale)
        if not share <= limit:
            yield (
                f"{method} doesn't conserve inside the model: at one depth of {where} a share of {share:.3g} is "
                f"missing where {limit:.3g} is allowed. Run the model in float64, or raise tolerance."
            )
    if scores.error is not None:
        where, _, share = worst(scores.error)
        if not share <= TOKEN_ERROR * limit:
            yield (
                f"{method} isn't exact: a score of {where} may be off by {share:.3g} of the largest where "
                f"{TOKEN_ERROR * limit:.3g} is allowed." + f" {scores.remedy}" * conserves
            )


# Results


def _attributions(
    scores: Scores, batch: Batch, given: Mapping[str, Tensor], method: str, options: Mapping[str, Any]
) -> Iterator[Attribution]:
    averaged = batch.family is not None and batch.family.pooling == "mean"
    reads_token = not averaged and not base_of(batch.model).config.is_encoder_decoder
    beside = find_decoder_registers(batch.model) if scores.registers.shape[1] else None
    shown = {name: _plain_option(value) for name, value in options.items() if name not in _UNSEEN}
    for row, target in enumerate(scores.targets):
        text = batch.text[row].cpu()
        offsets = given["offset_mapping"][row].cpu()[text].tolist() if "offset_mapping" in given else None
        more: dict[str, Any] = {name: float(values[row]) for name, values in scores.parts.items()}
        if scores.inner is not None and scores.inner_residual is not None:
            found, registers = scores.inner[row], torch.ones(scores.registers.shape[1], dtype=torch.bool)
            if options["by"] != "neuron":
                found = found[..., torch.cat([registers, text]).to(found.device)]
            residual = _numbers(scores.inner_residual[row])
            more |= {"by": options["by"], "inner": _numbers(found), "inner_residual": residual}
        yield Attribution(
            method=method,
            options=shown,
            target=target.label,
            value=float(scores.values[row].detach()),
            tokens=batch.names(row),
            offsets=None if offsets is None else tuple((int(start), int(end)) for start, end in offsets),
            relevance=_numbers(scores.tokens[row].detach().cpu()[text]),
            registers=_numbers(scores.registers[row]),
            decoder_registers=0 if beside is None else beside.num_registers,
            residual=0.0 if scores.residual is None else float(scores.residual[row]),
            steps=None if scores.steps is None else scores.steps[row],
            error=None if scores.error is None else float(scores.error[row]),
            read_from=tuple(dict.fromkeys(term.position for term in target.terms)) if reads_token else (),
            **more,
        )


def _numbers(values: Tensor) -> Any:
    return values.detach().double().cpu().numpy().copy()


def _plain_option(value: Any) -> str | int | float | None:
    """An option's value as plain JSON."""
    if isinstance(value, Tensor):
        return f"a vector [{value.shape[-1]}]"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(str, value)) or None
    found: str | int | float | None = value
    return found
