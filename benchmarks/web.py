"""How soon does the web app answer, with a store of 100,000 features? The whole of it: server, pages, and a real browser.

The server runs as a process of its own, as people start it (`saescope serve`), over the made-up store of `store.py`. Another
process asks 50 times a second over 32 open connections, whether earlier answers have come or not, with gzip and without any
cache: half feature pages, evenly from the whole store, half lists, by a number, filtered, searched, or further down, as a
page and as the rows that its script asks for. A time runs from when a request was due to the last byte of its answer. One
answer in 1,000, but at least 5 of each kind, is held against the store. Then more is asked than can be answered.

In Chromium: what a first visit of each page loads, how long a key takes from one feature to the next, how the map of all
points moves, and how long an exported page takes to open from the disk.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from hardware import additions_seconds, described, machine, versions
from report import add_output_options, publish, table

from saescope.store import Store
from saescope.store.records import NUMBERS
from saescope.web.numbers import decimal, percent, whole
from saescope.web.page_json import feature_as_json
from store import NAME, made_up, vocabulary

CLIENT = Path(__file__).parent / "web_client.py"
LIMITS = {"feature page": 30, "list page": 40, "list rows": 40}  # milliseconds, 95 of 100 answers
CONNECTIONS = 32
NUM_LISTS = 400  # different ones
PARTS = ("load", "beyond", "weight", "keyboard", "map", "export")
IN_BROWSER = {"weight", "keyboard", "map", "export"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--sqlite", type=Path, metavar="FILE", help="a store to fill and keep, or to ask again")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--beyond-rate", type=float, default=400.0, help="more than can be answered")
    parser.add_argument("--beyond-seconds", type=float, default=10.0)
    parser.add_argument("--export-features", type=int, default=2000, help="in the exported folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    add_output_options(parser)
    options = parser.parse_args(arguments)
    asked = set(options.only)
    data: dict[str, Any] = {"machine": machine(), "versions": versions(["uvicorn", "h11", "fastapi", "SQLAlchemy"])}
    data |= {"rate": options.rate, "seconds": options.seconds, "beyond_rate": options.beyond_rate}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = options.sqlite or Path(folder) / "features.db"
        store = stack.enter_context(filled(file, options.features))
        data["features"], data["in_memory"] = store.count(NAME), file.resolve().is_relative_to("/dev/shm")
        with serving(file) as port:
            if "load" in asked:
                before = additions_seconds()
                data["load"] = load(store, port, options.rate, options.seconds)
                data["additions_seconds"] = [before, additions_seconds()]
            if "beyond" in asked:
                data["beyond"] = load(store, port, options.beyond_rate, options.beyond_seconds, seed=2)
            if asked & IN_BROWSER:
                import web_browser

                with web_browser.chromium() as browser:
                    data["versions"]["Chromium"] = browser.version
                    if "weight" in asked:
                        data["weight"] = web_browser.weights(browser, port, NAME)
                    if "keyboard" in asked:
                        data["keyboard"] = web_browser.keyboard(browser, port, NAME, data["features"])
                    if "map" in asked:
                        data["map"] = web_browser.map_panning(browser, port, NAME)
        if "export" in asked:
            with web_browser.chromium() as browser:
                data["export"] = web_browser.exports(browser, file, NAME, Path(folder), options.export_features)
    publish(options, "web", page(data), data)


@contextlib.contextmanager
def filled(file: Path, num_features: int) -> Iterator[Store]:
    """The store, filled unless it was before."""
    with Store.open(file) as store:
        if not store.dictionaries():
            store.write(*made_up(num_features))
        yield store


@contextlib.contextmanager
def serving(file: Path) -> Iterator[int]:
    """A server as people start it; its port."""
    command = [sys.executable, "-m", "saescope", "serve", "--store", str(file), "--no-models", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            if found is None:
                raise RuntimeError(f"the server did not start; it said {line!r}")
            yield int(found[1])
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
    if code != 0:
        raise RuntimeError(f"the server ended with {code}")


# Requests

Request = tuple[str, str, dict[str, Any]]
"""Kind, path, and what `Store` is asked for the same."""


def requests_of(store: Store, number: int, seed: int) -> list[Request]:
    """What is asked, in order."""
    rng = random.Random(seed)
    num_features, words = store.count(NAME), vocabulary()
    lists = [_list(store, rng, num_features, words) for _ in range(min(NUM_LISTS, number))]
    made: list[Request] = []
    for _ in range(number):
        if rng.random() < 0.5:
            index = rng.randrange(num_features)
            made.append(("feature page", f"/d/{NAME}/f/{index}", {"index": index}))
        else:
            query, asked = rng.choice(lists)
            kind, path = rng.choice((("list page", f"/d/{NAME}"), ("list rows", f"/api/d/{NAME}/features")))
            made.append((kind, f"{path}?{urlencode(query)}", asked))
    return made


def _list(
    store: Store, rng: random.Random, num_features: int, words: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A list as an address says it and as the store is asked: sorted, and as often as not filtered, searched, continued."""
    sort, key = rng.sample(NUMBERS, 2)
    descending = rng.random() < 0.5
    query: dict[str, Any] = {"sort": sort, "dir": "desc" if descending else "asc"}
    asked: dict[str, Any] = {"sort": sort, "descending": descending, "limit": 50}
    if rng.random() < 0.5:
        two = [getattr(store.page(NAME, rng.randrange(num_features)).feature, key) for _ in range(2)]
        low, high = sorted(two)
        query |= {f"min_{key}": repr(low), f"max_{key}": repr(high)}
        asked["where"] = {key: (low, high)}
    if rng.random() < 0.25:
        query["search"] = asked["search"] = words[int(rng.random() ** 3 * len(words))].strip()
    if rng.random() < 0.5:
        following = store.features(NAME, **asked).next
        if following is not None:
            query["after"] = asked["after"] = following
    return query, asked


