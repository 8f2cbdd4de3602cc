"""A short continuation of masked-language-model pretraining on the training passages, with the registers present.

Work on pause tokens (Goyal et al. 2024, arXiv 2310.02226) says that gains need pretraining with the new tokens. The
masked-LM head (BERT, Devlin et al. 2019: 15 % of the tokens, of these 80 % [MASK], 10 % random, 10 % kept) sits on the
very backbone that is fine-tuned afterwards; it is the checkpoint's own where that has one, and is thrown away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from regtune.config import Count, Rate, RunConfig
from regtune.errors import CheckpointError, ConfigError, DataError, TrainingError, UnsupportedModelError
from regtune.interfaces import Examples, Method
from regtune.models.precision import autocast, device_of, resolve_precision
from regtune.progress import each
from regtune.registers.surgery import (
    backbone_of,
    base_of,
    keeping_flags,
    num_registers,
    register_parameters,
    register_positions,
)
from regtune.session import load_model
from regtune.tasks.mlm import mask_tokens
from regtune.training.batches import BatchOrder
from regtune.training.cpu_dropout import FastCpuDropout
from regtune.training.parameter_groups import parameter_groups, register_group
from regtune.training.trainer import preserved_random_state
from regtune.typed import Checked, Range, typed

if TYPE_CHECKING:
    from regtune.session import Session

WARM_UP_FILE = "warm_up.safetensors"
_LOGGED = 10


@dataclass(frozen=True, kw_only=True)
class WarmUpSettings(Checked, section="warm_up"):
    """A short continuation of masked-language-model pretraining on the training passages, before fine-tuning."""

    steps: Annotated[int, Range(1, 10**9)] = 500
    """Optimiser steps."""
    trainable: Literal["registers", "all"] = "all"
    """What learns meanwhile: the registers (and the new masked-LM head) alone, or all weights."""
    learning_rate: Rate = 1e-4
    """Peak learning rate of all weights but the registers'."""
    register_learning_rate: Rate = 1e-3
    """Peak learning rate of the registers."""
    batch_size: Count = 16
    """Passages in a step."""
    mask_probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15
    """Share of tokens to predict (BERT's)."""


def warm_up(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Any,
    *,
    settings: WarmUpSettings,
    config: RunConfig,
    folder: Path,
) -> dict[str, Any]:
    """Warms a model's backbone and registers up, in place; head and random state stay as they were.

    The result is kept in `folder/warm_up.safetensors`, so a run that was killed later goes on from the same weights;
    one that was killed inside the warm-up repeats it, with the same result.

    Args:
        model: a question-answering model, with registers or (for the control) without.
        texts: the training passages; each one counts once.
        tokenizer: the model's.
        settings: how.
        config: the run; `data.max_length`, `training.seed` and `training.data_seed` matter.
        folder: the run directory.

    Returns:
        Steps, seconds, text tokens, and the loss (mean over ten steps) as a list of `{"step", "loss"}`.

    Raises:
        ConfigError: registers are to be trained and the model has none that learn.
        UnsupportedModelError: the architecture has no masked-LM head, or the tokenizer no [MASK].
        CheckpointError: `warm_up.safetensors` can't be read.
        TrainingError: the loss is no number.
    """
    path, backbone = folder / WARM_UP_FILE, backbone_of(model)
    if path.is_file():
        return restore_backbone(backbone, path)
    if settings.trainable == "registers" and not any(p.requires_grad for p in register_parameters(model)):
        raise ConfigError(
            f"warm_up.trainable='registers', but this model has {num_registers(model)} registers and none that learn. "
            "Use warm_up.trainable='all'."
        )
    passages = cut_passages(texts, tokenizer, max_length=config.data.max_length - register_positions(model))
    with preserved_random_state(), keeping_flags(model):
        _let_learn(model, settings.trainable)
        torch.manual_seed(config.training.seed)
        masked = masked_lm_on(model, config)
        facts = _train(masked, passages, tokenizer, settings, config)
    model.eval()
    save_backbone(backbone, path, facts)
    return facts


