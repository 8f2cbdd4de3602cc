"""Learned sink logits: one number a head joins its softmax's denominator, and its share is dropped.

A head's weights are softmax([scores, s_h]) without the last column (gpt-oss, OpenAI 2025, arXiv 2508.10925), so that a
head can attend to nothing: a register with no value and one key score. s_h = -inf is the plain softmax.

The attending modules see their config through `_Seen`, which names another entry of transformers' table of attention
functions; the backbone sees its own, so that masks, caches and positions are what they were. There a key of zeros joins
the others whose score is s_h and whose value is zero, and the attention that is in use computes the rest.
"""

from __future__ import annotations

import math
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regtune.errors import ConfigError, InputError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import Family, first_readers, modules_at
from regtune.registers.passes import Again, Unclear, forget, in_backward, remember
from regtune.registers.surgery import backbone_of, forget_entry, is_adapter, write_entry

ModelT = TypeVar("ModelT", bound=nn.Module)

SINKS_KEY = "sink_logits"
"""Name of the module on each attending module, and of the entry in the model's `config.json`."""
_NAMED = "regtune_sinks_"
_SPARE = 8
"""Dimensions that heads get more of: fast kernels take widths that are multiples of 8."""
_OFF: ContextVar[frozenset[Any]] = ContextVar("sinks that are off", default=frozenset())
_LOCK = threading.Lock()
_contexts = 0
"""How many contexts of any thread are open. torch.compile can't read a context variable, but it guards this."""
_MEASURED: ContextVar[Mapping[Any, list[Tensor]]] = ContextVar("sinks that are measured", default=MappingProxyType({}))


_again = Again()
"""Whether a layer's sinks were on."""


class SinkLogits(nn.Module):
    """The sinks of one attending module.

    Attributes:
        logits: s_h, `[heads]`.
    """

    def __init__(self, heads: int, start: float, eager: Callable[..., Any]) -> None:
        """`eager` is the attending module's own attention in steps."""
        super().__init__()
        self.logits = nn.Parameter(torch.full((heads,), start))
        self.eager = eager
        self.key = uuid.uuid4().hex

    @property
    def on(self) -> bool:
        """False inside `disable_sink_logits`."""
        return (torch.compiler.is_compiling() and not _contexts) or self not in _OFF.get()

    def note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a module that may read a layer's input: notes whether they are on, for a recomputation."""
        if torch.compiler.is_compiling():
            return
        states = args[0] if args else kwargs["hidden_states"]
        if in_backward():
            _again.find(states, self.key, "Layers with sink logits")
        elif module.training or torch.is_grad_enabled():
            forget()
            remember(states, self.key, self.on)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{len(self.logits)} heads"


def add_sink_logits(model: ModelT, *, share: float = 0.01) -> ModelT:
    """Gives every head a sink, **in place**, and returns the model.

    Of a model with encoder and decoder the encoder gets them. They start where a sink would have the share beside one
    key of score 0; `balance_sink_logits` starts them from what scores are.

    Args:
        model: a Hugging Face model whose attention goes through transformers' table of attention functions.
        share: of attention, between 0 and 1.

    Raises:
        UnsupportedModelError: another family, or the model has sinks already.
        ConfigError: a share that is none.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share={share} must be between 0 and 1.")
    backbone = backbone_of(model)
    family = family_of(backbone.config)
    _refuse(model, backbone, family)
    start, weight = math.log(share / (1 - share)), next(backbone.parameters())
    for path, module in _attending(backbone, family):
        sinks = SinkLogits(int(module.config.num_attention_heads), start, _own_eager(module))
        module.add_module(SINKS_KEY, sinks.to(weight.device, weight.dtype).train(module.training))
        module.config = _Seen(module.config)
        for reader in first_readers(backbone.get_submodule(path), family):
            reader.register_forward_pre_hook(sinks.note, with_kwargs=True)
    write_entry(model, SINKS_KEY, True)
    return model


def remove_sink_logits(model: ModelT) -> ModelT:
    """Takes all sinks away, in place: the state dict has the original model's keys again."""
    module: Any
    for module in model.modules():
        for number, hook in list(module._forward_pre_hooks.items()):
            if isinstance(getattr(hook, "__self__", None), SinkLogits):
                del module._forward_pre_hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)
        if isinstance(module._modules.get(SINKS_KEY), SinkLogits):
            delattr(module, SINKS_KEY)
            module.config = module.config.plain
    forget_entry(model, SINKS_KEY)
    return model


