"""Pages in a browser, judged by axe-core: contrast AA, names, order of headings; in light and dark, on a phone too."""

from importlib import resources

import pytest

from browser import BROWSER, Page
from regtune.report.overlays.page import write_overlay
from report.measured import explanations

pytest.importorskip("axe_core_python", reason="axe-core isn't installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}"
FOUND = (
    f"axe.run(document, {RULES}).then((found) => found.violations.map("
    "(one) => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200), one.nodes[0].failureSummary]))"
)


def faults(page, address):
    page.open(address)
    page.wait("document.readyState === 'complete'")
    page.run("for (const e of document.querySelectorAll('details')) e.open = true")
    page.run(resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8") + "; 0")
    return page.run(FOUND)


@pytest.fixture(params=["light", "dark"])
def browser(request, tmp_path):
    page = Page(tmp_path / "profile", width=1200)
    page.prefer(request.param)
    yield page
    page.close()


def test_axe_finds_what_is_wrong(browser, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text('<!DOCTYPE html><html><title>x</title><p style="color:#aaa;background:#bbb">faint</p>')
    assert {"color-contrast", "html-has-lang"} <= {name for name, *_ in faults(browser, file.as_uri())}


def test_the_report_can_be_read_by_everybody(browser, report):
    assert faults(browser, report.resolve().as_uri()) == []


def test_an_explanation_can_be_read_by_everybody(browser, tmp_path):
    page = write_overlay(tmp_path / "overlay.html", explanations())
    assert faults(browser, page.resolve().as_uri()) == []
