"""One batch of texts as a method sees it: how to run the model on it, in part or on other embeddings, what is wanted.

Images are texts whose words are patches: tokens in front that are no patch ([CLS]) are special, and have no embedding
of their own here, since they are added behind that of the patches.

Given embeddings replace the output of the table of word embeddings, by a hook: `inputs_embeds` would lose RoBERTa's
positions, which depend on the ids, and not every model takes it. Positions and types stay those of the text. Nothing
here needs to know the architecture, so the methods without rules explain any Hugging Face model that embeds tokens.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor, nn

from regtune.errors import ConfigError, UnsupportedModelError, unknown_name
from regtune.families._family import Family, patch_grid
from regtune.registers.registers import Registers
from regtune.registers.surgery import accepted_arguments, active_sets, base_of
from regtune.rows.targets import END, LOGITS, START, Resolved, Row, Target, TargetError, target_named
from regtune.rows.token_classes import TokenClass, patch_names, token_classes

BASELINES = ("mask", "pad", "zero")
_LABELS = ("labels", "start_positions", "end_positions", "next_sentence_label")
_DECODER = "decoder_"


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Texts of one length, padded on the right, and one target for each."""

    model: nn.Module
    family: Family | None
    """None for an architecture that isn't in the table."""
    inputs: Mapping[str, Tensor]
    """On the model's device: what the model takes, `attention_mask` among it; the decoder's inputs begin with
    `decoder_`, all others that are `[batch, seq]` long are the text's."""
    wanted: Sequence[str | Target | None]
    tolerance: float
    """Largest residual that is allowed, as a share."""
    token_classes: Int8[Tensor, "batch seq"] | None = None
    tokenizer: Any = None
    """Either says which tokens are special; where there is neither, nobody knows."""
    token_ids: Mapping[str, int | None]
    """Ids of the special tokens `pad` and `mask`, None where unknown."""

    @property
    def text(self) -> Bool[Tensor, "batch seq"]:
        """Where there is text, not padding."""
        return self.inputs["attention_mask"].bool()

    @property
    def causal(self) -> bool:
        """Whether the model is a decoder, whose tokens see earlier ones alone."""
        if self.family is not None:
            return self.family.causal
        backbone = base_of(self.model)
        return not backbone.config.is_encoder_decoder and (
            bool(getattr(backbone.config, "is_decoder", False))
            or type(self.model).__name__.endswith(("CausalLM", "LMHeadModel"))
            or any(getattr(part, "is_causal", False) is True for part in backbone.modules())
        )

    @property
    def decodes(self) -> bool:
        """Whether a decoder with tokens of its own is asked, as in T5: the text is what its encoder reads."""
        return f"{_DECODER}input_ids" in self.inputs

    def run(self, **more: Any) -> Any:
        """The model's outputs for the batch."""
        return self.run_rows(None, **more)

    def run_rows(self, rows: Tensor | None, length: int | None = None, **more: Any) -> Any:
        """The outputs for the named rows, in that order and with repetitions, cut to a length that holds their text."""
        accepted = accepted_arguments(self.model)
        seq = self.text.shape[1]
        arguments: dict[str, Any] = {name: value for name, value in self.inputs.items() if name in accepted}
        if rows is not None:
            for name, value in arguments.items():
                cut = value.dim() > 1 and value.shape[1] == seq and not name.startswith(_DECODER)
                arguments[name] = value[rows, :length] if cut else value[rows]
        if "use_cache" in accepted:
            arguments["use_cache"] = False
        return self.model(**arguments, return_dict=True, **more)

    @property
    def reads_images(self) -> bool:
        """Whether the batch is one of images."""
        return "pixel_values" in self.inputs

    def content(self, row: int) -> list[int]:
        """Whole numbers that are the same for the same text or image: its token ids, or a checksum of its pixels."""
        if self.reads_images:
            return [zlib.crc32(self.inputs["pixel_values"][row].float().cpu().numpy().tobytes())]
        ids: list[int] = self.inputs["input_ids"][row][self.text[row]].tolist()
        return ids

    def names(self, row: int) -> tuple[str, ...]:
        """The tokens by name: the tokenizer's pieces, or ids where there is none; of patches row and column."""
        if self.reads_images:
            return patch_names(self.token_classes[row], self.patch_grid) if self.token_classes is not None else ()
        ids = self.content(row)
        return tuple(map(str, ids if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(ids)))

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of images."""
        return patch_grid(base_of(self.model).config, *self.inputs["pixel_values"].shape[-2:])

    def resolve(self, outputs: Mapping[str, Tensor]) -> list[Resolved]:
        """The rows' targets with everything filled in."""
        names = [name for name in (START, END, LOGITS) if name in outputs]
        if not names:
            raise TargetError("This model has no head, so it gives no logits to explain. Load it with a task's head.")
        logits = {name: outputs[name].detach().double().cpu().numpy() for name in names}
        text, mask_id = self.text, self.token_ids["mask"]
        ids = self.inputs.get("input_ids", torch.zeros_like(self.inputs["attention_mask"]))
        masks = None if mask_id is None or self.decodes else (text & (ids == mask_id)).cpu().numpy()
        if self.decodes:
            ids = self.inputs[f"{_DECODER}input_ids"]
            text = self.inputs.get(f"{_DECODER}attention_mask", torch.ones_like(ids)).bool()
        read, writes = text.cpu().numpy(), writes_tokens(self.model)
        labels = () if writes else tuple(map(str, dict(getattr(self.model.config, "id2label", None) or {}).values()))
        found = []
        for index, target in enumerate(self.wanted):
            row = Row(
                logits={name: value[index] for name, value in logits.items()},
                text=read[index],
                masks=None if masks is None else masks[index],
                causal=self.causal or self.decodes,
                writes=writes,
                labels=labels,
                ids=ids[index].tolist(),
                reader=self.tokenizer,
            )
            wanted = ("answer" if START in row.logits else "predicted") if target is None else target
            found.append(target_named(wanted, row).resolve(row))
        return found

    def held(self, special_tokens: str) -> Bool[Tensor, "batch seq"]:
        """Tokens that a baseline or an occlusion leaves alone: padding and, if `held`, special tokens."""
        if special_tokens == "moved":
            return ~self.text
        classes = self.token_classes
        if classes is None and self.tokenizer is not None:
            ids, mask = self.inputs["input_ids"].cpu(), self.inputs["attention_mask"].cpu()
            classes = token_classes(ids, mask, self.tokenizer)
        if classes is None:
            raise ConfigError(
                "Special tokens are to stay as they are, but nothing says which they are: pass tokenizer=..., "
                'token_classes in the inputs, or options={"special_tokens": "moved"} to treat them like all others.'
            )
        special = (classes == TokenClass.CLS) | (classes == TokenClass.SEP)
        return special.to(self.text.device) | ~self.text


