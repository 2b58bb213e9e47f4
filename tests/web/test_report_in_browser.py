"""The report as a reader meets it: opened from disk, on a desk and on a phone, by day and by night."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.web import write_report

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_opens_from_disk_and_everyone_can_read_it(
    browser: Any, store: Store, tmp_path: Path, evaluation: dict[str, Any], plot: Path, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    file = tmp_path / "report.html"
    write_report(store, None, [3, 5, 7, 9], file, evaluation=evaluation, plots={"Loss over time": plot})
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())

    assert page.title() == "tiny <b>topk</b> · saescope"
    assert page.locator("article").count() == 4
    assert page.evaluate("document.querySelector('img').naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(22,")
    assert dark == (scheme == "dark")

    # the switch breaks the lines of the contexts, without a script
    context_box = page.locator("#feature-3 .context").first
    before = context_box.bounding_box()["height"]
    page.check("#breaks")
    assert context_box.bounding_box()["height"] > before
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    for summary in page.locator("summary").all():  # what was folded is checked too
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ticks = page.locator("#feature-3 .ticks").first.locator("span").all()
    boxes = [tick.bounding_box() for tick in ticks]
    assert all(left["x"] + left["width"] <= right["x"] for left, right in pairwise(boxes))  # none over another
    result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]})
    serious = [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in result.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    context.close()