def load(store: Store, port: int, rate: float, seconds: float, seed: int = 1) -> dict[str, Any]:
    """Ask at a steady rate; times in milliseconds by kind, and how many answers were wrong."""
    asked = requests_of(store, max(1, round(rate * seconds)), seed)
    kept = _kept(asked)
    plan = {
        "port": port,
        "rate": rate,
        "connections": CONNECTIONS,
        "paths": [path for _, path, _ in asked],
        "kept": kept,
    }
    warm = {**plan, "paths": plan["paths"][:100], "kept": [], "rate": min(rate, 25)}
    for each in (warm, plan):
        ran = subprocess.run(
            [sys.executable, str(CLIENT)], input=json.dumps(each), capture_output=True, text=True, check=True
        )
    answers = json.loads(ran.stdout)
    bad = [
        (path, answer.get("error") or answer["status"])
        for (_, path, _), answer in zip(asked, answers, strict=True)
        if answer.get("status") != 200
    ]
    wrong = [said for number in kept if (said := _held_against(store, asked[number], answers[number]))]
    ended = max(number / rate + answer["ms"] / 1e3 for number, answer in enumerate(answers))
    return {
        "rows": [_row(kind, asked, answers) for kind in LIMITS],
        "requests": len(asked),
        "errors": len(bad),
        "first_errors": bad[:5],
        "compared": len(kept),
        "wrong": wrong,
        "answered_per_second": len(asked) / ended,
    }