def masked_lm_on(model: nn.Module, config: RunConfig) -> Any:
    """A masked-LM model whose backbone *is* the given model's, registers included; the decoder is tied as usual.

    Raises:
        UnsupportedModelError: transformers has no masked-LM head for this architecture.
    """
    backbone = backbone_of(model)
    if hasattr(base_of(model), "decoder"):
        raise UnsupportedModelError(
            f"{config.model} can't be warmed up: {type(model).__name__} fills masks in through its decoder, which a "
            "warm-up doesn't train."
        )
    trusted = config.trust_remote_code == config.model
    try:
        masked = load_model(
            "AutoModelForMaskedLM", config.model, attention=config.training.attention, trust_remote_code=trusted
        )
    except CheckpointError as error:  # the model itself has been read already
        raise UnsupportedModelError(
            f"{config.model} can't be warmed up: no masked-LM model can be made of it ({error})."
        ) from error
    setattr(masked, masked.base_model_prefix, backbone)
    masked.tie_weights()
    return masked.to(device_of(backbone))


def cut_passages(texts: Sequence[str], tokenizer: Any, *, max_length: int) -> list[list[int]]:
    """Every distinct text as pieces of at most `max_length` tokens, special tokens included.

    Raises:
        DataError: there are no texts.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise DataError("There are no passages to warm up on: the training sets hold 0 contexts.")
    found = tokenizer(
        distinct, truncation=True, max_length=max_length, return_overflowing_tokens=True, return_token_type_ids=False
    )
    return [list(ids) for ids in found["input_ids"]]


def _train(
    masked: Any, passages: list[list[int]], tokenizer: Any, warm: WarmUpSettings, config: RunConfig
) -> dict[str, Any]:
    if tokenizer.mask_token_id is None:
        raise UnsupportedModelError(f"The tokenizer of {config.model} has no [MASK] token, so nothing can be masked.")

    def loss_of(rows: Sequence[int], generator: torch.Generator) -> Tensor:
        ids, mask, special = padded([passages[row] for row in rows], tokenizer)
        inputs, labels = mask_tokens(
            ids,
            special,
            probability=warm.mask_probability,
            mask_token_id=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
            generator=generator,
        )
        batch = {"input_ids": inputs, "attention_mask": mask, "labels": labels}
        loss: Tensor = masked(**{name: value.to(device_of(masked)) for name, value in batch.items()}).loss
        return loss

    lengths = [len(ids) for ids in passages]
    return learn(masked, lengths, loss_of, warm, config) | {"passages": len(passages)}


def learn(
    model: Any,
    lengths: Sequence[int],
    loss_of: Callable[[Sequence[int], torch.Generator], Tensor],
    settings: Any,
    config: RunConfig,
) -> dict[str, Any]:
    """Takes as many optimiser steps as the settings say; the batches depend on the rows' lengths and seeds alone.

    Args:
        model: what learns; registers at a rate of their own.
        lengths: tokens or patches of each row there is.
        loss_of: of a batch of rows, by number, and a step's generator.
        settings: the method's, with `steps`, `batch_size`, `learning_rate` and `register_learning_rate`.
        config: the run.

    Returns:
        Steps, seconds, text tokens, and the loss (mean over ten steps) as a list of `{"step", "loss"}`.

    Raises:
        TrainingError: the loss is no number.
    """
    from transformers import get_linear_schedule_with_warmup

    device = device_of(model)
    rates = dataclasses.replace(
        config.training, learning_rate=settings.learning_rate, register_learning_rate=settings.register_learning_rate
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, rates, claimed=[register_group(model, rates)]))
    rising = round(settings.steps * config.training.warmup_ratio)
    schedule = get_linear_schedule_with_warmup(optimizer, rising, settings.steps)  # type: ignore[no-untyped-call]
    precision = resolve_precision(config.training.precision, device)
    losses: list[float] = []
    tokens, began = 0, time.perf_counter()
    batches = _batches(lengths, settings, config)
    model.train()
    for step, rows in enumerate(each(batches, "steps", total=settings.steps)):
        tokens += sum(lengths[row] for row in rows)
        generator = torch.Generator().manual_seed(config.training.data_seed * 1_000_003 + step)
        with FastCpuDropout() if device.type == "cpu" else contextlib.nullcontext():
            with autocast(device, precision):
                loss = loss_of(rows, generator)
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            name = settings.section
            raise TrainingError(
                f"The loss before training became {losses[-1]} at step {step + 1} of {settings.steps}. Try a lower "
                f"{name}.learning_rate (now {settings.learning_rate:g}) or {name}.register_learning_rate "
                f"(now {settings.register_learning_rate:g})."
            )
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], config.training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.zero_grad(set_to_none=True)
    seconds = round(time.perf_counter() - began, 2)
    return {"steps": settings.steps, "seconds": seconds, "text_tokens": tokens} | {
        "curve": [
            {"step": start + len(part), "loss": round(float(np.mean(part)), 5)}
            for start in range(0, len(losses), _LOGGED)
            for part in [losses[start : start + _LOGGED]]
        ]
    }


def padded(passages: Sequence[Sequence[int]], tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and which tokens are special (padding too) of a batch of passages, `[batch, seq]` each."""
    chosen = [torch.tensor(ids) for ids in passages]
    ids = nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in chosen], batch_first=True)
    return ids, mask, torch.isin(ids, torch.tensor(sorted(tokenizer.all_special_ids))) | (mask == 0)


