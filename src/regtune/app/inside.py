"""One text inside a model: attention, norms and the registers' words, as blocks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regtune.analyses.artefacts.sites import BlockStates, watch_blocks
from regtune.analyses.attention.tap import attention_tap, registers_first
from regtune.analyses.batches import run_backbone
from regtune.analyses.pictures import heat_map, numbered, over_picture, percent
from regtune.analyses.registers.lens import lens_of_batch
from regtune.interfaces import Batch, Block
from regtune.registers.surgery import active_registers, find_registers
from regtune.rows.token_classes import TokenClass, is_content, patch_names
from regtune.session import Session
from regtune.tables import Column

_LARGEST_MAP = 48
"""Tokens and registers; a larger map of a head could not be read."""
_LISTED = 10
"""Tokens that receive most."""


def places_of(session: Session, batch: Batch) -> dict[str, str]:
    """Key to name of everything that takes part in attention, in its order: `r0` is a register, `3` a token."""
    registers = active_registers(session.model)
    count = 0 if registers is None else registers.num_registers
    if "patch_grid" in batch:
        tokens: Sequence[str] = patch_names(batch["token_classes"][0], _grid(batch))
    else:
        tokens = session.reader.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    return {f"r{n}": f"register {n}" for n in range(count)} | {str(n): token for n, token in enumerate(tokens)}


def attention_blocks(session: Session, batch: Batch, *, layer: int, head: int | None, place: str) -> list[Block]:
    """What one token attends to: on the text, by layer and head, and in numbers.

    Args:
        session: the model.
        batch: one row.
        layer: from 0; the last one there is where it has fewer.
        head: from 0; None for their mean.
        place: a key of `places_of`; the first token of the text where there is no such place.
    """
    places = places_of(session, batch)
    keys, names = list(places), list(places.values())
    asking = place if place in places else "0"
    row, registers = keys.index(asking), find_registers(session.model)
    first = sum(key.startswith("r") for key in keys)
    rows: list[Tensor] = []
    maps: list[Tensor] = []

    def read(number: int, weights: Tensor, _values: Tensor, _module: Any) -> None:
        ordered = registers_first(weights, registers, 2, 3)[0].float()
        rows.append(ordered[:, row].cpu())
        maps[:] = [ordered.cpu()] if number <= layer else maps

    with torch.no_grad(), attention_tap(session.model, read):
        run_backbone(session.model, batch)
    layer, chosen = min(layer, len(rows) - 1), maps[0]
    head = None if head is None else min(head, len(chosen) - 1)
    one = (chosen.mean(0) if head is None else chosen[head]).numpy()
    by_head = torch.stack(rows).numpy()
    where = f"layer {layer}, " + ("mean over heads" if head is None else f"head {head}")
    axes = {"rows": numbered("layer", by_head.shape[0]), "columns": numbered("head", by_head.shape[1])}
    order = np.argsort(-one[row], kind="stable")[:_LISTED]
    title = f"{names[row]} attends to ({where})"
    found = [*_on_image(title, batch, one[row][None]), _on_text(title, *_worded(batch, keys, names, one[row]), asking)]
    found += [
        Block(
            kind="table",
            title="It attends most to",
            columns=("token", Column("share", lambda share: f"{percent(share)} %")),
            rows=tuple((f"{names[n]} ({keys[n]})", float(one[row, n])) for n in order),
        ),
        _map(f"Largest share of {names[row]}'s attention that one token gets, in %", by_head.max(-1), **axes),
    ]
    if first:
        found.append(_map(f"{names[row]}'s attention to registers, in %", by_head[..., :first].sum(-1), **axes))
    if len(keys) <= _LARGEST_MAP:
        labels = [f"r{n}" if n < first else name for n, name in enumerate(names)]
        found.append(_map(f"Who attends to whom ({where}), in %", one, rows=("from", labels), columns=("to", labels)))
    return found


def _grid(batch: Batch) -> tuple[int, int]:
    rows, columns = batch["patch_grid"][0].tolist()
    return int(rows), int(columns)


def _on_image(
    title: str, batch: Batch, values: Float[np.ndarray, "maps total"], names: Sequence[str] = ("share",)
) -> list[Block]:
    """Values of every place as heat over the picture's patches; nothing where a text was read."""
    if "picture" not in batch:
        return []
    grid = _grid(batch)
    maps = values[:, -grid[0] * grid[1] :].reshape(-1, *grid).astype(np.float64)
    return [
        Block(
            kind="figure",
            title=title,
            text=f"Largest patch: {maps.max():.3g}.",
            draw=over_picture(batch["picture"][0].numpy(), maps, names),
            data={"grid": list(grid), "maps": maps.tolist()},
        )
    ]


