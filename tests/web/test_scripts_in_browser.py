"""What scripts write is what the server writes: numbers, blanks and shades, in a real browser."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from saescope.store import Store
from saescope.web import drawing, numbers
from saescope.web.app import create_app
from saescope.web.site import Links

pytestmark = pytest.mark.slow


def some_numbers() -> list[float]:
    lots = random.Random(0)
    drawn = [lots.choice([-1, 1]) * 10 ** lots.uniform(-9, 9) for _ in range(300)]
    return [0.0, 1.0, -1.0, 1e-4, 9.9996, 0.00012345, 999_999.4, 1e6, 1234567.0, 0.5, 1e-7, *drawn]


@pytest.fixture
def evaluate(store: Store, served: Callable[..., str], visit: Callable[..., Any]) -> Callable[..., Any]:
    page = visit(served(create_app(store)) + "/")

    def run(module: str, function: str, calls: list[list[Any]]) -> Any:
        return page.evaluate(
            "async ([path, name, calls]) => { const module = await import(path);"
            " return calls.map((values) => { const made = module[name](...values);"
            " if (!(made instanceof Node)) return made;"
            " const box = document.createElement('div'); box.append(made); return box.innerHTML; }); }",
            [Links().asset(f"app/{module}.js"), function, calls],
        )

    return run


def test_numbers_are_written_alike(evaluate: Callable[..., Any]):
    values = some_numbers()
    for digits in (3, 4):
        assert evaluate("numbers", "decimal", [[value, digits] for value in values]) == [
            numbers.decimal(value, digits) for value in values
        ]
        in_columns = evaluate("numbers", "decimal", [[value, digits, {"trim": False}] for value in values])
        assert in_columns == [numbers.decimal(value, digits, trim=False) for value in values]
    shares = [abs(value) % 1 for value in values]
    assert evaluate("numbers", "percent", [[share] for share in shares]) == [numbers.percent(share) for share in shares]
    counts = [0, 12, 123, 1234, -5678, 12_345_678]
    assert evaluate("numbers", "whole", [[count] for count in counts]) == [numbers.whole(count) for count in counts]


def test_texts_are_drawn_alike(evaluate: Callable[..., Any]):
    texts = ["  two", "a\tb\r\nc\n", "\x00\x1b\u2028", "<script>alert(1)</script>", "漢字 🎉 é", "&amp; \"quoted\" 'x'"]
    drawn = [str(drawing.visible(text)) for text in texts]
    # an element's own writing of itself leaves quotation marks and line ends as they are
    wanted = [text.replace("&#34;", '"').replace("&#39;", "'") for text in drawn]
    assert [text.replace("\r", "") for text in evaluate("dom", "visible", [[text] for text in texts])] == [
        text.replace("\r", "") for text in wanted
    ]


def test_colours_are_as_strong(evaluate: Callable[..., Any]):
    calls = [[value, strongest] for value in (-3.0, 0.0, 0.01, 1.0, 2.5, 9.0) for strongest in (0.0, 2.5, 5.0)]
    for found, (value, strongest) in zip(evaluate("dom", "shade", calls), calls, strict=True):
        assert math.isclose(found, drawing.shade(value, strongest), abs_tol=5e-4)
