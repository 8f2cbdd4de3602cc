"""The invariants of registers, as measurements on any model that has them. Numbering as in the design."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from regtune.errors import RegtuneError
from regtune.families import family_of
from regtune.families._family import submodule
from regtune.progress import begin_stage
from regtune.registers.cache_names import CACHE
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import (
    CONFIG_KEY,
    backbone_of,
    disable_registers,
    find_decoder_registers,
    mask_registers,
    register_parameters,
    remove_registers,
)
from regtune.testing.broken import BrokenInvariantError
from regtune.testing.subject import Subject, accepted, distance

MASKED_TOLERANCE = 1e-6
"""Largest difference, for outputs of size 1 in float32, where the same sums are taken in the same order."""
REORDERED_TOLERANCE = 1e-4
"""The same where another kernel or another padding adds in another order."""
GRADIENT_TOLERANCE = 1e-5
"""Largest difference of two gradients, relative to the largest gradient."""
_CONTINUED = 8
"""Tokens that a text is continued with."""
_ROUNDS = 4
_PATIENCE = 60.0
"""Seconds that a thread waits for the others."""


class NotApplicableError(RegtuneError):
    """An invariant that says nothing about this model, with the reason."""


def disabled_is_plain(subject: Subject) -> str:
    """1: switched off, they leave the outputs bit-identical."""
    plain = subject.without()
    with disable_registers(subject.model):
        difference = distance(subject.outputs(), plain)
    effect = distance(subject.outputs(), plain)
    if difference != 0:
        raise BrokenInvariantError(
            f"with registers switched off, outputs differ from the plain model's by {difference:.1e}; must be 0"
        )
    if effect == 0:
        raise BrokenInvariantError(
            "switched on, the registers change nothing at all (difference 0), so they are not in the sequence"
        )
    return f"switched off: difference 0, bit for bit; switched on, they move outputs by up to {effect:.1e}"


def masked_is_plain(subject: Subject) -> str:
    """2: masked out, they leave the outputs unchanged."""
    plain = subject.without()
    with mask_registers(subject.model):
        masked = subject.outputs()
    words = "hidden from attention, they change outputs by"
    return _within(words, masked, plain, MASKED_TOLERANCE, rounding=2 * subject.rounding())


def text_length_kept(subject: Subject) -> str:
    """3: they never leave the model."""
    with disable_registers(subject.model):
        expected = _shapes(subject)
    found = _shapes(subject)
    for name, shape in expected.items():
        if found.get(name) != shape:
            raise BrokenInvariantError(f"{name} has shape {found.get(name)}; without registers it is {shape}")
    return f"all {len(found)} outputs and hidden states keep the shapes that they have without registers"


def _shapes(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Of everything that the model and its backbone return but attentions."""
    shapes = {}
    with torch.no_grad():
        for part in (subject.model, backbone_of(subject.model)):
            output = part(**accepted(part, subject.inputs), output_hidden_states=True)
            states = {
                f"{name}[{index}]": state
                for name, collected in output.items()
                if name.endswith("hidden_states")
                for index, state in enumerate(collected)
            }
            for name, value in {**output, **states}.items():
                if isinstance(value, Tensor):
                    shapes[f"{name} of {type(part).__name__}"] = tuple(value.shape)
    return shapes


