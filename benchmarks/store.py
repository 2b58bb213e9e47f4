"""How large is a store of 100,000 features, and how soon does it answer? SQLite, and PostgreSQL where an address is given.

The store is made up: per feature 20 top windows and 5 bands of 5 windows with one activation or some (4 on average), a
histogram of activations and one of logits, 2 x 20 logits, 16 neighbours by decoder and 16 by firings, a label; 64 tokens to
a window, with text and character ranges. As many windows as 10 million tokens have, shared by all features. Token texts and
how often they come follow Zipf's law. One reader asks one question after the other, through the same calls as the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hardware import described, machine, versions
from report import add_output_options, publish, table

from saescope.store import (
    AnalysisRecord,
    Band,
    DictionaryRecord,
    Example,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Store,
    TokenLogit,
    Window,
)
from saescope.store.records import NUMBERS

NAME = "made-up"
VOCABULARY, WINDOW_TOKENS, TOKENS_PER_FEATURE = 32_000, 64, 100  # 100 tokens x 100,000 features: 10 million
NUM_TOP, NUM_BANDS, PER_BAND = 20, 5, 5
LIMITS = {"page": 10, "list": 20, "search": 50}  # milliseconds, 95 of 100 questions
LIMIT_BYTES = {"SQLite": 1e9, "PostgreSQL": 1.5e9}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=400, help="of each kind")
    parser.add_argument("--postgresql", metavar="URL", help="a database to fill as well, or to ask again")
    parser.add_argument("--sqlite", type=Path, metavar="FILE", help="a file to fill and keep, or to ask again")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    data: dict[str, Any] = {"machine": machine(), "versions": versions(["SQLAlchemy", "psycopg"])}
    data |= {"features": options.features, "questions": options.questions}
    with tempfile.TemporaryDirectory() as folder:
        file = options.sqlite or Path(folder) / "features.db"
        addresses = [str(file)] + ([options.postgresql] if options.postgresql else [])
        data["rows"] = [measure(address, options.features, options.questions) for address in addresses]
    publish(options, "store", page(data), data)


def measure(address: str, num_features: int, num_questions: int) -> dict[str, Any]:
    """Fill a store, unless it was filled before, and ask it."""
    with Store.open(address) as store:
        before = time.perf_counter()
        filled = not store.dictionaries()
        if filled:
            store.write(*made_up(num_features))
        seconds = time.perf_counter() - before if filled else None
        if filled and not address.startswith("postgres"):
            with contextlib.closing(store._engine.raw_connection()) as connection:
                connection.cursor().execute("vacuum")
                connection.cursor().execute("pragma wal_checkpoint(truncate)")
        info = store.info()
        row = {"database": info.database, "write_seconds": seconds, "bytes": info.num_bytes}
        for kind, ask in questions(store, num_features).items():
            times = [timed(ask) for _ in range(num_questions)]
            row[kind] = {f"p{share}": float(np.percentile(times, share)) for share in (50, 95, 100)}
    return row


def timed(ask: Callable[[], object]) -> float:
    """Milliseconds."""
    before = time.perf_counter()
    ask()
    return (time.perf_counter() - before) * 1e3


def questions(store: Store, num_features: int) -> dict[str, Callable[[], object]]:
    """One question of each kind, another one at every call."""
    rng = random.Random(1)
    known = [store.page(NAME, rng.randrange(num_features)).feature for _ in range(100)]
    words = vocabulary()

    def list_page() -> object:
        sort, key = rng.sample(NUMBERS, 2)
        low, high = sorted(getattr(feature, key) for feature in rng.sample(known, 2))
        query: dict[str, Any] = {
            "sort": sort,
            "descending": rng.random() < 0.5,
            "limit": 50,
            "where": {key: (low, high)},
        }
        return store.features(NAME, **query)

    def search() -> object:
        asked = [words[int(rng.random() ** 3 * VOCABULARY)].strip() for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < 0.5:  # still being typed
            asked[-1] = asked[-1][:3]
        return store.features(NAME, search=" ".join(asked), limit=50)

    return {"page": lambda: store.page(NAME, rng.randrange(num_features)), "list": list_page, "search": search}


def made_up(num_features: int) -> tuple[Any, ...]:
    """What `Store.write` takes."""
    num_tokens = TOKENS_PER_FEATURE * num_features
    num_windows = num_tokens // WINDOW_TOKENS
    words = vocabulary()
    dictionary = DictionaryRecord(
        name=NAME, model="none", hook_point="none", architecture="topk", d_in=768, d_sae=num_features
    )
    analysis = AnalysisRecord(
        dataset="none", context_size=WINDOW_TOKENS, num_tokens=num_tokens, num_windows=num_windows
    )
    windows = _windows(words, num_windows)
    return (
        dictionary,
        analysis,
        _features(words, num_features, num_tokens),
        windows,
        _examples(num_features, num_windows),
    )


def vocabulary() -> list[str]:
    """Token texts, the most frequent first: some 4 characters, half of them with a blank before."""
    rng = random.Random(0)
    letters = "etaoinsrhldcumfpgwybvkxjqz"
    weights = [1 / (i + 2) for i in range(26)]
    texts: dict[str, None] = {}
    while len(texts) < VOCABULARY:
        length = rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7))
        texts[" " * rng.choice((0, 1)) + "".join(rng.choices(letters, weights, k=length))] = None
    return list(texts)


def _token_ids(rng: np.random.Generator, count: int) -> list[int]:
    """Zipf's law: the logarithm of the rank is even."""
    return np.exp(rng.random(count) * np.log(VOCABULARY)).astype(int).clip(0, VOCABULARY - 1).tolist()


