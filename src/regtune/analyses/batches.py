"""Analysis batches, and how a model runs on one.

A batch holds what the model takes (`input_ids`, `attention_mask`, ... `[rows, seq]`, padding on the right),
`token_classes` `[rows, seq]` (`regtune.token_classes`) and `example` `[rows]`; `Session.batches` makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.errors import ConfigError, DataError
from regtune.interfaces import Batch
from regtune.models.precision import device_of
from regtune.registers.surgery import backbone_of
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.task import collate, roles
from regtune.tasks.qa.tokens import require_fast_tokenizer
from regtune.tasks.qa.windows import make_windows
from regtune.token_classes import TokenClass, is_content, token_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORWARDED = ("input_ids", "attention_mask", "token_type_ids")


def check(batch: Batch) -> None:
    """Refuses a batch that lacks something, or whose parts don't fit together.

    Raises:
        ConfigError: which part.
    """
    for name in ("input_ids", "attention_mask", "token_classes", "example"):
        if name not in batch:
            raise ConfigError(f"An analysis batch needs {name}; this one has {', '.join(batch) or 'nothing'}.")
        if name != "example" and batch[name].shape != batch["input_ids"].shape:
            raise ConfigError(f"{name} is {list(batch[name].shape)}, input_ids {list(batch['input_ids'].shape)}.")
    if not torch.equal(batch["token_classes"] != TokenClass.PADDING, batch["attention_mask"].bool()):
        raise ConfigError("token_classes and attention_mask disagree about what is padding; make both from one batch.")
    if batch["token_classes"].max() >= TokenClass.REGISTER:
        raise ConfigError("token_classes hold registers, which are no text; regtune puts them there itself.")


def with_words(batch: Batch) -> Batch | None:
    """The rows that hold a word; None if none does. Raises as `check`."""
    check(batch)
    kept = is_content(batch["token_classes"]).any(1)
    return {name: value[kept] for name, value in batch.items()} if kept.any() else None


def run(model: nn.Module, batch: Batch) -> Any:
    """The model's output for what it takes of a batch, on its own device, without a cache."""
    accepted = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {
        name: batch[name].to(device_of(model)) for name in _FORWARDED if name in batch and name in accepted
    }
    if "use_cache" in accepted:
        given["use_cache"] = False
    return model(**given, return_dict=True)


def run_backbone(model: nn.Module, batch: Batch) -> Float[Tensor, "rows seq hidden"]:
    """The last hidden state of the text; the head doesn't run and no gradient is kept."""
    with torch.inference_mode():
        states: Tensor = run(backbone_of(model), batch).last_hidden_state
        return states


# Until explain_question goes


__all__ = ["Batch", "check", "question_batches", "run", "run_backbone", "text_batches", "with_words"]


def question_batches(
    examples: Sequence[QAExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 384,
    stride: int = 128,
    batch_size: int = 16,
    limit: int | None = None,
    windows: Literal["gold", "all"] = "gold",
    max_question_length: int = 64,
) -> list[Batch]:
    """Windows of questions, in batches of similar length.

    Args:
        examples: the questions.
        tokenizer: a fast tokenizer.
        max_length: longest window in text tokens.
        stride: overlap of two windows of one context, in tokens.
        batch_size: windows in one batch.
        limit: use only the first so many questions.
        windows: `gold` takes one window for each question, the first that holds its answer (its first window if
            none does); `all` takes them all.
        max_question_length: longer questions are cut to so many tokens.

    Returns:
        Batches with `input_ids`, `attention_mask`, `token_type_ids` (where there are any), `token_classes` int8,
        `offset_mapping` (characters of the context, in context tokens; of the question, in question tokens),
        `example`, `start_positions`, `end_positions` (0 where the window holds no answer), `context_start`,
        `context_end`.

    Raises:
        DataError: no question at all.
        ConfigError: `limit` or `batch_size` below 1.
    """
    chosen = _first(examples, limit, batch_size)
    found = make_windows(
        chosen,
        tokenizer,
        max_length=max_length,
        stride=stride,
        max_question_length=max_question_length,
        on_long_question="truncate",
        for_training=False,
    ).windows
    kept = found if windows == "all" else _one_each(found)
    return [_question_batch(group, chosen, tokenizer) for group in _grouped(kept, batch_size)]


def text_batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int = 256, batch_size: int = 16
) -> list[Batch]:
    """Plain texts, one row each and cut to `max_length` tokens, in batches of similar length; see `question_batches`.

    Raises:
        DataError: no text at all.
        ConfigError: `batch_size` below 1.
    """
    chosen = _first(texts, None, batch_size)
    require_fast_tokenizer(tokenizer)
    lengths = [len(ids) for ids in tokenizer(list(chosen), truncation=True, max_length=max_length)["input_ids"]]
    order = sorted(range(len(chosen)), key=lambda index: -lengths[index])
    batches = []
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        coded = tokenizer(
            [chosen[row] for row in rows],
            truncation=True,
            max_length=max_length,
            padding=True,
            padding_side="right",
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        names = ("input_ids", "attention_mask", "token_type_ids", "offset_mapping")
        batch: Batch = {name: coded[name] for name in names if name in coded}
        batch["token_classes"] = token_classes(batch["input_ids"], batch["attention_mask"], tokenizer)
        batch["example"] = torch.tensor(rows)
        batches.append(batch)
    return batches


def _first(given: Sequence, limit: int | None, batch_size: int) -> Sequence:
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1.")
    if not len(given):
        raise DataError("There is no text to look at. Give at least one question or paragraph.")
    return given[:limit]


def _one_each(windows: Sequence[Window]) -> list[Window]:
    kept: dict[int, Window] = {}
    for window in windows:
        best = kept.get(window.example)
        if best is None or (_holds_answer(window) and not _holds_answer(best)):
            kept[window.example] = window
    return list(kept.values())


def _holds_answer(window: Window) -> bool:
    return window.start_position != window.null_position


def _grouped(windows: Sequence[Window], batch_size: int) -> list[list[Window]]:
    order = sorted(windows, key=lambda window: -len(window.input_ids))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _question_batch(windows: list[Window], examples: Sequence[QAExample], tokenizer: PreTrainedTokenizerBase) -> Batch:
    batch = collate(windows, int(tokenizer.pad_token_id or 0))
    batch["example"] = torch.tensor([window.example for window in windows])
    return batch | roles(examples, tokenizer, windows)
