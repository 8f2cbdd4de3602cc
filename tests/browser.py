"""Chromium without a window, driven through its debugging pipe: no package, no port, no network."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page. `run` evaluates JavaScript; `asked_for` and `said`: what it asked the network and told the console."""

    def __init__(self, profile: Path, width: int = 1200) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = [
            "bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "browser", str(BROWSER), "--headless",
            "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            f"--window-size={width},1400", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in), os.close(theirs_out)
        self._read, self._write = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self._numbers, self._rest = itertools.count(1), b""
        self.asked_for: list[str] = []
        self.said: list[str] = []
        targets = self._send("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Network", "Runtime", "Log", "Page"):
            self._send(f"{part}.enable")

    def open(self, address: str) -> None:
        self._send("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression; an error of the page's is one here."""
        found = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.run(f"Boolean({condition})")
            if found:
                return
            time.sleep(0.2)
        raise AssertionError(f"{condition} was not true in {seconds:g} s: {self.run('document.body.innerText')[:2000]}")

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`, as a person's system says it."""
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        import base64

        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot")["data"]))

    def put(self, file: Path, element: str) -> None:
        """Chooses a file for an input, as a person does in the system's own window."""
        found = self._send("Runtime.evaluate", expression=element)["result"]["objectId"]
        self._send("DOM.setFileInputFiles", files=[str(file)], objectId=found)

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._send("Browser.close")
        self._process.wait(timeout=30)
        self._read.close()
        with contextlib.suppress(OSError):
            self._write.close()

    def _send(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if hasattr(self, "_session") and not method.startswith(("Target", "Browser")):
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer)

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._read.fileno(), 1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _hear(self, event: Any) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.asked_for.append(parameters["request"]["url"])
        elif event.get("method") == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(parameters["exceptionDetails"]))


# A person in the explorer


def fill(page, name, text):
    box = f"document.querySelector('#given-{name}')?.querySelector('textarea, input')"
    page.wait(box)
    page.run(
        f"(() => {{ const box = {box}; box.value = {json.dumps(text)}; "
        "box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def give(page, name, file):
    element = f"document.querySelector('#given-{name} input[type=file]')"
    page.wait(element)
    page.put(file, element)


def click(page, element):
    """Once it is there: a page comes in pieces."""
    page.wait(element)
    page.run(f"({element}).click()")


def choose(page, within, label):
    labels = f"[...document.querySelectorAll('{within} label')]"
    click(page, f"{labels}.find((one) => one.innerText.trim() === {json.dumps(label)})?.querySelector('input')")
