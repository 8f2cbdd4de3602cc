"""What runs of one process share instead of making it again: tokenizers, tokenised data, the base model's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regtune.config import RunConfig
from regtune.models.loading import (
    load_question_answering_model,
    load_tokenizer,
    quiet_transformers,
    resolve_model,
)
from regtune.registers.surgery import find_registers, register_positions
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.data.squad import SquadData
from regtune.tasks.qa.windows import WindowSet, make_windows


class SharedInputs:
    """Keeps what it has made once. A run that takes its inputs from here ends with the same bits as one that doesn't.

    Memory: one copy of the base weights (MiniLM: 90 MB) and all windows that were asked for.
    """

    def __init__(self) -> None:
        self._tokenizers: dict[str, Any] = {}
        self._questions: dict[tuple[Any, ...], tuple[SquadData, WindowSet]] = {}
        self._bases: dict[tuple[str, str], _Base | None] = {}

    def tokenizer(self, config: RunConfig) -> Any:
        """The model's tokenizer."""
        if config.model not in self._tokenizers:
            trusted = config.trust_remote_code == config.model
            self._tokenizers[config.model] = load_tokenizer(
                config.model, trust_remote_code=trusted, needs=("pad", "sep")
            )
        return self._tokenizers[config.model]

    def model(self, config: RunConfig) -> Any:
        """A fresh model with the base weights and a head drawn from torch's random state; the caller may change it."""
        trusted = config.trust_remote_code == config.model
        key = (config.model, config.training.attention)
        base = self._bases.get(key)
        if base is not None:
            return base.fresh()
        model = load_question_answering_model(
            config.model, attention=config.training.attention, trust_remote_code=trusted
        )
        if key not in self._bases:
            # A model that is read a second time is worth keeping; one that runs code of its own, or that comes with
            # registers, is read again each time.
            self._bases[key] = None
        elif not trusted and find_registers(model) is None:
            self._bases[key] = _Base(model, config)
        return model

    def questions(
        self, names: Sequence[str], config: RunConfig, model: nn.Module, *, for_training: bool
    ) -> tuple[SquadData, WindowSet]:
        """The questions of data sets and their windows, as the config cuts them. Raises as reading and cutting do."""
        data = config.data
        limit = data.max_train_examples if for_training else data.max_eval_examples
        reading = (tuple(names), data.on_bad_record, limit, for_training)
        cutting = (data.max_length, data.stride, data.max_question_length, data.on_long_question)
        key = (config.model, *reading, *cutting, register_positions(model))
        if key not in self._questions:
            found = load_questions(
                list(names), on_bad_record=data.on_bad_record, max_examples=limit, for_training=for_training
            )
            windows = tokenise(found, self.tokenizer(config), model, config, for_training=for_training)
            self._questions[key] = (found, windows)
        return self._questions[key]


class _Base:
    """A pretrained model's own weights in memory, without those that are drawn anew for every run."""

    def __init__(self, model: Any, config: RunConfig) -> None:
        self.kind = type(model)
        self.config = copy.deepcopy(model.config)
        self.options = {} if config.training.attention == "auto" else {"attn_implementation": config.training.attention}
        new = self._new_weights(resolve_model(config.model))
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in model.state_dict().items() if name not in new
        }

    def _new_weights(self, name: str) -> set[str]:
        """Names of weights that the checkpoint doesn't have."""
        from regtune.training.trainer import preserved_random_state

        with preserved_random_state(), quiet_transformers():
            _, report = self.kind.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **self.options
            )
        return set(report["missing_keys"])

    def fresh(self) -> Any:
        """A model of its own, as reading the checkpoint again would give it."""
        weights = {name: value.clone() for name, value in self.weights.items()}
        config = copy.deepcopy(self.config)
        with quiet_transformers():
            model = self.kind.from_pretrained(None, config=config, state_dict=weights, **self.options)
        model.name_or_path = model.config.name_or_path = self.config.name_or_path
        return model


_RECIPE = {name: f"data.{name}" for name in ("max_length", "stride", "max_question_length", "on_long_question")}
"""How the settings are called in a recipe and, behind two dashes, as flags of `regtune train`."""


def tokenise(
    data: SquadData,
    tokenizer: Any,
    model: nn.Module,
    config: RunConfig,
    *,
    for_training: bool,
    called: Mapping[str, str] = _RECIPE,
) -> WindowSet:
    """The windows of a data set as the config asks for; `called` as in `make_windows`."""
    return make_windows(
        data.examples,
        tokenizer,
        max_length=config.data.max_length,
        stride=config.data.stride,
        max_question_length=config.data.max_question_length,
        on_long_question=config.data.on_long_question,
        extra_positions=register_positions(model),
        for_training=for_training,
        called=called,
    )