def _windows(words: list[str], num_windows: int) -> Iterator[Window]:
    rng = np.random.default_rng(2)
    for number in range(num_windows):
        ids = _token_ids(rng, WINDOW_TOKENS)
        yield Window.of_texts(
            id=number, document=f"document {number // 8}", offset=number % 8 * WINDOW_TOKENS, token_ids=ids,
            token_texts=[words[i] for i in ids],
        )  # fmt: skip


def _features(words: list[str], num_features: int, num_tokens: int) -> Iterator[Feature]:
    rng = np.random.default_rng(3)
    for index in range(num_features):
        num_firings = int(num_tokens * 10 ** rng.uniform(-5, -1.5))
        density = num_firings / num_tokens
        size = float(np.exp(rng.normal(1, 0.5)))
        numbers: dict[str, Any] = {
            name: float(value) for name, value in zip(NUMBERS, rng.normal(size=40), strict=False)
        }
        numbers |= {
            "num_firings": num_firings, "density": density, "max_activation": 8 * size, "mean_activation": density * size,
            "num_windows": 1 + num_firings // 2, "first_firing": int(rng.integers(num_tokens)),
            "last_firing": int(rng.integers(num_tokens)), "cluster": int(rng.integers(200)),
        }  # fmt: skip
        label = Label(
            text=f"{words[_token_ids(rng, 1)[0]].strip()} before {words[_token_ids(rng, 1)[0]].strip()}", kind="tokens",
            precision=float(rng.random()), recall=float(rng.random()), lift=float(np.exp(rng.normal(3, 1))),
            num_firings=100,
        )  # fmt: skip
        yield Feature(
            record=FeatureRecord(index=index, label=label, **numbers), detail=_detail(rng, words, num_features)
        )


