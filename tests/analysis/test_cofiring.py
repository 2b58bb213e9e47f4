"""The sample of tokens, and what fires together on it, against dense computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from saescope.analysis.cofiring import TokenSample
from saescope.dictionaries.codes import SparseCodes
from saescope.kernels import FlatCodes


def codes_of(fires):
    """Sparse codes of a boolean ``[T, d_sae]``, some of them negative."""
    dense = torch.from_numpy(np.asarray(fires)).float()
    return SparseCodes.from_dense(dense * torch.where(torch.arange(dense.shape[1]) % 3 == 0, -2.0, 1.0))


def random_fires(num_tokens, d_sae, density=0.3, seed=0):
    return np.random.default_rng(seed).random((num_tokens, d_sae)) < density


def sample_of(fires, num_tokens=1000, seed=0, **options):
    sample = TokenSample(fires.shape[1], num_tokens, seed, **options)
    sample.update(np.arange(len(fires)), codes_of(fires))
    return sample


def assert_same(a, b):
    for name, value in a.state().items():
        np.testing.assert_array_equal(value, b.state()[name], err_msg=name)


def dense_measures(fires):
    """Phi (nan where undefined), Jaccard and common tokens of all pairs, from the definitions."""
    fires = fires.astype(np.float64)
    both = fires.T @ fires
    counts = fires.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = fires - fires.mean(0)
        together = centred.T @ centred  # phi is Pearson's correlation of zeros and ones
        phi = together / np.sqrt(np.outer(together.diagonal(), together.diagonal()))
        jaccard = both / (counts[:, None] + counts - both)
    return phi, jaccard, both, counts


def check(found, values, both, counts, num, min_firings):
    """Every feature has the best there are, named and counted rightly, equal ones by index."""
    d_sae = len(counts)
    can = counts >= min_firings
    possible = can[:, None] & can & ~np.eye(d_sae, dtype=bool) & (np.nan_to_num(values) > 1e-12)
    for i in range(d_sae):
        order = np.argsort(-np.where(possible[i], values[i], -1), kind="stable")
        best = order[: min(num, int(possible[i].sum()))]
        here = found.indices[i] >= 0
        assert here.tolist() == [True] * len(best) + [False] * (num - len(best))
        ids = found.indices[i][here]
        np.testing.assert_allclose(found.values[i][here], values[i][best], rtol=1e-10)
        assert possible[i, ids].all()
        assert len(set(ids.tolist())) == len(ids)
        np.testing.assert_allclose(found.values[i][here], values[i][ids], rtol=1e-10)
        assert found.num_both[i][here].tolist() == both[i, ids].tolist()
        assert np.isnan(found.values[i][~here]).all()
        assert (found.num_both[i][~here] == 0).all()
        for a, b in itertools.pairwise(range(len(ids))):
            if found.values[i][a] == found.values[i][b]:
                assert ids[a] < ids[b]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("measure", ["phi", "jaccard"])
def test_neighbours_equal_a_dense_computation(measure, num_threads):
    rng = np.random.default_rng(1)
    fires = rng.random((300, 40)) < rng.random(40) ** 2  # from dead to nearly always
    fires[:, 7] = rng.random(300) < 0.4  # and one pair that belongs together
    fires[:, 5] = fires[:, 7] ^ (rng.random(300) < 0.05)
    phi, jaccard, both, counts = dense_measures(fires)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = sample_of(fires).neighbours(6, measure=measure)
    finally:
        torch.set_num_threads(before)
    check(found, phi if measure == "phi" else jaccard, both, counts, 6, 5)
    assert found.num_tokens == 300
    assert found.indices[7][0] == 5


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 7))),
    st.integers(1, 8),
    st.sampled_from(["phi", "jaccard"]),
    st.integers(1, 6),
)
def test_any_firings(fires, num, measure, min_firings):
    """Few tokens: many ties, features that are dead, that fire everywhere, or that are alone."""
    phi, jaccard, both, counts = dense_measures(fires)
    found = sample_of(fires).neighbours(num, measure=measure, min_firings=min_firings)
    check(found, phi if measure == "phi" else jaccard, both, counts, num, min_firings)


def test_by_hand():
    # of 8 tokens: features 0 and 1 fire on 4, on 3 of them both; feature 2 on the others; feature 3 everywhere
    fires = np.array([[1, 1, 0, 1]] * 3 + [[1, 0, 0, 1], [0, 1, 1, 1]] + [[0, 0, 1, 1]] * 3, dtype=bool)
    found = sample_of(fires).neighbours(2, min_firings=4)
    assert found.indices.tolist() == [[1, -1], [0, -1], [-1, -1], [-1, -1]]
    assert found.values[0, 0] == (8 * 3 - 4 * 4) / (4 * 4) == 0.5
    assert found.num_both[:2, 0].tolist() == [3, 3]
    found = sample_of(fires).neighbours(2, measure="jaccard", min_firings=4)
    assert found.indices.tolist() == [[1, 3], [0, 3], [3, 1], [0, 1]]  # 3 shares 4 of 8 tokens with each
    np.testing.assert_allclose(found.values[0], [3 / 5, 4 / 8])


def test_features_with_few_firings_have_no_neighbours():
    fires = np.zeros((20, 3), dtype=bool)
    fires[:5, 0] = fires[:5, 1] = fires[:4, 2] = True
    assert sample_of(fires).neighbours(2).indices.tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert sample_of(fires).neighbours(2, min_firings=4).indices.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_all_tokens_are_kept_while_there_is_room():
    sample = sample_of(random_fires(50, 6), num_tokens=50)
    assert sample.size == sample.num_seen == 50
    assert sample.places.tolist() == list(range(50))


def test_the_sample_does_not_depend_on_order_or_pieces():
    fires = random_fires(400, 9)
    whole = sample_of(fires, 60)
    assert whole.size == 60
    order = np.random.default_rng(3).permutation(400)
    for size in (1, 7, 150):
        sample = TokenSample(9, 60)
        for begin in range(0, 400, size):
            tokens = order[begin : begin + size]
            sample.update(tokens, codes_of(fires[tokens]))
        assert_same(sample, whole)
    a, b = sample.neighbours(3), whole.neighbours(3)
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.values, b.values)


def test_neighbours_are_those_of_the_tokens_in_the_sample():
    fires = random_fires(500, 12, seed=5)
    sample = sample_of(fires, 80)
    phi, _, both, counts = dense_measures(fires[sample.places])
    check(sample.neighbours(4), phi, both, counts, 4, 5)


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(0, 40), st.just(5))),
    st.lists(st.integers(0, 2), min_size=40, max_size=40),
    st.integers(1, 30),
    st.integers(1, 60),
)
def test_merged_samples_are_the_sample_of_the_whole(fires, parts, num_tokens, num_firings):
    """Whichever way tokens are dealt to three samples, also where firings are what there is no room for."""
    whole = sample_of(fires, num_tokens, num_firings=num_firings)
    samples = []
    for part in range(3):
        tokens = np.array([t for t in range(len(fires)) if parts[t] == part], dtype=np.int64)
        samples.append(TokenSample(5, num_tokens, num_firings=num_firings))
        samples[-1].update(tokens, codes_of(fires[tokens]))
    first, second, third = samples
    second.merge(third)
    first.merge(second)
    assert_same(first, whole)
    assert first.num_seen == len(fires)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.just(5))), st.integers(1, 30), st.integers(1, 60))
def test_as_many_tokens_as_there_is_room_for(fires, num_tokens, num_firings):
    """The beginning of one order of all tokens, that of a sample with room for all, up to the first that has no room."""
    order = sample_of(fires).state()["places"]
    fits = np.cumsum(fires[order].sum(1)) <= num_firings
    expected = order[: min(num_tokens, len(order) if fits.all() else int(fits.argmin()))]
    assert sample_of(fires, num_tokens, num_firings=num_firings).state()["places"].tolist() == expected.tolist()


def test_no_token_takes_the_place_of_one_that_was_too_large():
    """Where firings are what there is no room for, what comes later and is smaller is not let in either."""
    fires = np.random.default_rng(0).random((200, 40)) < np.random.default_rng(1).random((200, 1))
    whole = sample_of(fires, num_firings=300)
    assert len(whole.state()["features"]) <= 300
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(200)
        one, *parts = (TokenSample(40, 1000, num_firings=300) for _ in range(3))
        for begin in range(0, 200, 10):
            tokens = order[begin : begin + 10]
            for sample in (one, parts[begin % 20 // 10]):
                sample.update(tokens, codes_of(fires[tokens]))
        parts[0].merge(parts[1])
        assert_same(one, whole)
        assert_same(parts[0], whole)


def test_memory_is_bounded_also_where_much_fires():
    fires = random_fires(2000, 50, density=0.9)
    sample = TokenSample(50, 1000, num_firings=4000)
    most = 0
    for begin in range(0, 2000, 20):
        tokens = np.arange(begin, begin + 20)
        sample.update(tokens, codes_of(fires[tokens]))
        most = max(most, sum(len(part.features) for part in [sample._kept, *sample._new]))
    assert 3900 < len(sample.state()["features"]) <= 4000
    assert most <= 4000 * 5 // 4 + 20 * 50
    assert sample.num_seen == 2000


def uniformity(places_of_seed, num_places, num_groups):
    """p of a chi-square test that every stretch of places is drawn equally often."""
    drawn = np.concatenate([places_of_seed(seed) for seed in range(200)])
    counts = np.bincount(drawn * num_groups // num_places, minlength=num_groups)
    return stats.chisquare(counts).pvalue


def test_the_sample_is_uniform_and_the_test_would_notice():
    codes = codes_of(np.ones((2000, 1), dtype=bool))

    def drawn(seed):
        sample = TokenSample(1, 50, seed)
        sample.update(np.arange(2000), codes)
        return sample.places

    def first_more_often(seed):
        rng = np.random.default_rng(seed)
        weights = np.linspace(1.3, 0.7, 2000)
        return rng.choice(2000, 50, replace=False, p=weights / weights.sum())

    assert uniformity(drawn, 2000, 40) > 0.001
    assert uniformity(first_more_often, 2000, 40) < 1e-6
    # neither neighbouring places nor neighbouring seeds go together
    every = np.zeros((200, 2000))
    for seed in range(200):
        every[seed, drawn(seed)] = 1
    expected = 200 * 2000 * (50 / 2000) ** 2
    for together in ((every[:, 1:] * every[:, :-1]).sum(), (every[1:] * every[:-1]).sum()):
        assert abs(together - expected) < 4.5 * expected**0.5
    assert (every.sum(1) == 50).all()


def test_a_saved_sample_goes_on_as_if_nothing_had_happened():
    fires = random_fires(300, 70)
    whole, first = sample_of(fires, 40, seed=7), TokenSample(70, 40, 7)
    first.update(np.arange(150), codes_of(fires[:150]))
    state = {name: np.array(value) for name, value in first.state().items()}
    assert all(value.dtype != object for value in state.values())
    again = TokenSample.load(state)
    assert_same(again, first)
    again.update(np.arange(150, 300), codes_of(fires[150:]))
    assert_same(again, whole)
    assert (again.d_sae, again.num_tokens, again.seed, again.num_seen) == (70, 40, 7, 300)


@pytest.mark.parametrize("num_tokens", [1000, 30])
def test_flat_codes_say_the_same_as_sparse_codes(num_tokens):
    fires = random_fires(200, 30)
    dense = torch.from_numpy(fires).float()
    dense[3:6] = 0  # tokens on which nothing fires
    mask = dense != 0
    mask[:, :4] = True  # entries without a value are no firings
    a, b = TokenSample(30, num_tokens), TokenSample(30, num_tokens)
    for begin in (0, 80):
        tokens = np.arange(begin, [80, 200][begin > 0])
        a.update(tokens, SparseCodes.from_dense(dense[tokens]))
        b.update(tokens, FlatCodes.from_mask(dense[tokens], mask[tokens]))
    assert_same(a, b)


def test_features_beyond_sixteen_bits():
    indices = torch.tensor([[70_000, 3, 65_537]] * 6)
    sample = TokenSample(70_001, 100)
    sample.update(np.arange(6), SparseCodes(indices, torch.ones(6, 3), 70_001))
    sample.update(np.arange(6, 12), SparseCodes(torch.zeros(6, 1, dtype=torch.long), torch.zeros(6, 1), 70_001))
    found = sample.neighbours(2)
    assert found.indices[[3, 65_537, 70_000]].tolist() == [[65_537, 70_000], [3, 70_000], [3, 65_537]]
    assert found.values[3].tolist() == [1.0, 1.0]


def test_an_empty_sample_has_no_neighbours():
    found = TokenSample(4, 10).neighbours(3)
    assert (found.indices == -1).all()
    assert found.num_tokens == 0


def test_a_token_given_twice_is_an_error():
    fires = random_fires(30, 4)
    sample = sample_of(fires)
    sample.update(np.array([17]), codes_of(fires[17:18]))
    with pytest.raises(ValueError, match="token 17 was given twice"):
        sample.neighbours(1)
    first, second = sample_of(fires), sample_of(fires)
    state = first.state()
    with pytest.raises(ValueError, match="token 0 is in both samples"):
        first.merge(second)
    np.testing.assert_array_equal(first.state()["settings"], state["settings"])  # and nothing was taken


@pytest.mark.parametrize("change", [{"d_sae": 5}, {"num_tokens": 11}, {"seed": 1}, {"num_firings": 3}])
def test_samples_of_other_settings_are_not_merged(change):
    settings = {"d_sae": 4, "num_tokens": 10, "seed": 0, "num_firings": 99}
    with pytest.raises(ValueError, match=f"samples with {next(iter(change))} = "):
        TokenSample(**settings).merge(TokenSample(**settings | change))


@pytest.mark.parametrize(
    ("places", "codes", "words"),
    [
        (np.arange(3), codes_of(random_fires(2, 4)), "codes of 2 tokens"),
        (np.arange(2), codes_of(random_fires(2, 5)), "codes of 5 features"),
        (np.array([0, -1]), codes_of(random_fires(2, 4)), "got -1"),
    ],
)
def test_codes_that_do_not_fit_are_refused(places, codes, words):
    with pytest.raises(ValueError, match=words):
        TokenSample(4, 10).update(places, codes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d_sae": 0}, "d_sae must be"),
        ({"d_sae": 1, "num_tokens": 0}, "num_tokens must be"),
        ({"d_sae": 1, "num_firings": 0}, "num_firings must be"),
        ({"d_sae": 1, "seed": -1}, "the seed must be"),
    ],
)
def test_settings_without_a_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TokenSample(**options)


@pytest.mark.parametrize(("options", "words"), [({"num": 0}, "num must be"), ({"num": 1, "measure": "lift"}, "'lift'")])
def test_neighbours_that_can_not_be_given_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TokenSample(3).neighbours(**options)


def test_a_damaged_state_is_refused():
    state = sample_of(random_fires(30, 4)).state()
    with pytest.raises(ValueError, match="lacks features, limit"):
        TokenSample.load({name: value for name, value in state.items() if name not in ("features", "limit")})
    with pytest.raises(ValueError, match="does not fit together"):
        TokenSample.load({**state, "features": state["features"][:-1]})
    with pytest.raises(ValueError, match="does not fit together"):
        TokenSample.load({**state, "features": state["features"] + 4})