def make_batch(
    model: nn.Module,
    family: Family | None,
    tensors: Mapping[str, Tensor],
    wanted: Sequence[str | Target | None],
    *,
    tolerance: float,
    tokenizer: Any = None,
) -> Batch:
    """Puts a batch on the model's device.

    A model that writes text from text (T5) is explained at the tokens of `decoder_input_ids`, or at its first one
    without them. A target of None is the head's default.
    """
    device = next(model.parameters()).device
    known = {*accepted_arguments(model), "attention_mask"} - set(_LABELS)
    inputs = {name: value.to(device) for name, value in tensors.items() if name in known}
    if f"{_DECODER}input_ids" not in inputs and base_of(model).config.is_encoder_decoder and writes_tokens(model):
        first = _token_id("decoder_start", model.config, getattr(model, "generation_config", None))
        if first is None:
            raise ConfigError(
                f"{type(model).__name__} doesn't say which token its decoder starts with; give decoder_input_ids."
            )
        inputs[f"{_DECODER}input_ids"] = torch.full((len(inputs["input_ids"]), 1), first, device=device)
    return Batch(
        model=model,
        family=family,
        inputs=inputs,
        wanted=wanted,
        tolerance=tolerance,
        token_classes=tensors.get("token_classes"),
        tokenizer=tokenizer,
        token_ids={name: _token_id(name, tokenizer, getattr(model, "config", None)) for name in ("pad", "mask")},
    )