def _kept(asked: Sequence[Request]) -> list[int]:
    """One of 1,000, at least 5 of each kind."""
    by_kind: dict[str, list[int]] = {}
    for number, (kind, _, _) in enumerate(asked):
        by_kind.setdefault(kind, []).append(number)
    rng = random.Random(0)
    return sorted(
        number
        for numbers in by_kind.values()
        for number in rng.sample(numbers, min(len(numbers), max(5, len(numbers) // 1000)))
    )


def _row(kind: str, asked: Sequence[Request], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    of_kind = [answer for (each, _, _), answer in zip(asked, answers, strict=True) if each == kind]
    if not of_kind:
        return {"kind": kind, "requests": 0}
    times = [answer["ms"] for answer in of_kind]
    shares = {f"p{share}": float(np.percentile(times, share)) for share in (50, 95, 99)}
    size = float(np.mean([answer.get("bytes", 0) for answer in of_kind]))
    return {"kind": kind, "requests": len(of_kind), **shares, "max": max(times), "bytes": size}


# Against the store


def _held_against(store: Store, request: Request, answer: dict[str, Any]) -> str | None:
    """What is wrong with an answer, or None."""
    kind, path, asked = request
    if answer.get("status") != 200:
        return None  # counted as an error
    body = base64.b64decode(answer["body"])
    text = (gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body).decode()
    wrong = {"feature page": _wrong_feature, "list page": _wrong_list, "list rows": _wrong_rows}[kind](
        store, text, asked
    )
    return f"{path}: {wrong}" if wrong else None


def _wrong_feature(store: Store, html: str, asked: dict[str, Any]) -> str | None:
    """Every number of the head, of the logits and of the examples stands in the page."""
    found = store.page(NAME, asked["index"])
    shown = unescape(re.sub(r"<[^>]*>", "\n", html))
    lines = {line.strip() for line in shown.split("\n")}
    feature = found.feature
    expected = [whole(feature.num_firings), percent(feature.density), decimal(feature.max_activation)]
    expected += [decimal(each.logit, 3, trim=False) for each in found.detail.top_logits[:10]]
    expected += [decimal(each.activation, 3, trim=False) for each in found.examples]
    missing = [number for number in expected if number not in lines]
    if missing:
        return f"the page lacks {missing[:5]}"
    if feature.label and " ".join(feature.label.text.split()) not in " ".join(shown.split()):
        return f"the page lacks the label {feature.label.text!r}"
    return None


def _wrong_list(store: Store, html: str, asked: dict[str, Any]) -> str | None:
    """The rows are the store's, in its order, each with its density."""
    rows = re.findall(r'<tr data-index="(\d+)">(.*?)</tr>', html, re.DOTALL)
    expected = store.features(NAME, **asked).features
    if [int(index) for index, _ in rows] != [feature.index for feature in expected]:
        return "the rows are others than the store's"
    for (_, row), feature in zip(rows, expected, strict=True):
        if percent(feature.density) not in unescape(row):
            return f"the row of {feature.index} lacks its density, {percent(feature.density)}"
    return None


def _wrong_rows(store: Store, text: str, asked: dict[str, Any]) -> str | None:
    """Every number of every row."""
    answer = json.loads(text)
    expected = store.features(NAME, **asked)
    if answer["next"] != expected.next:
        return f"the next place is {answer['next']}, not {expected.next}"
    for row, feature in zip(answer["features"], expected.features, strict=True):
        numbers = json.loads(json.dumps(feature_as_json(feature)))
        different = [name for name, value in numbers.items() if row.get(name) != value]
        if different:
            return f"feature {feature.index} differs in {different}"
    return None


# The page of results


def page(data: dict[str, Any]) -> str:
    """The measurement as markdown."""
    made = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    where = " The store's file lay in memory, so that no disk was waited for." if data["in_memory"] else ""
    parts = [f"# The web app with {data['features']:,} features\n\n{described(data['machine'])} {made}.{where}\n"]
    if "load" in data:
        title = f"{data['rate']:g} requests a second for {data['seconds']:g} s"
        before, after = data["additions_seconds"]
        parts.append(
            _load_part(data["load"], title, limits=True)
            + f"\nOne core took {before:.2f} s before and {after:.2f} s after for ten million additions in plain Python.\n"
        )
    if "beyond" in data:
        words = f"Beyond what can be answered: {data['beyond_rate']:g} requests a second"
        beyond = data["beyond"]
        parts.append(
            _load_part(beyond, words) + f"\n{beyond['answered_per_second']:.0f} requests a second were answered.\n"
        )
    if "weight" in data:
        rows = [
            [
                row["page"],
                f"{row['kilobytes']:.1f}",
                f"{row['data_kilobytes']:.1f}",
                str(row["requests"]),
                str(row["elsewhere"]),
            ]
            for row in data["weight"]
        ]
        head = ("page", "HTML, CSS, scripts, kB", "data, kB", "requests", "to other origins")
        parts.append(f"## A first visit, compressed (limit 150 kB)\n\n{table(head, rows)}")
    rows = []
    if "keyboard" in data:
        rows += [["feature to feature by key, to painted, ms", *_three(data["keyboard"]["ms"]), "100"]]
    if "map" in data:
        rows += [["map: a frame while panning, ms", *_three(data["map"]["frames_ms"]), "20 (half)"]]
        rows += [["map: drawing, ms", *_three(data["map"]["draws_ms"]), "12 (half)"]]
    for row in data.get("export", []):
        rows += [[f"opening {row['page']} ({row['bytes'] / 1e6:.1f} MB), ms", *_three(row["ms"]), "2,000"]]
    if rows:
        parts.append(f"## In Chromium, without a GPU\n\n{table(('', 'half', '95 of 100', 'all', 'limit'), rows)}")
    return "\n".join(parts) + f"\n{__doc__.split(chr(10), 2)[2]}"


def _load_part(load: dict[str, Any], title: str, *, limits: bool = False) -> str:
    head = (
        "answer",
        "requests",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "max, ms",
        "kB",
        *(("limit of p95",) if limits else ()),
    )
    rows = [
        [row["kind"], f"{row['requests']:,}", *(f"{row[key]:,.1f}" for key in ("p50", "p95", "p99", "max")),
         f"{row['bytes'] / 1e3:.1f}", *((str(LIMITS[row["kind"]]),) if limits else ())]
        for row in load["rows"] if row["requests"]
    ]  # fmt: skip
    wrong = f"{len(load['wrong'])} of {load['compared']} that were compared differ from the store"
    said = "".join(f"\n- {each}" for each in [*map(str, load["first_errors"]), *load["wrong"]])
    return f"## {title}\n\n{table(head, rows)}\n{load['errors']:,} errors; {wrong}.{said}\n"


def _three(times: Sequence[float]) -> list[str]:
    return [f"{np.percentile(times, share):,.1f}" for share in (50, 95, 100)] if times else ["none"] * 3


if __name__ == "__main__":
    main()
