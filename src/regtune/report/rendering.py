"""Blocks as HTML and files, the templates, and files written with words where they can't be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from html import escape
from itertools import count, groupby
from pathlib import Path
from typing import Any

from regtune.errors import DataError, MissingExtraError
from regtune.interfaces import Block
from regtune.records import write_bytes
from regtune.report.figures import drawn, standalone

SCOPE = "regtune"
"""The class of the element that holds blocks in somebody else's page."""
_SHOWN = count(1)
"""Numbers what is shown, so that ids in one page differ."""


def environment() -> Any:
    """jinja2's, with the report's templates; everything is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "The report") from error
    return Environment(
        loader=PackageLoader("regtune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(blocks: Iterable[Block], prefix: str, files: dict[str, str]) -> str:
    """Blocks as HTML, figures that follow each other side by side.

    Args:
        blocks: as analyses and the report make them.
        prefix: names what has no name of its own.
        files: gets each table as `tables/NAME.csv` and each figure as `figures/NAME.svg`.
    """
    named = [
        block if block.name else replace(block, name=f"{prefix}-{number}")
        for number, block in enumerate(blocks, start=1)
    ]
    made = []
    for side_by_side, group in groupby(named, key=lambda block: block.draw is not None):
        parts = [_html(block, files) for block in group]
        made.append(f'<div class="figures">\n{"".join(parts)}</div>\n' if side_by_side else "".join(parts))
    return "".join(made)


def fragment(blocks: Iterable[Block]) -> str:
    """Blocks as HTML for somebody else's page (a notebook's cell), with the styles that they need."""
    made = render(blocks, f"shown-{next(_SHOWN)}", {})
    return f'<div class="{SCOPE}">\n<style>\n{scoped_style()}</style>\n{made}</div>\n'


def scoped_style() -> str:
    """The report's styles for what is inside an element of the class `SCOPE`; nothing else on the page changes."""
    loader = environment().loader
    css = "".join(loader.get_source(None, name)[0] for name in ("report.css", "overlay.css"))
    own = re.sub(r"(?m)^(\s*)(?::root|body|html)(?= )", r"\1&", css)
    return f".{SCOPE} {{\n{own}}}\n"


def _html(block: Block, files: dict[str, str]) -> str:
    title = escape(block.title)
    text = "".join(f'<p class="note">{escape(note)}</p>\n' for note in block.notes)
    if block.draw is not None:
        svg = drawn(block, block.name)
        files[f"figures/{block.name}.svg"] = standalone(svg)
        return f"<figure><figcaption>{title}</figcaption>{svg}</figure>\n"
    if block.kind == "table":
        files[f"tables/{block.name}.csv"] = block.table.csv
        made = f"{block.table.html}\n"
    elif block.html is not None or block.kind == "text":
        made = (text if block.folded or not title else f"<h4>{title}</h4>\n{text}") + (block.html or "")
    else:
        made = f"<h4>{title}</h4>\n{_overlays(block)}"
    return f"<details><summary>{title}</summary>\n{made}</details>\n" if block.folded else made


def _overlays(block: Block) -> str:
    from regtune.report.overlays.page import make_overlays

    template = environment().get_template("overlay_parts.html.j2").module
    return "".join(template.overlay(one, "h4") for one in make_overlays(block.data, prefix=block.name))


def write(path: Path, text: str) -> Path:
    """Writes a file, and its folder if there is none; a reader sees the old page or the whole new one."""
    try:
        return write_bytes(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}. Name another output folder.") from error
