"""MuToR (Gerontopoulos et al. 2025, arXiv 2505.10518): registers among the answer's tokens that predict further ahead.

In a training step a register, one learned vector for all, stands before each token that is learnt. With an offset o,
drawn anew for each batch from 0 ... d_max − 1, the register before token j predicts token j + o, from the position of
the token before that one. It sees the tokens before j and itself, no other register; no token sees a register. So the
tokens' own logits are the plain model's, and with a mask the registers can stand behind the text: nothing moves up. In
inference there are none, and nothing of them is saved.

Unlike the authors' code, prompts are read causally, as in inference, and batches and padding are right.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regtune.config import Count, TrainConfig
from regtune.errors import InputError, UnsupportedModelError
from regtune.families import find_family
from regtune.interfaces import Attached, Group, Method, Rows
from regtune.registers.surgery import backbone_of
from regtune.rows.texts import NOT_SCORED
from regtune.typed import Checked, Range

if TYPE_CHECKING:
    from regtune.session import Session

MODULE_NAME = "mutor"
"""Name of the module with the learned vector on a model in training."""
_SOFT = ("prompt_tuning", "p_tuning", "mpt", "prefix")


@dataclass(frozen=True, kw_only=True)
class MutorSettings(Checked, section="mutor"):
    """The defaults are those that the authors advise."""

    d_max: Count = 4
    """Offsets are drawn from 0 ... d_max − 1; 1 leaves the next token alone."""
    weight: Annotated[float, Range(0, 1, above=True, below=True)] = 0.3
    """Share of the registers' loss in the whole; the rest is the next tokens'."""


class Mutor(Method):
    """Registers that predict, in training alone."""

    name = "mutor"
    title = "registers among the answer's tokens predict tokens further ahead, in training alone (Gerontopoulos 2025)"
    costs = "one vector; up to twice the tokens in a training step, nothing afterwards"
    use = "with causal language models, beside full fine-tuning or LoRA"
    settings = MutorSettings
    dropped = True

    def attach(self, session: Session, settings: MutorSettings) -> AttachedMutor:
        """Puts the vector onto the model.

        Raises:
            UnsupportedModelError: no causal language model, one whose layers see a window that is shorter than its
                texts, or prompts of peft in the same run.
        """
        reason = _refusal(session)
        if reason:
            raise UnsupportedModelError(f"MuToR can't be put onto {session.name}: {reason}.")
        model = session.model
        return AttachedMutor(model.get_base_model() if hasattr(model, "get_base_model") else model, settings)

    def initialise(self, session: Session, settings: MutorSettings, rows: Rows[Any]) -> None:
        """Lets the vector learn, whatever adapters froze when they came."""
        for parameter in _vectors(session.model):
            parameter.requires_grad_(True)

    def groups(self, model: nn.Module, settings: MutorSettings, training: TrainConfig) -> list[Group]:
        """The vector, at the registers' rate."""
        return [Group(name=self.name, parameters=_vectors(model), learning_rate=training.register_learning_rate)]

    def label(self, settings: MutorSettings) -> str:
        """The largest offset and the weight."""
        return f"MuToR, d_max = {settings.d_max}, a = {settings.weight:g}"


