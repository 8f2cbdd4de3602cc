"""The invariants of registers, as measurements on any model that has them. Numbering as in the design."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regtune.errors import RegtuneError
from regtune.families import family_of
from regtune.families._family import submodule
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import backbone_of, disable_registers, find_registers, mask_registers, remove_registers
from regtune.testing.subject import BrokenInvariantError, Subject, distance

MASKED_TOLERANCE = 1e-6
"""Largest difference, for logits of size 1 in float32, where the same sums are taken in the same order."""
REORDERED_TOLERANCE = 1e-4
"""The same where another kernel or another padding adds in another order."""
GRADIENT_TOLERANCE = 1e-5
"""Largest difference of two gradients, relative to the largest gradient."""
_ROUNDS = 4


class NotApplicableError(RegtuneError):
    """An invariant that says nothing about this model, with the reason."""


def disabled_is_plain(subject: Subject) -> str:
    """1: switched off, they leave the outputs bit-identical."""
    plain = subject.without()
    with disable_registers(subject.model):
        difference = distance(subject.logits(), plain)
    effect = distance(subject.logits(), plain)
    if difference != 0:
        raise BrokenInvariantError(
            f"with registers switched off, logits differ from the plain model's by {difference:.1e}; must be 0"
        )
    if effect == 0:
        raise BrokenInvariantError(
            "switched on, the registers change nothing at all (difference 0), so they are not in the sequence"
        )
    return f"switched off: difference 0, bit for bit; switched on, they move logits by up to {effect:.1e}"


def masked_is_plain(subject: Subject) -> str:
    """2: masked out, they leave the outputs unchanged."""
    plain = subject.without()
    with mask_registers(subject.model):
        masked = subject.logits()
    words = "hidden from attention, they change logits by"
    return _within(words, masked, plain, MASKED_TOLERANCE, rounding=2 * subject.rounding())


def text_length_kept(subject: Subject) -> str:
    """3: they never leave the model."""
    ids = subject.inputs["input_ids"]
    rows, length = ids.shape
    last = torch.full((rows,), int(subject.inputs["attention_mask"].sum(1).min()) - 1)
    pooled: list[tuple[Any, Tensor]] = []
    backbone = backbone_of(subject.model)
    handle = backbone.register_forward_hook(lambda _, __, output: pooled.append((output, output[0])))
    try:
        with torch.no_grad():
            output = subject.model(
                **subject.inputs, start_positions=last, end_positions=last, output_hidden_states=True
            )
    finally:
        handle.remove()
    shapes = {"start logits": output.start_logits, "end logits": output.end_logits, "last_hidden_state": pooled[0][1]}
    shapes |= {f"hidden_states[{index}]": state for index, state in enumerate(output.hidden_states)}
    for name, value in shapes.items():
        if tuple(value.shape[:2]) != (rows, length):
            raise BrokenInvariantError(f"{name} has shape {tuple(value.shape)} for a text of {rows} x {length} tokens")
    if not torch.isfinite(output.loss):
        raise BrokenInvariantError(f"the loss for labels on the last token is {float(output.loss)}")
    return f"logits, labels and all {len(output.hidden_states)} hidden states keep the text's length of {length} tokens"


def saved_and_loaded(subject: Subject) -> str:
    """4: save and load give the same logits, for the whole model and for the registers' own file."""
    model, expected = subject.model, subject.logits()
    attention = model.config._attn_implementation
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded: Any = from_pretrained(type(model), folder, attn_implementation=attention)
        whole = distance(subject.logits(loaded.float().eval()), expected)
        small_folder = Path(folder) / "registers"
        save_registers(model, small_folder)
        size = sum(file.stat().st_size for file in small_folder.iterdir())
        remove_registers(loaded)
        small = distance(subject.logits(load_registers(loaded, small_folder)), expected)
    if whole != 0 or small != 0:
        raise BrokenInvariantError(
            f"after loading, logits differ by {whole:.1e} (whole model) and {small:.1e} (registers' file); must be 0"
        )
    return f"whole model and registers' own file ({size / 1000:.1f} kB): difference 0, bit for bit"


