"""Bounded lists against sorting everything: what they keep, how often it was copied, in any order and any parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.analysis import samples
from saescope.analysis.hashing import ExcerptHashes, mix, place_priorities, places_of, salts, unmix
from saescope.analysis.samples import BottomK, Contexts, ranges, stable_order

MEMBER = {"window": np.uint32, "copies": np.uint32}
LAST = 2**64 - 1


@pytest.fixture(autouse=True, scope="module", params=["numpy", "compiled"])
def path(request):
    """Everything is done twice: by numpy alone, and by the compiled loops."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(samples, "kernels", lambda: None)
        else:
            assert samples.kernels() is not None
        yield


def final(members: list[tuple[int, int, int, int]], k: int) -> dict[int, list[tuple[int, int, int, int]]]:
    """What lists of (group, order, key, window) should hold: (order, key, window, copies), by group."""
    held: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for group, order, key, window in members:
        held.setdefault(group, {}).setdefault(key, []).append((order, window))
    found = {}
    for group, keys in held.items():
        best = []
        for key, copies in keys.items():
            order, window = min(copies)
            best.append((order, key, window, sum(copy[0] == order for copy in copies)))
        found[group] = sorted(best)[:k]
    return found


def contents(lists: BottomK) -> dict[int, list[tuple[int, int, int, int]]]:
    lists.settle()
    members = lists.members()
    order = members.get("order", np.zeros(len(members["key"]), dtype=np.uint32))
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    for group, *rest in zip(
        *(c.tolist() for c in (members["group"], order, members["key"], members["window"], members["copies"])),
        strict=True,
    ):
        found.setdefault(group, []).append(tuple(rest))
    return found


def add(lists: BottomK, members: list[tuple[int, int, int, int]]) -> None:
    group, order, _, window = (np.array([member[i] for member in members]) for i in range(4))
    more = {"order": order.astype(np.uint32)} if lists.ordered else {}
    copies = np.ones(len(group), dtype=np.uint32)
    keys = np.array([member[2] for member in members], dtype=np.uint64)
    lists.add(group.astype(np.int64), keys, window=window.astype(np.uint32), copies=copies, **more)


@st.composite
def streams(draw):
    """Members with many copies; windows in any order, each once in a group."""
    count = draw(st.integers(0, 80))
    numbers = draw(st.permutations(range(count)))
    keys = st.sampled_from([0, 1, 5, 7, 8, 2**63, LAST - 1, LAST])
    return [(draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(keys), number) for number in numbers]


@given(streams(), st.integers(1, 6), st.booleans(), st.lists(st.integers(0, 80), max_size=4))
def test_lists_hold_what_sorting_everything_gives(stream, k, ordered, cuts):
    if not ordered:
        stream = [(group, 0, key, window) for group, _, key, window in stream]
    lists = BottomK(k, 3, MEMBER, ordered=ordered)
    edges = [0, *sorted(cuts), len(stream)]
    for first, last in pairwise(edges):
        if stream[first:last]:
            add(lists, stream[first:last])
    assert contents(lists) == final(stream, k)
    assert contents(lists) == final(stream, k)  # settling again changes nothing


@given(streams(), st.integers(1, 6), st.booleans(), st.integers(0, 80))
def test_lists_of_parts_give_the_list_of_the_whole(stream, k, ordered, cut):
    if not ordered:
        stream = [(group, 0, key, window) for group, _, key, window in stream]
    lists, other = (BottomK(k, 3, MEMBER, ordered=ordered) for _ in range(2))
    for part, members in ((lists, stream[:cut]), (other, stream[cut:])):
        if members:
            add(part, members)
    other.settle()
    columns = other.members()
    lists.add(columns.pop("group"), columns.pop("key"), **columns)
    assert contents(lists) == final(stream, k)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_many_members_in_large_batches(k):
    rng = np.random.default_rng(k)
    stream = [
        (int(rng.integers(4)), 0, int(rng.integers(2**62)) if rng.random() < 0.7 else 3, window)
        for window in range(4000)
    ]
    lists = BottomK(k, 4, MEMBER)
    for first in range(0, 4000, 900):
        add(lists, stream[first : first + 900])
    assert contents(lists) == final(stream, k)


def test_lists_without_copies_keep_the_smallest_keys():
    rng = np.random.default_rng(0)
    keys = rng.permutation(3000).astype(np.uint64)
    groups = rng.integers(0, 5, 3000)
    lists = BottomK(30, 5, {"value": np.float32})
    for first in range(0, 3000, 250):
        part = slice(first, first + 250)
        lists.add(groups[part], keys[part], value=keys[part].astype(np.float32))
    lists.settle()
    for group in range(5):
        members = lists.members(np.array([group]))
        assert sorted(members["key"].tolist()) == sorted(keys[groups == group].tolist())[:30]
        assert members["value"].tolist() == members["key"].astype(np.float32).tolist()