def _batches(lengths: Sequence[int], settings: Any, config: RunConfig) -> Iterator[list[int]]:
    """Rows, by number, of as many batches as there are steps."""
    order = BatchOrder(lengths, settings.batch_size, data_seed=config.training.data_seed)
    step = epoch = 0
    while True:
        rows = order.order(epoch).tolist()
        for start in range(0, len(rows), settings.batch_size):
            if step == settings.steps:
                return
            yield rows[start : start + settings.batch_size]
            step += 1
        epoch += 1


def _let_learn(model: nn.Module, who: str) -> None:
    """Lets the registers or everything learn; frozen registers stay frozen."""
    registers = {id(parameter) for parameter in register_parameters(model)}
    for parameter in backbone_of(model).parameters():
        if id(parameter) not in registers:
            parameter.requires_grad_(who == "all")


def save_backbone(backbone: nn.Module, path: Path, facts: dict[str, Any]) -> None:
    """Keeps a backbone's weights, and what is known of how it came to them."""
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(weights, temporary, metadata={"facts": json.dumps(facts)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def restore_backbone(backbone: nn.Module, path: Path) -> dict[str, Any]:
    """Puts weights that `save_backbone` kept into a backbone; gives the facts beside them.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            facts: dict[str, Any] = typed(dict[str, Any], json.loads((file.metadata() or {})["facts"]), path)
        backbone.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} can't be used ({error}). Delete it, and what it holds is made again.") from error
    return facts


class WarmUp(Method):
    """Masked-language-model pretraining goes on for a while before fine-tuning (see the head of this file)."""

    name = "warm_up"
    title = "masked-LM pretraining on the training texts before fine-tuning"
    costs = "its steps"
    use = "as the test whether registers need pretraining"
    settings = WarmUpSettings
    base = "moved"

    def before(self, session: Session, settings: WarmUpSettings, examples: Examples, folder: Path) -> Mapping[str, Any]:
        """The warm-up.

        Raises:
            UnsupportedModelError: a model of images.
        """
        if session.modality == "image":
            raise UnsupportedModelError(
                "warm_up predicts masked words of texts, and this model reads images. Leave warm_up out of the methods."
            )
        texts = [session.reads.text(example) for example in examples.items]
        return warm_up(session.model, texts, session.reader, settings=settings, config=session.config, folder=folder)

    def leftovers(self) -> tuple[str, ...]:
        """The warmed-up weights."""
        return (WARM_UP_FILE,)

    def label(self, settings: WarmUpSettings) -> str:
        """Who learnt."""
        return "warm-up of the registers" if settings.trainable == "registers" else "warm-up"