@contextmanager
def disable_sink_logits(model: nn.Module) -> Iterator[None]:
    """Inside the context the model computes as if it had no sinks, bit for bit; in this thread (or task) alone."""
    with _set(_OFF, _OFF.get() | set(sinks_in(model))):
        yield


def sinks_in(model: nn.Module) -> list[SinkLogits]:
    """The sinks of all attending modules, in the order of depth."""
    return [module for module in model.modules() if isinstance(module, SinkLogits)]


@contextmanager
def balance_sink_logits(model: nn.Module, share: float) -> Iterator[None]:
    """Starts each sink from the scores of what the model reads inside the context, where sinks are off.

    s_h = ln(share) - ln(mean over queries of 1/Z), Z being the softmax's denominator: then the sink's mean share, of
    1 / (1 + Z e^-s), is at most `share`, and nearly that where it is small. Give texts without padding.
    """
    found: dict[Any, list[Tensor]] = {sinks: [] for sinks in sinks_in(model)}
    with _set(_MEASURED, found):
        yield
    with torch.no_grad():
        for sinks, parts in found.items():
            inverse = torch.cat(parts, dim=1).double()
            mean = torch.logsumexp(inverse, dim=1) - math.log(inverse.shape[1])
            sinks.logits.copy_(math.log(share) - mean)


def sink_of(module: nn.Module) -> Float[Tensor, " heads"] | None:
    """The sinks that act in an attending module now; None: it has none, or they are off."""
    sinks = module._modules.get(SINKS_KEY)
    if not isinstance(sinks, SinkLogits):
        return None
    on = _again.take()
    return sinks.logits if (sinks.on if on is Unclear.UNKNOWN else on) else None


def with_sink(
    scores: Float[Tensor, "batch heads query keys"], sink: Float[Tensor, " heads"]
) -> Float[Tensor, "batch heads query joined"]:
    """The scores and, as the last key, the sinks."""
    column = sink.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1)


# Which modules


def _attending(backbone: nn.Module, family: Family) -> list[tuple[str, Any]]:
    """Each attending module with the path of its layer."""
    inner = family.attention.count(".") + 1
    paths = {module: path for path, module in backbone.named_modules()}
    found = modules_at(backbone, *family.within_layers(family.attention))
    return [(".".join(paths[module].split(".")[:-inner]), module) for module in found]


def _refuse(model: nn.Module, backbone: Any, family: Family) -> None:
    if sinks_in(model):
        raise UnsupportedModelError(f"{type(model).__name__} has sink logits already; remove_sink_logits(model) first.")
    modules = [module for _, module in _attending(backbone, family)]
    if not modules or not all(hasattr(module, "config") and _goes_through_table(module) for module in modules):
        raise UnsupportedModelError(
            f"{family.name} computes its attention itself, not through transformers' table of attention functions, so "
            "sink logits have no way into its softmax. Take registers, which any model can have."
        )
    _Seen(backbone.config).require_known()
    if any(map(is_adapter, model.modules())):
        raise UnsupportedModelError(
            f"This {type(model).__name__} has an adapter of peft, which would be saved without these sinks. Add the "
            "sinks first and save that model; the adapter then goes onto it, and finds them there."
        )


def _goes_through_table(module: nn.Module) -> bool:
    return {"ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"} <= vars(sys.modules[type(module).__module__]).keys()


def _own_eager(module: nn.Module) -> Any:
    return vars(sys.modules[type(module).__module__])["eager_attention_forward"]


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Inside the context the variable has this value, in this thread (or task) alone."""
    _count(1)
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
        _count(-1)


def _count(change: int) -> None:
    global _contexts  # noqa: PLW0603
    with _LOCK:
        _contexts += change


class _Seen:
    """A config as modules with sinks see it: all of the model's own, but the name of the attention."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "plain":  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.plain, name)

    def require_known(self) -> str:
        """The attention that is in use.

        Raises:
            InputError: one that takes no further key.
        """
        name = str(self.plain._attn_implementation)
        if name not in ("eager", "sdpa"):
            raise InputError(
                f"Sink logits need attn_implementation 'sdpa' or 'eager', not {name!r}, whose kernels take no score "
                "of theirs. Call model.set_attn_implementation('sdpa')."
            )
        return name

    @property
    def _attn_implementation(self) -> str:
        return _NAMED + self.require_known()


