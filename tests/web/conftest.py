"""A store with one analysed dictionary of awkward texts, and a browser when one is installed."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.store.records import (
    AnalysisRecord,
    Band,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Explanation,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Note,
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
    """Feature 3 is labelled and busy, 5 has texts that attack the page, 7 is dead, 9 has negative activations."""
    record = DictionaryRecord(
        name="tiny <b>topk</b>",
        model="models/gpt-tiny",
        hook_point="transformer.h.1.output",
        architecture="topk",
        d_in=64,
        d_sae=4096,
    )
    analysis = AnalysisRecord(dataset="stdlib & more", context_size=60, num_tokens=1_234_567)
    text = ["def", " first", "(", "self", ")", ":\n", "    ", "return", " self", "."] * 6
    attack = ["<script>", "alert(1)", "</script>", "<img src=x onerror=alert(2)>", "&amp;", "\x00", "\t", '"', "\u202e"]
    windows = [
        Window.of_texts(id=0, document="json.decoder", offset=1000, token_ids=range(60), token_texts=text),
        Window.of_texts(id=1, document="</style><script>", offset=0, token_ids=range(9), token_texts=attack),
        # a character that two tokens share
        Window(id=2, document="漢", offset=0, text="a漢b", token_ids=(1, 21, 22, 4),
               token_ranges=((0, 1), (1, 2), (1, 2), (2, 3))),
        *(Window.of_texts(id=i, document="other", offset=0, token_ids=range(60), token_texts=text) for i in range(3, 16)),
    ]  # fmt: skip
    label = Label(text="the token “self”", kind="tokens", precision=0.97412, recall=0.5, lift=61.34, num_firings=4120)
    logits = tuple(TokenLogit(token_id=i, text=t, logit=2.5 - i) for i, t in enumerate([" self", "\n", "<script>"]))
    busy: dict[str, Any] = {
        "bands": tuple(
            Band(kind="quantile", number=n, low=low, high=low + 5, num_windows=7 + n, num_tokens=2160, share=0.5)
            for n, low in enumerate([0.0, 5.0])
        ),
        "positions": (100, 50, 0),
        "logit_histogram": Histogram(edges=(-2.0, 0.0, 3.0), counts=(70, 50)),
        "neighbours": {
            "decoder": (Neighbour(feature=5, value=0.875), Neighbour(feature=77, value=0.5)),
            "firing": (Neighbour(feature=9, value=0.25, num_both=1234),),
        },
    }
    features = [
        Feature(
            record=FeatureRecord(
                index=index,
                num_firings=firings,
                density=firings / 1_234_567,
                max_activation=strongest,
                mean_positive=strongest / 2,
                median_positive=strongest / 4,
                decoder_norm=1.25 if index == 3 else None,
                negative_share=0.5 if index == 9 else None,
                label=label if index == 3 else None,
            ),
            detail=FeatureDetail(
                histogram=Histogram(edges=(0.0, 5.0, 10.0, 20.0), counts=(firings, firings // 9, 0)),
                top_logits=logits,
                bottom_logits=logits[::-1],
                **(busy if index == 3 else {}),
            ),
        )
        for index, firings, strongest in [(3, 4321, 10.0), (5, 9, 4.0), (7, 0, 0.0), (9, 20, 8.0)]
    ]
    peaks = [0, 3, 8, 13, 18, 23, 28, 33, 38, 48]
    examples = [
        Example(
            feature=3,
            window_id=0 if rank == 0 else rank + 2,
            peak=peak,
            activation=10.0 - rank,
            positions=(peak, 59),
            values=(10.0 - rank, 1.25),
            num_copies=4 if rank == 1 else 1,
            top_rank=rank,
            quantile_band=1 if rank in (0, 2) else None,
        )
        for rank, peak in enumerate(peaks)
    ]
    examples += [
        Example(feature=3, window_id=12, peak=7, activation=2.5, positions=(7,), values=(2.5,), quantile_band=0),
        Example(feature=3, window_id=13, peak=3, activation=0.0, positions=(), values=(), negative="near_miss"),
        Example(feature=3, window_id=14, peak=0, activation=0.0, positions=(), values=(), negative="silent"),
        Example(feature=5, window_id=1, peak=0, activation=4.0, positions=(0, 3), values=(4.0, 0.1), top_rank=0),
        Example(
            feature=9, window_id=2, peak=2, activation=-8.0, positions=(1, 2, 3), values=(0.5, -8.0, -1.0), top_rank=0
        ),
    ]
    results = [
        EvaluationResult(study="reconstruction", metric="explained_variance", value=0.87654, low=0.875, high=0.8775)
    ]
    with Store.open(tmp_path / "features.db") as store:
        store.write(record, analysis, features, windows, examples, evaluations=results)
        name = record.name
        store.explain(name, 3, Explanation(text="a <i>receiver</i>", method="detection", author="judge", score=0.8125))
        store.tag(name, 3, "syntax <u>")
        store.bookmark(name, 3)
        store.add_note(name, 3, Note(text="compare <s>5</s>", author="Ann"))
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


@pytest.fixture
def evaluated() -> Any:
    """Makes a report of an evaluation of so many dictionaries: names that attack the page, a failure, missing values."""
    from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport
    from saescope.evaluation.results import Number, StudyResult

    def one(place: int, architecture: str, k: int, seed: int) -> EvaluatedDictionary:
        value = 0.8 + 0.03 * (architecture == "topk") + k / 1000 + seed / 10_000
        core = StudyResult(
            study="core",
            numbers=(
                Number(name="explained_variance", value=value, low=value - 0.012, high=value + 0.011, better="higher",
                       variant="1 - E|x - x_hat|^2 / E|x - mean|^2"),
                Number(name="ce_loss_recovered", value=None, better="higher", reason="the <i>ablation</i> does no harm"),
                Number(name="l0", value=float(k), low=k - 1.5, high=k + 1.5),
                Number(name="silent_share", value=0.01, better="lower"),
            ),
            tables={"by position": [{"position": f"{i}-{i + 8}", "num_tokens": 100, "l0": k + i} for i in range(0, 32, 8)]},
            notes=("special tokens were left out",),
            seconds=1.25,
        )  # fmt: skip
        probing = StudyResult(
            study="probing",
            numbers=(Number(name="f1_features_k1", value=0.5, low=0.4, high=0.6, better="higher"),),
            tables={"probing": [
                {"concept": "keyword", "f1": 0.91, "reason": ""},
                {"concept": "docstring", "f1": None, "reason": "3 positives, too few"},
            ]},
        )  # fmt: skip
        if place == 1:
            probing = StudyResult.failed("probing", ValueError("only one class: <script>alert(1)</script>"))
        scr = StudyResult(study="scr", numbers=(Number(name="top_10", value=0.3 - seed, better="higher"),))
        return EvaluatedDictionary(
            name=f"{architecture} k{k} <b>s{seed}</b>", architecture=architecture, d_sae=2048, seed=seed,
            sparsity=f"k = {k}", studies={"core": core, "probing": probing, "scr": scr},
        )  # fmt: skip

    def report(number: int) -> EvaluationReport:
        settings = [(a, k, seed) for a in ("topk", "relu", "gated") for k in (32, 64) for seed in (0, 1)]
        return EvaluationReport(
            dictionaries=tuple(one(place, *setting) for place, setting in enumerate(settings[:number])),
            notes=("All were measured on the same tokens.",),
            context={"model": "gpt & co", "num_tokens": 120_000},
            unreliable={"scr.top_10": "unreliable: ranks a random dictionary (0.3) above the truth (0.1)"},
            seconds={"training": 754.0, "studies": 12.5},
            advice="Recommended L0: 30 to 60.",
        )

    return report


class FakeLive:
    """A network that needs no network: feature 3 fires on every "self", feature 5 on every other word."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.refuses: Exception | None = None

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        return None

    def state(self, name: str) -> dict[str, Any]:
        return {"state": "ready", "words": "The model is loaded.", "num_waiting": 0}

    def read_text(
        self,
        name: str,
        text: str,
        *,
        feature: int | None = None,
        num_per_token: int = 5,
        apart: Any = (),
        analysis: str | None = None,
    ) -> Any:
        from saescope.web.live import Piece, Reading

        if self.refuses:
            raise self.refuses
        self.asked.append((name, text))
        words = re.findall(r"\s*\S+", text)
        fires = [((3, 2.5),) if word.strip() == "self" else ((5, 4.0), (3, 0.25)) for word in words]
        return Reading(
            pieces=tuple(
                Piece(
                    text=word,
                    token_ids=(at,),
                    features=found[:num_per_token] if feature is None else (),
                    activation=dict(found).get(feature, 0.0) if feature is not None else 0.0,
                )
                for at, (word, found) in enumerate(zip(words, fires, strict=True))
            ),
            features=((5, 4.0, sum(len(f) == 2 for f in fires)), (3, 2.5, len(words))) if feature is None else (),
            num_tokens=len(words),
        )

    def steer(self, name: str, prompt: str, changes: Any, **how: Any) -> Iterator[dict[str, Any]]:
        if self.refuses:
            raise self.refuses
        self.asked.append((prompt, (tuple(changes), how)))

        def steps() -> Iterator[dict[str, Any]]:
            number = how.get("max_new_tokens", 40)
            for at in range(number):
                plain = {"text": " a" * (at + 1), "log_probability": -1.0, "is_last": at == number - 1}
                steered = {**plain, "text": " <b>" * (at + 1), "kl": 0.5, "log_probability_plain": -2.0}
                yield {"plain": plain, "steered": steered}
            yield {
                "done": {
                    "kl_per_token": 0.5,
                    "perplexity_plain": 2.718,
                    "perplexity_steered": 7.389,
                    "num_tokens": number,
                }
            }

        return steps()

    def match(self, a: str, b: str) -> dict[str, Any]:
        if self.refuses:
            raise self.refuses
        self.asked.append((a, b))
        counts = {
            "num_a": 4096,
            "num_b": 4096,
            "pairs": 1,
            "only_in_a": 1,
            "only_in_b": 0,
            "split": 0,
            "near": 0,
            "dead": 0,
        }
        lists = {"pairs": [[3, 3, 1.0]], "only_in_a": [[5, 3, 0.25]], "only_in_b": []}
        return {"bar": 0.7, "part_bar": 0.3, **lists, "counts": counts}


