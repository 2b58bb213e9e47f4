"""Takes the pictures of docs/images: every page of the web app, by day and by night, on a desk and on a phone.

    .venv/bin/python tests/docs/screenshots.py runs/demo docs/images

The run is one that `saescope demo` made; the server is the real one, with the real model.
"""

from __future__ import annotations

import argparse
import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 780}}
PROMPT = "import os\nimport "
TEXT = """def __init__(self, name):
    self.name = name
    for line in open(name):
        print(line)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--only", nargs="*", help="pages to take; all unless given")
    parser.add_argument("--feature", type=int, default=None, help="the one that is shown; else the best labelled one")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with serving(options.run) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", chromium_sandbox=False)
        feature = options.feature if options.feature is not None else telling_feature(options.run)
        for name, (path, prepare) in pages(feature).items():
            if options.only and name not in options.only:
                continue
            for size, viewport in SIZES.items():
                for scheme in ("light", "dark"):
                    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
                    page = context.new_page()
                    page.goto(address + path)
                    prepare(page)
                    page.wait_for_timeout(300)  # for what is drawn after the data came
                    file = options.folder / f"{name}-{size}-{scheme}.png"
                    file.write_bytes(smaller(page.screenshot()))
                    print(f"{file}: {file.stat().st_size / 1000:.0f} kB", flush=True)
                    context.close()
        browser.close()


def pages(feature: int) -> dict[str, tuple[str, Callable[[Any], None]]]:
    """Address of each page, and what is done there before the picture is taken."""

    def nothing(page: Any) -> None:
        page.wait_for_load_state("networkidle")

    def tried(page: Any) -> None:
        page.get_by_role("textbox").first.fill(TEXT)
        page.keyboard.press("Control+Enter")
        page.locator("[data-tokens] [role=option]").first.wait_for(timeout=60_000)

    def steered(page: Any) -> None:
        page.get_by_role("button", name="Steer", exact=True).click()
        page.locator("[data-numbers]").get_by_text(re.compile("KL")).wait_for(timeout=60_000)
        page.wait_for_load_state("networkidle")

    def searched(page: Any) -> None:
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(700)

    written = "%0A".join(line.replace(" ", "%20") for line in PROMPT.split("\n"))
    return {
        "home": ("/", nothing),
        "features": ("/d/demo?search=import&sort=density", nothing),
        "feature": (f"/d/demo/f/{feature}", nothing),
        "try": ("/d/demo/try", tried),
        "steer": (f"/d/demo/steer?f={feature}&s=1&prompt={written}&seed=3&temperature=0.7", steered),
        "map": (f"/d/demo/map?search=import&at={feature}", searched),
        "compare": (f"/compare?a=demo:{feature}&b=demo:{feature + 1}", nothing),
        "training": ("/d/demo/training", nothing),
        "runs": ("/runs", nothing),
    }


def telling_feature(run: Path) -> int:
    """A feature whose label holds well: the highest lift among those that fire now and then."""
    from saescope.store import Store

    with Store.open(run / "features.db", must_exist=True) as store:
        bounds = {"precision": (0.9, None), "recall": (0.5, None), "density": (0.001, 0.02)}
        return store.features(sort="lift", where=bounds, limit=1).features[0].index


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """The server as a process of its own; gives its address."""
    command = [
        sys.executable,
        "-m",
        "saescope",
        "serve",
        "--store",
        str(run / "features.db"),
        "--runs",
        str(run.parent),
    ]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            found = re.search(r"http://[\w.:\[\]]+", line)
            if found:
                yield found[0]
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def smaller(picture: bytes) -> bytes:
    """The same picture in 256 colours: a quarter of the size, and no eye sees it."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    main()
