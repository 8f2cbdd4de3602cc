"""Masked language modelling: the words at [MASK], at seeded places that are the same for every model."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regtune.config import Count, DataConfig, Seed, Tokens
from regtune.errors import DataError, UnsupportedModelError, shown
from regtune.interfaces import Examples, Floats, Metric, Rows, Shown, Task
from regtune.noise import Change
from regtune.rows.texts import NOT_SCORED, TextRow
from regtune.tasks.lm import (
    PERPLEXITY,
    SCORED_UNDER_NOISE,
    Document,
    LmSettings,
    blocks,
    encoded,
    first_label,
    given_document,
    labelled_rows,
    noisy_document,
    own_tokens,
    read_documents,
    scored_tokens,
    token_row,
)
from regtune.tasks.text_settings import TextSettings
from regtune.typed import Range

if TYPE_CHECKING:
    from regtune.session import Session

_MASK = "[MASK]"
"""How a person writes it, whatever the tokenizer's is."""


def _share(means: Floats) -> Floats:
    found: Floats = np.asarray(means[..., 0] / np.maximum(means[..., 1], 1e-30))
    return found


MASKED_ACCURACY = Metric(name="masked_accuracy", title="masked accuracy", columns=("right", "tokens"), value=_share)


@dataclass(frozen=True, kw_only=True)
class MlmSettings(TextSettings):
    """What a document is, and what is masked in it."""

    mask_probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15
    """Share of the tokens that are to be predicted: 80 % of them masked, 10 % other tokens, 10 % as they are (BERT)."""
    mask_seed: Seed = 0
    """With a document's id it says which tokens: the same in every epoch, and for every model with that tokenizer."""
    documents: Literal["headings", "paragraphs", "lines"] = LmSettings.documents
    """What a document in a text file is, as in the task `lm`."""
    text_column: str | None = None
    """Column of the text, in files and sets of records; the first of the usual names by default."""
    max_length: Tokens = DataConfig.max_length
    """Longest block of a document in tokens, special tokens included, registers not."""
    batch_size: Count = 16
    """Blocks in a batch at inference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MlmPrediction:
    """How a model predicted the masked tokens of a text."""

    id: str
    nats: float
    """Sum of −log p over them."""
    tokens: int
    """How many there were."""
    right: int
    """How many were the likeliest."""
    text: str | None = None
    """The words at [MASK], where a person wrote some; what they cost is not known."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        if self.text is not None:
            return {"id": self.id, "text": self.text}
        return {"id": self.id, "nats": self.nats, "tokens": self.tokens, "right": self.right}


