"""One pass against a dense computation with plain loops: every number, band, rank, sample and copy.

W  windows, T  tokens in a window, D  features.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from saescope.analysis.bins import EDGES
from saescope.analysis.hashing import mix, salts
from saescope.analysis.statistics import FeatureStatistics, StatisticsConfig, TokenBlock
from saescope.dictionaries.codes import SparseCodes
from saescope.kernels.codes import FlatCodes
from saescope.store.records import FeatureRecord

W, T, D = 60, 12, 12
CONFIG = StatisticsConfig(
    num_top=4, num_bands=3, num_per_band=2, num_negatives=2, num_label_firings=8, num_stretches=5,
    window_before=2, window_after=1, seed=7,
)  # fmt: skip
NEAREST = np.array([1, 0, 3, 2, 5, 4, 7, 0, 0, -1, 0, 1])
DEAD, DENSE, ONE_VALUED, STEPS, SIGNED, EXTREME, RARE, SPECIAL = 0, 1, 2, 3, 4, 5, 6, 7


class Text:
    """Windows with copies among them, special tokens at the front, padding at the end, and features of every kind."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.ids = rng.integers(10, 13, (W, T))  # of few words, so that excerpts repeat
        self.ids[40:46] = self.ids[3]  # whole windows repeat
        self.ids[46:] = self.ids[20:34]
        self.windows = np.sort(rng.permutation(200)[:W])
        self.special = np.zeros((W, T), dtype=bool)
        self.special[::2, 0] = True
        self.counted = ~self.special
        self.counted[5, 9:] = self.counted[17, 4:] = False
        self.counted[30] = self.special[30] = False
        f = rng.gamma(1.5, 2.0, (W, T, D)) * (rng.random((W, T, D)) < 0.12)
        f[:, :, DEAD] = 0
        f[:, :, DENSE] = rng.gamma(2.0, 1.0, (W, T)) + 0.1
        f[:, :, ONE_VALUED] = 2.0 * (rng.random((W, T)) < 0.1)
        f[:, :, STEPS] = rng.integers(1, 4, (W, T)) * (rng.random((W, T)) < 0.3)
        f[:, :, SIGNED] *= rng.choice([-1, 1], (W, T))
        f[:, :, EXTREME] = 10.0 ** rng.uniform(-12, 12, (W, T)) * (rng.random((W, T)) < 0.3)
        f[:, :, RARE] = 0
        f[48, 7, RARE] = 3.5
        f[:, :, SPECIAL] = 4.0 * self.special
        f[40:46], f[50:] = f[3], f[24:34]  # and so does what the model makes of them
        self.f = np.where((self.counted | self.special)[:, :, None], f, 0).astype(np.float32)
        self.counted_f = np.where(self.counted[:, :, None], self.f, 0)

    def batch(self, rows, kind="sparse"):
        rows = np.asarray(rows)
        block = TokenBlock(self.ids[rows], self.windows[rows], self.counted[rows], self.special[rows])
        dense = torch.from_numpy(self.f[rows][self.counted[rows] | self.special[rows]])
        if kind == "flat":
            return block, FlatCodes.from_mask(dense, dense != 0)
        return block, SparseCodes.from_dense(dense)

    def statistics(self, batches, config=CONFIG, nearest=NEAREST, kind="sparse"):
        found = FeatureStatistics(D, config, nearest=nearest)
        for rows in batches:
            found.update(*self.batch(rows, kind))
        return found


@pytest.fixture(scope="module")
def text():
    return Text()


@pytest.fixture(scope="module")
def one_pass(text):
    return text.statistics(np.array_split(np.arange(W), 7))


# The same by plain loops


def expected_numbers(text, feature):
    values = [abs(float(v)) for v in text.counted_f[:, :, feature][text.counted]]
    firings = [v for v in values if v]
    places = [
        int(text.windows[w]) * T + t for w in range(W) for t in range(T) if text.counted_f[w, t, feature]
    ]  # fmt: skip
    special = int((text.f[:, :, feature][text.special] != 0).sum())
    mean = math.fsum(values) / len(values)
    upper = 0.0
    if firings:
        half = sorted(firings)[(len(firings) + 1) // 2 - 1]
        upper = float(EDGES[np.searchsorted(EDGES, half, side="right")])
    return {
        "num_firings": len(firings),
        "density": len(firings) / len(values),
        "max_activation": max(values),
        "mean_activation": mean,
        "std_activation": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)),
        "mean_positive": math.fsum(firings) / len(firings) if firings else 0.0,
        "median_positive": upper,
        "num_windows": sum(bool(text.counted_f[w, :, feature].any()) for w in range(W)),
        "first_firing": min(places) if places else -1,
        "last_firing": max(places) if places else -1,
        "special_share": special / (special + len(firings)) if special + len(firings) else 0.0,
        "negative_share": float((text.counted_f[:, :, feature] < 0).sum() / max(1, len(firings))),
    }