def saved_and_loaded(subject: Subject) -> str:
    """4: save and load give the same outputs, for the whole model and for the registers' own file."""
    model, expected = subject.model, subject.outputs()
    attention = model.config._attn_implementation
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded: Any = from_pretrained(type(model), folder, attn_implementation=attention)
        whole = distance(subject.outputs(loaded.float().eval()), expected)
        small_folder = Path(folder) / "registers"
        save_registers(model, small_folder)
        size = sum(file.stat().st_size for file in small_folder.iterdir())
        remove_registers(loaded)
        small = distance(subject.outputs(load_registers(loaded, small_folder)), expected)
    if whole != 0 or small != 0:
        raise BrokenInvariantError(
            f"after loading, outputs differ by {whole:.1e} (whole model) and {small:.1e} (registers' file); must be 0"
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
            keys, difference = set(model.state_dict()), distance(subject.outputs(), plain)
            left = [key for key in keys if "registers." in key] + ["config.json"] * hasattr(model.config, CONFIG_KEY)
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
            found[attention] = subject.outputs()
    finally:
        model.set_attn_implementation(before)
    return _within("eager and SDPA attention differ by", found["eager"], found["sdpa"], REORDERED_TOLERANCE)


def padding_agrees(subject: Subject) -> str:
    """6b: left padding, right padding and no padding agree."""
    family = family_of(backbone_of(subject.model).config)
    if family.reads_images:
        raise NotApplicableError("images have no padding")
    if family.mixing and any(_has(subject.model, path) for path in family.mixing):
        raise NotApplicableError(f"this {family.name} has a convolution, which sees padding with or without registers")
    right, mask = subject.states(), subject.inputs["attention_mask"].bool()
    text = {name: value for name, value in subject.inputs.items() if value.shape == mask.shape}
    rows = ({name: value[row : row + 1, mask[row]] for name, value in text.items()} for row in range(len(mask)))
    alone = torch.cat([subject.states(**row) for row in rows])
    if family.positions == "absolute" and family.position_offset == 0 and not subject.takes_positions:
        told = _within("right-padded and unpadded texts differ by", alone, right, REORDERED_TOLERANCE)
        return f"{told}; padding on the left moves texts, with or without registers"
    left = subject.states(**subject.moved())
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
    registers = set(register_parameters(subject.model))
    learnt = {name: parameter for name, parameter in subject.model.named_parameters() if parameter in registers}
    found = subject.gradients()
    sizes, count = [], 0
    for name, parameter in learnt.items():
        gradient = found.get(name)
        count += len(parameter) if name.endswith("tokens") else 0
        norms = torch.zeros(1) if gradient is None else gradient.flatten(0, -2).norm(dim=-1)
        dead = int((norms == 0).sum())
        if dead or gradient is None:
            raise BrokenInvariantError(
                f"{dead} of the {norms.numel()} vectors in {name} {tuple(parameter.shape)} get no gradient"
            )
        sizes.append(norms.min().item())
    frozen = "" if next(iter(registers)).requires_grad else " (they are frozen by their config)"
    return f"each of the {count} registers gets one; the smallest norm is {min(sizes):.1e}{frozen}"


@torch.no_grad()
def causality_kept(subject: Subject) -> str:
    """8a: no token's state depends on a later token, and a cache holds what came before."""
    backbone = backbone_of(subject.model)
    family = family_of(backbone.config)
    if find_decoder_registers(subject.model) is not None and "decoder_input_ids" in subject.inputs:
        return _writes_without_looking_ahead(subject)
    if not family.causal:
        raise NotApplicableError(f"{family.name} reads the whole text at once")
    mask = subject.inputs["attention_mask"].bool()
    text = {name: value[:1, mask[0]] for name, value in subject.inputs.items()}
    before = {name: value[:, :-1] for name, value in text.items()}
    whole, earlier = subject.states(**text), subject.states(**before)
    told = _within("without the last token, earlier ones differ by", earlier, whole[:-1], REORDERED_TOLERANCE)
    cache = backbone(**before, use_cache=True)[CACHE]
    last = backbone(text["input_ids"][:, -1:], attention_mask=text["attention_mask"], **{CACHE: cache})[0]
    return f"{told}; {_within('read from a cache, the last differs by', last[0], whole[-1:], REORDERED_TOLERANCE)}"


@torch.no_grad()
def _writes_without_looking_ahead(subject: Subject) -> str:
    """8a, for a decoder with registers of its own: no state depends on what is written later."""
    batch, written = subject.inputs, subject.inputs["decoder_input_ids"]
    earlier, whole = (
        subject.model(**{**batch, "decoder_input_ids": tokens}, use_cache=False)[0]
        for tokens in (written[:, :-1], written)
    )
    words = "without the last token that is written, earlier ones differ by"
    return _within(words, earlier, whole[:, :-1], REORDERED_TOLERANCE)


def generation_agrees(subject: Subject) -> str:
    """8b: whatever cache is used and however it is filled, texts are read and continued alike."""
    model = subject.model
    family = family_of(backbone_of(model).config)
    if not model.can_generate() or not (family.causal or family.encoder):
        raise NotApplicableError(f"{type(model).__name__} doesn't generate")
    if family.encoder:
        return _writes_alike(subject)
    batch = subject.moved()
    length = batch["input_ids"].shape[1]
    expected = _read_in_steps(model, batch, None, length)
    worst = max(
        (distance(_read_in_steps(model, batch, kind, step), expected), f"a {kind.__name__} filled {step} at a time")
        for kind in (DynamicCache, StaticCache)
        for step in (1, 4, length)
    )
    limit = REORDERED_TOLERANCE * max(1.0, float(expected.abs().max()))
    if not worst[0] <= limit:
        raise BrokenInvariantError(f"{worst[1]} changes logits by {worst[0]:.1e}; at most {limit:.1e} is rounding")
    _same_tokens(model, batch, _WAYS | {"chunks": {"prefill_chunk_size": 4}}, "continue with")
    return (
        f"dynamic and static caches, filled 1, 4 or all tokens at a time, change logits by at most {worst[0]:.1e}; "
        f"{_CONTINUED} tokens follow alike, greedily and with 2 beams, padded and alone"
    )


_WAYS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "dynamic": {},
    "static": {"cache_implementation": "static"},
}