# The attention


def _eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention in steps, with the sinks as a last key."""
    plain = module.sink_logits.eager
    sink = _acting(module, query, key, mask, options)
    if sink is None:
        found: tuple[Tensor, Tensor | None] = plain(module, query, key, value, mask, **options)
        return found
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    scores = query.new_zeros(1, 1, 1, 1) if mask is None else _to_add(mask, query.dtype)[..., : key.shape[2]]
    _widen_bias(options)
    key, value = pad(key, (0, 0, 0, 1)), pad(value, (0, 0, 0, 1))
    output, weights = plain(module, query, key, value, with_sink(scores.expand(shape), sink), **options)
    return output, weights[..., :-1]


def _sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """torch's fused attention, with the sinks as a last key.

    Its score q·k is made of `_SPARE` dimensions more, in which queries hold s_h and this key alone holds 1/scale: so
    the mask stays one for all heads, and asks for no gradient, which few kernels would give it.
    """
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    sink = _acting(module, query, key, mask, options)
    if sink is None:
        found: tuple[Tensor, None] = plain(module, query, key, value, mask, **options)
        return found
    width, depth, scale = query.shape[-1], value.shape[-1], _scale(query, options)
    mask = _causal(module, query, key, options) if mask is None else mask[..., : key.shape[2]]
    if mask is not None:
        last = mask[..., :1]
        mask = torch.cat([mask, torch.ones_like(last) if mask.dtype == torch.bool else torch.zeros_like(last)], dim=-1)
    _widen_bias(options)
    own = sink.to(query.dtype).view(1, -1, 1, 1).expand(*query.shape[:3], 1)
    query = torch.cat([query, own, own.new_zeros(*query.shape[:3], _SPARE - 1)], dim=-1)
    joined = torch.zeros(width + _SPARE, dtype=key.dtype, device=key.device)
    joined[width] = 1 / scale
    key = torch.cat([pad(key, (0, _SPARE)), joined.expand(*key.shape[:2], 1, -1)], dim=2)
    value = pad(value, (0, key.shape[-1] - depth, 0, 1))
    output, _ = plain(module, query, key, value, mask, **options | {"scaling": scale, "is_causal": False})
    return output[..., :depth], None


def _acting(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """The sinks that act; where scores are measured none does."""
    measuring = _contexts > 0 or not torch.compiler.is_compiling()
    parts = _MEASURED.get().get(module.sink_logits) if measuring else None
    if parts is None:
        return sink_of(module)
    scores = torch.matmul(query, key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(-1, -2))
    scores = scores * _scale(query, options)
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"]
    mask = _causal(module, query, key, options) if mask is None else mask
    if mask is not None:
        scores = scores + _to_add(mask, scores.dtype)[..., : key.shape[2]]
    parts.append(-torch.logsumexp(scores.detach().double(), dim=-1).transpose(0, 1).flatten(1))
    return None


def _causal(module: Any, query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The mask that no mask stands for: None where every query sees every key."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not causal or query.shape[2] == 1:
        return None
    return torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()


def _to_add(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _widen_bias(options: dict[str, Any]) -> None:
    """Distances say nothing of the sinks."""
    if options.get("position_bias") is not None:
        options["position_bias"] = pad(options["position_bias"], (0, 1))


def _scale(query: Tensor, options: dict[str, Any]) -> float:
    given = options.get("scaling")
    return query.shape[-1] ** -0.5 if given is None else float(given)


ALL_ATTENTION_FUNCTIONS.register(f"{_NAMED}eager", _eager)  # with the class that copies and pickles of models name
ALL_ATTENTION_FUNCTIONS.register(f"{_NAMED}sdpa", _sdpa)