def removable(subject: Subject) -> str:
    """5: taken away, they leave a plain model."""
    plain, model = subject.without(), subject.model
    before = set(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        save_registers(model, folder)
        remove_registers(model)
        try:
            keys, difference = set(model.state_dict()), distance(subject.logits(), plain)
            left = [key for key in keys if "registers." in key]
        finally:
            load_registers(model, folder)
    extra = before - keys
    if left or any("registers." not in key for key in extra) or difference != 0:
        raise BrokenInvariantError(
            f"removing them leaves the keys {sorted(left)} and a difference of {difference:.1e}; must be none and 0"
        )
    return f"removed and added again: {len(extra)} keys of {len(before)} come and go, difference 0"


def attention_agrees(subject: Subject) -> str:
    """6a: eager and SDPA attention agree."""
    model = subject.model
    if not getattr(model, "_supports_sdpa", False):
        raise NotApplicableError(f"{family_of(backbone_of(model).config).name} has eager attention only")
    before = model.config._attn_implementation
    found = {}
    try:
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            found[attention] = subject.logits()
    finally:
        model.set_attn_implementation(before)
    return _within("eager and SDPA attention differ by", found["eager"], found["sdpa"], REORDERED_TOLERANCE)


def padding_agrees(subject: Subject) -> str:
    """6b: left padding, right padding and no padding agree."""
    family = family_of(backbone_of(subject.model).config)
    if family.mixing and any(_has(subject.model, path) for path in family.mixing):
        raise NotApplicableError(f"this {family.name} has a convolution, which sees padding with or without registers")
    right = subject.logits()
    left = subject.logits(**subject.left_padded())
    mask = subject.inputs["attention_mask"].bool()
    alone = torch.cat(
        [
            subject.logits(**{name: value[row : row + 1, mask[row]] for name, value in subject.inputs.items()})
            for row in range(len(mask))
        ],
        dim=1,
    )
    worst = max((left, alone), key=lambda other: distance(other, right))
    return _within("right-padded, left-padded and unpadded texts differ by", worst, right, REORDERED_TOLERANCE)


def checkpointing_agrees(subject: Subject) -> str:
    """6c: gradient checkpointing changes no gradient."""
    model = subject.model
    if not model.supports_gradient_checkpointing:
        raise NotApplicableError(f"{type(model).__name__} has no gradient checkpointing")
    expected = subject.gradients()
    with _checkpointing(model):
        found = subject.gradients()
    difference = _gradient_distance(found, expected)
    if not difference <= GRADIENT_TOLERANCE:
        raise BrokenInvariantError(f"gradient checkpointing changes gradients by {difference:.1e} of the largest one")
    share = f"{difference:.1e} of the largest one (at most {GRADIENT_TOLERANCE:.0e})"
    return f"gradient checkpointing changes gradients by {share}"


def gradients_reach_registers(subject: Subject) -> str:
    """7: every register gets a gradient."""
    registers = find_registers(subject.model)
    assert registers is not None
    found = subject.gradients()
    sizes = []
    for name, parameter in registers.named_parameters():
        gradient = next((value for key, value in found.items() if key.endswith(f"registers.{name}")), None)
        norms = torch.zeros(1) if gradient is None else gradient.flatten(0, -2).norm(dim=-1)
        dead = int((norms == 0).sum())
        if dead or gradient is None:
            raise BrokenInvariantError(
                f"{dead} of the {norms.numel()} vectors in {name} {tuple(parameter.shape)} get no gradient"
            )
        sizes.append(norms.min().item())
    frozen = "" if next(registers.parameters()).requires_grad else " (they are frozen by their config)"
    return f"each of the {registers.num_registers} registers gets one; the smallest norm is {min(sizes):.1e}{frozen}"


def passes_are_their_own(subject: Subject) -> str:
    """9: threads, a call inside a call, and layers run again after another pass give what each gives alone."""
    model, left = subject.model, subject.left_padded()
    alone, moved = subject.logits(), subject.logits(**left)
    with disable_registers(model):
        without = subject.logits()

    def switched_off() -> Tensor:
        with disable_registers(model):
            return subject.logits()

    jobs = ((subject.logits, alone), (lambda: subject.logits(**left), moved), (switched_off, without))
    with _often_switched(), ThreadPoolExecutor(len(jobs)) as pool:
        runs = [(pool.submit(run), expected) for _ in range(_ROUNDS) for run, expected in jobs]
        worst = [(run.result(), expected) for run, expected in runs]
    inner: list[Tensor] = []
    calls: list[None] = []

    def call_again(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            inner.append(switched_off())

    backbone = backbone_of(model)
    embeddings = backbone.get_submodule(family_of(backbone.config).embeddings)
    handle = embeddings.register_forward_hook(call_again)
    try:
        worst.append((subject.logits(**left), moved))
    finally:
        handle.remove()
    worst.append((inner[0], without))
    found, expected = max(worst, key=lambda pair: distance(*pair))
    told = _within(f"{len(worst)} passes in threads and inside each other differ by", found, expected, MASKED_TOLERANCE)
    if not model.supports_gradient_checkpointing:
        return told
    expected_gradients = subject.gradients()
    with _checkpointing(model):
        found_gradients = subject.gradients(between=switched_off)
    difference = _gradient_distance(found_gradients, expected_gradients)
    if not difference <= GRADIENT_TOLERANCE:
        raise BrokenInvariantError(
            f"layers that are run again after another pass change gradients by {difference:.1e} of the largest one"
        )
    return f"{told}; run again after another pass, layers change gradients by {difference:.1e} of the largest one"


INVARIANTS: tuple[tuple[str, Callable[[Subject], str]], ...] = (
    ("1 switching them off", disabled_is_plain),
    ("2 masking them", masked_is_plain),
    ("3 staying inside", text_length_kept),
    ("4 saving and loading", saved_and_loaded),
    ("5 removing them", removable),
    ("6 attention kernels", attention_agrees),
    ("6 padding", padding_agrees),
    ("6 checkpointing", checkpointing_agrees),
    ("7 gradients", gradients_reach_registers),
    ("9 passes of their own", passes_are_their_own),
)
"""Name and proof of each, in the order in which they are told."""


@contextmanager
def _often_switched() -> Iterator[None]:
    """Threads take turns far more often than Python lets them, so that what they share shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _checkpointing(model: Any) -> Iterator[None]:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    enable()
    try:
        yield
    finally:
        disable()


def _gradient_distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference, as a share of the largest gradient; infinite where other parameters have one."""
    if found.keys() != expected.keys():
        return float("inf")
    scale = max(value.abs().max().item() for value in expected.values())
    return max(distance(found[name], expected[name]) for name in expected) / scale


def _within(words: str, found: Tensor, expected: Tensor, tolerance: float, *, rounding: float = 0.0) -> str:
    difference = distance(found, expected)
    scale = max(1.0, float(expected.abs().max()))
    limit = max(tolerance * scale, min(rounding, REORDERED_TOLERANCE * scale))
    if not difference <= limit:  # also when the difference is not a number
        raise BrokenInvariantError(f"{words} {difference:.1e}; at most {limit:.1e} is rounding")
    return f"{words} {difference:.1e} (at most {limit:.1e} is rounding)"


def _has(model: Any, path: str) -> bool:
    return submodule(backbone_of(model), path) is not None