def _same_tokens(model: Any, batch: dict[str, Any], ways: dict[str, dict[str, Any]], does: str) -> None:
    """Whatever holds the keys, and whatever stands beside a text, the same tokens follow it."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    texts = [(row[seen.bool()][None], seen[seen.bool()][None]) for row, seen in zip(ids, mask, strict=True)]
    for beams in (1, 2):
        said = [_continue(model, ids, mask, num_beams=beams, **way) for way in ways.values()]
        said.append(torch.cat([_continue(model, *text, num_beams=beams) for text in texts]))
        different = sum(not torch.equal(one, said[0]) for one in said)
        if different:
            raise BrokenInvariantError(
                f"with {beams} beams, {different} of {len(said)} ways ({', '.join(ways)}, each text alone) {does} "
                "other tokens"
            )


@torch.no_grad()
def _writes_alike(subject: Subject) -> str:
    """8b, for a decoder beside an encoder: what it is given and what it writes."""
    model, batch = subject.model, subject.inputs
    written, rest = batch["decoder_input_ids"], {"attention_mask": batch["attention_mask"]}
    expected = model(**batch, use_cache=False).logits
    read = model.get_encoder()(batch["input_ids"], **rest)
    sizes = (written.shape[1], batch["input_ids"].shape[1])
    worst = 0.0
    for static in (False, True):
        for step in (1, 3, sizes[0]):
            rooms = [{"max_cache_len": size} if static else {} for size in sizes]
            kind: Any = StaticCache if static else DynamicCache
            cache = EncoderDecoderCache(*(kind(config=model.config, **room) for room in rooms))
            given = {"encoder_outputs": read, CACHE: cache, "use_cache": True, **rest}
            pieces = (written[:, first : first + step] for first in range(0, sizes[0], step))
            parts = [model(decoder_input_ids=piece, **given).logits for piece in pieces]
            worst = max(worst, distance(torch.cat(parts, dim=1), expected))
    limit = REORDERED_TOLERANCE * max(1.0, float(expected.abs().max()))
    if not worst <= limit:
        raise BrokenInvariantError(f"a cache changes logits by {worst:.1e}; at most {limit:.1e} is rounding")
    _same_tokens(model, batch, _WAYS, "write")
    return (
        f"tokens given at once or 1 or 3 at a time to dynamic and static caches change logits by at most {worst:.1e}; "
        f"{_CONTINUED} tokens are written alike, greedily and with 2 beams, padded and alone"
    )


@torch.no_grad()
def _read_in_steps(model: Any, batch: dict[str, Tensor], kind: Any, step: int) -> Tensor:
    """Logits of the real tokens, `[tokens, vocabulary]`, read so many at a time into a cache of this kind."""
    mask, length = batch["attention_mask"], batch["input_ids"].shape[1]
    room = {"max_cache_len": length} if kind is StaticCache else {}
    cache = None if kind is None else kind(config=model.config, **room)
    parts = []
    for start in range(0, length, step):
        part = {name: batch[name][:, start : start + step] for name in ("input_ids", "position_ids")}
        seen = mask[:, : start + step]
        parts.append(model(**part, attention_mask=seen, use_cache=cache is not None, **{CACHE: cache}).logits)
    found: Tensor = torch.cat(parts, dim=1)[mask.bool()]
    return found


def _continue(model: Any, ids: Tensor, mask: Tensor, **way: Any) -> Tensor:
    settings = {"do_sample": False, "max_new_tokens": _CONTINUED, "min_new_tokens": _CONTINUED}
    padding = model.config.pad_token_id or 0
    tokens: Tensor = model.generate(ids, attention_mask=mask, pad_token_id=padding, **settings, **way)
    return tokens[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :]


def passes_are_their_own(subject: Subject) -> str:
    """9: threads, a call inside a call, and layers run again after another pass give what each gives alone."""
    model, other = subject.model, subject.moved()
    alone, moved = subject.outputs(), subject.outputs(**other)
    with disable_registers(model):
        without = subject.outputs()

    def switched_off() -> Tensor:
        with disable_registers(model):
            return subject.outputs()

    backbone = backbone_of(model)
    embeddings = backbone.get_submodule(family_of(backbone.config).embeddings)
    jobs = ((subject.outputs, alone), (lambda: subject.outputs(**other), moved), (switched_off, without))
    gate = Barrier(len(jobs), timeout=_PATIENCE)

    def meet(*_: Any) -> None:
        gate.wait()  # all passes are open now

    handle = embeddings.register_forward_hook(meet)
    try:
        with _often_switched(), ThreadPoolExecutor(len(jobs)) as pool:
            runs = [[pool.submit(run) for run, _ in jobs] for _ in range(_ROUNDS)]
            worst = [(run.result(), right) for row in runs for run, (_, right) in zip(row, jobs, strict=True)]
    finally:
        handle.remove()
    inner: list[Tensor] = []
    calls: list[None] = []

    def call_again(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            inner.append(switched_off())

    handle = embeddings.register_forward_hook(call_again)
    try:
        worst.append((subject.outputs(**other), moved))
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
    ("8 causality and cache", causality_kept),
    ("8 generation", generation_agrees),
    ("9 passes of their own", passes_are_their_own),
)
"""Name and proof of each, in the order in which they are told."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    passed: bool | None
    """None: only told, or not applicable to this model."""
    text: str
    """What was measured, in plain words."""


def prove(subject: Subject) -> list[Finding]:
    """Checks every invariant; a check that breaks off is a finding too."""
    return list(proofs(subject))


def proofs(subject: Subject) -> Iterator[Finding]:
    """The same, one after the other."""
    for name, check in INVARIANTS:
        begin_stage(f"proving {name}")
        try:
            passed, text = True, check(subject)
        except NotApplicableError as reason:
            passed, text = None, str(reason)
        except BrokenInvariantError as reason:
            passed, text = False, str(reason)
        except Exception as error:  # a broken model can break in any way
            passed, text = False, f"the check broke off with {type(error).__name__}: {error}"
        yield Finding(name=name, passed=passed, text=text)


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
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


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
