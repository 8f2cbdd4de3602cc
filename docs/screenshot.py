"""Takes a picture of the ablation's report in a real browser: `docs/results/ablation/screenshot.png`, 300 kB at most.

Needs Chromium. Pictures depend on the fonts of a machine, so `make check` doesn't compare them.

    python docs/screenshot.py [PAGE] [PICTURE]
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent / "results" / "ablation"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 1500
LIMIT_BYTES = 300_000


def photograph(page: Path, browser: str) -> Image.Image:
    """The page's first screen."""
    with tempfile.TemporaryDirectory() as name:
        shot = Path(name) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        command += ["--disable-background-networking", f"--user-data-dir={name}/profile", f"--screenshot={shot}"]
        command += [f"--window-size={WIDTH},{HEIGHT}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        return Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")


def small_png(picture: Image.Image) -> bytes:
    """The picture with as many colours as the limit allows."""
    for colours in (256, 128, 64, 32, 16):
        stream = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
        if stream.tell() <= LIMIT_BYTES:
            return stream.getvalue()
    raise SystemExit(f"The picture has {stream.tell():,} bytes even with 16 colours; {LIMIT_BYTES:,} are allowed.")


def main() -> None:
    """Writes the picture and says how large it is."""
    given = [Path(argument) for argument in sys.argv[1:3]]
    page, picture = [*given, *(FOLDER / "report.html", FOLDER / "screenshot.png")[len(given) :]]
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"None of {', '.join(BROWSERS)} is on the path; install Chromium.")
    content = small_png(photograph(page, browser))
    picture.write_bytes(content)
    print(f"{picture}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
