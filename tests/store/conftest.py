"""Stores to test on: an SQLite file always, a database of a private PostgreSQL server when one is installed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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


@contextlib.contextmanager
def _private_postgres(missing: Callable[[str, str], None]) -> Iterator[Path]:
    """A server of our own on a unix socket; yields the socket folder. Nothing of it outlives the test run."""
    initdb = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]), default=None)
    if initdb is None:
        missing("postgres", "PostgreSQL not found: apt-get install postgresql enables this test")
        return
    import psycopg

    base = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket path must stay under 108 bytes
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(base, account.pw_uid, account.pw_gid)
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = base / "data"
    make: list[Any] = [
        initdb,
        "-D",
        data,
        "-U",
        "test",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    ]
    subprocess.run([*make, "--no-instructions"], check=True, stdout=subprocess.DEVNULL, cwd=base, **as_user)
    settings = [
        "listen_addresses=",
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "shared_buffers=64MB",
    ]
    command: list[Any] = [initdb.parent / "postgres", "-D", data, "-k", base, *(x for s in settings for x in ("-c", s))]
    with open(base / "log", "wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=base, start_new_session=True, **as_user
        )
    try:
        while True:
            if server.poll() is not None:
                raise RuntimeError((base / "log").read_text())
            try:
                psycopg.connect(f"host={base} dbname=postgres user=test").close()
                break
            except psycopg.OperationalError:
                time.sleep(0.02)
        yield base
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: SIGTERM would wait for clients, SIGINT write what is thrown away
        server.wait(20)
        shutil.rmtree(base)


@pytest.fixture(scope="session")
def postgres_server(missing: Callable[[str, str], None]) -> Iterator[Path]:
    with _private_postgres(missing) as base:
        yield base


@pytest.fixture
def new_postgres(postgres_server: Path) -> Callable[[], str]:
    """Makes an empty database and returns its address."""
    import psycopg

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(f"host={postgres_server} dbname=postgres user=test", autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return f"postgresql://test@/{name}?host={postgres_server}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def store_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that does not exist yet, once per kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "features.db")
    return request.getfixturevalue("new_postgres")()


@pytest.fixture
def store(store_address: str) -> Iterator[Store]:
    with Store.open(store_address) as opened:
        yield opened


def _dictionary(name: str = "tiny", **changes: Any) -> DictionaryRecord:
    values: dict[str, Any] = {
        "model": "gpt-tiny",
        "hook_point": "transformer.h.1",
        "architecture": "topk",
        "d_in": 8,
        "d_sae": 16,
        "details": {"seed": 3, "nested": {"list": [1, None, "é"]}},
    }
    return DictionaryRecord(name=name, **values | changes)


def _analysis(name: str = "default", **changes: Any) -> AnalysisRecord:
    values: dict[str, Any] = {
        "dataset": "stdlib",
        "context_size": 6,
        "num_tokens": 10_000_000_000,  # more than 32 bits
        "num_windows": 400,
        "created_at": "2026-01-02T03:04:05+00:00",
        "details": {"seed": 0},
    }
    return AnalysisRecord(name=name, **values | changes)


def _record(index: int, **changes: Any) -> FeatureRecord:
    values: dict[str, Any] = {
        "num_firings": 10 * index,
        "density": index / 100,
        "max_activation": 16.0 - index,
        "mean_activation": 1 / 3,
        "std_activation": 0.1 + 0.2,
        "mean_positive": 1.5,
        "median_positive": 1.0,
    }
    return FeatureRecord(index=index, **values | changes)


def _detail(**changes: Any) -> FeatureDetail:
    values: dict[str, Any] = {
        "histogram": Histogram(edges=(0.5, 2**-0.75, 2**-0.5, 2**-0.25, 1.0), counts=(7, 3, 0, 1)),
        "bands": (
            Band(kind="width", number=0, low=0.0, high=0.5, num_windows=4, num_tokens=5, share=1 / 3),
            Band(kind="quantile", number=0, low=0.5, high=1.0, num_windows=2, num_tokens=10, share=2 / 3),
        ),
        "positions": (3, 4),
        "top_logits": (TokenLogit(token_id=5, text=" the", logit=1.25),),
        "bottom_logits": (TokenLogit(token_id=6, text="\n", logit=-0.1),),
        "logit_histogram": Histogram(edges=(-1.0, 0.0, 0.75), counts=(3, 4)),
        "neighbours": {
            "decoder": (Neighbour(feature=2, value=0.5), Neighbour(feature=1, value=-0.25)),
            "firing": (Neighbour(feature=3, value=0.1, num_both=7),),
        },
        "sources": (1.0, 0.1),
    }
    return FeatureDetail(**values | changes)


def _feature(index: int, *, detail: FeatureDetail | None = None, **changes: Any) -> Feature:
    return Feature(record=_record(index, **changes), detail=_detail() if detail is None else detail)


def _label(text: str, **changes: Any) -> Label:
    values: dict[str, Any] = {"kind": "tokens", "precision": 0.75, "recall": 0.5, "lift": 12.5, "num_firings": 40}
    return Label(text=text, **values | changes)


def _window(identity: int, **changes: Any) -> Window:
    values: dict[str, Any] = {
        "document": "json.decoder",
        "offset": 120,
        "token_ids": (1, 2, 3, 4, 5, 6),
        "token_texts": ("def", " func", "(", "arg", ")", ":\n"),
    }
    return Window.of_texts(id=identity, **values | changes)


def _example(feature: int, window_id: int, **changes: Any) -> Example:
    values: dict[str, Any] = {"peak": 3, "activation": 2.5, "positions": (1, 3), "values": (0.125, 2.5)}
    if not {"top_rank", "quantile_band", "width_band", "negative"} & set(changes):
        values["top_rank"] = 0
    return Example(feature=feature, window_id=window_id, **values | changes)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Builders of small valid records; any field can be given by name."""
    return SimpleNamespace(
        dictionary=_dictionary,
        analysis=_analysis,
        record=_record,
        detail=_detail,
        feature=_feature,
        label=_label,
        window=_window,
        example=_example,
    )


@pytest.fixture(scope="session")
def fill(make: SimpleNamespace) -> Callable[..., list[Feature]]:
    """``fill(store)`` writes 8 features, three with a label and one with examples; returns the features."""

    def write(store: Store, name: str = "tiny", analysis: str = "default", **options: Any) -> list[Feature]:
        labels = {
            2: make.label("digits, 100% of them"),
            3: make.label("Élan vital", precision=0.25, lift=None),
            5: make.label("x_y"),
        }
        features = [make.feature(index, label=labels.get(index)) for index in range(8)]
        windows = [make.window(10), make.window(11, document="os.path"), make.window(12, offset=0)]
        examples = [
            make.example(2, 10, activation=0.5, values=(0.125, 0.5), top_rank=1, width_band=0),
            make.example(2, 11),
            make.example(2, 12, activation=0.0, positions=(), values=(), negative="near_miss"),
        ]
        store.write(make.dictionary(name), make.analysis(analysis), features, windows, examples, **options)
        return features

    return write