def _vectors(model: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(vector for name, vector in model.named_parameters() if name.endswith(f"{MODULE_NAME}.vector"))


def _refusal(session: Session) -> str:
    """Why a model can't have it; empty if it can."""
    if session.reads.head != "AutoModelForCausalLM":
        return f"the task {session.reads.name} learns no next tokens; tasks that do are lm and instruct"
    config = backbone_of(session.model).config
    family = find_family(config)
    if family is None or not family.causal:
        return f"{config.model_type} is no decoder that is known here"
    window, longest = getattr(config, "sliding_window", None), session.config.data.max_length
    if window is not None and window < longest:
        return f"its layers see {window} tokens, fewer than data.max_length={longest}; set --data.max-length {window}"
    soft = [name for name in session.config.methods if name in _SOFT]
    return f"{soft[0]} in the same run makes masks that its registers don't fit; take one of the two" if soft else ""


class _Vector(nn.Module):
    """What every register of MuToR starts as."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn_like(words[0]) * words.detach().float().std().to(words.dtype))


class AttachedMutor(Attached):
    """The vector on a model, and what the model's forward is in training steps."""

    def __init__(self, model: Any, settings: MutorSettings) -> None:
        self.model = model
        setattr(model, MODULE_NAME, _Vector(model.get_input_embeddings().weight))
        self.forward = _Forward(model, settings)
        model.forward = self.forward

    def detach(self) -> None:
        """The plain model."""
        delattr(self.model, MODULE_NAME)
        if self.model.__dict__.get("forward") is self.forward:
            del self.model.forward
            if self.forward.before is not None:
                self.model.forward = self.forward.before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, training steps are the plain model's too."""
        self.forward.enabled = False
        try:
            yield
        finally:
            self.forward.enabled = True


class _Forward:
    """What `model.forward` is: the model's own, but with registers in training steps that have labels."""

    def __init__(self, model: Any, settings: MutorSettings) -> None:
        self.model, self.settings, self.enabled = model, settings, True
        self.before = model.__dict__.get("forward")
        """What another library had put there, if anything."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._own)

    @property
    def _own(self) -> Any:
        return self.before or functools.partial(type(self.model).forward, self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        named = {**dict(zip(self.__signature__.parameters, args, strict=False)), **kwargs}
        if not (self.enabled and self.model.training) or named.get("labels") is None:
            return self._own(*args, **kwargs)
        offset = int(torch.randint(self.settings.d_max, ()))
        return self._train(named, offset)

    def _train(self, named: dict[str, Any], offset: int) -> Any:
        labels, items = named.pop("labels"), named.pop("num_items_in_batch", None)
        mask, positions = named.pop("attention_mask", None), named.pop("position_ids", None)
        ids, words = named.pop("input_ids", None), named.pop("inputs_embeds", None)
        words = self.model.get_input_embeddings()(ids) if words is None else words
        batch, seq = words.shape[:2]
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise InputError("attention_mask must be [batch, seq] with MuToR, which makes the full one. Give that.")
        text = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
        positions = torch.arange(seq, device=words.device)[None] if positions is None else positions
        positions = positions.expand(batch, seq)
        before, there = register_places(labels, offset)
        vector = getattr(self.model, MODULE_NAME).vector
        targets = (before + offset).clamp(max=seq - 1)
        named |= {
            "inputs_embeds": torch.cat([words, vector.to(words.dtype).expand(*before.shape, -1)], dim=1),
            "attention_mask": self._for_attention(what_is_seen(text, before), words.dtype),
            "position_ids": torch.cat([positions, positions.gather(1, (targets - 1).clamp(min=0))], dim=1),
            "use_cache": False,
        }
        output = self._own(**named)
        logits = output.logits
        own = torch.where(there, labels.gather(1, targets), NOT_SCORED)
        count = (labels[:, 1:] != NOT_SCORED).sum()
        next_tokens = _mean_cost(logits[:, : seq - 1], labels[:, 1:])
        ahead = _mean_cost(logits[:, seq:], own) + 0 * vector.sum()  # it has a gradient also where there is none
        loss = (1 - self.settings.weight) * next_tokens + self.settings.weight * ahead
        return type(output)(loss=loss if items is None else loss * count / items, logits=logits[:, :seq])

    def _for_attention(self, seen: Bool[Tensor, "batch total total"], dtype: torch.dtype) -> Tensor:
        kernel = self.model.config._attn_implementation
        if kernel not in ("sdpa", "eager"):
            raise InputError(
                f"MuToR needs attn_implementation 'sdpa' or 'eager', not {kernel!r}, which takes no mask of its own. "
                "Call model.set_attn_implementation('sdpa')."
            )
        mask = seen[:, None]
        if kernel == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def register_places(
    labels: Int[Tensor, "batch seq"], offset: int
) -> tuple[Int[Tensor, "batch registers"], Bool[Tensor, "batch registers"]]:
    """Before which tokens registers stand: those that are learnt and whose `offset`-th follower is learnt too.

    Args:
        labels: −100 where nothing is learnt.
        offset: how many tokens behind its own one a register's target is.

    Returns:
        The tokens' places, row by row in order and padded at the end to the row with most, and which are no padding.
    """
    learnt = labels != NOT_SCORED
    learnt = torch.cat([torch.zeros_like(learnt[:, :1]), learnt[:, 1:]], dim=1)  # nothing stands before the first token
    gone = torch.zeros_like(learnt[:, :offset])
    valid = learnt & torch.cat([learnt[:, offset:], gone], dim=1)
    most = int(valid.sum(1).max())
    order = torch.argsort((~valid).int(), dim=1, stable=True)[:, :most]
    return order, valid.gather(1, order)


def what_is_seen(
    text: Bool[Tensor, "batch seq"], before: Int[Tensor, "batch registers"]
) -> Bool[Tensor, "batch total total"]:
    """Which places each of `[text, registers]` sees: text what is before it, registers that before their token.

    Every place sees itself, padding too, so that no row of a softmax is empty.

    Args:
        text: where there is text, not padding.
        before: the token before which each register stands.
    """
    seq, registers = text.shape[1], before.shape[1]
    places = torch.arange(seq, device=text.device)
    own = torch.cat([(places + 1).expand(len(text), seq), before], dim=1)  # the first place that isn't seen
    seen = (places < own[:, :, None]) & text[:, None]
    seen = torch.cat([seen, seen.new_zeros(len(text), seq + registers, registers)], dim=2)
    return seen | torch.eye(seq + registers, dtype=torch.bool, device=text.device)


def _mean_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean −log p of the labels, in float32; 0 without any."""
    scored = labels != NOT_SCORED
    costs = cross_entropy(logits[scored].float(), labels[scored], reduction="sum")
    return costs / scored.sum().clamp(min=1)