def _worded(
    batch: Batch, keys: Sequence[str], names: Sequence[str], shares: np.ndarray
) -> tuple[Sequence[str], Sequence[str], np.ndarray]:
    """The places that are shown in words: all, or without the patches of a picture."""
    if "picture" not in batch:
        return keys, names, shares
    count = len(keys) - int(np.prod(_grid(batch)))
    return keys[:count], names[:count], shares[:count]


def _map(title: str, values: Float[np.ndarray, "rows columns"], **axes: Any) -> Block:
    return Block(
        kind="figure",
        title=title,
        text=f"Largest: {percent(float(values.max()))} %.",
        draw=heat_map(values, **axes),
        data=values.tolist(),
    )


def _on_text(title: str, keys: Sequence[str], names: Sequence[str], shares: np.ndarray, asking: str) -> Block:
    """Tokens and registers as strips that can be clicked; dark is much."""
    most = float(shares.max(initial=0.0)) or 1.0
    strips = {"Registers": "", "Text": ""}
    for key, name, share in zip(keys, names, shares.tolist(), strict=True):
        chosen = key == asking
        shown = f"{escape(name.replace('register ', 'r'))} {percent(share)}"
        strips["Registers" if key.startswith("r") else "Text"] += (
            f'<mark class="p{" s" if chosen else ""}" role="button" tabindex="0" aria-pressed="{str(chosen).lower()}" '
            f'data-place="{key}" style="--a:{(share / most) ** 0.5:.3g}" '
            f'title="{escape(name)}: {percent(share)} %">{shown}</mark>\n'
        )
    made = "".join(
        f'<div class="strip"><span class="tag">{tag}</span>{marks}</div>' for tag, marks in strips.items() if marks
    )
    return Block(
        kind="figure",
        title=title,
        text="In percent; colour grows with the square root. Underlined: the token that attends. Click another one.",
        html=f'<div class="overlay">{made}</div>\n',
        data={"from": asking, "to": dict(zip(keys, shares.tolist(), strict=True)), "names": list(names)},
    )


def norm_blocks(session: Session, batch: Batch) -> list[Block]:
    """How large the state of every token and register is behind each block."""
    found: list[Tensor] = []

    def see(states: BlockStates) -> None:
        found.append(states.sites["block"][0].float().norm(dim=-1).cpu())

    with watch_blocks(session.model, see):
        run_backbone(session.model, batch)
    norms = torch.stack(found).double().numpy()
    names = list(places_of(session, batch).values())
    first = norms.shape[1] - batch["token_classes"].shape[1]
    kinds = batch["token_classes"][0]
    content = np.flatnonzero(is_content(kinds).numpy()) + first
    special = np.flatnonzero(((kinds >= TokenClass.CLS) & ~is_content(kinds)).numpy()) + first
    rows = []
    for layer, values in enumerate(norms):
        median = float(np.median(values[content])) if len(content) else None
        top = int(content[values[content].argmax()]) if len(content) else int(values.argmax())
        rows.append(
            (
                str(layer),
                median,
                f"{values[top]:.3g} ({names[top]})",
                None if not median else float(values[top] / median),
                float(values[special].mean()) if len(special) else None,
                *([float(values[:first].mean())] if first else []),
            )
        )
    labels = [f"r{n}" if n < first else name for n, name in enumerate(names)]
    by_layer = [f"layer {n}" for n in range(len(norms))]
    return [
        *_on_image("Norm of every patch's state behind each block", batch, norms, by_layer),
        Block(
            kind="figure",
            title="Norm of every token's state behind each block",
            text=f"Largest: {norms.max():.3g}.",
            draw=heat_map(
                norms,
                rows=numbered("layer", len(norms)),
                columns=("token", labels),
                form=lambda value: f"{value:.3g}",
            ),
            data={"tokens": labels, "norms": norms.tolist()},
        ),
        Block(
            kind="table",
            title="Norms, layer by layer",
            columns=(
                *("layer", "median of content", "largest of content", "largest / median", "special tokens"),
                *(["registers"] if first else []),
            ),
            rows=tuple(rows),
            text="A token whose norm is many times the median is an artefact; registers are meant to take its place.",
        ),
    ]


def lens_blocks(session: Session, batch: Batch) -> list[Block]:
    """The words of the vocabulary that each register's state is nearest to, at every depth, on this text, set by set.

    Raises:
        UnsupportedModelError: the model has no registers, or they are switched off.
    """
    return [block for lens in lens_of_batch(session.model, batch, session.reader, top=3) for block in lens.blocks()]
