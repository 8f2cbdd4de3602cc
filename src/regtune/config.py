"""Every setting of regtune: frozen, keyword-only dataclasses that refuse impossible values when they are made.

The command line's flags, the YAML recipes and the resolved config in a run directory are all these classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from regtune.typed import Checked, Range

Placement = Literal["prefix", "after_cls", "suffix"]
Position = Literal["learned", "none"]
Init = Literal["normal", "embedding", "sep", "mask", "zeros"]
Depth = Literal["input", "every_layer"]
Rotary = Literal["before", "shared"]
Windows = Literal["stay", "leave"]

Seed = Annotated[int, Range(0, 2**32 - 1)]
Registers = Annotated[int, Range(0, 65_536)]
Epochs = Annotated[float, Range(0, 10_000, above=True)]
Count = Annotated[int, Range(1, 10**6)]
Examples = Annotated[int, Range(1, 10**9)]
Tokens = Annotated[int, Range(1, 2**20)]
Rate = Annotated[float, Range(0, 100)]
Positive = Annotated[float, Range(0, 10**6, above=True)]


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(Checked, section="registers"):
    """What registers to add to a model. The defaults are the paper's (RegBERT, 2024)."""

    num_registers: Registers = 8
    """Number of registers N; 0 leaves the model untouched. Of a model with encoder and decoder: the encoder's."""
    decoder_registers: Registers = 0
    """Registers of the decoder's own, beside an encoder with or without some: before what it writes, seen by all."""
    placement: Placement = "prefix"
    """Where they join the text: before it (the paper), after its first token, or behind its last token."""
    position: Position = "learned"
    """A learned position vector for each register (the paper), or none."""
    init: Init = "normal"
    """Start values: normal(0, init_std) (the paper), the word embeddings' scale, [SEP] or [MASK] copied, or zeros."""
    init_std: Positive = 0.02
    """Standard deviation of the truncated normal used for `normal` and for learned positions."""
    layer_norm: bool = False
    """Pass registers through the embeddings' LayerNorm and dropout as the text does (the paper: no)."""
    depth: Depth = "input"
    """One set that flows through all layers, or fresh registers at the input of every layer."""
    rotary: Rotary = "before"
    """Rotary positions in decoders: the N places before the text's first one, or that one for all of them."""
    windows: Windows = "stay"
    """Decoder layers that see the last W tokens: registers stay visible to all, or leave as earlier tokens do."""
    trainable: bool = True
    """False freezes the registers (a control)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        alike = self.init in ("zeros", "sep", "mask") and self.position == "none"
        self.require(
            not alike or max(self.num_registers, self.decoder_registers) < 2,
            "num_registers" if self.num_registers > 1 else "decoder_registers",
            f"with init={self.init!r} and position='none' makes identical registers: attention cannot tell them apart "
            "and they would stay identical for ever. Use position='learned' or init='normal' or 'embedding'.",
        )
        some = self.num_registers + self.decoder_registers > 0
        dead = self.init == "zeros" and self.position == "none" and not self.trainable and some
        self.require(not dead, "init", "with position='none' and trainable=False makes registers that are always zero.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked, section="data"):
    """Which data sets, and how their texts are cut into rows; what a task doesn't have, it doesn't read."""

    train: tuple[str, ...] = ("embedded:train",)
    """Training sets: files that the task reads, or names like `embedded:train`, `tydiqa:train:english`. As with all
    sets, `noise:KIND=STRENGTH:` before one perturbs it."""
    eval: tuple[str, ...] = ("embedded:dev",)
    """Evaluation sets. Nothing is ever chosen on them."""
    max_length: Annotated[int, Range(16, 2**20)] = 384
    """Longest row in text tokens, special tokens included, registers not."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record; leave it out, count it and list it; or also mend what the task can mend."""
    max_train_examples: Examples | None = None
    """Use only the first so many training examples (for a quick look)."""
    max_eval_examples: Examples | None = None
    """Use only the first so many examples of each evaluation set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.eval) > 0, "eval", "is empty; name at least one evaluation set.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked, section="training"):
    """How the model is trained (`transformers.Trainer` underneath)."""

    epochs: Epochs = 3.0
    """Passes over the training rows."""
    batch_size: Count = 16
    """Rows in a batch on each device."""
    gradient_accumulation_steps: Count = 1
    """Batches that make one optimiser step."""
    learning_rate: Rate = 1e-4
    """Peak learning rate of the backbone and the head."""
    register_learning_rate: Rate = 1e-3
    """Peak learning rate of the registers; at the backbone's they hardly move."""
    weight_decay: Rate = 0.01
    """AdamW weight decay; never applied to registers, biases and LayerNorm weights."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up."""
    warmup_ratio: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Share of all steps in which the learning rate rises from 0 to its peak."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 autocast where the device has it (`auto`), or a fixed choice."""
    batching: Literal["length_grouped", "padded"] = "length_grouped"
    """Batches of similar length padded to their longest, or every row padded to `max_length`."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation; `auto` takes the fastest that the model has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    seed: Seed = 0
    """Seed of the model's new weights (head, registers) and of dropout."""
    data_seed: Seed = 0
    """Seed of the order of the training rows."""
    checkpoint: Literal["last", "best"] = "last"
    """Keep the last weights, or those that score best on examples held out of the training data."""
    held_out: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1
    """Share of the training examples that `checkpoint=best` sets aside; whole passages."""
    evals_per_epoch: Count = 1
    """Evaluations (and checkpoints) in an epoch: of held-out examples, or for the curve alone of the first set."""
    save_total_limit: Count = 2
    """Checkpoints kept on disk (the best and the newest at least)."""
    push_to_hub: str | None = None
    """Repository name to upload the finished model to, for example `me/my-model`."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """One run: a model, its registers, task, data and training. A recipe is the difference from these defaults."""

    model: str = "minilm"
    """A hub name, a local folder, or `minilm` (comes with the `demo` extra, no hub needed)."""
    trust_remote_code: str | None = None
    """The model's name once more, to allow code from its repository to run; otherwise none is run."""
    output_dir: Path = Path("runs/latest")
    """The run directory; a run that was interrupted there continues."""
    task: str = "qa"
    """What is learnt: a task of `regtune tasks`, or of a plugin."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The task's own settings, by name; --task NAME --help lists those of another."""
    registers: RegisterConfig = field(default_factory=RegisterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Methods beside registers, by name, each with its settings, in the order in which they are attached."""

    def __post_init__(self) -> None:
        super().__post_init__()
        repeated = self.trust_remote_code in (None, self.model)
        self.require(repeated, "trust_remote_code", f"must repeat the model's name ({self.model!r}) or be unset.")
        mine = "registers" not in self.methods
        self.require(mine, "methods", "names registers, which have settings of their own: `registers`.")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON types (paths as POSIX text, tuples as lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=lambda p: Path(p).as_posix()))
    return plain


_NEWER = {"decoder_registers": 0}
"""Settings of registers that joined after records were written, with their defaults."""


def config_hash(config: Any) -> str:
    """The first 12 hex digits of the SHA-256 of the resolved config, whatever its `output_dir`.

    Settings that are newer than written records count only where they aren't their default, so that hashes stay.
    """
    content = {key: value for key, value in to_dict(config).items() if key != "output_dir"}
    registers = content.get("registers")
    if isinstance(registers, dict):
        content["registers"] = {key: value for key, value in registers.items() if (key, value) not in _NEWER.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