def writes_tokens(model: Any) -> bool:
    """Whether its logits are those of a vocabulary."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def _token_id(name: str, *sources: Any) -> int | None:
    """The id of a special token, from the first source that knows it."""
    found = (getattr(source, f"{name}_token_id", None) for source in sources)
    return next((int(one) for one in found if one is not None), None)


# Embeddings


def word_table(model: nn.Module) -> Any:
    """The module that embeds the text's tokens: of an encoder-decoder, the encoder's."""
    return _tables(model)[0]


def _tables(model: nn.Module) -> list[Any]:
    """The text's table, and a decoder's where it has one of its own."""
    backbone = base_of(model)
    parts = [backbone]
    if getattr(backbone.config, "is_encoder_decoder", False):
        parts = [backbone.get_encoder(), backbone.get_decoder()]
    try:
        return [part.get_input_embeddings() for part in parts]
    except (AttributeError, NotImplementedError):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no table of word embeddings (get_input_embeddings), so there are no tokens "
            "to explain."
        ) from None


def word_embeddings(batch: Batch) -> Float[Tensor, "batch seq width"]:
    """The text's own word embeddings."""
    if not batch.reads_images:
        found: Tensor = word_table(batch.model)(batch.inputs["input_ids"]).detach()
        return found
    patches = _patches(batch, batch.inputs["pixel_values"])
    return nn.functional.pad(patches, (0, 0, batch.text.shape[1] - patches.shape[1], 0))


