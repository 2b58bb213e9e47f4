"""A writer that dies at any moment leaves what was committed, whole, and readers never see anything else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from saescope.store import Explanation, Store
from saescope.store.engines import write_transaction

_WRITER = """
import itertools, sys
from saescope.store import AnalysisRecord, DictionaryRecord, Example, Feature, FeatureRecord, Label, Store, Window
from saescope.store.records import NUMBERS

NUM = 300

def write(store, version):
    label = Label(text=f"version{version}", kind="", precision=None, lift=None, num_firings=0)
    numbers = dict.fromkeys(["density", "max_activation", "mean_activation", "std_activation", "mean_positive",
                             "median_positive"], float(version))
    store.write(
        DictionaryRecord(name="tiny", model="m", hook_point="h", architecture="a", d_in=1, d_sae=NUM),
        AnalysisRecord(dataset=str(version), context_size=2, num_tokens=version),
        (Feature(record=FeatureRecord(index=i, num_firings=version, label=label, **numbers)) for i in range(NUM)),
        (Window.of_texts(id=i, document=str(version), offset=0, token_ids=(1, 2), token_texts=("a", f"token{version}"))
         for i in range(NUM)),
        (Example(feature=i, window_id=(i + j) % NUM, peak=1, activation=float(version), positions=(1,),
                 values=(float(version),), top_rank=j) for i in range(NUM) for j in range(3)),
        overwrite=True,
    )

with Store.open(sys.argv[1]) as store:
    for version in itertools.count(int(sys.argv[2])):
        write(store, version)
        print(version, flush=True)
        if "--pause" in sys.argv:  # after the first one, until somebody says go on
            sys.argv.remove("--pause")
            sys.stdin.readline()
"""


def _check(store: Store) -> int:
    """The version that the store holds, after a look at every row of it."""
    version = int(store.analysis().dataset)
    assert store.analyses() == [store.analysis()]
    pages = list(store.pages())
    assert [page.feature.index for page in pages] == list(range(300))
    for page in pages:
        assert (page.feature.density, page.feature.num_firings) == (version, version)
        assert page.feature.label is not None
        assert page.feature.label.text == f"version{version}"
        assert [example.activations for example in page.examples] == [(0.0, version)] * 3
        assert {example.window.text for example in page.examples} == {f"atoken{version}"}
        assert [known.text for known in page.explanations] == (["kept"] if page.feature.index == 7 else [])
    assert store.count(search=f"version{version} token{version}") == 300
    assert store.count(search="version") == 300
    info = store.info().dictionaries[0].analyses
    assert [(known.num_features, known.num_windows, known.num_examples) for known in info] == [(300, 300, 900)]
    with store._engine.begin() as connection:
        for table, count in (("feature", 300), ("feature_detail", 300), ("feature_text", 300), ("text_window", 300)):
            assert connection.exec_driver_sql(f"select count(*) from {table}").scalar_one() == count
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("pragma integrity_check").scalars().all() == ["ok"]
            assert connection.exec_driver_sql("pragma foreign_key_check").all() == []
            connection.exec_driver_sql(
                "insert into feature_search (feature_search, rank) values ('integrity-check', 1)"
            )
    return version


@pytest.mark.slow
def test_killed_at_random_moments(store_address: str) -> None:
    rng = random.Random(0)
    committed, seconds = 0, 1.0
    for attempt in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, store_address, str(committed + 1), *(["--pause"] if attempt == 0 else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        before = time.perf_counter()
        assert int(process.stdout.readline()) == committed + 1  # the first one took its time to start
        if attempt == 0:
            with Store.open(store_address, must_exist=True) as store:
                store.explain("tiny", 7, Explanation(text="kept"))
            process.stdin.write("go on\n")
            process.stdin.flush()
            committed, before = int(process.stdout.readline()), time.perf_counter()
            committed = int(process.stdout.readline())
            seconds = time.perf_counter() - before
        time.sleep(rng.uniform(0, 1.5 * seconds))
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
        process.stdin.close()
        assert process.wait() == -signal.SIGKILL
        reported = max([committed + (attempt > 0), *said])
        with Store.open(store_address, must_exist=True) as store:
            with write_transaction(store._engine):
                pass  # a server may still be at the dead one's last statement; now that is over
            committed = _check(store)
        assert committed in (reported, reported + 1)  # committed, but killed before it could say so


@pytest.mark.slow
def test_readers_see_whole_states_while_somebody_writes(store_address: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, store_address, "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with Store.open(store_address, must_exist=True) as store:
            seen = set()
            rounds = 0
            while rounds < 60 or len(seen) < 3:  # a fast reader and a slow disk: it waits for the third version
                assert process.poll() is None
                rounds += 1
                page = store.page("tiny", 7)
                version = int(page.analysis.dataset)
                assert page.feature.density == version
                assert [example.activation for example in page.examples] == [version] * 3
                pages = list(store.pages())
                assert len({page.feature.density for page in pages}) == 1
                assert len({example.window.text for page in pages for example in page.examples}) == 1
                seen.add(version)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_writer_gets_its_turn_beside_one_that_never_pauses(store_address: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, store_address, "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with Store.open(store_address, must_exist=True) as store:
            for number in range(20):
                store.explain("tiny", number, Explanation(text="between"))
            assert [page.feature.index for page in store.pages() if page.explanations] == list(range(20))
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


_DYING = """
import os, sys
from saescope.store import AnalysisRecord, DictionaryRecord, Store, Window

def windows():
    for i in range(5000):
        yield Window.of_texts(id=i, document="d", offset=0, token_ids=(0,), token_texts=("x" * 500,))
    os._exit(9)

record = DictionaryRecord(name="tiny", model="gpt-tiny", hook_point="transformer.h.1", architecture="topk", d_in=8, d_sae=16)
Store.open(sys.argv[1]).write(record, AnalysisRecord(dataset="d", context_size=1, num_tokens=1), [], windows(), [],
                              overwrite=True)
"""


def test_a_writer_that_dies_midway_leaves_the_old_content(
    store: Store, store_address: str, make: SimpleNamespace, fill: Callable[..., object]
) -> None:
    fill(store)
    before = list(store.pages())
    killed = subprocess.run([sys.executable, "-c", _DYING, store_address], check=False)
    assert killed.returncode == 9
    assert list(store.pages()) == before
    store.write(make.dictionary(), make.analysis(), [make.feature(2)], [], [], overwrite=True)  # it left no lock behind
    assert store.features().features == (make.record(2),)
