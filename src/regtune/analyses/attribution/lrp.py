"""AttnLRP and CP-LRP: one forward and one backward pass that follows relevance rules, and the ledger.

`relevance_rules` is the context in which one model's backward pass follows rules, and outside of which nothing has
changed.

Layer-wise relevance propagation is patented in places, so its authors say; read their licence notes before a
commercial use. The rules here are written from the papers' equations (see `rules.py` beside this file).

Everything that is changed is changed on this model's own modules and put back on leaving, also after an exception:
attention goes through transformers' table of attention functions (the attending modules see a copy of the config
that names another entry, so that masks are made as before); LayerNorms, activations and modules that multiply get
a `forward` of their own; linear layers and embeddings get hooks; parameters are frozen, so that the one backward
pass computes no gradient of a weight. No class is touched and no modelling code is copied.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.attribution import Scores
from regtune.analyses.attribution.batch import Batch
from regtune.analyses.attribution.rules import (
    BIASES,
    POSITIONS,
    SOFTMAX,
    AttnLRP,
    Ledger,
    Rules,
    RuleScope,
    bias_of,
    relevance_of,
)
from regtune.analyses.reversible import freeze, only_reader, replace_forward, route_attention
from regtune.errors import unknown_name
from regtune.families import family_of
from regtune.families._family import Family, modules_at
from regtune.registers.moved_neurons import RegisterNeurons
from regtune.registers.registers import Registers
from regtune.registers.surgery import active_registers, backbone_of, find_registers
from regtune.rows.targets import Resolved, values_of

TOKENS, TYPES, REGISTERS, STATES = "tokens", "types", "registers", "states"
BY = ("head", "layer", "neuron")


def attnlrp_scores(batch: Batch, *, by: str | None = None) -> Scores:
    """Explains one batch; `value = tokens + registers + positions + types + biases + softmax` up to rounding.

    `by`: also the relevance of every `layer`'s, `head`'s or `neuron`'s states; see `Attribution.inner`.
    """
    return _ledger_scores(batch, by, constant_attention=False)


def cp_lrp_scores(batch: Batch, *, by: str | None = None) -> Scores:
    """As `attnlrp_scores`, with attention weights as constants."""
    return _ledger_scores(batch, by, constant_attention=True)


def _ledger_scores(batch: Batch, by: str | None, *, constant_attention: bool) -> Scores:
    if by is not None and by not in BY:
        raise unknown_name("part to look at (by)", by, BY)
    ledger = Ledger()
    rules = AttnLRP(ledger, constant_attention=constant_attention)
    with relevance_rules(batch.model, rules, ledger), _watched_parts(batch.model, ledger, by) as inner:
        outputs = batch.run()
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets)
        leaves = [leaf for kind in ledger.leaves.values() for leaf in kind]
        gradients = iter(torch.autograd.grad(values.sum(), leaves, materialize_grads=True))
    shares = {
        kind: [relevance_of(leaf.detach(), next(gradients)) for leaf in group] for kind, group in ledger.leaves.items()
    }
    leading = batch.text.shape[1] - shares[TOKENS][0].shape[1]  # [CLS] of images, which is none of their patches
    shares[TOKENS][0] = nn.functional.pad(shares[TOKENS][0], (leading, 0))
    scores = _balance(targets, values.detach().double(), shares, ledger)
    return scores if by is None else inner.into(scores, shares)


def _balance(targets: Sequence[Resolved], values: Tensor, shares: dict[str, list[Tensor]], ledger: Ledger) -> Scores:
    none = torch.zeros_like(values)
    tokens = shares[TOKENS][0]
    registers = torch.stack(shares[REGISTERS]).sum(0) if REGISTERS in shares else tokens[:, :0]
    parts = {kind: sum((share.sum(1) for share in shares.get(kind, ())), none) for kind in (POSITIONS, TYPES)}
    parts |= {kind: ledger.sums.get(kind, none) for kind in (BIASES, SOFTMAX)}
    every = torch.stack([tokens.sum(1), registers.sum(1), *parts.values()])
    booked = tokens.abs().sum(1) + registers.abs().sum(1) + sum(part.abs() for part in parts.values())
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens,
        registers=registers,
        parts=parts,
        residual=values - every.sum(0),
        scale=every.abs().sum(0).clamp(min=1.0),
        kept=torch.where(values == 0, torch.ones_like(values), booked / values.abs()),
    )


@dataclass(eq=False)
class _Inner:
    """Relevance of parts inside the model, in the order of the forward pass."""

    by: str | None
    ledger: Ledger
    registers: Registers | None
    heads: int
    found: list[Tensor] = field(default_factory=list)
    laws: list[list[Tensor]] = field(default_factory=list)
    """For each depth what is to add up to 0, where that can be said on the spot."""

    def watch(self, states: Any) -> None:
        """`[batch, total, width]`, inputs of what the layers, heads or neurons are read by."""
        place = len(self.found)
        self.found.append(torch.empty(0))
        self.laws.append([])
        kept = states.detach()
        layout = None if self.registers is None else self.registers.layout

        def first(values: Tensor) -> Tensor:
            return values if layout is None else layout.registers_first(values, 1)

        def book(gradient: Tensor) -> None:
            product = (kept * gradient).double()
            if self.by == "neuron":
                self.found[place] = product.sum(1)
                return
            if self.by == "head":
                by_head = product.reshape(*product.shape[:2], self.heads, -1).sum(-1)
                self.found[place] = first(by_head).transpose(1, 2)
                return
            self.found[place] = first(product.sum(-1))

        states.register_hook(book)

    def watch_law(self, module: nn.Module, output: Any) -> None:
        """Of a projection's output: what it hands on, less its bias's share."""
        law, bias, kept = self.laws[-1], bias_of(module), output.detach()

        def book(gradient: Tensor) -> None:
            rest = kept if bias is None else kept - bias[0]
            law.append((rest * gradient).double().flatten(1).sum(1))

        output.register_hook(book)

    def into(self, scores: Scores, shares: dict[str, list[Tensor]]) -> Scores:
        inner = torch.stack(self.found, 1)
        sums = inner.flatten(2).sum(2)
        if self.by == "layer":
            later = torch.stack([self._joined_behind(depth, scores, shares) for depth in range(len(self.found))], 1)
            residual = scores.values.unsqueeze(1) - sums - later
        else:
            residual = torch.stack([law[0] for law in self.laws], 1) - sums
        return dataclasses.replace(scores, inner=inner, inner_residual=residual)

    def _joined_behind(self, depth: int, scores: Scores, shares: dict[str, list[Tensor]]) -> Tensor:
        total = torch.zeros_like(scores.values)
        for where, rows in self.ledger.booked.items():
            total = total + rows if where > depth else total
        for kind, group in shares.items():
            for where, share in zip(self.ledger.depths[kind], group, strict=True):
                total = total + share.sum(1) if where > depth else total
        return total


@contextmanager
def _watched_parts(model: nn.Module, ledger: Ledger, by: str | None) -> Iterator[_Inner]:
    """Inside the context, which lies inside `relevance_rules`, a pass is watched at the parts that were asked for."""
    backbone = backbone_of(model)
    family = family_of(backbone.config, "relevance")
    inner = _Inner(by, ledger, active_registers(model), int(backbone.config.num_attention_heads))

    def enter(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inner.watch(args[0] if args else kwargs["hidden_states"])
        ledger.depth += 1

    with ExitStack() as stack:
        if by == "layer":
            layers = list(modules_at(backbone, *family.within_layers()))
            count = int(backbone.config.num_hidden_layers)

            def leave_layer(_module: nn.Module, _args: tuple, output: Any) -> None:
                if ledger.depth == count:
                    inner.watch(output[0] if isinstance(output, tuple) else output)
                    ledger.depth += 1

            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(leave_layer).remove)
        elif by is not None:
            path = family.attention_out if by == "head" else family.feed_forward_out
            for part in modules_at(backbone, *family.within_layers(path)):
                stack.callback(part.register_forward_pre_hook(lambda _part, args: inner.watch(args[0])).remove)
                hook = part.register_forward_hook(lambda part, _args, output: inner.watch_law(part, output))
                stack.callback(hook.remove)
        yield inner


@contextmanager
def relevance_rules(model: nn.Module, rules: Rules, ledger: Ledger, *, inputs: str = TOKENS) -> Iterator[None]:
    """Inside the context, gradients of `model` (and of no other) are what the rules make of them.

    The ledger receives the leaves (kinds `tokens`, `positions`, `types`, `registers`) and the sums. `inputs`: `tokens`
    makes word, position and type embeddings and registers leaves; `states` makes the output of the embeddings module a
    leaf instead, registers included.
    """
    backbone = backbone_of(model)
    family = family_of(backbone.config, "relevance")
    with ExitStack() as stack:
        stack.enter_context(only_reader(model))
        changes = _Changes(model, backbone, family, rules, ledger, stack)
        freeze(model, stack)
        changes.follow_attention()
        changes.follow_layers()
        changes.follow_scopes()
        changes.make_leaves(inputs)
        yield


@dataclass(eq=False)
class _Changes:
    """What one context changes, each change with its undoing on the stack."""

    model: nn.Module
    backbone: Any
    family: Family
    rules: Rules
    ledger: Ledger
    stack: ExitStack
    inside: bool = False

    # Attention

    def follow_attention(self) -> None:
        if self.family.attention_by == "interface":
            route_attention(self.backbone, self.family, self.attend, self.stack)
            return
        for module in modules_at(self.backbone, *self.family.within_layers(self.family.attention)):
            replace_forward(module, self._scoped, self.stack)

    def attend(
        self,
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        sink: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `regtune.analyses.reversible.Attend`."""
        weights = self.rules.attention_weights(query, key, mask, scale, sink)
        return self.rules.product(torch.matmul, weights, value), weights

    # Layers of a known type

    def follow_layers(self) -> None:
        from transformers.pytorch_utils import Conv1D

        family = self.family
        norms: tuple[str, ...] = ()
        if family.rms_norm:
            norms = (*family.within_layers(*family.norms), *filter(None, [family.final_norm]))
        rms = {id(module) for module in modules_at(self.backbone, *norms)}
        activations = _activation_types()
        for module in self.model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, Conv1D)):
                self.stack.callback(module.register_forward_hook(self._linear).remove)
            elif isinstance(module, nn.LayerNorm):
                replace_forward(module, _unary(functools.partial(self.rules.layer_norm, module)), self.stack)
            elif id(module) in rms:
                replace_forward(module, _unary(self.rules.rms_norm), self.stack)
            elif isinstance(module, activations):
                replace_forward(module, _unary(self.rules.activation), self.stack)

    def _linear(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.rules.linear(module, args[0], output)

    # Modules that multiply, or call activations as functions

    def follow_scopes(self) -> None:
        if self.rules.whole_model:
            replace_forward(self.model, self._scoped, self.stack)
            return
        gated = () if self.family.gated is None else self.family.within_layers(self.family.gated)
        heads = [] if self.model is self.backbone else list(self.model.children())
        heads += [module for name, module in self.backbone.named_children() if name == "pooler"]
        for module in (*modules_at(self.backbone, *self.family.mixing, *gated), *heads):
            if module is not self.backbone and any(True for _ in module.children()):
                replace_forward(module, self._scoped, self.stack)

    def _scoped(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(forward)
        bias = self.family.position_bias

        @functools.wraps(forward)
        def scoped(*args: Any, **kwargs: Any) -> Any:
            if bias is not None and bias in signature.parameters:
                bound = signature.bind(*args, **kwargs)
                if bound.arguments.get(bias) is not None:
                    bound.arguments[bias] = self.ledger.leaf(POSITIONS, bound.arguments[bias])
                args, kwargs = bound.args, bound.kwargs
            if self.inside:
                return forward(*args, **kwargs)
            self.inside = True
            try:
                with RuleScope(self.rules):
                    return forward(*args, **kwargs)
            finally:
                self.inside = False

        return scoped

    # Leaves

    def make_leaves(self, inputs: str) -> None:
        registers = find_registers(self.model)
        if inputs == STATES:
            self._on_output(self.family.embeddings, lambda output: self.ledger.leaf(STATES, output))
        else:
            self._on_output(self.family.word_embeddings, self._words)
            self._on_output(self.family.assembled, self._beside_patches)
            positions = None if self.family.assembled is not None else self.family.position_embeddings
            for kind, path in ((POSITIONS, positions), (TYPES, self.family.type_embeddings)):
                self._on_output(path, functools.partial(self._for_each_row, kind))
        if registers is not None:

            def joining(_module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
                first = len(args) == 1  # already a leaf, where the states behind the embeddings are
                return None if first and inputs == STATES else self.ledger.leaf(REGISTERS, output)

            held = (module for module in self.backbone.modules() if isinstance(module, RegisterNeurons))
            for module in (registers, *held):
                self.stack.callback(module.register_forward_hook(joining).remove)

    def _on_output(self, path: str | None, change: Callable[[Tensor], Tensor]) -> None:
        try:
            module = None if path is None else self.backbone.get_submodule(path)
        except AttributeError:
            return
        if isinstance(module, nn.Module):
            self.stack.callback(module.register_forward_hook(lambda _module, _args, output: change(output)).remove)

    def _beside_patches(self, output: Tensor) -> Tensor:
        """What is no patch in the states that patches, [CLS] and positions make together."""
        patches = self.ledger.leaves[TOKENS][0]
        words = nn.functional.pad(patches, (0, 0, output.shape[1] - patches.shape[1], 0))
        total = words + self.ledger.leaf(POSITIONS, output - words)
        return total + (output - total).detach()  # its rounding

    def _words(self, output: Tensor) -> Tensor:
        if output.dim() == 4:  # patches in rows and columns
            leaf = self.ledger.leaf(TOKENS, output.flatten(2).transpose(1, 2))
            return leaf.transpose(1, 2).reshape(output.shape)
        # GPT-2 looks its token types up in the same table, after the words.
        return self.ledger.leaf(TYPES if TOKENS in self.ledger.leaves else TOKENS, output)

    def _for_each_row(self, kind: str, output: Tensor) -> Tensor:
        batch = self.ledger.leaves[TOKENS][0].shape[0] if TOKENS in self.ledger.leaves else output.shape[0]
        return self.ledger.leaf(kind, output.expand(batch, *output.shape[1:]))


def _unary(rule: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Callable[[Callable], Callable]:
    def make(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def follow(x: Tensor) -> Tensor:
            return rule(x, forward) if x.requires_grad else forward(x)

        return follow

    return make


@functools.cache
def _activation_types() -> tuple[type[nn.Module], ...]:
    from transformers.activations import ACT2CLS

    entries: list[Any] = [*ACT2CLS.values(), nn.GELU]
    return tuple({entry[0] if isinstance(entry, tuple) else entry: None for entry in entries})