@pytest.fixture
def fake_live() -> FakeLive:
    return FakeLive()


@pytest.fixture
def client_of() -> Iterator[Callable[..., Any]]:
    """Makes a client of an application, in this process; server errors are answers, as they are for users."""
    from fastapi.testclient import TestClient

    with ExitStack() as stack:

        def make(app: Any) -> Any:
            return stack.enter_context(TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(store: Store, fake_live: FakeLive, client_of: Callable[..., Any]) -> Any:
    from saescope.web.app import create_app

    return client_of(create_app(store, live=fake_live))


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Serves applications on ports of this machine; gives the address, without a slash at its end."""
    import uvicorn

    running = []

    def serve(app: Any) -> str:
        place = socket.socket()
        place.bind(("127.0.0.1", 0))
        place.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        running.append((server, thread, place))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{place.getsockname()[1]}"

    yield serve
    for server, thread, place in running:
        server.should_exit = True
        thread.join(10)
        place.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in Chromium: `visit(address, width=1280, scheme="light")`.

    At the end of the test nothing may have been said on the console, and no request gone elsewhere.
    """
    said: list[str] = []
    elsewhere: list[str] = []
    contexts = []

    def open_page(address: str, *, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
        start = "file:" if address.startswith("file:") else "/".join(address.split("/")[:3])
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((start, "data:", "blob:")) else elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        return page

    open_page.said = said  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert elsewhere == []
