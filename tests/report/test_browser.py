"""The page in a real browser: verdict seen, figures drawn, no error, nothing runs off a narrow screen."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
PROBE = """<script>
addEventListener("load", () => {
  for (const e of document.querySelectorAll("details")) e.open = true;
  const box = (e) => e.getBoundingClientRect();
  const seen = {
    width: document.documentElement.clientWidth,
    scroll: document.documentElement.scrollWidth,
    figures: [...document.querySelectorAll("svg")].map((e) => [box(e).width, box(e).height]),
    verdict: box(document.querySelector(".verdict")).top,
    font: Math.min(...[...document.querySelectorAll("svg text")].map((e) => box(e).height)),
  };
  parent.document.body.setAttribute("data-seen", JSON.stringify(seen));
});
</script></body>"""
FRAME = '<!DOCTYPE html><body style="margin:0"><iframe style="border:0" width="{width}" height="844" srcdoc="{page}">'
"""A window of the browser has at least 500 pixels; a frame has as many as it is given, and lays the page out in it."""


def browse(page, profile, *options):
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--v=0",
        *options,
        page.resolve().as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)


def test_the_browser_shows_the_verdict_and_the_figures_without_an_error(report, tmp_path):
    shot = tmp_path / "page.png"
    found = browse(report, tmp_path / "profile", "--dump-dom", f"--screenshot={shot}", "--window-size=1200,1600")
    assert "Registers help at N = 16" in found.stdout
    assert found.stdout.count("<svg") == 4
    assert "CONSOLE" not in found.stderr
    assert shot.stat().st_size > 20_000


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_runs_off_the_screen(report, tmp_path, width):
    page = report.read_text(encoding="utf-8").replace("</body>", PROBE)
    framed = tmp_path / "framed.html"
    framed.write_text(FRAME.format(width=width, page=escape(page)), encoding="utf-8")
    found = browse(framed, tmp_path / "profile", "--dump-dom", f"--window-size={width},844")
    match = re.search(r'data-seen="([^"]+)"', found.stdout)
    assert match is not None
    seen = json.loads(unescape(match[1]))
    assert width - 20 <= seen["width"] <= width
    assert seen["scroll"] <= seen["width"]
    assert all(0 < w <= seen["width"] and h > 150 for w, h in seen["figures"])
    assert seen["verdict"] < 300
    assert seen["font"] >= 8
