"""The page and its server: what is refused, what is saved, and a person who clicks through it in a browser."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import threading

import pytest

from browser import BROWSER, Page, choose, click, fill
from regtune.app.serve import explore
from regtune.cli.main import main
from regtune.errors import ConfigError

pytest.importorskip("gradio", reason="the extra `app` isn't installed")
pytestmark = pytest.mark.filterwarnings("ignore:::(gradio|starlette|fastapi|uvicorn|websockets)")


@pytest.fixture(scope="module")
def address(runs):
    """The explorer of both runs, served by another process as a person starts it."""
    command = [sys.executable, "-m", "regtune", "explore", str(runs[0]), "--compare", str(runs[1]), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + process.stderr.read()
    yield found[0]
    process.terminate()
    process.communicate(timeout=60)


# What is refused


def test_a_port_in_use_is_refused_before_a_model_is_opened(capsys, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["explore", str(tmp_path), "--port", str(port)]) == 2
    assert re.search(rf"Port {port} of 127.0.0.1 can't be had: .*in use.*--port {port + 1}", capsys.readouterr().err)


def test_a_public_address_needs_share(capsys, tmp_path):
    for host in ("0.0.0.0", "192.168.1.5", "example.org"):
        assert main(["explore", str(tmp_path), "--host", host]) == 2
        assert "add --share" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="Port 70000 doesn't exist"):
        explore(tmp_path, port=70_000)


def test_a_folder_without_a_run_and_one_that_is_not_there_are_refused(capsys, tmp_path):
    assert main(["explore", str(tmp_path), "--port", "0"]) == 1
    assert "neither a run directory nor a model" in capsys.readouterr().err
    assert main(["explore", "./nowhere"]) == 1
    assert "not a folder with a model in it" in capsys.readouterr().err


def test_without_the_extra_the_sentence_names_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["explore", str(tmp_path), "--port", "0"]) == 1
    assert "pip install 'regtune[app]'" in capsys.readouterr().err


# What is saved


def test_what_is_shown_can_be_saved_as_a_page_as_pictures_and_as_json(alone):
    from regtune.app.explorer import Change
    from regtune.app.page import as_html

    given = {"question": "Who is it?", "context": "It is Ann {{constructor}} ${alert(1)} <b>x</b>."}
    html = as_html(alone.norms(given, Change()), "norms")
    saved = {
        name: base64.b64decode(raw).decode()
        for name, raw in re.findall(r'<a download="([^"]+)" href="data:[^,]+,([^"]+)"', html)
    }
    assert list(saved) == ["norms.html", "norms.json", "norms-1.svg"]
    assert saved["norms-1.svg"].startswith("<svg")
    assert saved["norms.html"].startswith("<!DOCTYPE html>")
    assert "<svg" in saved["norms.html"]
    figure, table = json.loads(saved["norms.json"])
    assert len(figure["data"]["norms"]) == len(table["rows"]) == alone.layers
    shown = as_html(alone.relevance(given, Change()), "relevance").partition("Save: ")[0]
    assert "{{" not in shown
    assert "${" not in shown
    assert "<b>x" not in shown


# A person in a browser


SHOWN = "document.querySelector('#shown').innerText"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_person_clicks_through_every_view_with_no_network(address, tmp_path):
    page = Page(tmp_path / "profile")
    try:
        page.open(address)
        fill(page, "question", "Who lives in house 3?")
        fill(page, "context", "The cat is in the house. Dan lives in {{house}} 3.")
        click(page, "document.querySelector('#look')")
        page.wait(f"{SHOWN}.includes('A: 2 registers') && {SHOWN}.includes('B: no registers')")
        choose(page, "#knocked-out", "register 1")
        page.wait(f"{SHOWN}.includes('A: 2 registers, without 1')")
        choose(page, "#registers-on", "registers on")
        page.wait(f"!{SHOWN}.includes('A: 2 registers, without 1')")
        choose(page, "#registers-on", "registers on")
        page.wait(f"{SHOWN}.includes('A: 2 registers, without 1')")

        choose(page, "#view", "relevance")
        page.wait("document.querySelectorAll('#shown .ledger').length >= 2")
        assert page.run("document.querySelector('#shown .read:not(.asked)').textContent.includes('{{house}}')")
        colour = "getComputedStyle([...document.querySelectorAll('#shown .read mark')][0]).backgroundColor"
        assert page.run(colour).startswith("rgba(")

        choose(page, "#view", "attention")
        page.wait("document.querySelector('#shown [data-place=r0]')")
        assert page.run("document.querySelector('#shown [aria-pressed=true]').dataset.place") == "0"
        click(page, "document.querySelector('#shown [data-place=\"7\"]')")
        page.wait("document.querySelector('#shown [aria-pressed=true]')?.dataset.place === '7'")
        page.run(
            """(() => { const one = document.querySelector('#shown [data-place=r0]'); one.focus();
            one.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})); })()"""
        )
        page.wait("document.querySelector('#shown [aria-pressed=true]')?.dataset.place === 'r0'")
        assert page.run("document.querySelectorAll('#shown svg').length") >= 2

        choose(page, "#view", "norms")
        page.wait(f"{SHOWN}.includes('Norms, layer by layer')")
        saved = page.run("[...document.querySelectorAll('#shown a[download]')].map((one) => one.download)")
        assert {"norms.html", "norms.json"} < set(saved)
        choose(page, "#view", "lens")
        page.wait(f"{SHOWN}.includes('Nearest input embeddings')")

        click(page, "document.querySelector('#browse button')")
        page.wait("document.querySelectorAll('#listed tbody tr').length === 6")
        click(page, "document.querySelectorAll('#listed tbody tr')[2]")
        asked = "document.querySelector('#given-question').querySelector('textarea, input').value"
        page.wait(f"{asked} === 'Who lives in 2?'")
        choose(page, "#which", "won")
        page.wait("document.querySelector('#listed').innerText.includes('questions')")

        choose(page, "#view", "predictions")
        fill(page, "context", "a " * 50_000)
        click(page, "document.querySelector('#look')")
        page.wait(f"{SHOWN}.includes('The context has 100,000 characters')")

        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert {url.split("/")[2] for url in page.asked_for if url.startswith("http")} == {address.split("/")[2]}
        assert not [said for said in page.said if "Uncaught" in said or "TypeError" in said]
    finally:
        page.close()


def test_two_people_at_once_are_not_disturbed_by_each_other(address):
    from gradio_client import Client

    people = [Client(address, verbose=False) for _ in range(2)]
    texts = ["Dan lives in house 3. The cat is in it.", "The house is where Eve lives. Who is in?"]
    settings = [(True, []), (False, [1])]

    def look(person):
        (on, out), text = settings[person], texts[person]
        given = ["attention", on, out, ["attnlrp"], "", 1, "mean", "2", "Who lives in house 3?", text]
        html, _ = people[person].predict(*given, api_name="/show")
        return re.sub(r"data:[^\"]+|[\w-]*-\d+-[\w-]*|shown-\d+", "", html)

    alone = [look(person) for person in (0, 1)]
    found = [[], []]
    threads = [
        threading.Thread(target=lambda who=who: found[who].extend(look(who) for _ in range(3))) for who in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone[0] != alone[1]
    assert found == [[alone[0]] * 3, [alone[1]] * 3]