def test_what_can_not_be_kept_is_turned_away():
    lists = BottomK(2, 1, MEMBER)
    add(lists, [(0, 0, key, key) for key in range(10, 20)])
    lists.settle()
    assert lists.admits(np.zeros(3, dtype=int), np.array([10, 11, 12], dtype=np.uint64)).tolist() == [True, True, False]


def test_lists_can_be_added():
    lists = BottomK(2, 0, MEMBER)
    lists.grow(2)
    add(lists, [(1, 0, 5, 0)])
    lists.grow(5)
    add(lists, [(4, 0, 6, 1), (1, 0, 4, 2)])
    assert contents(lists) == {1: [(0, 4, 2, 1), (0, 5, 0, 1)], 4: [(0, 6, 1, 1)]}


def test_numbers_in_a_column_are_marked_and_replaced():
    lists = BottomK(2, 3, {**MEMBER, "context": np.uint32})
    ones = np.ones(4, dtype=np.uint32)
    keys = np.array([5, 6, 7, 8], dtype=np.uint64)
    lists.add(np.array([0, 0, 0, 2]), keys, window=np.arange(4), copies=ones, context=np.array([1, 2, 3, 5]))
    lists.settle()
    marked = np.zeros(7, dtype=bool)
    lists.mark("context", marked)
    assert marked.tolist() == [False, True, True, False, False, True, False]
    lists.renumber("context", np.array([9, 10, 11, 12, 13, 14], dtype=np.uint32))
    assert lists.members()["context"].tolist() == [10, 11, 14]


@given(st.lists(st.integers(0, 2**33), max_size=40), st.sampled_from([1 << 16, 1 << 31]))
def test_the_order_is_stable(numbers, limit):
    numbers = np.array([number % limit for number in numbers], dtype=np.int64)
    assert stable_order(numbers, limit).tolist() == np.argsort(numbers, kind="stable").tolist()


def test_ranges():
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_contexts_are_kept_and_forgotten():
    contexts = Contexts()
    for number in range(3):
        first = contexts.add(
            lengths=np.array([2, 1]),
            positions=np.array([1, 2, 3]) + number,
            values=np.array([0.5, 1.5, -2.5]) * (number + 1),
        )
        assert first == 2 * number
    assert (contexts.num_pairs, contexts.num_firings) == (6, 9)
    numbers = contexts.keep(np.array([True, False, False, True, True, False]))
    assert numbers[[0, 3, 4]].tolist() == [0, 1, 2]
    arrays = contexts.arrays()
    assert arrays["lengths"].tolist() == [2, 1, 2]
    assert arrays["positions"].tolist() == [1, 2, 4, 3, 4]
    assert arrays["values"].tolist() == [0.5, 1.5, -5.0, 1.5, 4.5]
    assert (contexts.num_pairs, contexts.num_firings) == (3, 5)
    assert contexts.add(lengths=np.array([1]), positions=np.array([7]), values=np.array([9.0])) == 3
    assert contexts.arrays()["positions"].tolist() == [1, 2, 4, 3, 4, 7]


def _mixed(number: int) -> int:
    number ^= number >> 30
    number = number * 0xBF58476D1CE4E5B9 % 2**64
    number ^= number >> 27
    number = number * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_mixing_can_be_undone(numbers):
    array = np.array(numbers, dtype=np.uint64)
    assert mix(array).tolist() == [_mixed(number) for number in numbers]
    assert unmix(mix(array)).tolist() == numbers


def test_mixing_changes_half_of_the_bits():
    numbers = np.arange(2000, dtype=np.uint64)
    for bit in range(64):
        changed = mix(numbers) ^ mix(numbers ^ np.uint64(1 << bit))
        assert abs(np.bitwise_count(changed).mean() - 32) < 0.6


@given(st.integers(0, 2**48 - 1), st.integers(0, 9))
def test_a_priority_gives_its_place_back(place, feature):
    salt = salts(3, 1, 10)
    key = place_priorities(np.array([place]), salt[[feature]])
    assert places_of(key, salt[feature]).tolist() == [place]


def test_salts_differ_by_feature_seed_and_purpose():
    found = np.concatenate([salts(seed, purpose, 50) for seed in range(5) for purpose in range(4)])
    assert len(np.unique(found)) == 1000


def test_equal_excerpts_have_equal_hashes_wherever_they_stand():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (6, 12))
    hashes = ExcerptHashes.of(ids)
    found: dict[int, set[tuple[int, ...]]] = {}
    for row in range(6):
        for first in range(12):
            for last in range(first + 1, 13):
                key = int(hashes(np.array([row]), np.array([first]), np.array([last]))[0])
                found.setdefault(key, set()).add(tuple(ids[row, first:last].tolist()))
    assert all(len(excerpts) == 1 for excerpts in found.values())
    assert len(found) == len({excerpt for excerpts in found.values() for excerpt in excerpts})
