"""One batch of texts as a method sees it: how to run the model on it, also changed or in part, and what is wanted."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int8
from torch import Tensor, nn

from regtune.errors import ConfigError
from regtune.families._family import Family
from regtune.targets import END, LOGITS, START, Resolved, Row, Target, TargetError, target_named
from regtune.token_classes import TokenClass, token_classes

_FORWARDED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Texts of one length, padded on the right, and one target for each."""

    model: nn.Module
    family: Family
    inputs: Mapping[str, Tensor]
    """`[batch, seq]` each, on the model's device: what the model takes and `attention_mask`."""
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

    def run(self) -> Any:
        """The model's outputs for the batch."""
        return self.run_rows(None)

    def run_rows(self, rows: Tensor | None, length: int | None = None) -> Any:
        """The outputs for the named rows, in that order and with repetitions, cut to a length that holds their text."""
        accepted = inspect.signature(self.model.forward).parameters
        arguments: dict[str, Any] = {name: value for name, value in self.inputs.items() if name in accepted}
        if rows is not None:
            arguments = {name: value[rows, :length] for name, value in arguments.items()}
        if "use_cache" in accepted:
            arguments["use_cache"] = False
        return self.model(**arguments, return_dict=True)

    def resolve(self, outputs: Mapping[str, Tensor]) -> list[Resolved]:
        """The rows' targets with everything filled in."""
        names = [name for name in (START, END, LOGITS) if name in outputs]
        logits = {name: outputs[name].detach().double().cpu().numpy() for name in names}
        text, mask_id = self.text.cpu().numpy(), self.token_ids["mask"]
        ids = self.inputs["input_ids"].cpu().numpy()
        found = []
        for index, target in enumerate(self.wanted):
            row = Row(
                logits={name: value[index] for name, value in logits.items()},
                text=text[index],
                masks=None if mask_id is None else text[index] & (ids[index] == mask_id),
                causal=self.family.causal,
            )
            found.append(target_named(self._default(row) if target is None else target).resolve(row))
        return found

    def held(self, special_tokens: str) -> Bool[Tensor, "batch seq"]:
        """Tokens that a baseline or an occlusion leaves alone: padding and, if `held`, special tokens.

        Raises:
            ConfigError: nothing says which tokens are special.
        """
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

    def _default(self, row: Row) -> str:
        if START in row.logits:
            return "answer"
        if LOGITS not in row.logits:
            raise TargetError("This model has no head, so it gives no logits to explain. Load it with a task's head.")
        if row.logits[LOGITS].ndim == 1:
            return "class"
        if self.family.causal:
            return "next-token"
        if row.logits[LOGITS].shape[-1] == self.model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
            return "masked-token"
        raise TargetError("This head gives tags for every token; name one: target=TokenTag(position=...).")


def make_batch(
    model: nn.Module,
    family: Family,
    tensors: Mapping[str, Tensor],
    wanted: Sequence[str | Target | None],
    *,
    tolerance: float,
    tokenizer: Any = None,
) -> Batch:
    """Puts a batch on the model's device.

    Args:
        model: the model.
        family: its family.
        tensors: `input_ids`, `attention_mask` and what else there is, `[batch, seq]` each.
        wanted: a target for each row, None for the default.
        tolerance: largest residual that is allowed, as a share.
        tokenizer: says which ids are special, unless `token_classes` are given.
    """
    device = next(model.parameters()).device
    return Batch(
        model=model,
        family=family,
        inputs={name: tensors[name].to(device) for name in _FORWARDED if name in tensors},
        wanted=wanted,
        tolerance=tolerance,
        token_classes=tensors.get("token_classes"),
        tokenizer=tokenizer,
        token_ids={name: _token_id(name, model, tokenizer) for name in ("pad", "mask")},
    )


def _token_id(name: str, model: nn.Module, tokenizer: Any) -> int | None:
    for source in (tokenizer, getattr(model, "config", None)):
        found = getattr(source, f"{name}_token_id", None)
        if found is not None:
            return int(found)
    return None
