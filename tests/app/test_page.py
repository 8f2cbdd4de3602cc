"""The page and its server: what is refused, what is saved, and a person who clicks through it in a browser."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import regtune
import tiny_images
import tiny_seq2seq
from browser import BROWSER, Page, choose, click, fill, give
from regtune.app.explorer import Explorer
from regtune.app.serve import explore
from regtune.cli.main import main
from regtune.errors import ConfigError
from regtune.session import around
from tiny_tokenizer import tiny_tokenizer

pytest.importorskip("gradio", reason="the extra `app` isn't installed")
pytestmark = pytest.mark.filterwarnings("ignore:::(gradio|starlette|fastapi|uvicorn|websockets)")


@contextlib.contextmanager
def served(*arguments):
    """The address of an explorer in another process, as a person starts it."""
    command = [sys.executable, "-m", "regtune", "explore", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + process.stderr.read()
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def address(runs):
    """The explorer of both runs."""
    with served(runs[0], "--compare", runs[1]) as found:
        yield found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The folder of a model with registers that reads images."""
    folder = tiny_images.save_tiny(tmp_path_factory.mktemp("vit"))
    model = regtune.add_registers(tiny_images.tiny_model("vit"), regtune.RegisterConfig(num_registers=2))
    model.save_pretrained(folder)
    return folder


def test_a_decoder_s_register_that_is_chosen_is_knocked_out():
    from regtune.app.page import _show

    config = regtune.RegisterConfig(num_registers=1, decoder_registers=2)
    model = regtune.add_registers(tiny_seq2seq.tiny_model("bart"), config)
    explorer = Explorer(sessions=(around(model, tiny_tokenizer()),), cells=())
    html, _ = _show(explorer, "relevance", True, ["d1"], ["gradient-input"], "", 0, "mean", "0", "a cat")
    assert "1 registers, decoder&#x27;s 2, without 1." in html


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


def test_what_is_shared_needs_a_password(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("REGTUNE_PASSWORD", raising=False)
    for host in ("0.0.0.0", "127.0.0.1"):
        assert main(["explore", str(tmp_path), "--host", host, "--share", "--port", "0"]) == 2
        assert "put a password into the environment variable REGTUNE_PASSWORD" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_is_given_to_whoever_has_not_logged_in(runs, monkeypatch):
    import httpx

    monkeypatch.setenv("REGTUNE_PASSWORD", "bridge of stone")
    look, file = {"data": []}, {"files": ("noise.png", b"x" * 100_000, "image/png")}
    with served(runs[0], "--share") as found, httpx.Client(base_url=found) as visitor:
        assert "The user name is regtune." in visitor.get("/").text
        asked = [lambda: visitor.get("/config"), lambda: visitor.post("/gradio_api/call/show", json=look)]
        assert [ask().status_code for ask in asked] == [401, 401]
        for name, password in (("regtune", "bridge"), ("other", "bridge of stone")):
            assert visitor.post("/login", data={"username": name, "password": password}).status_code == 400
        assert [ask().status_code for ask in asked] == [401, 401]
        assert visitor.post("/gradio_api/upload", files=file).status_code == 401
        assert visitor.post("/login", data={"username": "regtune", "password": "bridge of stone"}).status_code == 200
        assert visitor.get("/config").status_code == 200
        assert visitor.post("/gradio_api/upload", files=file).status_code == 413, "a model that reads texts takes none"


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


SHOWN = "(document.querySelector('#shown')?.innerText ?? '')"  # a page comes in pieces


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
        asked = "document.querySelector('#given-question textarea, #given-question input')?.value"
        page.wait(f"{asked} === 'Who lives in 2?'")
        choose(page, "#which", "won")
        page.wait("document.querySelector('#listed')?.innerText.includes('questions')")

        choose(page, "#view", "predictions")
        fill(page, "context", "a " * 50_000)
        click(page, "document.querySelector('#look')")
        page.wait(f"{SHOWN}.includes('The context has 100,000 characters')")

        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert {url.split("/")[2] for url in page.asked_for if url.startswith("http")} == {address.split("/")[2]}
        assert not [said for said in page.said if "Uncaught" in said or "TypeError" in said]
    finally:
        page.close()


@pytest.mark.slow
def test_two_people_at_once_are_not_disturbed_by_each_other(address):
    from gradio_client import Client

    people = [Client(address, verbose=False) for _ in range(2)]
    texts = ["Dan lives in house 3. The cat is in it.", "The house is where Eve lives. Who is in?"]
    settings = [(True, []), (False, ["r1"])]

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


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_person_gives_a_picture_and_sees_its_attention(images, tmp_path):
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(file)
    assert file.stat().st_size > 1024, "more than a page that reads texts lets in"
    page = Page(tmp_path / "profile")
    try:
        with served(images) as found:
            page.open(found)
            give(page, "image", file)
            page.wait(f"{SHOWN}.includes('LABEL_2') && {SHOWN}.includes('2 registers')")
            choose(page, "#registers-on", "registers on")
            page.wait(f"{SHOWN}.includes('LABEL_2') && !{SHOWN}.includes('2 registers')")
            choose(page, "#view", "attention")
            page.wait(f"{SHOWN}.includes('[CLS] attends to') && document.querySelector('#shown svg')")
            choose(page, "#view", "relevance")
            page.wait("document.querySelector('#shown .patches')")
            assert {url.split("/")[2] for url in page.asked_for if url.startswith("http")} == {found.split("/")[2]}
    finally:
        page.close()
