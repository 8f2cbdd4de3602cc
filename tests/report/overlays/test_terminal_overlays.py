"""Overlays in the terminal: colours where they are wanted, signed numbers elsewhere, and nothing that acts on it."""

import io
import re

import pytest

from regtune.errors import UnknownNameError
from regtune.report.overlays.terminal import RAMPS, has_colour, overlay_text
from report.measured import CONTEXT, QUESTION, explanations

ANSI = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_colour_tokens_that_count_have_signed_numbers():
    text = overlay_text(explanations(methods=("attnlrp",)), colour=False, width=200)
    assert "\x1b" not in text
    assert re.search(r"\{Ada \+[\d.]+\} Lindqvist", text)
    assert re.search(r"\{brother −[\d.]+\}", text)
    assert re.search(r"one scale a method:\s+attnlrp\s+up\s+to\s+[\d.]+ %", text)
    assert "special tokens: [CLS]" in text
    assert re.search(r"registers: r0 .* r3 ", text)
    assert re.search(r"tokens \S+  registers \S+  positions \+0.4 .* residual \+1.0e-07  = logit", text)


def test_with_colour_the_text_is_whole_and_every_colour_is_closed():
    text = overlay_text(explanations(methods=("attnlrp",), counts=(0,)), colour=True, width=500)
    assert QUESTION in ANSI.sub("", text)
    assert CONTEXT in ANSI.sub("", text)
    green, red = RAMPS["green-red"]
    assert any(f"48;5;{code}mAda\x1b[0m" in text for code in green)
    assert any(f"48;5;{code}mbrother\x1b[0m" in text for code in red)
    for line in text.splitlines():
        assert not ANSI.findall(line) or ANSI.findall(line)[-1] == "\x1b[0m"


def test_the_palette_for_the_colour_blind_has_other_colours():
    blue, orange = RAMPS["blue-orange"]
    text = overlay_text(explanations(), colour=True, palette="blue-orange")
    used = {int(code) for code in re.findall(r"48;5;(\d+)m", text)}
    assert used <= {*blue, *orange}
    assert used & set(blue)
    assert used & set(orange)


@pytest.mark.parametrize("colour", [False, True])
def test_lines_are_no_wider_than_the_terminal(colour):
    lines = overlay_text(explanations(), colour=colour, width=60).splitlines()
    assert max(len(ANSI.sub("", line)) for line in lines) <= 60


def test_control_characters_reach_no_terminal():
    content = explanations()
    content["models"][0] |= {"name": "\x1b]0;owned\x07", "notes": ["a\x1b[2Jb"]}
    content["question"] = QUESTION.replace(" ", "\x1b", 1)
    assert "\x1b" not in overlay_text(content, colour=False)
    assert "\x07" not in overlay_text(content, colour=True)


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(Terminal())
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colour(Terminal())


def test_an_unknown_palette_is_refused():
    with pytest.raises(UnknownNameError, match="palette of the terminal"):
        overlay_text(explanations(), palette="lines")