def _patches(batch: Batch, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches _"]:
    """What the model's table makes of images' patches."""
    table = word_table(batch.model)
    found: Tensor = table(pixels.to(next(table.parameters()).dtype)).detach()
    return found.flatten(2).transpose(1, 2) if found.dim() == 4 else found


def baseline_embeddings(
    batch: Batch, baseline: str | Tensor, *, special_tokens: str = "held"
) -> Float[Tensor, "batch seq width"]:
    """The word embeddings of a text that says nothing.

    Args:
        batch: the texts.
        baseline: `pad` or `mask`, the embedding of that token at every place (of images `pad`, a patch of the colour
            that the image processor makes 0, the mean one); `zero`; or a vector `[width]`.
        special_tokens: `held` leaves special tokens as they are, so that they get no score: the text's frame is
            part of both ends of the path. `moved` treats them like all others. Padding always stays.
    """
    if special_tokens not in ("held", "moved"):
        raise unknown_name("treatment of special_tokens", special_tokens, ("held", "moved"))
    text = word_embeddings(batch)
    absent = _absent(batch, baseline, text)
    return torch.where(batch.held(special_tokens).unsqueeze(-1), text, absent)


def _absent(batch: Batch, baseline: Any, text: Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        if not baseline.is_floating_point():
            raise ConfigError(
                f"baseline is {baseline.dtype} {list(baseline.shape)}, but gradients need an embedding: give a "
                f"floating-point vector [{text.shape[-1]}], or one of {', '.join(BASELINES)}."
            )
        if baseline.shape != text.shape[-1:]:
            raise ConfigError(f"baseline is {list(baseline.shape)}; word embeddings here are [{text.shape[-1]}].")
        return baseline.to(text)
    if baseline not in BASELINES:
        raise unknown_name("baseline", str(baseline), BASELINES)
    if baseline == "zero":
        return torch.zeros_like(text[0, 0])
    if batch.reads_images:
        if baseline == "mask":
            raise ConfigError("Images have no mask token. Use baseline='pad' (a patch of the mean colour) or 'zero'.")
        return _patches(batch, torch.zeros_like(batch.inputs["pixel_values"][:1]))[0, 0]
    token = batch.token_ids[baseline]
    if token is None:
        raise ConfigError(
            f"baseline={baseline!r} needs the id of the {baseline} token, which neither the model's config nor a "
            "tokenizer gives. Pass tokenizer=... or use baseline='zero'."
        )
    found: Tensor = word_table(batch.model)(torch.tensor([token], device=text.device)).detach()[0]
    return found


class GivenEmbeddings:
    """What stands in for the model's own embeddings in the passes inside `given_embeddings`."""

    def __init__(self, sets: Sequence[Registers], known: Tensor | None = None, *, images: bool = False) -> None:
        self.sets = tuple(sets)
        self.known = known
        """The batch's token ids, to see that an unknown architecture looks up what is thought."""
        self.images = images
        self.words: Tensor | None = None
        """`[batch, seq, width]`, or None for the model's own."""
        self.registers: Sequence[Tensor] = ()
        """Of each set, for each depth at which it joins, `[batch, registers, width]`; empty for the model's own."""
        self._calls = 0

    def learned_registers(self) -> list[Tensor]:
        """The registers' own vectors, `[registers, width]`: of each set, for each depth at which it joins."""
        return [one(1, depth)[0].detach() for one in self.sets for depth in range(_depths(one))]

    def by_register(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores `[batch, registers]` in the order of `learned_registers`, added up over depths: one a register."""
        rest, found = list(scores), []
        for one in self.sets:
            mine, rest = rest[: _depths(one)], rest[_depths(one) :]
            found.append(torch.stack(mine).sum(0))
        return torch.cat(found, dim=1)

    def _restart(self, _module: nn.Module, _args: tuple) -> None:
        self._calls = 0

    def _finish(self, module: nn.Module, _args: tuple, _output: Any) -> None:
        if self.words is not None and not self._calls:
            raise UnsupportedModelError(f"{type(module).__name__} looks no tokens up in its table of word embeddings.")

    def _give_words(self, ids: Tensor, output: Tensor, shifted: bool) -> Tensor | None:
        self._calls += 1
        words = self.words
        if words is not None and self.images:
            count = output[0, 0].numel() if output.dim() == 4 else output.shape[1]
            patches = words[:, words.shape[1] - count :]
            return patches if output.dim() == 3 else patches.transpose(1, 2).reshape(len(patches), *output.shape[1:])
        if words is None or self._calls > (2 if shifted else 1):  # GPT-2 looks its token types up there too
            return None
        if self._calls == 1 and self.known is not None and not _are_rows(ids, self.known, words.shape[1]):
            raise UnsupportedModelError(
                "This architecture embeds its tokens in another order than [rows, seq], so their embeddings can't be "
                "exchanged. Use random, attention or rollout, which leave them as they are."
            )
        if self._calls == 2:  # a decoder that reads the text itself, behind its start token
            words = torch.cat([output[:, :1], words[:, :-1]], dim=1)
        return torch.cat([words, output[:, words.shape[1] :]], dim=1)  # some models pad their text further

    def _give_registers(self, module: nn.Module, args: tuple, _output: Tensor) -> Tensor | None:
        _batch, depth = (*args, 0)[:2]
        before = itertools.takewhile(lambda one: one is not module, self.sets)
        return self.registers[sum(map(_depths, before)) + depth] if self.registers else None


def _depths(registers: Registers) -> int:
    return 1 if registers.deep is None else 1 + len(registers.deep)


@contextmanager
def given_embeddings(batch: Batch) -> Iterator[GivenEmbeddings]:
    """Inside the context, passes of the batch's model run on what is set on the yielded object."""
    backbone = base_of(batch.model)
    known = batch.inputs["input_ids"] if batch.family is None else None
    given = GivenEmbeddings([one for _, one in active_sets(batch.model)], known, images=batch.reads_images)
    tables = {id(table): table for table in _tables(batch.model)}
    shifted = bool(getattr(backbone.config, "is_encoder_decoder", False)) and not batch.decodes
    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(given._restart).remove)
        stack.callback(backbone.register_forward_hook(given._finish).remove)
        for table in list(tables.values())[: 2 if shifted else 1]:
            hook = table.register_forward_hook(lambda _, args, output: given._give_words(args[0], output, shifted))
            stack.callback(hook.remove)
        for one in given.sets:
            stack.callback(one.register_forward_hook(given._give_registers).remove)
        yield given


def _are_rows(ids: Tensor, known: Tensor, length: int) -> bool:
    """Whether each row of what is looked up begins like a text of the batch."""
    if ids.dim() != 2 or ids.shape[1] < length:
        return False
    return bool((ids[:, None, :length] == known[None, :, :length]).all(-1).any(-1).all())
