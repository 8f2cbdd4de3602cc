"""Overlays and the sections on a model's inside in a real browser: seen, coloured, on a phone, without an error."""

import json
import re
from html import escape, unescape

import pytest

from regtune.report.overlays.page import write_overlay
from report.measured import explanations
from report.test_browser import BROWSER, browse

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
PROBE = """<script>
addEventListener("load", () => {
  for (const e of document.querySelectorAll("details")) e.open = true;
  const box = (e) => e.getBoundingClientRect();
  const all = (s) => [...document.querySelectorAll(s)];
  const style = (e, name) => e ? getComputedStyle(e)[name] : "";
  const named = (text) => all(".read mark").find((e) => e.textContent === text);
  const colours = (id) => {
    if (id) document.querySelector(`[id$="${id}"]`).click();
    return ["Who", "brother"].map((text) => style(named(text), "backgroundColor"));
  };
  const ada = named("Ada");
  if (ada) ada.focus();
  const seen = {
    width: document.documentElement.clientWidth,
    scroll: document.documentElement.scrollWidth,
    wide: all(".panel, figure, svg, .strip, .ledger, .ramp").filter((e) => box(e).right > innerWidth + 1).length,
    columns: new Set([...(document.querySelector(".panels") || document.body).children].map(
      (e) => Math.round(box(e).left))).size,
    colours: ada ? [colours(), colours("-blue-orange"), colours("-lines")] : [],
    lines: ["Who", "brother"].map((text) => style(named(text), "textDecorationLine")),
    bar: ada ? getComputedStyle(ada, "::after").content : "",
    focused: document.activeElement === ada,
    title: ada ? ada.title : "",
    gaps: all(".read mark").filter((e) => e.title.startsWith("##")).map(
      (e) => box(e).left - box(e.previousElementSibling).right),
    strips: all(".strip").length,
    ledgers: all(".ledger").filter((e) => box(e).height > 10).length,
    text: Math.min(...all("svg text").map((e) => box(e).height).filter((h) => h > 0)),
    figures: all("svg").filter((e) => box(e).height > 60).length,
  };
  document.documentElement.setAttribute("data-seen", JSON.stringify(seen));
  parent.postMessage(JSON.stringify(seen), "*");
});
</script></body>"""
FRAME = """<!DOCTYPE html><html><body style="margin:0"><script>
addEventListener("message", (e) => document.body.setAttribute("data-seen", e.data));
</script><iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe></body></html>"""


def look(page, folder, width, *options):
    """The page in a frame of that width, since a window can't be as narrow as a phone; what the probe saw in it."""
    probed = page.read_text(encoding="utf-8").replace("</body>", PROBE)
    framed = folder / f"framed-{width}.html"
    framed.write_text(FRAME.format(width=width, page=escape(probed, quote=True)), encoding="utf-8")
    found = browse(framed, folder / f"profile-{width}", "--dump-dom", f"--window-size={width + 20},920", *options)
    assert "CONSOLE" not in found.stderr
    match = re.search(r'<body[^>]* data-seen="([^"]+)"', found.stdout)
    assert match is not None
    return json.loads(unescape(match[1]))


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    return write_overlay(tmp_path_factory.mktemp("overlay") / "why.html", explanations())


def test_tokens_are_highlighted_and_the_palette_changes_without_scripts_of_the_page(overlay, tmp_path):
    seen = look(overlay, tmp_path, 1200)
    usual, blind, lines = seen["colours"]
    assert len({*usual, *blind}) == 4
    assert set(lines) == {"rgba(0, 0, 0, 0)"}
    assert seen["lines"] == ["underline", "overline"]
    assert seen["strips"] == 12
    assert seen["ledgers"] == 8
    assert seen["columns"] == 2


def test_numbers_are_shown_on_hover_and_to_the_keyboard(overlay, tmp_path):
    seen = look(overlay, tmp_path, 1200)
    assert re.match(r"ada: \+[\d.]+ logits, \+[\d.]+ % of all that was booked", seen["title"])
    assert seen["focused"]
    assert seen["bar"].strip('"') == seen["title"]


def test_a_word_is_not_torn_apart(overlay, tmp_path):
    gaps = look(overlay, tmp_path, 1200)["gaps"]
    assert len(gaps) == 16
    assert max(map(abs, gaps)) < 0.5


def test_a_phone_shows_the_overlay_without_sideways_scrolling(overlay, tmp_path):
    seen = look(overlay, tmp_path, 390)
    assert 370 <= seen["width"] <= 390
    assert seen["scroll"] <= seen["width"]
    assert seen["wide"] == 0
    assert seen["columns"] == 1
