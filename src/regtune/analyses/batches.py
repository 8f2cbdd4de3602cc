"""Analysis batches, and how a model runs on one.

A batch holds what the model takes (`input_ids`, `attention_mask`, ... `[rows, seq]`, padding on the right; of images
`pixel_values`), `token_classes` `[rows, seq]` (`regtune.rows.token_classes`) and `example` `[rows]`; `Session.batches`
makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.errors import ConfigError
from regtune.interfaces import Batch
from regtune.models.precision import device_of
from regtune.registers.surgery import accepted_arguments, backbone_of
from regtune.rows.token_classes import TokenClass, is_content

_FORWARDED = ("input_ids", "pixel_values", "attention_mask", "token_type_ids")


def check(batch: Batch) -> None:
    """Refuses a batch that lacks something, or whose parts don't fit together."""
    reads = "attention_mask" if "pixel_values" in batch else "input_ids"
    for name in (reads, "attention_mask", "token_classes", "example"):
        if name not in batch:
            raise ConfigError(f"An analysis batch needs {name}; this one has {', '.join(batch) or 'nothing'}.")
        if name != "example" and batch[name].shape != batch[reads].shape:
            raise ConfigError(f"{name} is {list(batch[name].shape)}, {reads} {list(batch[reads].shape)}.")
    if not torch.equal(batch["token_classes"] != TokenClass.PADDING, batch["attention_mask"].bool()):
        raise ConfigError("token_classes and attention_mask disagree about what is padding; make both from one batch.")
    if batch["token_classes"].max() >= TokenClass.REGISTER:
        raise ConfigError("token_classes hold registers, which are no text; regtune puts them there itself.")


def with_words(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The rows that hold a word, batch by batch; a batch without any is left out. Raises as `check`."""
    for batch in batches:
        check(batch)
        kept = is_content(batch["token_classes"]).any(1)
        if kept.any():
            yield {name: value[kept] for name, value in batch.items()}


def run(model: nn.Module, batch: Batch) -> Any:
    """The model's output for what it takes of a batch, on its own device, without a cache."""
    accepted = accepted_arguments(model)
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
