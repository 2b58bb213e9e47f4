"""What a person at the browser waits for, measured in Chromium: first visits, keys, the map, exported pages."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saescope.web.export import MOST_IN_ONE_FILE

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = [  # it is not to look for hosts of its maker, nor for a graphics card
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
_DATA = ("XHR", "Fetch")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    if not CHROMIUM.exists():
        raise SystemExit(
            f"{CHROMIUM} is not there: apt-get install chromium, or leave these parts out with --only load beyond"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=_ARGUMENTS)
        yield browser
        browser.close()


def weights(browser: Any, port: int, name: str) -> list[dict[str, Any]]:
    """Bytes on the wire of a first visit of every page, with an empty cache."""
    paths = {
        "home": "/", "features": f"/d/{name}", "feature": f"/d/{name}/f/7", "map": f"/d/{name}/map", "try": f"/d/{name}/try",
        "steer": f"/d/{name}/steer", "training": f"/d/{name}/training", "runs": "/runs",
        "compare": f"/compare?a={name}:7&b={name}:8",
    }  # fmt: skip
    return [{"page": page, **_weight(browser, f"http://127.0.0.1:{port}", path)} for page, path in paths.items()]


def _weight(browser: Any, origin: str, path: str) -> dict[str, Any]:
    context = browser.new_context()
    page = context.new_page()
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    kinds: dict[str, str] = {}
    sizes: dict[str, float] = {}
    addresses: list[str] = []
    wire.on("Network.requestWillBeSent", lambda event: addresses.append(event["request"]["url"]))
    wire.on("Network.responseReceived", lambda event: kinds.update({event["requestId"]: event["type"]}))
    wire.on("Network.loadingFinished", lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]}))
    answer = page.goto(origin + path)
    page.wait_for_load_state("networkidle")
    context.close()
    data = sum(size for request, size in sizes.items() if kinds.get(request) in _DATA)
    return {
        "status": answer.status,
        "kilobytes": (sum(sizes.values()) - data) / 1e3,
        "data_kilobytes": data / 1e3,
        "requests": len(sizes),
        "elsewhere": sum(not address.startswith((origin, "data:", "blob:")) for address in addresses),
    }


def _until(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Waits for something to be true. Playwright's own waiting evaluates text in the page, which its policy forbids."""
    from playwright.sync_api import Error

    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        with contextlib.suppress(Error):  # in the middle of a change of pages
            if page.evaluate(expression):
                return
        page.wait_for_timeout(10)
    raise RuntimeError(f"after {seconds:g} s it is still not so on {page.url}: {expression}")


# From the key to the first frame in which the page of another feature has been drawn, also where that is another document.
_WATCH = """
(() => {
  const now = () => performance.timeOrigin + performance.now();
  const here = () => document.querySelector("[data-feature]")?.dataset.feature ?? null;
  addEventListener("keydown", () => sessionStorage.setItem("asked", JSON.stringify({ at: now(), from: here() })), true);
  const look = () => {
    const asked = JSON.parse(sessionStorage.getItem("asked"));
    if (asked && document.readyState === "complete" && here() !== null && here() !== asked.from) {
      sessionStorage.removeItem("asked");
      requestAnimationFrame(() => {
        const painted = new MessageChannel();
        painted.port1.onmessage = () => { sessionStorage.setItem("took", now() - asked.at); };
        painted.port2.postMessage(0);
      });
    }
    requestAnimationFrame(look);
  };
  look();
})();
"""


def keyboard(browser: Any, port: int, name: str, num_features: int, key: str = "j", number: int = 30) -> dict[str, Any]:
    """Milliseconds from a key to the painted page of the next feature."""
    context = browser.new_context(viewport={"width": 1280, "height": 844})
    context.add_init_script(_WATCH)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{port}/d/{name}/f/{num_features // 2}")
    times = []
    for at in range(min(number, num_features - num_features // 2 - 1) + 1):
        page.wait_for_timeout(150)  # as somebody who looks
        page.evaluate("() => sessionStorage.removeItem('took')")
        page.keyboard.press(key)
        _until(page, "() => sessionStorage.getItem('took') !== null")
        if at:  # the first one fetches what the others have
            times.append(float(page.evaluate("() => sessionStorage.getItem('took')")))
    context.close()
    return {"key": key, "ms": times}


_FRAMES = """
() => {
  window.benchFrames = [];
  let last = performance.now();
  const frame = (now) => {
    window.benchFrames.push(now - last);
    last = now;
    window.benchFrame = requestAnimationFrame(frame);
  };
  window.benchFrame = requestAnimationFrame(frame);
  window.saescopeMapTimes = [];
}
"""
_DRAWS = "() => window.saescopeMapTimes ?? []"  # milliseconds of each drawing, which the map writes down


def map_panning(browser: Any, port: int, name: str, moves: int = 240) -> dict[str, Any]:
    """Milliseconds between frames, and of each drawing, while the map is dragged about."""
    context = browser.new_context(viewport={"width": 1280, "height": 844})
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{port}/d/{name}/map")
    _until(page, f"() => ({_DRAWS})().length > 0")
    page.wait_for_timeout(500)
    box = page.locator("canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(_FRAMES)
    for step in range(moves):  # to and fro
        away = abs((step + 60) % 120 - 60)
        page.mouse.move(x + 3 * away - 90, y + 2 * away - 60)
    frames = page.evaluate("() => { cancelAnimationFrame(window.benchFrame); return window.benchFrames; }")
    draws = page.evaluate(_DRAWS)
    page.mouse.up()
    context.close()
    return {"frames_ms": frames[1:], "draws_ms": draws, "moves": moves}


def exports(
    browser: Any, file: Path, name: str, folder: Path, num_features: int, rounds: int = 5
) -> list[dict[str, Any]]:
    """Milliseconds until the largest pages of an export are there, from the disk: start page, feature page, one file."""
    whole, single = folder / "export", folder / "export.html"
    for out, count in ((whole, num_features), (single, MOST_IN_ONE_FILE)):
        command = [sys.executable, "-m", "saescope", "export", "html", name, "--store", str(file), "--out", str(out)]
        subprocess.run([*command, "--features", "all", "--limit", str(count)], check=True, capture_output=True)
    pages = {
        f"the start page of {num_features:,} features": whole / "index.html",
        "its largest feature page": max((whole / "f").glob("*.html"), key=lambda path: path.stat().st_size),
        f"one file of {MOST_IN_ONE_FILE} features": single,
    }
    return [{"page": words, **_opened(browser, path, rounds)} for words, path in pages.items()]


def _opened(browser: Any, path: Path, rounds: int) -> dict[str, Any]:
    """In a context of its own each time, so that nothing is kept."""
    times = []
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1280, "height": 844})
        page = context.new_page()
        before = time.perf_counter()
        page.goto(path.as_uri(), wait_until="load")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        times.append((time.perf_counter() - before) * 1e3)
        context.close()
    return {"bytes": path.stat().st_size, "ms": times}
