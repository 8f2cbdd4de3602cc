"""Takes pictures in a real browser, 300 kB at most each: the ablation's report, and the explorer on the ready adapter.

Needs Chromium. Pictures depend on the fonts of a machine, so `make check` doesn't compare them.

    python docs/screenshot.py [report] [explorer]
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from regtune.app.demo import CONTEXT, QUESTION

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests"))
from browser import BROWSER, Page, choose, click, fill  # noqa: E402 - the browser of the tests

REPORT = DOCS / "results" / "ablation"
MODEL = "minilm-questions"
LIMIT_BYTES = 300_000


def photograph(page: Page) -> Image.Image:
    """The first screen of what is open."""
    with tempfile.TemporaryDirectory() as name:
        page.picture(Path(name) / "page.png")
        return Image.open(io.BytesIO((Path(name) / "page.png").read_bytes())).convert("RGB")


def report(page: Page) -> Image.Image:
    """The verdict of the ablation."""
    page.open((REPORT / "report.html").as_uri())
    page.wait("document.readyState === 'complete'")
    return photograph(page)


def explorer(page: Page) -> Image.Image:
    """Which words matter for the start and the end of an answer."""
    command = [sys.executable, "-m", "regtune", "explore", MODEL, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=DOCS.parent) as served:
        try:
            assert served.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:\d+", served.stdout.readline())
            assert address is not None
            page.open(address[0])
            fill(page, "question", QUESTION)
            fill(page, "context", CONTEXT)
            choose(page, "#view", "relevance")
            click(page, "document.querySelector('#look')")
            page.wait("document.querySelectorAll('#shown .ledger').length >= 1", seconds=300)
            page.wait("!document.body.innerText.includes('processing')")
            page.wait("new Promise((done) => setTimeout(() => done(true), 1000))")  # it fades in
            page.run("document.querySelector('#shown').scrollIntoView()")
            return photograph(page)
        finally:
            served.terminate()


def small_png(picture: Image.Image) -> bytes:
    """The picture with as many colours as the limit allows."""
    for colours in (256, 128, 64, 32, 16):
        stream = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
        if stream.tell() <= LIMIT_BYTES:
            return stream.getvalue()
    raise SystemExit(f"The picture has {stream.tell():,} bytes even with 16 colours; {LIMIT_BYTES:,} are allowed.")


PICTURES = {
    "report": (report, REPORT / "screenshot.png"),
    "explorer": (explorer, DOCS / "pictures" / "explorer.png"),
}


def main() -> None:
    """Writes the pictures and says how large they are."""
    if BROWSER is None:
        raise SystemExit("There is no Chromium on the path; install it.")
    for name in sys.argv[1:] or PICTURES:
        take, file = PICTURES[name]
        with tempfile.TemporaryDirectory() as profile:
            page = Page(Path(profile))
            try:
                content = small_png(take(page))
            finally:
                page.close()
        file.write_bytes(content)
        print(f"{file}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
