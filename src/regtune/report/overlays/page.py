"""Overlays as HTML: tokens highlighted over the real text, strips for what is no text, the ledger beneath.

One scale a method: the darkest colour is the largest share, of all that the method booked, that a piece of text has for
any target and model. Colour grows with the square root of the share, so that middling words show beside strong ones.
Which colours is chosen in the page, without scripts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from regtune.errors import unknown_name
from regtune.records import versions
from regtune.report.overlays.pictures import METHOD_WORDS, SHARES, Model, Panel, Picture, read_pictures
from regtune.report.overlays.words import Piece
from regtune.report.rendering import environment, write
from regtune.tables import Table

PALETTES = {"green-red": "green / red", "blue-orange": "blue / orange", "lines": "lines only"}
"""What can be chosen in the page, and what it starts with."""
LINES_FROM = 0.2
"""Strength of the colour from which on a token is also under- or overlined."""
_STOPS_FROM = 0.3
"""Strength of the colour from which on a token is a stop of the Tab key."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A picture for the templates."""

    uid: str
    """Starts the ids of its radio buttons."""
    picture: Picture
    palette: str

    @property
    def palettes(self) -> dict[str, str]:
        """All palettes."""
        return PALETTES

    @property
    def methods(self) -> list[tuple[str, str, list[tuple[Model, str, Panel | None]]]]:
        """Name, words and panels of each method: target by target, the models side by side."""
        return [
            (
                method,
                METHOD_WORDS.get(method, ""),
                [(model, target, model.panel(method, target)) for target in asked for model in self.picture.models],
            )
            for method, asked in self.picture.rows.items()
        ]

    def marks(self, panel: Panel, pieces: tuple[Piece, ...]) -> str:
        """The pieces as HTML; the only place where it is made outside a template, since no space may be added."""
        return "".join(self._mark(panel, piece) for piece in pieces)

    def _mark(self, panel: Panel, piece: Piece) -> str:
        text = escape(piece.text)
        if piece.score is None:
            return f"<u>{text}</u>" if piece.marked else text
        strength = float(f"{self.strength(panel, piece.score):.3g}")
        kind = " ".join(
            name
            for name, holds in (
                ("n" if piece.score < 0 else "p", True),
                ("s", strength >= LINES_FROM),
                ("a", piece.marked),
            )
            if holds
        )
        stop = 0 if strength >= _STOPS_FROM else -1
        title = escape(f"{piece.token}: {self.numbers(panel, piece.score)}")
        return f'<mark class="{kind}" style="--a:{strength:g}" title="{title}" tabindex="{stop}">{text}</mark>'

    def signed(self, value: float) -> str:
        """For templates."""
        return signed(value)

    def share(self, panel: Panel, score: float) -> str:
        """For templates."""
        return percent(panel.share(score))

    def strength(self, panel: Panel, score: float) -> float:
        """How dark, from 0 to 1; strips may exceed the scale and then are as dark as it gets."""
        return strength(panel.share(score), self.picture.scales[panel.method])

    def ticks(self, method: str) -> list[str]:
        """Shares at the ends, quarters and middle of a method's ramp."""
        scale = self.picture.scales[method]
        ends = (-scale, -scale / 4, 0.0)
        return [percent(share) for share in (*ends, *(-share for share in reversed(ends[:2])))]

    def numbers(self, panel: Panel, score: float) -> str:
        """A score in words."""
        share = percent(panel.share(score))
        if panel.method in SHARES:
            return share
        return f"{signed(score)} {panel.unit}, {share} of all that was booked"

    def table(self, model: Model) -> Table:
        """Every number of a model that has any: a row a token and register, a column a method and target."""
        first = model.panels[0]
        names = [token for token, _ in first.tokens] + [_register(name) for name, _ in first.registers]
        columns = [
            [percent(panel.share(score)) for _, score in (*panel.tokens, *panel.registers)] for panel in model.panels
        ]
        return Table(
            columns=("token", *(f"{panel.method}, {panel.asked}" for panel in model.panels)),
            rows=tuple(zip(names, *columns, strict=True)),
            notes=("Shares of everything that was booked, in percent.",),
        )


def _register(name: str) -> str:
    """A register's name in full."""
    return f"register {name[1:]}" if name.startswith("r") else f"decoder's register {name[1:]}"


def overlay_page(content: Any, *, palette: str = "green-red", source: str = "the explanations") -> str:
    """Explanations (as `regtune.report.overlays.pictures` says) as one HTML document that needs nothing else."""
    template = environment().get_template("overlay.html.j2")
    overlays = make_overlays(content, palette=palette, source=source)
    text: str = template.render(overlays=overlays, made_with=f"regtune {versions()['regtune']}")
    return text


def write_overlay(path: Path, content: Any, *, palette: str = "green-red") -> Path:
    """Writes `overlay_page` to a file and returns its path."""
    return write(path, overlay_page(content, palette=palette))


def make_overlays(
    content: Any, *, palette: str = "green-red", source: str = "the explanations", prefix: str = "overlay"
) -> tuple[Overlay, ...]:
    """The pictures of the content with ids that start with `prefix`."""
    if palette not in PALETTES:
        raise unknown_name("palette", palette, PALETTES)
    pictures = read_pictures(content, source)
    return tuple(
        Overlay(uid=f"{prefix}-{number}", picture=one, palette=palette) for number, one in enumerate(pictures, start=1)
    )


def strength(share: float, scale: float) -> float:
    """How dark a share is, from 0 to 1."""
    return min(1.0, math.sqrt(abs(share) / scale))


def signed(value: float) -> str:
    """A number with its sign and three digits that count."""
    if value == 0:
        return "0"
    text = f"{value:+.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:+.1e}"
    return text.replace("-", "−", 1) if value < 0 else text


def percent(share: float) -> str:
    """A share in percent with its sign."""
    text = f"{100 * share:+.1f} %"
    return "0.0 %" if text[1:] == "0.0 %" else text.replace("-", "−")
