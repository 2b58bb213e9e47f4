"""The page of an evaluation as a reader meets it: opened from disk, on a desk and on a phone, by day and by night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saescope.evaluation.reporting.plots import plot_report
from saescope.evaluation.reporting.summary import summarise
from saescope.web.evaluation_page import write_evaluation_page

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [1, 12])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_disk_and_everyone_can_read_it(
    browser: Any, evaluated: Any, tmp_path: Path, width: int, scheme: str, number: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    file = tmp_path / "page.html"
    report = evaluated(number)
    pictures = [picture.as_dict() for picture in plot_report(report, tmp_path / "plots")]
    write_evaluation_page(file, report.as_dict(), summarise(report), pictures=pictures)
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())

    assert page.evaluate("document.querySelector('img').naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(22,")
    assert dark == (scheme == "dark")
    while closed := page.locator("details:not([open]) > summary:visible").all():  # what was folded is checked too
        closed[0].click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
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


def test_tables_sort_and_rows_without_a_value_stay_last(browser: Any, evaluated: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    report = evaluated(12)
    write_evaluation_page(file, report.as_dict(), summarise(report))
    page = browser.new_page()
    page.goto(file.as_uri())
    table = page.locator("section[aria-labelledby=numbers] table")

    def column(at: int) -> list[str]:
        return [row.locator("th, td").nth(at).inner_text().split()[0] for row in table.locator("tbody tr").all()]

    def press(title: str) -> str:
        table.locator("thead button", has_text=title).first.click()
        return str(table.locator("thead th", has_text=title).first.get_attribute("aria-sort"))

    before = column(0)
    assert press("explained variance") == "descending"  # the best first
    values = [float(value) for value in column(1)]
    assert values == sorted(values, reverse=True)
    assert press("explained variance") == "ascending"
    assert [float(value) for value in column(1)] == sorted(values)
    heads = [head.inner_text() for head in table.locator("thead th").all()]
    probing = next(at for at, head in enumerate(heads) if head.startswith("F1 features"))
    for _ in range(2):
        press("F1 features")
        assert column(probing).index("–") == 11
    assert press("Dictionary") == "ascending"
    assert column(0) == sorted(before)
    assert table.locator("th[aria-sort]").count() == 1
    page.close()


def test_without_a_script_all_can_be_read(browser: Any, evaluated: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    report = evaluated(12)
    write_evaluation_page(file, report.as_dict(), summarise(report))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("section[aria-labelledby=numbers] tbody tr").count() == 12
    assert page.locator("thead button").count() == 0
    context.close()
