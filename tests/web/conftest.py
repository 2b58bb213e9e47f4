"""A store with one analysed dictionary of awkward texts, and a browser when one is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.store import (
    DictionaryRecord,
    Example,
    FeatureRecord,
    Histogram,
    Label,
    Store,
    TokenLogit,
    Window,
)

_CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = [  # without these it keeps trying to reach hosts of its maker
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="session")
def browser(missing: Callable[[str, str], None]) -> Iterator[Any]:
    if not _CHROMIUM.exists():
        missing("chromium", "Chromium not found: apt-get install chromium enables this test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, chromium_sandbox=False, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Feature 3 is labelled and busy, 5 has texts that attack the page, 7 is dead."""
    record = DictionaryRecord(
        name="tiny <b>topk</b>",
        model="models/gpt-tiny",
        hook_point="transformer.h.1.output",
        architecture="topk",
        dataset="stdlib & more",
        d_in=64,
        d_sae=4096,
        context_size=60,
        num_tokens=1_234_567,
        metrics={"explained_variance": 0.87654},
    )
    text = ["def", " first", "(", "self", ")", ":\n", "    ", "return", " self", "."] * 6
    attack = ["<script>", "alert(1)", "</script>", "<img src=x onerror=alert(2)>", "&amp;", "\x00", "\t", '"', "\u202e"]
    windows = [
        Window(id=0, document="json.decoder", offset=1000, token_ids=tuple(range(60)), token_texts=tuple(text)),
        Window(id=1, document="</style><script>", offset=0, token_ids=tuple(range(9)), token_texts=tuple(attack)),
    ]
    label = Label(text="the token “self”", kind="tokens", precision=0.97412, lift=61.34, num_firings=4120)
    logits = tuple(TokenLogit(token_id=i, text=t, logit=2.5 - i) for i, t in enumerate([" self", "\n", "<script>"]))
    features = [
        FeatureRecord(
            index=index,
            num_firings=firings,
            density=firings / 1_234_567,
            max_activation=strongest,
            mean_activation=strongest / 2,
            histogram=Histogram(edges=(0.0, 5.0, 10.0), counts=(firings, 0)),
            top_logits=logits,
            bottom_logits=logits[::-1],
            label=label if index == 3 else None,
        )
        for index, firings, strongest in [(3, 4321, 10.0), (5, 9, 4.0), (7, 0, 0.0)]
    ]
    examples = [
        Example(
            feature=3,
            rank=rank,
            window_id=0,
            peak=peak,
            activation=10.0 - rank,
            positions=(peak, 59),
            values=(10.0 - rank, 1.25),
        )
        for rank, peak in enumerate([0, 3, 8, 13, 18, 23, 28, 33, 38, 48])
    ]
    examples.append(
        Example(feature=5, rank=0, window_id=1, peak=0, activation=4.0, positions=(0, 3), values=(4.0, 0.1))
    )
    with Store.open(tmp_path / "features.db") as store:
        store.write(record, features, windows, examples)
        yield store


@pytest.fixture
def plot(tmp_path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 3, 2])
    figure.savefig(tmp_path / "plot.png")
    return tmp_path / "plot.png"


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return {
        "rows": [
            {"name": "Explained variance", "value": 0.87654, "target": "at least 0.85", "met": True},
            {"name": "Loss recovered", "value": 0.9, "target": 0.95, "met": False},
            {"name": "L0", "value": 32, "target": None, "met": None},
        ]
    }
