"""The documentation's site: what its pages are made of, and that they load nothing from elsewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import regtune

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "regtune"


def module(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def sentences(monkeypatch):
    return module("error_sentences", monkeypatch)


@pytest.fixture
def pages(monkeypatch):
    pytest.importorskip("mkdocs")
    return module("site_pages", monkeypatch)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\\(.)", r"\1", re.sub(r"</?b>", "", text)))


def test_the_page_of_troubleshooting_has_what_every_error_says(sentences):
    page, found = plain(sentences.page()), 0
    errors = {name for name in vars(importlib.import_module("regtune.errors")) if name.endswith("Error")}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.exc if isinstance(node, ast.Raise) else None
            name = getattr(called.func, "id", "") if isinstance(called, ast.Call) and called.args else ""
            if name in errors - {"MissingExtraError"}:
                message = called.args[0]
                parts = message.values if isinstance(message, ast.JoinedStr) else [message]
                for part in parts:
                    if isinstance(part, ast.Constant):
                        found += 1
                        # a full stop ends what is wrong; behind it stands the remedy
                        for piece in plain(str(part.value)).strip().split(". "):
                            assert piece in page, f"{path}: {piece}"
    assert found > 500


def test_a_new_error_is_on_the_page_with_its_remedy_and_its_module_and_nothing_is_run(sentences, tmp_path):
    (tmp_path / "errors.py").write_text('class DataError(Exception):\n    """x"""\n')
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(
        'AGAIN = "Copy it again."\n1 / 0\n'
        'def f(path):\n    raise DataError(f"{path.name} holds *no* {len(path)} [rows]. {AGAIN}")\n'
        'def g():\n    raise ValueError("of no interest")\n'
    )
    page = sentences.page(tmp_path)
    line = r"- *name* holds \*no\* *number* \[rows\]. <b>Copy it again.</b> (`DataError`, `tasks/mine`)"
    assert line in page
    assert "## Reading data" in page
    assert "## Training" not in page
    assert "of no interest" not in page


def test_the_api_page_has_every_public_name_once():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: regtune\.(\w+)$", page, re.MULTILINE)) == sorted(regtune.__all__)


@pytest.mark.parametrize(
    "loading",
    [
        '<script src="https://unpkg.com/shim"></script>',
        '<link rel="stylesheet" href="//fonts.googleapis.com/css">',
        '<img alt="" src=http://example.com/a.png>',
        '<style>@import "https://example.com/a.css";</style>',
        "<style>p{background:url(https://example.com/a.png)}</style>",
    ],
)
def test_a_page_that_loads_from_elsewhere_stops_the_build(pages, tmp_path, loading):
    page = tmp_path / "index.html"
    page.write_text('<a href="https://arxiv.org">paper</a><img src="a.png"><link rel="canonical" href="https://x.y">')
    pages.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    page.write_text(loading)
    with pytest.raises(Exception, match="would load from other hosts"):
        pages.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("own", "link", "turned"),
    [
        ("architecture.md", "[a](../src/regtune/registry.py)", "[a](src/regtune/registry.py.md)"),
        ("architecture.md", "[a](../src/regtune/families/)", "a"),
        ("architecture.md", "[a](../README.md)", "[a](index.md)"),
        ("changelog.md", "[a](docs/security.md)", "[a](security.md)"),
        ("results/inside.md", "[a](../explaining.md#attention)", "[a](../explaining.md#attention)"),
        ("results/inside.md", "[a](https://arxiv.org)", "[a](https://arxiv.org)"),
        ("architecture.md", "```\n[a](../src/regtune/families/)\n```", "```\n[a](../src/regtune/families/)\n```"),
    ],
)
def test_links_into_the_repository_lead_to_pages_or_become_text(pages, own, link, turned):
    there = {"index.md", "security.md", "explaining.md", "src/regtune/registry.py.md"}
    files = SimpleNamespace(get_file_from_path=lambda place: place if place in there else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=own))
    assert pages.on_page_markdown(link, page, files) == turned
