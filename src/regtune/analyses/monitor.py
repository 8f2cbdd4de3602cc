"""`RegisterMonitor`: watches registers, sinks and artefacts while any `transformers.Trainer` trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from regtune.analyses.artefacts.artefacts import artefact_statistics
from regtune.analyses.attention.attention import attention_statistics
from regtune.analyses.attention.measures import CLASSES
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.interfaces import Batch
from regtune.registers.surgery import active_sets, max_text_length
from regtune.rows.texts import text_rows

_WATCHED = ("cls", "sep", "register")


class RegisterMonitor(TrainerCallback):
    """Logs what registers, attention sinks and hidden norms do on a few fixed texts, every `logging_steps`.

    What is logged goes through `Trainer.log`, so every reporter gets it (TensorBoard, W&B, ...):

    - `registers/norm_0` ...: the size of each register as it joins the text; `registers/decoder_norm_0` ... of a
      decoder's own beside an encoder;
    - `attention/register`, `attention/cls`, `attention/sep`: mean share of a text token's attention, over layers, heads
      and texts; `attention/sink_rate`: share of heads with a token that receives more than 0.3 of all attention;
    - `states/norm_max_over_median`: the largest norm of a content token over their median behind a block, mean over
      texts, of the block where it is largest.

    A model without registers logs the rest; what can't be read of a model (its attention, say) is left out, with one
    warning. The numbers are those of `attention_statistics` and `artefact_statistics` on the same texts, in the model's
    own precision. Each time costs three forward passes of the texts and the statistics, without gradients and in
    evaluation mode: 8 texts of 128 tokens take about as long as a training step on 16 such texts (MiniLM on a CPU).
    Training itself stays the same, bit for bit.

    Example:
        >>> trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)  # doctest: +SKIP
        >>> trainer.add_callback(regtune.RegisterMonitor(trainer, ["A few texts.", "Always these."]))  # doctest: +SKIP
    """

    def __init__(self, trainer: Any, texts: Sequence[str], *, max_length: int = 128) -> None:
        """Reads the texts with the trainer's tokenizer.

        Args:
            trainer: whose `log` is called, and whose model is watched.
            texts: a few; the same ones are read every time.
            max_length: longest text in tokens.

        Raises:
            ConfigError: the trainer has no tokenizer.
            DataError: no text.
        """
        reader = getattr(trainer, "processing_class", None)
        if reader is None:
            raise ConfigError(
                "The trainer has no tokenizer to read the texts with: Trainer(processing_class=tokenizer)."
            )
        self._trainer = trainer
        limit = min(max_length, max_text_length(trainer.model) or max_length)
        rows = text_rows(texts, reader, max_length=limit)
        self.batch: Batch = rows.batch(range(len(rows))) | rows.roles(rows.rows)
        self._said: set[str] = set()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measures where the trainer is about to log."""
        if control.should_log:
            self._trainer.log(self.measure(kwargs["model"]))
            control.should_log = True  # the trainer's own line is still to come

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The numbers of a model as it is now, by the names that they are logged by."""
        found: dict[str, float] = {}
        with _evaluating(model):
            for _, registers in active_sets(model):
                norms, kind = registers(1)[0].detach().norm(dim=-1).tolist(), "decoder_" * registers.of_decoder
                found |= {f"registers/{kind}norm_{index}": norm for index, norm in enumerate(norms)}
            for measure in (self._attention, self._states):
                try:
                    found |= measure(model)
                except UnsupportedModelError as error:
                    if str(error) not in self._said:
                        self._said.add(str(error))
                        warnings.warn(f"RegisterMonitor leaves something out: {error}", stacklevel=2)
        return found

    def _attention(self, model: nn.Module) -> dict[str, float]:
        found = attention_statistics(model, [self.batch])
        mass = found.means["mass"].mean((0, 1))
        shares = {
            name: float(mass[CLASSES.index(name)]) for name in _WATCHED if name != "register" or found.num_registers
        }
        return {f"attention/{name}": value for name, value in shares.items()} | {
            "attention/sink_rate": float(found.means["sink_rate"].mean())
        }

    def _states(self, model: nn.Module) -> dict[str, float]:
        by_block = artefact_statistics(model, [self.batch]).by_text["block"]["norm_max_over_median"].mean(0)
        return {"states/norm_max_over_median": float(by_block.max())}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for all of a model; afterwards each of its parts is in the mode that it was in."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