def excerpt_hash(tokens):
    """The polynomial of `ExcerptHashes`, term by term."""
    total, power = 0, 1
    for token in tokens:
        total += int(mix(np.array([(token + 1) * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64))[0]) * power
        power *= 0xD1342543DE82EF95
    return total % 2**64


def priority(tokens, feature, purpose):
    key = np.array([excerpt_hash(tokens)], dtype=np.uint64)
    return int(mix(key ^ salts(CONFIG.seed, purpose, D)[feature])[0])


def around(text, w, peak):
    return tuple(text.ids[w, max(0, peak - CONFIG.window_before) : peak + CONFIG.window_after + 1].tolist())


def peaks(text, feature):
    """(size, row, position) of the first of the highest firings in every window."""
    found = []
    for w in range(W):
        sizes = np.abs(text.counted_f[w, :, feature])
        if sizes.any():
            found.append((float(sizes.max()), w, int(sizes.argmax())))
    return found


def folded(text, members, feature, purpose):
    """Members (row, excerpt) by priority, copies counted."""
    first, copies = {}, {}
    for w, excerpt in members:
        first[excerpt] = min(first.get(excerpt, w), w)
        copies[excerpt] = copies.get(excerpt, 0) + 1
    by = sorted(first, key=lambda excerpt: priority(excerpt, feature, purpose))
    return [(first[excerpt], copies[excerpt]) for excerpt in by]


def expected_edges(text, feature, kind):
    sizes = np.abs(text.counted_f[:, :, feature].astype(np.float64))
    sizes = sizes[sizes > 0]
    n = CONFIG.num_bands
    bins = np.searchsorted(EDGES, sizes, side="right") - 1
    if kind == "quantile":
        stretch = range(bins.min(), bins.max() + 2)
        shares = {e: (sizes < EDGES[e]).sum() * n for e in stretch}
        inner = [min(stretch, key=lambda e: (abs(shares[e] - i * len(sizes)), e)) for i in range(1, n)]
        edges = [stretch[0], *inner, stretch[-1]]
    else:
        targets = [sizes.max() * i / n for i in range(1, n)]
        inner = [min(range(len(EDGES)), key=lambda e: (abs(EDGES[e] - t), e)) for t in targets]
        edges = [0, *inner, bins.max() + 1]
    return sorted(set(edges))


def expected_examples(text, feature):
    rows: dict[int, dict] = {}

    def give(w, copies, **role):
        row = rows.setdefault(w, {"num_copies": 0})
        row["num_copies"] = max(row["num_copies"], copies)
        row.update(role)

    found = peaks(text, feature)
    best: dict[tuple, list] = {}
    for size, w, peak in found:
        excerpt = around(text, w, peak)
        if excerpt not in best or size > best[excerpt][0]:
            best[excerpt] = [size, w, 0]
        best[excerpt][2] += size == best[excerpt][0]
    ranked = sorted(best, key=lambda excerpt: (-best[excerpt][0], priority(excerpt, feature, 0)))[: CONFIG.num_top]
    for rank, excerpt in enumerate(sorted(ranked, key=lambda excerpt: (-best[excerpt][0], best[excerpt][1]))):
        give(best[excerpt][1], best[excerpt][2], top_rank=rank)
    for kind in ("quantile", "width") if found else ():
        edges = expected_edges(text, feature, kind)
        for number, (low, high) in enumerate(pairwise(edges)):
            inside = [(w, around(text, w, p)) for size, w, p in found if EDGES[low] <= size < EDGES[high]]
            for w, copies in folded(text, inside, feature, 0)[: CONFIG.num_per_band]:
                give(w, copies, **{f"{kind}_band": number})

    shown = []
    peak_of = {w: (size, p) for size, w, p in found}
    for w, row in rows.items():
        here = np.flatnonzero(text.counted_f[w, :, feature]).tolist()
        row = {"top_rank": None, "quantile_band": None, "width_band": None, "negative": None, **row}
        size, peak = peak_of[w]
        row |= {
            "window_id": int(text.windows[w]), "peak": peak, "activation": float(text.f[w, peak, feature]),
            "positions": tuple(here), "values": tuple(float(text.f[w, t, feature]) for t in here),
        }  # fmt: skip
        shown.append((math.inf if row["top_rank"] is None else row["top_rank"], -size, row["window_id"], row))
    shown = [row for *_, row in sorted(shown, key=lambda item: item[:3])]

    silent = [w for w in range(W) if w not in peak_of and text.counted[w].any()]
    near = {w: p for _, w, p in peaks(text, NEAREST[feature])} if NEAREST[feature] >= 0 else {}
    missed = folded(text, [(w, around(text, w, near[w])) for w in near if w not in peak_of], feature, 2)
    missed = missed[: CONFIG.num_negatives]
    middle = {w: int(np.flatnonzero(text.counted[w])[text.counted[w].sum() // 2]) for w in silent}
    whole = folded(text, [(w, tuple(text.ids[w].tolist())) for w in silent], feature, 1)
    whole = [(w, copies) for w, copies in whole if w not in dict(missed)][: CONFIG.num_negatives]
    for kind, drawn, peak_at in (("near_miss", missed, near), ("silent", whole, middle)):
        for w, copies in sorted(drawn):
            shown.append(
                {
                    "window_id": int(text.windows[w]), "peak": peak_at[w], "activation": 0.0, "positions": (),
                    "values": (), "num_copies": copies, "top_rank": None, "quantile_band": None, "width_band": None,
                    "negative": kind,
                }
            )  # fmt: skip
    return [{"feature": feature, **row} for row in shown]


def everything(statistics):
    """All results, to be compared; floats that are sums apart."""
    numbers = statistics.numbers()
    sums = {name: numbers.pop(name) for name in ("mean_activation", "std_activation", "mean_positive")}
    exact = {
        "numbers": {name: array.tolist() for name, array in numbers.items()},
        "examples": [statistics.examples(feature) for feature in range(statistics.d_sae)],
        "bands": [statistics.bands(feature) for feature in range(statistics.d_sae)],
        "histograms": [[a.tolist() for a in statistics.histogram(feature)] for feature in range(statistics.d_sae)],
        "labels": [
            [a if isinstance(a, int) else a.tolist() for a in vars(statistics.label_sample(feature)).values()]
            for feature in range(statistics.d_sae)
        ],
        "windows": (statistics.kept_windows(), statistics.seen_windows, statistics.num_windows),
        "positions": statistics.positions().tolist(),
        "tokens": (statistics.num_tokens, statistics.tokens_by_stretch().tolist()),
    }
    return exact, sums


def assert_same(one, other):
    (exact, sums), (other_exact, other_sums) = everything(one), everything(other)
    assert exact == other_exact
    for name, array in sums.items():
        np.testing.assert_allclose(array, other_sums[name], rtol=1e-12)


# What one pass finds


@pytest.mark.parametrize("feature", range(D))
def test_numbers_are_those_of_a_dense_computation(text, one_pass, feature):
    found = {name: array[feature] for name, array in one_pass.numbers().items()}
    expected = expected_numbers(text, feature)
    assert list(found) == list(expected)
    for name, value in expected.items():
        if name in ("mean_activation", "std_activation", "mean_positive"):
            assert found[name] == pytest.approx(value, rel=1e-12), name
        else:
            assert found[name] == value, name


def test_numbers_fit_a_record(one_pass):
    assert one_pass.num_tokens == int(one_pass.tokens_by_stretch().sum())
    for feature in range(D):
        record = FeatureRecord(index=feature, **one_pass.record_numbers(feature))
        assert record.num_firings == one_pass.numbers()["num_firings"][feature]
        assert record.is_dead == (record.first_firing is None) == (record.last_firing is None)


def test_spread_is_right_where_a_sum_of_squares_would_not_be():
    values = (1e4 + np.random.default_rng(0).random((6, 50))).astype(np.float32)
    statistics = FeatureStatistics(1)
    for row in values.reshape(6, 1, 50, 1):
        statistics.update(np.zeros((1, 50), dtype=int), SparseCodes.from_dense(torch.from_numpy(row[0])))
    assert statistics.numbers()["std_activation"][0] == pytest.approx(values.astype(np.float64).std(), rel=1e-9)


@pytest.mark.parametrize("feature", range(D))
def test_the_histogram_counts_every_firing(text, one_pass, feature):
    edges, counts = one_pass.histogram(feature)
    sizes = np.abs(text.counted_f[:, :, feature].astype(np.float64))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        assert (len(edges), len(counts)) == (0, 0)
        return
    assert counts.tolist() == [((low <= sizes) & (sizes < high)).sum() for low, high in pairwise(edges)]
    assert counts.sum() == len(sizes)
    assert set(edges.tolist()) <= set(EDGES.tolist())


@pytest.mark.parametrize("feature", range(D))
def test_bands_hold_what_lies_between_their_edges(text, one_pass, feature):
    bands = one_pass.bands(feature)
    sizes = np.abs(text.counted_f[:, :, feature].astype(np.float64))
    firings, found = sizes[sizes > 0], peaks(text, feature)
    if not len(firings):
        assert bands == []
    for kind in ("quantile", "width") if len(firings) else ():
        own = [band for band in bands if band.kind == kind]
        edges = [float(EDGES[e]) for e in expected_edges(text, feature, kind)]
        assert [(band.low, band.high) for band in own] == list(pairwise(edges))
        assert [band.number for band in own] == list(range(len(own)))
        for band in own:
            assert band.num_tokens == ((band.low <= firings) & (firings < band.high)).sum()
            assert band.num_windows == sum(band.low <= size < band.high for size, _, _ in found)
            assert band.share == band.num_tokens / len(firings)
        assert sum(band.share for band in own) == pytest.approx(1, abs=1e-12)
        assert sum(band.num_windows for band in own) == len(found)


@pytest.mark.parametrize("feature", range(D))
def test_examples_are_those_that_sorting_all_windows_gives(text, one_pass, feature):
    assert [vars(example) for example in one_pass.examples(feature)] == expected_examples(text, feature)


def test_the_text_has_what_could_go_wrong(text, one_pass):
    """Copies, ties, windows with several roles, lists that are full and lists that are not."""
    examples = [example for feature in range(D) for example in one_pass.examples(feature)]
    assert max(example.num_copies for example in examples if example.top_rank is not None) > 1
    assert max(example.num_copies for example in examples if example.quantile_band is not None) > 1
    assert max(example.num_copies for example in examples if example.negative == "silent") > 1
    assert any(example.top_rank is not None and example.width_band is not None for example in examples)
    assert any(example.activation < 0 for example in examples)
    assert {example.negative for example in examples} == {None, "near_miss", "silent"}
    assert len({size for size, _, _ in peaks(text, STEPS)}) == 3
    assert len([example for example in one_pass.examples(RARE) if example.negative is None]) == 1
    assert [example.negative for example in one_pass.examples(DEAD)] == ["near_miss"] * 2 + ["silent"] * 2
    assert len({band.number for band in one_pass.bands(ONE_VALUED) if band.kind == "quantile"}) == 1
    assert one_pass.numbers()["special_share"][SPECIAL] == 1


def test_copies_in_the_top_and_in_a_band_are_folded_apart():
    """The top keeps the copy with the highest value, a band that of the first window; the page has the top first."""
    ids = np.array([[1, 2], [1, 2], [3, 4]])
    f = torch.tensor([[4.5], [0.0], [5.0], [0.0], [1.0], [0.0]])
    statistics = FeatureStatistics(1, StatisticsConfig(num_top=2, num_bands=1))
    statistics.update(ids, SparseCodes.from_dense(f))
    shown = [(e.window_id, e.top_rank, e.quantile_band, e.width_band, e.num_copies) for e in statistics.examples(0)]
    assert shown == [(1, 0, None, None, 1), (2, 1, 0, 0, 1), (0, None, 0, 0, 2)]


def test_kept_windows_are_those_of_the_examples(one_pass):
    used = {example.window_id for feature in range(D) for example in one_pass.examples(feature)}
    assert one_pass.kept_windows() == sorted(used)


def test_positions_are_counted_in_stretches(text, one_pass):
    for feature in range(D):
        expected = [0] * CONFIG.num_stretches
        for t in range(T):
            expected[t * CONFIG.num_stretches // T] += int((text.counted_f[:, t, feature] != 0).sum())
        assert one_pass.positions()[feature].tolist() == expected


@pytest.mark.parametrize("feature", range(D))
def test_label_firings_are_a_sample_of_all(text, one_pass, feature):
    sample = one_pass.label_sample(feature)
    own = {
        (int(text.windows[w]), t): float(text.f[w, t, feature])
        for w in range(W)
        for t in range(T)
        if text.counted_f[w, t, feature]
    }
    drawn = list(zip(sample.windows.tolist(), sample.positions.tolist(), strict=True))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(len(own), CONFIG.num_label_firings)
    assert sample.num_firings == len(own)
    assert [own[place] for place in drawn] == sample.values.tolist()


# The same in any order, parts and forms


@pytest.mark.parametrize("seed", range(3))
def test_the_size_and_order_of_batches_do_not_matter(text, one_pass, seed):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(1, W, 9))
    order = rng.permutation(W) if seed else np.arange(W)
    batches = [rows for rows in np.split(order, cuts) if len(rows)]
    assert_same(text.statistics(batches, kind="flat"), one_pass)


def test_without_compiled_code_the_same(text, one_pass, monkeypatch, tmp_path):
    for module in ("samples", "blocks", "statistics"):
        monkeypatch.setattr(f"saescope.analysis.{module}.kernels", lambda: None)
    plain = text.statistics(np.array_split(np.arange(W), 5))
    assert_same(plain, one_pass)
    plain.save(tmp_path / "state.npz")
    monkeypatch.undo()
    assert_same(FeatureStatistics.load(tmp_path / "state.npz"), one_pass)


@pytest.mark.parametrize("share", [2, 3])
@pytest.mark.parametrize("interleaved", [False, True])
def test_merged_parts_equal_one_pass(text, one_pass, share, interleaved):
    rows = np.arange(W)
    parts = [rows[i::share] if interleaved else rows[W * i // share : W * (i + 1) // share] for i in range(share)]
    found, *others = [text.statistics(np.array_split(part, 3)) for part in parts]
    for other in others:
        before = everything(other)
        found.merge(other)
        assert everything(other)[0] == before[0]
    assert_same(found, one_pass)


def test_merging_with_nothing_changes_nothing(text, one_pass):
    empty = FeatureStatistics(D, CONFIG, nearest=NEAREST)
    empty.merge(text.statistics([np.arange(W)]))
    assert_same(empty, one_pass)
    empty.merge(FeatureStatistics(D, CONFIG, nearest=NEAREST))
    assert_same(empty, one_pass)


def test_a_resumed_pass_equals_an_uninterrupted_one_bit_by_bit(text, tmp_path):
    batches = np.array_split(np.arange(W), 6)
    whole = text.statistics(batches)
    stopped = text.statistics(batches[:2])
    stopped.save(tmp_path / "state.npz")
    for rows in batches[2:4]:
        stopped.update(*text.batch(rows))  # going on after saving
    stopped.save(tmp_path / "state.npz")
    del stopped
    resumed = FeatureStatistics.load(tmp_path / "state.npz")
    assert resumed.seen_windows[0].start == text.windows[0]
    assert resumed.num_windows == sum(len(rows) for rows in batches[:4])
    with pytest.raises(ValueError, match=f"window {text.windows[0]} was given before"):
        resumed.update(*text.batch(batches[0]))
    for rows in batches[4:]:
        resumed.update(*text.batch(rows))
    exact, sums = everything(resumed)
    whole_exact, whole_sums = everything(whole)
    assert exact == whole_exact
    assert {name: array.tolist() for name, array in sums.items()} == {n: a.tolist() for n, a in whole_sums.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_activations_of_windows_that_fell_out_are_forgotten(text, monkeypatch):
    rng = np.random.default_rng(0)
    statistics = FeatureStatistics(4, replace(CONFIG, num_negatives=0), nearest=None)
    f = torch.from_numpy(rng.gamma(2.0, size=(400, T, 4)).astype(np.float32))
    for w in range(400):
        statistics.update(rng.integers(0, 1000, (1, T)), SparseCodes.from_dense(f[w]))
    assert statistics._contexts.num_pairs > statistics._contexts_kept
    statistics._clear_contexts()
    kept = statistics._contexts.num_pairs
    assert kept < 400
    examples = [example for feature in range(4) for example in statistics.examples(feature)]
    for example in examples:
        assert example.values == tuple(f[example.window_id, :, example.feature].tolist())


def test_contexts_are_cleared_while_the_pass_goes_on(text, one_pass, monkeypatch):
    calls = []
    clear = FeatureStatistics._clear_contexts
    monkeypatch.setattr("saescope.analysis.statistics._CLEAR_ABOVE", 50)
    monkeypatch.setattr(FeatureStatistics, "_clear_contexts", lambda self: (calls.append(1), clear(self)))
    found = text.statistics(np.array_split(np.arange(W), 20))
    assert calls
    assert_same(found, one_pass)


def test_features_are_drawn_for_in_blocks(text, one_pass, monkeypatch):
    monkeypatch.setattr("saescope.analysis.examples._BLOCK", 5)
    monkeypatch.setattr("saescope.analysis.statistics._WINDOWS_AT_ONCE", 4)
    assert_same(text.statistics([np.arange(W)]), one_pass)


def test_another_seed_draws_others(text, one_pass):
    other = text.statistics([np.arange(W)], replace(CONFIG, seed=8))
    assert other.bands(DENSE) == one_pass.bands(DENSE)
    assert other.examples(DENSE) != one_pass.examples(DENSE)


def test_plain_token_ids_count_every_token_and_number_windows_on():
    f = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    statistics = FeatureStatistics(2)
    statistics.update(torch.zeros(1, 2, dtype=torch.int64), SparseCodes.from_dense(f[:2]))
    statistics.update(np.ones((1, 2), dtype=int), SparseCodes.from_dense(f[2:]))
    assert statistics.num_tokens == 4
    assert statistics.seen_windows == [range(2)]
    assert statistics.numbers()["first_firing"].tolist() == [1, 0]
    assert statistics.numbers()["last_firing"].tolist() == [1, 3]


def test_nothing_fires(tmp_path):
    statistics = FeatureStatistics(3)
    assert statistics.numbers()["density"].tolist() == [0, 0, 0]
    assert statistics.examples(0) == []
    statistics.update(torch.arange(8).view(2, 4), SparseCodes.from_dense(torch.zeros(8, 3)))
    statistics.save(tmp_path / "state.npz")
    loaded = FeatureStatistics.load(tmp_path / "state.npz")
    assert_same(loaded, statistics)
    assert loaded.bands(1) == []
    assert {example.negative for example in loaded.examples(1)} == {"silent"}
    assert loaded.record_numbers(1)["first_firing"] is None
    assert len(loaded.label_sample(2).windows) == 0


def test_half_precision_codes_are_taken_as_they_are():
    f = torch.tensor([[0.0, 1.5], [2.25, 0.0]])
    statistics = FeatureStatistics(2)
    statistics.update(torch.zeros(1, 2, dtype=torch.int64), SparseCodes.from_dense(f.bfloat16()))
    assert statistics.numbers()["max_activation"].tolist() == [2.25, 1.5]


# Uniformity

FEATURES, MEMBERS, DRAWN = 200, 40, 5


def chi_square_p(ranks):
    """How likely so uneven a choice is, if every feature draws ``DRAWN`` of ``MEMBERS`` windows alike.

    Args:
        ranks: numbers of the windows drawn, from 0, of all features.

    Drawing without putting back makes counts vary less than in a multinomial distribution, by 1 - DRAWN / MEMBERS.
    """
    counts = np.bincount(ranks, minlength=MEMBERS)
    expected = FEATURES * DRAWN / MEMBERS
    share = DRAWN / MEMBERS
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - share)) * (MEMBERS - 1) / MEMBERS
    return chi2.sf(statistic, MEMBERS - 1)


@pytest.fixture(scope="module")
def uniform():
    """200 features that fire once in each of 40 windows, at sizes of one bin, and are silent in 40 more."""
    rng = np.random.default_rng(11)
    ids = rng.integers(0, 5000, (2 * MEMBERS, 8))
    f = np.zeros((2 * MEMBERS, 8, FEATURES), dtype=np.float32)
    for w in range(MEMBERS):
        f[w, rng.integers(0, 8, FEATURES), np.arange(FEATURES)] = rng.uniform(1.0, 1.18, FEATURES)
    config = StatisticsConfig(
        num_top=1, num_bands=1, num_per_band=DRAWN, num_negatives=DRAWN, num_label_firings=DRAWN, seed=0
    )
    statistics = FeatureStatistics(FEATURES, config)
    for rows in np.array_split(np.arange(2 * MEMBERS), 5):
        block = TokenBlock(ids[rows], rows, np.ones((len(rows), 8), dtype=bool))
        statistics.update(block, SparseCodes.from_dense(torch.from_numpy(f[rows].reshape(-1, FEATURES))))
    return statistics


def drawn_windows(statistics, what):
    if what == "labels":
        return [statistics.label_sample(feature).windows.tolist() for feature in range(FEATURES)]
    found = [statistics.examples(feature) for feature in range(FEATURES)]
    if what == "silent":
        return [[e.window_id - MEMBERS for e in own if e.negative == "silent"] for own in found]
    return [[e.window_id for e in own if getattr(e, what) == 0] for own in found]


@pytest.mark.parametrize("what", ["quantile_band", "width_band", "silent", "labels"])
def test_samples_are_uniform(uniform, what):
    drawn = drawn_windows(uniform, what)
    assert all(len(set(own)) == DRAWN for own in drawn)
    assert chi_square_p(np.concatenate(drawn)) > 0.001


def test_a_biased_sampler_fails_the_same_test():
    """One that replaces a member at random whenever a window comes with probability 1/5, as running samplers do."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(FEATURES):
        own = list(range(DRAWN))
        for window in range(DRAWN, MEMBERS):
            if rng.random() < 0.2:
                own[rng.integers(DRAWN)] = window
        drawn += own
    assert chi_square_p(np.array(drawn)) < 1e-6


def test_features_draw_apart(uniform):
    """Which window one feature draws says nothing of the next: as many in common as chance has it."""
    drawn = [set(own) for own in drawn_windows(uniform, "quantile_band")]
    common = np.mean([len(one & other) for one, other in pairwise(drawn)])
    spread = math.sqrt(DRAWN * DRAWN / MEMBERS * (1 - DRAWN / MEMBERS) ** 2 / (FEATURES - 1))
    assert abs(common - DRAWN * DRAWN / MEMBERS) < 4 * spread


# Refusals


def one_batch():
    ids = np.zeros((2, 3), dtype=int)
    f = torch.zeros(6, 4)
    f[1, 2] = f[4, 0] = 1.0
    return TokenBlock(ids, np.array([5, 6]), np.ones((2, 3), dtype=bool)), f


@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_values_that_are_no_numbers_are_refused_and_nothing_is_taken_in(bad, word):
    block, f = one_batch()
    f[4, 0] = bad
    statistics = FeatureStatistics(4)
    with pytest.raises(ValueError, match=f"feature 0 has the value {word} in window 6 at position 1"):
        statistics.update(block, SparseCodes.from_dense(f))
    assert statistics.num_tokens == statistics.num_windows == 0
    statistics.update(block, SparseCodes.from_dense(torch.nan_to_num(f, 0, 0, 0)))
    assert statistics.numbers()["num_firings"].tolist() == [0, 0, 1, 0]


def test_a_window_counts_once():
    block, f = one_batch()
    statistics = FeatureStatistics(4)
    statistics.update(block, SparseCodes.from_dense(f))
    for windows in ([6, 7], [4, 5], [9, 9]):
        with pytest.raises(ValueError, match=f"window {windows[1] if windows[0] != 6 else 6} was given before"):
            statistics.update(replace(block, windows=np.array(windows)), SparseCodes.from_dense(f))
    assert statistics.numbers()["num_firings"].sum() == 2
    statistics.update(replace(block, windows=np.array([4, 2])), SparseCodes.from_dense(f))
    assert statistics.seen_windows == [range(2, 3), range(4, 7)]


def test_blocks_that_do_not_fit_are_refused():
    block, f = one_batch()
    codes = SparseCodes.from_dense(f)
    none = np.zeros((2, 3), dtype=bool)
    for bad, words in [
        (replace(block, ids=block.ids * 0.5), "whole numbers"),
        (replace(block, ids=block.ids[0]), "whole numbers"),
        (replace(block, windows=np.arange(3)), "2 windows need 2"),
        (replace(block, windows=np.array([-1, 0])), "numbered from 0"),
        (replace(block, windows=np.array([0, 2**32])), "numbered from 0"),
        (replace(block, counted=none[:1]), "counted must be bool"),
        (replace(block, special=none.astype(int)), "special must be bool"),
        (replace(block, special=~none), "both counted and special"),
        (replace(block, counted=none), "0 tokens .* but codes of 6"),
        (np.zeros((2, 4), dtype=int), "8 tokens .* but codes of 6"),
    ]:
        with pytest.raises(ValueError, match=words):
            FeatureStatistics(4).update(bad, codes)
    statistics = FeatureStatistics(4)
    statistics.update(block, codes)
    with pytest.raises(ValueError, match="must have 3 tokens"):
        statistics.update(np.zeros((1, 6), dtype=int), codes)


def test_codes_that_do_not_fit_are_refused():
    block, f = one_batch()
    with pytest.raises(ValueError, match=r"codes of 4 features .* statistics of 5"):
        FeatureStatistics(5).update(block, SparseCodes.from_dense(f))
    values = torch.ones(6, 2)
    with pytest.raises(ValueError, match="features go from 0 to 3"):
        FeatureStatistics(4).update(block, SparseCodes(torch.tensor([[0, 4]] * 6), values, 4))
    with pytest.raises(ValueError, match=r"feature 3 stands twice .*window 5, position 0"):
        FeatureStatistics(4).update(block, SparseCodes(torch.tensor([[3, 3]] * 6), values, 4))


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"num_top": 5}, {"window_before": 3}],
)
def test_statistics_with_other_settings_are_not_merged(text, change):
    mine = text.statistics([range(5)])
    with pytest.raises(ValueError, match=f"different settings .*{next(iter(change))}: "):
        mine.merge(text.statistics([range(5, 9)], replace(CONFIG, **change)))
    with pytest.raises(ValueError, match="nearest"):
        mine.merge(text.statistics([range(5, 9)], nearest=None))
    with pytest.raises(ValueError, match=f"window {text.windows[4]} was given before"):
        mine.merge(text.statistics([range(4, 9)]))
    assert_same(mine, text.statistics([range(5)]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_top": 0}, "num_top must be a whole number from 1"),
        ({"num_bands": 2.0}, "num_bands"),
        ({"num_negatives": -1}, "num_negatives must be a whole number from 0"),
        ({"num_per_band": True}, "num_per_band"),
        ({"seed": 2**32}, "seed must be below"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        StatisticsConfig(**change)


def test_other_arguments_are_checked(one_pass):
    with pytest.raises(ValueError, match="d_sae must be"):
        FeatureStatistics(0)
    for nearest in ([0, 1], [1, 2, 3], [1, 1, 0], [-2, 0, 0]):
        with pytest.raises(ValueError, match="nearest"):
            FeatureStatistics(3, nearest=np.array(nearest))
    for ask in (one_pass.examples, one_pass.bands, one_pass.histogram, one_pass.label_sample, one_pass.record_numbers):
        with pytest.raises(IndexError, match="features go from 0 to 11, got 12"):
            ask(12)
    with pytest.raises(ValueError, match="num_label_firings is 0"):
        FeatureStatistics(3, StatisticsConfig(num_label_firings=0)).label_sample(0)


# Files


def test_a_damaged_file_is_noticed_or_harmless(text, tmp_path):
    statistics = text.statistics([range(20)])
    path = tmp_path / "state.npz"
    statistics.save(path)
    whole = path.read_bytes()
    expected = everything(statistics)[0]
    rng = np.random.default_rng(0)
    noticed = harmless = 0
    for place in rng.integers(0, len(whole), 60).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = FeatureStatistics.load(path)
        except ValueError as error:
            noticed += "damaged" in str(error)
        else:  # zip files have bytes without a meaning
            assert everything(found)[0] == expected
            harmless += 1
    assert noticed + harmless == 60
    assert noticed > 40
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            FeatureStatistics.load(path)


def test_a_whole_file_with_other_numbers_is_noticed(text, tmp_path):
    path = tmp_path / "state.npz"
    text.statistics([range(5)]).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["numbers/count"][3] += 1
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="checksum does not fit"):
        FeatureStatistics.load(path)


def test_a_failed_write_leaves_the_old_file(text, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "state.npz"
    text.statistics([range(5)]).save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("saescope.analysis.array_file.np.savez", full)
    with pytest.raises(OSError, match="no space left"):
        text.statistics([range(9)]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["state.npz"]


def test_files_that_are_not_there_or_of_another_version(text, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        FeatureStatistics.load(tmp_path / "none.npz")
    arrays = text.statistics([range(5)]).state()
    settings = arrays["settings"].tobytes().replace(b'"version": 1', b'"version": 9')
    with pytest.raises(ValueError, match="version 9"):
        FeatureStatistics.from_state({**arrays, "settings": np.frombuffer(settings, dtype=np.uint8)})


def test_memory_does_not_grow_with_the_text():
    rng = np.random.default_rng(0)
    statistics = FeatureStatistics(16, replace(CONFIG, num_label_firings=20))
    f = torch.from_numpy((rng.gamma(2.0, size=(6400, 16)) * (rng.random((6400, 16)) < 0.2)).astype(np.float32))
    codes = SparseCodes.from_dense(f)

    def feed(count):
        for _ in range(count):
            statistics.update(rng.integers(0, 10**6, (100, 64)), codes)

    feed(3)
    statistics._clear_contexts()
    after = statistics.nbytes
    feed(12)
    statistics._clear_contexts()
    assert statistics.nbytes < 1.05 * after


def test_values_on_edges_are_counted_in_the_bin_that_they_begin():
    edges = EDGES[1:-1].astype(np.float32)
    values = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))])
    codes = SparseCodes(torch.zeros(len(values), 1, dtype=torch.int64), torch.from_numpy(values)[:, None], 1)
    statistics = FeatureStatistics(1)
    for _ in range(2):  # bins are new at first, and known afterwards
        statistics.update(np.arange(len(values))[None], codes)
    found_edges, found = statistics.histogram(0)
    expected = np.bincount(
        np.searchsorted(EDGES, values.astype(np.float64), side="right") - 1, minlength=len(EDGES) - 1
    )
    first = int(np.flatnonzero(found_edges[0] == EDGES)[0])
    assert found.tolist() == (2 * expected[first : first + len(found)]).tolist()
    assert found.sum() == 2 * len(values)
