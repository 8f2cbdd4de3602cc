"""Does an analysis keep what `Analysis` promises? It measures the same twice, changes nothing, and can be drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from regtune.analyses.inspection import PartRecord, inspect, read_record
from regtune.interfaces import Analysis, Block, Need
from regtune.registry import ANALYSES
from regtune.session import Session
from regtune.session import open as open_session
from regtune.testing.broken import Broken


def check_analysis(
    name: str,
    model: str | Path | Session,
    data: Sequence[str | Path] = (),
    *,
    settings: Any = None,
    limit: int | None = None,
) -> None:
    """Checks everything that an analysis promises, on one model and a few examples.

    Twice the same numbers, one for each example or none; a model that is left as it was, hooks and mode included; a
    record that is read back as it was written; blocks of a known kind that terminal, page and figure can draw.

    Args:
        name: of the registered analysis.
        model: as `inspect` takes it, with what the analysis needs.
        data: data sets or text files, as `inspect` takes them.
        settings: the analysis's; by default its defaults.
        limit: use so many examples.

    Raises:
        BrokenInvariantError: everything that doesn't hold, with what was measured.
        DataError: the model or the data can't be measured at all, and why.
    """
    analysis: Analysis = ANALYSES.get(name)
    settings = analysis.settings() if settings is None else settings
    broken = Broken(f"The analysis {name!r}")
    broken.declared(analysis, settings)
    strange = sorted(set(analysis.needs) - set(get_args(Need)))
    broken.require(not strange, f"needs {strange}, which nothing has; there are {', '.join(get_args(Need))}")
    session = model if isinstance(model, Session) else open_session(model)
    with torch.no_grad():  # transformers hangs hooks of its own at the first pass that is asked for states, for good
        first = session.sample(list(map(str, data)), 1)
        session.forward(session.rows(first).batch([0]), output_hidden_states=True)
    before = _state(session.model)
    records: list[PartRecord] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "second"):
            found = inspect(
                session,
                parts=[name],
                data=list(map(str, data)),
                limit=limit,
                settings={name: settings},
                output_dir=Path(folder) / turn,
            )
            records += found.records
            broken.require(_state(session.model) == before, "the model must be left as it was: weights, mode and hooks")
            again = read_record(Path(folder) / turn / f"{name}.json")
            broken.require(again == found.records[0], "the record isn't what is read back from its file")
    broken.require(records[0].measures == records[1].measures, "a second measurement must give the same numbers")
    _check_blocks(broken, records[0])
    broken.tell()


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Weights, flags, modes and hooks, as something to be compared."""
    weights = {key: (value.sum().item(), value.abs().sum().item()) for key, value in model.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    modes = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()
    ]
    return weights, flags, modes


def _check_blocks(broken: Broken, record: PartRecord) -> None:
    blocks: list[Block] = []
    with broken.trying("blocks"):
        blocks = record.blocks()
    broken.require(bool(blocks), "there must be a block for a person to see")
    for block in blocks:
        with broken.trying(f"block {block.title!r}"):
            if block.kind == "table":
                text = block.table
                broken.require(bool(text.text and text.html and text.csv), f"{block.title!r} is an empty table")
            elif block.kind == "figure":
                broken.require(
                    any(each is not None for each in (block.draw, block.html, block.data)),
                    f"{block.title!r} has nothing to draw",
                )
                _draw(block)
            else:
                broken.require(block.kind == "text", f"{block.title!r} is a {block.kind!r}, which is no kind of block")
            str(block)


def _draw(block: Block) -> None:
    if block.draw is not None:
        from matplotlib.figure import Figure

        figure = Figure()
        block.draw(figure.subplots())
        figure.canvas.draw()