def _detail(rng: np.random.Generator, words: list[str], num_features: int) -> FeatureDetail:
    first = int(rng.integers(-24, -8))
    edges = tuple(2.0 ** (k / 4) for k in range(first, first + 33))
    counts = tuple(rng.integers(0, 2000, 32).tolist())
    places = [
        [first + 6 * i for i in range(NUM_BANDS + 1)],
        sorted(rng.choice(33, NUM_BANDS + 1, replace=False) + first),
    ]
    bands = tuple(
        Band(
            kind=kind, number=i, low=2.0 ** (ends[i] / 4), high=2.0 ** (ends[i + 1] / 4),
            num_windows=int(rng.integers(1000)), num_tokens=int(rng.integers(3000)), share=float(rng.random()),
        )
        for kind, ends in zip(("width", "quantile"), places, strict=True)
        for i in range(NUM_BANDS)
    )  # fmt: skip
    logits = tuple(
        TokenLogit(token_id=i, text=words[i], logit=value)
        for i, value in zip(rng.integers(VOCABULARY, size=40).tolist(), _float32(rng.normal(size=40)), strict=True)
    )
    near = rng.integers(num_features, size=32).tolist()
    neighbours = [Neighbour(feature=i, value=value) for i, value in zip(near, _float32(rng.random(32)), strict=True)]
    firing = tuple(Neighbour(feature=n.feature, value=n.value, num_both=n.feature % 97) for n in neighbours[16:])
    return FeatureDetail(
        histogram=Histogram(edges=edges, counts=counts), bands=bands, positions=tuple(counts[:16]),
        top_logits=logits[:20], bottom_logits=logits[20:],
        logit_histogram=Histogram(edges=tuple(np.linspace(-3, rng.uniform(3, 4), 41).tolist()), counts=(100,) * 40),
        neighbours={"decoder": tuple(neighbours[:16]), "firing": firing},
    )  # fmt: skip


def _examples(num_features: int, num_windows: int) -> Iterator[Example]:
    rng = np.random.default_rng(4)
    count = NUM_TOP + NUM_BANDS * PER_BAND
    roles: list[dict[str, int]] = [{"top_rank": i} for i in range(NUM_TOP)]
    roles += [{"quantile_band": i // PER_BAND} for i in range(NUM_BANDS * PER_BAND)]
    for feature in range(num_features):
        windows = rng.choice(num_windows, count, replace=num_windows < count).tolist()
        sizes = rng.geometric(1 / 4, count).clip(1, WINDOW_TOKENS).tolist()
        for window, size, role in zip(windows, sizes, roles, strict=True):
            values = _float32(np.exp(rng.normal(1, 0.5, size)))
            positions = sorted(random.Random(window * num_features + feature).sample(range(WINDOW_TOKENS), size))
            best = max(values)
            yield Example(
                feature=feature, window_id=window, peak=positions[values.index(best)], activation=best,
                positions=tuple(positions), values=tuple(values), **role,
            )  # fmt: skip


def _float32(values: np.ndarray) -> list[float]:
    """As they come from float32 arithmetic: 17 digits in float64."""
    return values.astype(np.float32).tolist()


def page(data: dict[str, Any]) -> str:
    """The measurement as markdown."""
    head = ("database", "size, GB", "limit", "feature page, ms", "list page, ms", "search, ms", "written in, s")
    rows = [
        [
            row["database"], f"{row['bytes'] / 1e9:.2f}", f"{LIMIT_BYTES[row['database'].split()[0]] / 1e9:g}",
            *(f"{row[kind]['p50']:.1f} / {row[kind]['p95']:.1f} / {row[kind]['p100']:.1f}" for kind in LIMITS),
            f"{row['write_seconds']:.0f}" if row["write_seconds"] else "before",
        ]
        for row in data["rows"]
    ]  # fmt: skip
    made = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    limits = ", ".join(f"{kind} {limit} ms" for kind, limit in LIMITS.items())
    return (
        f"# A store of {data['features']:,} features\n\n{described(data['machine'])} {made}.\n\n{table(head, rows)}\n"
        f"Times: half of {data['questions']} questions, 95 of 100, all of them are answered within. "
        f"Limits for 95 of 100: {limits}.\n\n{__doc__.split(chr(10), 2)[2]}"
    )


if __name__ == "__main__":
    main()