class MaskedLanguageModelling(Task):
    """The token at [MASK]."""

    name: ClassVar[str] = "mlm"
    title: ClassVar[str] = "masked language modelling"
    head: ClassVar[str] = "AutoModelForMaskedLM"
    settings: ClassVar[type] = MlmSettings
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ("pad",)
    metrics: ClassVar[tuple[Metric, ...]] = (PERPLEXITY, MASKED_ACCURACY)
    examples: ClassVar[str] = "documents"
    said: ClassVar[str] = "text"
    perturbs: ClassVar[tuple[str, ...]] = ("text",)
    under_noise: ClassVar[str] = SCORED_UNDER_NOISE

    def perturb(self, example: Document, change: Change) -> Document:
        """Noise in the text, not in a person's [MASK]. Words that it changes are read, and never masked or scored."""
        masks = [match.span() for match in re.finditer(re.escape(_MASK), example.text)] if example.given else []
        return noisy_document(example, change, masks)

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads what the task `lm` reads; raises as it does."""
        del training
        return read_documents(names, settings, limit)

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[TextRow]:
        """The blocks of every document in which something is masked, or the words that a person left out.

        Raises:
            UnsupportedModelError: the tokenizer has no mask token.
            DataError: a person's text without [MASK].
        """
        del training
        reader, settings = session.reader, session.task_settings
        if reader.mask_token_id is None:
            raise UnsupportedModelError(
                f"The tokenizer of {session.name} has no [MASK] token, so nothing can be masked."
            )
        before, after = _around(reader)
        rows: list[TextRow] = []
        example: list[int] = []
        for number, document in enumerate(examples.items):
            inputs, offsets, labels = _masked(document, reader, settings)
            for start, end, _ in blocks(len(inputs), max(settings.max_length - len(before) - len(after), 1), 0):
                if (labels[start:end] != NOT_SCORED).any():
                    ids = np.array([*before, *inputs[start:end], *after], dtype=np.int32)
                    edges = (len(before), len(after))
                    scored = np.pad(labels[start:end], edges, constant_values=NOT_SCORED)
                    rows.append(token_row(ids, np.pad(offsets[start:end], (edges, (0, 0))), scored))
                    example.append(number)
        explains = None if any(item.given for item in examples.items) else partial(first_label, ahead=0)
        return labelled_rows(rows, example, reader, explains=explains)

    def decode(
        self,
        rows: Rows[TextRow],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[MlmPrediction]:
        """What the masked tokens cost, how many the model found, and its words at a person's [MASK]."""
        found: list[list[Any]] = [[] for _ in examples.items]
        said_of = scored_tokens(rows, outputs, ahead=0)
        for row, example, (costs, said) in zip(rows.rows, rows.example, said_of, strict=True):
            found[example].append((costs, said, row.labels[row.labels != NOT_SCORED]))
        made = []
        for item, parts in zip(examples.items, found, strict=True):
            costs, said, gold = (np.concatenate(column) for column in zip(*parts, strict=True))
            if item.given:
                words = " ".join(session.reader.decode([token]).strip() for token in said.tolist())
                made.append(MlmPrediction(id=item.id, nats=0.0, tokens=0, right=0, text=words))
            else:
                right = int((said == gold).sum())
                made.append(MlmPrediction(id=item.id, nats=float(costs.sum()), tokens=len(gold), right=right))
        return made

    def score(self, predictions: Sequence[MlmPrediction], examples: Examples) -> Mapping[str, Floats]:
        """Nats, masked tokens, and those that were found."""
        del examples
        return {
            name: np.array([getattr(one, name) for one in predictions], dtype=np.float64)
            for name in ("nats", "tokens", "right")
        }

    def example(self, record: Mapping[str, Any], settings: Any) -> Document:
        """From `text`, with [MASK] where words are missing."""
        return given_document(record, settings)

    def shown(self, rows: Rows[TextRow], examples: Examples, session: Session) -> Shown:
        """The words at a person's [MASK]; of a document one of its masks."""
        if examples.items[0].given:
            return super().shown(rows, examples, session)
        return Shown(targets={"masked": first_label(rows.rows[0], ahead=0)}, default=("masked",))


def _masked(
    document: Document, reader: Any, settings: MlmSettings
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, "tokens 2"], Int[np.ndarray, " tokens"]]:
    """Ids with masks, the characters that each spells, and labels; of a person's text the masks that are there."""
    text = document.text.replace(_MASK, reader.mask_token) if document.given else document.text
    found, offsets = encoded(text, reader)
    ids = torch.tensor(found)
    if document.given:
        masks = ids == reader.mask_token_id
        if not masks.any():
            raise DataError(f"The text {shown(document.text)} has no [MASK]. Write [MASK] where a word is missing.")
        return ids.numpy(), offsets, torch.where(masks, ids, NOT_SCORED).numpy()
    special = torch.isin(ids, torch.tensor(sorted(reader.all_special_ids)))
    special |= ~torch.from_numpy(own_tokens(document, offsets))
    if special.all():
        raise DataError(f"The document {document.id} has no token that could be masked: {shown(text)}. Leave it out.")
    seed = zlib.crc32(f"{settings.mask_seed} {document.id}".encode())
    inputs, labels = mask_tokens(
        ids[None],
        special[None],
        probability=settings.mask_probability,
        mask_token_id=reader.mask_token_id,
        vocabulary=len(reader),
        generator=torch.Generator().manual_seed(seed),
    )
    return inputs[0].numpy(), offsets, labels[0].numpy()


def _around(reader: Any) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and behind a text."""
    ids = list(reader("")["input_ids"])
    count = int(bool(ids) and ids[0] in (reader.cls_token_id, reader.bos_token_id))
    return ids[:count], ids[count:]


def mask_tokens(
    ids: Int[Tensor, "batch seq"],
    special: Bool[Tensor, "batch seq"],
    *,
    probability: float,
    mask_token_id: int,
    vocabulary: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Inputs with masks, and labels that are -100 where nothing is to be predicted (Devlin et al. 2019, §3.1).

    At least one token is chosen, so that the loss is a number.
    """
    draw = torch.rand(ids.shape, generator=generator).masked_fill(special, 2.0)
    chosen = draw < max(probability, float(draw.min()) + 1e-6)
    chosen &= ~special
    kind = torch.rand(ids.shape, generator=generator)
    other = torch.randint(vocabulary, ids.shape, generator=generator, dtype=ids.dtype)
    inputs = torch.where(chosen & (kind < 0.8), mask_token_id, ids)
    inputs = torch.where(chosen & (kind >= 0.8) & (kind < 0.9), other, inputs)
    return inputs, torch.where(chosen, ids, -100)
