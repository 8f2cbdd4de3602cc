"""Every setting of regtune: frozen, keyword-only dataclasses that refuse impossible values when they are made.

The command line's flags, the YAML recipes and the resolved config in a run directory are all these classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regtune.errors import ConfigError

Placement = Literal["prefix", "after_cls", "suffix"]
Position = Literal["learned", "none"]
Init = Literal["normal", "embedding", "sep", "mask", "zeros"]
Depth = Literal["input", "every_layer"]


def require(condition: bool, message: str) -> None:
    """Refuses a setting that cannot be."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """What registers to add to a model. The defaults are the paper's (RegBERT, 2024)."""

    num_registers: int = 8
    """Number of registers N; 0 leaves the model untouched."""
    placement: Placement = "prefix"
    """Where they join the text: before it (the paper), after its first token, or behind its last token."""
    position: Position = "learned"
    """A learned position vector for each register (the paper), or none."""
    init: Init = "normal"
    """Start values: normal(0, init_std) (the paper), the word embeddings' scale, [SEP] or [MASK] copied, or zeros."""
    init_std: float = 0.02
    """Standard deviation of the truncated normal used for `normal` and for learned positions."""
    layer_norm: bool = False
    """Pass registers through the embeddings' LayerNorm and dropout as the text does (the paper: no)."""
    depth: Depth = "input"
    """One set that flows through all layers, or fresh registers at the input of every layer."""
    trainable: bool = True
    """False freezes the registers (a control)."""

    def __post_init__(self) -> None:
        for name, known in (
            ("placement", ("prefix", "after_cls", "suffix")),
            ("position", ("learned", "none")),
            ("init", ("normal", "embedding", "sep", "mask", "zeros")),
            ("depth", ("input", "every_layer")),
        ):
            value = getattr(self, name)
            require(value in known, f"{name}={value!r} is not one of {', '.join(known)}.")
        require(
            isinstance(self.num_registers, int) and not isinstance(self.num_registers, bool),
            f"num_registers={self.num_registers!r} must be a whole number.",
        )
        require(self.num_registers >= 0, f"num_registers={self.num_registers} must be 0 or more.")
        require(
            math.isfinite(self.init_std) and self.init_std > 0,
            f"init_std={self.init_std} must be a positive number.",
        )
        identical = self.init in ("zeros", "sep", "mask") and self.position == "none" and self.num_registers > 1
        require(
            not identical,
            f"init={self.init!r} with position='none' makes num_registers={self.num_registers} identical registers: "
            "attention cannot tell them apart and they would stay identical for ever. "
            "Use position='learned' or init='normal' or 'embedding'.",
        )
        dead = self.init == "zeros" and self.position == "none" and not self.trainable and self.num_registers > 0
        require(not dead, "init='zeros' with position='none' and trainable=False makes registers that are always zero.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which questions, and how their contexts are cut into windows."""

    train: tuple[str, ...] = ("embedded:train",)
    """Training sets: SQuAD-format files (.json, .json.gz) or names like `embedded:train`, `tydiqa:train:english`."""
    eval: tuple[str, ...] = ("embedded:dev",)
    """Evaluation sets. Nothing is ever chosen on them."""
    max_length: int = 384
    """Longest window in text tokens, special tokens included, registers not."""
    stride: int = 128
    """Overlap between two windows of one context, in tokens."""
    max_question_length: int = 64
    """Longer questions are cut and counted (or refused, with `on_long_question=refuse`)."""
    on_long_question: Literal["refuse", "truncate"] = "truncate"
    """What to do with a question longer than `max_question_length` tokens: stop, or cut it and count it."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record; leave it out, count it and list it; or also move near offsets to their answer."""
    max_train_examples: int | None = None
    """Use only the first so many training questions (for a quick look)."""
    max_eval_examples: int | None = None
    """Use only the first so many questions of each evaluation set."""

    def __post_init__(self) -> None:
        require(len(self.eval) > 0, "data.eval is empty; name at least one evaluation set.")
        require(self.max_length >= 16, f"max_length={self.max_length} must be at least 16 tokens.")
        require(self.stride >= 0, f"stride={self.stride} must be 0 or more.")
        require(
            self.stride < self.max_length,
            f"stride={self.stride} must be smaller than max_length={self.max_length}.",
        )
        require(
            1 <= self.max_question_length < self.max_length,
            f"max_question_length={self.max_question_length} must lie between 1 and max_length={self.max_length}.",
        )
        for name in ("max_train_examples", "max_eval_examples"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be positive or unset.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is trained (`transformers.Trainer` underneath)."""

    epochs: float = 3.0
    """Passes over the training windows."""
    batch_size: int = 16
    """Windows in a batch on each device."""
    gradient_accumulation_steps: int = 1
    """Batches that make one optimiser step."""
    learning_rate: float = 1e-4
    """Peak learning rate of the backbone and the head."""
    register_learning_rate: float = 1e-3
    """Peak learning rate of the registers; at the backbone's they hardly move."""
    weight_decay: float = 0.01
    """AdamW weight decay; never applied to registers, biases and LayerNorm weights."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of all steps in which the learning rate rises from 0 to its peak."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 autocast where the device has it (`auto`), or a fixed choice."""
    batching: Literal["length_grouped", "padded"] = "length_grouped"
    """Batches of similar length padded to their longest, or every window padded to `max_length`."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation; `auto` takes the fastest that the model has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    seed: int = 0
    """Seed of the model's new weights (head, registers) and of dropout."""
    data_seed: int = 0
    """Seed of the order of the training windows."""
    checkpoint: Literal["last", "best"] = "last"
    """Keep the last weights, or those that score best on examples held out of the training data."""
    held_out: float = 0.1
    """Share of the training examples that `checkpoint=best` sets aside; whole passages."""
    evals_per_epoch: int = 1
    """Evaluations (and checkpoints) in an epoch: of held-out examples, or for the curve alone of the first set."""
    save_total_limit: int = 2
    """Checkpoints kept on disk (the best and the newest at least)."""
    push_to_hub: str | None = None
    """Repository name to upload the finished model to, for example `me/my-model`."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "max_grad_norm", "evals_per_epoch"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name}={value} must be positive.")
        for name in ("learning_rate", "register_learning_rate", "weight_decay"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), f"{name}={value} must be 0 or more.")
        require(
            0 <= self.warmup_ratio < 1,
            f"warmup_ratio={self.warmup_ratio} is a share of all training steps and must lie in [0, 1).",
        )
        require(0 < self.held_out < 1, f"held_out={self.held_out} is a share of the training examples, in (0, 1).")
        require(self.save_total_limit >= 1, f"save_total_limit={self.save_total_limit} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How start and end logits become answers."""

    top_k: int = 20
    """Answers kept for each question."""
    max_answer_tokens: int = 60
    """Longest answer in tokens."""
    null_answers: bool = False
    """Let the model say that there is no answer (SQuAD v2.0)."""
    null_threshold: float = 0.0
    """No answer is given when null score - best score exceeds this."""
    batch_size: int = 32
    """Windows in a batch at inference."""

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_tokens", "batch_size"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a model, its registers, data, training and answers. A recipe is the difference from these defaults."""

    model: str = "minilm"
    """A hub name, a local folder, or `minilm` (comes with the `demo` extra, no hub needed)."""
    trust_remote_code: str | None = None
    """The model's name once more, to allow code from its repository to run; otherwise none is run."""
    output_dir: Path = Path("runs/latest")
    """The run directory; a run that was interrupted there continues."""
    task: str = "qa"
    """What is learnt: `qa`, `classify`, or a task of a plugin."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The task's own settings, by name."""
    registers: RegisterConfig = field(default_factory=RegisterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Methods beside registers, by name, each with its settings, in the order in which they are attached."""
    answers: AnswerConfig = field(default_factory=AnswerConfig)

    def __post_init__(self) -> None:
        require(
            self.trust_remote_code in (None, self.model),
            f"trust_remote_code={self.trust_remote_code!r} must repeat the model's name ({self.model!r}) or be unset.",
        )
        require("registers" not in self.methods, "Registers have settings of their own: `registers`, not `methods`.")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON types (paths as POSIX text, tuples as lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=lambda p: Path(p).as_posix()))
    return plain


def config_hash(config: Any, ignore: tuple[str, ...] = ("output_dir",)) -> str:
    """The first 12 hex digits of the SHA-256 of the resolved config; `ignore` names top-level fields left out."""
    content = {key: value for key, value in to_dict(config).items() if key not in ignore}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
