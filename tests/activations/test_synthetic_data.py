"""Atoms, samples and streams: sizes, distributions, and a stream that can be left and taken up anywhere."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.activations.synthetic import (
    Bernoulli,
    Coherence,
    ExactSupports,
    FoldedNormal,
    Ones,
    RectifiedNormal,
    SyntheticData,
    SyntheticStream,
    coherence,
    constant_probabilities,
    mean_l0,
    near_orthogonal_atoms,
    orthonormal_atoms,
    random_atoms,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings) -> SyntheticData:
    return SyntheticData(random_atoms(6, 4, seeded(7)), Bernoulli(constant_probabilities(6, 0.4)), **settings)


def overlaps(atoms: torch.Tensor) -> list[float]:
    rows = atoms.double().tolist()
    norms = [math.sqrt(sum(v * v for v in row)) for row in rows]
    return [
        abs(sum(a * b for a, b in zip(rows[i], rows[j], strict=True))) / (norms[i] * norms[j])
        for i in range(len(rows))
        for j in range(i)
    ]


def few_steps(*args, **settings) -> torch.Tensor:
    return near_orthogonal_atoms(*args, num_steps=30, **settings)


@pytest.mark.parametrize("make", [random_atoms, orthonormal_atoms, few_steps])
def test_atoms_are_unit_rows_or_have_the_norms_asked_for_and_depend_on_the_seed_alone(make):
    atoms = make(5, 8, seeded(1))
    assert atoms.shape == (5, 8)
    assert atoms.dtype == torch.float32
    assert atoms.norm(dim=-1).tolist() == pytest.approx([1.0] * 5)
    assert torch.equal(atoms, make(5, 8, seeded(1)))
    assert not torch.allclose(atoms, make(5, 8, seeded(2)))
    norms = [0.5, 1.0, 2.0, 3.0, 4.0]
    scaled = make(5, 8, seeded(1), norms=norms)
    assert scaled.norm(dim=-1).tolist() == pytest.approx(norms)
    assert torch.allclose(scaled / scaled.norm(dim=-1, keepdim=True), atoms, atol=1e-6)


def test_coherence_is_over_pairs_of_normalised_rows():
    atoms = random_atoms(7, 4, seeded(), norms=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found, pairs = coherence(atoms), overlaps(atoms)
    assert found.largest == pytest.approx(max(pairs))
    assert found.mean == pytest.approx(sum(pairs) / len(pairs))
    assert coherence(torch.ones(1, 3)) == Coherence(0.0, 0.0)


def test_random_atoms_spread_evenly_over_the_sphere():
    atoms = random_atoms(20_000, 3, seeded())
    assert atoms.mean(0).abs().max() < 0.02
    assert torch.allclose(atoms.T @ atoms / 20_000, torch.eye(3) / 3, atol=0.01)


def test_orthonormal_atoms_do_not_overlap_and_have_no_preferred_sign():
    assert max(overlaps(orthonormal_atoms(12, 12, seeded()))) < 1e-6
    firsts = torch.stack([orthonormal_atoms(2, 3, seeded(s))[0] for s in range(300)])
    assert firsts.mean(0).abs().max() < 0.15  # 0.58 / sqrt(300) is one standard error


@pytest.mark.parametrize(("n", "d"), [(10, 20), (24, 12)])
@pytest.mark.parametrize("which", ["largest", "mean"])
def test_superposition_is_set_as_a_number(n, d, which):
    start = overlaps(random_atoms(n, d, seeded(3)))
    before = max(start) if which == "largest" else sum(start) / len(start)
    goal = 0.85 * before
    reached = overlaps(near_orthogonal_atoms(n, d, seeded(3), **{which: goal}))
    assert (max(reached) if which == "largest" else sum(reached) / len(reached)) == pytest.approx(goal, abs=1e-5)


def test_without_a_goal_few_atoms_come_to_right_angles_and_many_come_apart():
    assert max(overlaps(near_orthogonal_atoms(8, 16, seeded(), num_steps=400))) < 1e-3
    crowded = overlaps(near_orthogonal_atoms(16, 8, seeded(), num_steps=200))
    start = overlaps(random_atoms(16, 8, seeded()))
    assert sum(v * v for v in crowded) < 0.8 * sum(v * v for v in start)
    with torch.no_grad():  # as studies may do
        near_orthogonal_atoms(8, 16, seeded(), num_steps=2)


@pytest.mark.parametrize(
    ("magnitudes", "mean", "square"),
    [
        (Ones(), 1.0, 1.0),
        (FoldedNormal(), math.sqrt(2 / math.pi), 1.0),
        (FoldedNormal(mean=1.0, sd=0.3), 1.0001, 1.09),
        (RectifiedNormal(), 1.0, 1.0225),
        # ReLU(N(1, 1)), over all draws: Phi(1) + phi(1), and 2 Phi(1) + phi(1)
        (RectifiedNormal(sd=1.0), 0.84134 + 0.24197, 2 * 0.84134 + 0.24197),
        (FoldedNormal(scale=3.0), 3 * math.sqrt(2 / math.pi), 9.0),
    ],
)
def test_magnitudes_have_the_moments_of_their_distribution(magnitudes, mean, square):
    values = magnitudes.sample(20_000, 5, seeded())
    assert values.shape == (20_000, 5)
    assert float(values.mean()) == pytest.approx(mean, rel=0.01)
    assert float(values.square().mean()) == pytest.approx(square, rel=0.02)
    share = float((values > 0).double().mean())
    assert share == pytest.approx(magnitudes.positive_share, abs=0.005)
    assert magnitudes.positive_share == 1 or isinstance(magnitudes, RectifiedNormal)


def test_magnitudes_can_differ_by_feature():
    data = small(magnitudes=Ones(scale=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    codes = data.sample(500, seeded()).codes
    assert codes.amax(0).tolist() == [1, 2, 3, 4, 5, 6]
    assert set(codes[:, 2].tolist()) == {0.0, 3.0}


def test_tokens_are_their_codes_times_atoms_plus_bias():
    bias = torch.tensor([1.0, -2.0, 3.0, 0.5])
    data = small(bias=bias)
    x, codes = data.sample(50, seeded(2))
    assert (x.shape, codes.shape, x.dtype, codes.dtype) == ((50, 4), (50, 6), torch.float32, torch.float32)
    for token, code in zip(x.tolist(), codes.tolist(), strict=True):
        for j in range(4):
            whole = float(bias[j]) + sum(code[i] * float(data.atoms[i, j]) for i in range(6))
            assert token[j] == pytest.approx(whole, abs=1e-5)
    assert torch.allclose(small(bias=0.5).sample(50, seeded(2)).x, x - bias + 0.5, atol=1e-5)


def test_noise_is_added_to_tokens_and_not_to_codes():
    clean, noisy = small().sample(20_000, seeded(4)), small(noise=0.2).sample(20_000, seeded(4))
    assert torch.equal(clean.codes, noisy.codes)
    error = noisy.x - clean.x
    assert error.std(0).tolist() == pytest.approx([0.2] * 4, rel=0.03)
    assert error.mean(0).abs().max() < 0.01


def test_true_l0_is_what_samples_show():
    atoms = random_atoms(6, 4, seeded())
    for firing in (Bernoulli([0.5, 0.4, 0.3, 0.2, 0.1, 0.0]), ExactSupports([6.0, 5, 4, 3, 2, 1], 2)):
        for magnitudes in (None, Ones(), RectifiedNormal(sd=1.0)):
            data = SyntheticData(atoms, firing, magnitudes)
            assert mean_l0(data.sample(40_000, seeded()).codes) == pytest.approx(data.true_l0, abs=0.04)


def test_a_drawn_feature_always_has_a_strength():
    data = SyntheticData(random_atoms(6, 4, seeded()), ExactSupports([1.0] * 6, 3))
    codes = data.sample(10_000, seeded()).codes
    assert (codes > 0).sum(-1).unique().tolist() == [3]


STREAMS = {
    "fresh": lambda seed=0, **more: SyntheticStream(small(noise=0.1), 8, seed, **more),
    "fixed": lambda seed=0, **more: SyntheticStream(small(noise=0.1), 8, seed, fixed_tokens=27, **more),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@given(before=st.integers(0, 12), after=st.integers(1, 8))
@settings(max_examples=15)
def test_a_resumed_stream_goes_on_exactly(make, before, after):
    whole = make()
    batches = [next(whole) for _ in range(before + after)]
    first = make()
    for _ in range(before):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    next(second)
    second.load_state_dict(state)
    assert all(torch.equal(next(second), batch) for batch in batches[before:])


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_batch_can_be_looked_up_with_its_truth(make):
    stream = make()
    looked_up = [stream.batch(i) for i in (0, 9, 3)]
    batches = [next(stream) for _ in range(10)]
    for number, samples in zip((0, 9, 3), looked_up, strict=True):
        assert torch.equal(samples.x, batches[number])
        assert torch.allclose(samples.x, samples.codes @ stream.data.atoms, atol=0.6)  # noise 0.1
    assert batches[0].shape == (8, 4)
    with pytest.raises(ValueError, match="from 0"):
        stream.batch(-1)


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_streams_differ_by_seed_and_batches_by_number(make):
    a, b = make(0), make(1)
    first = next(a)
    assert not torch.equal(first, next(b))
    assert not torch.equal(first, next(a))
    assert torch.equal(first, next(make(0)))


def test_a_fixed_data_set_is_visited_once_per_pass_in_a_new_order():
    stream = STREAMS["fixed"]()
    tokens = stream.fixed.x
    assert tokens.shape == (27, 4)
    number = {tuple(row): i for i, row in enumerate(tokens.tolist())}
    visited = [number[tuple(row)] for _ in range(27) for row in next(stream).tolist()]  # 27 batches of 8: 8 passes
    passes = [visited[i : i + 27] for i in range(0, len(visited), 27)]
    assert len(passes) == 8
    assert all(sorted(p) == list(range(27)) for p in passes)
    assert len({tuple(p) for p in passes}) == 8
    assert list(range(27)) not in passes


def test_the_order_of_a_fixed_data_set_has_a_seed_of_its_own():
    a, b = STREAMS["fixed"](0, order_seed=1), STREAMS["fixed"](0, order_seed=2)
    assert torch.equal(a.fixed.x, b.fixed.x)
    assert not torch.equal(next(a), next(b))
    assert torch.equal(STREAMS["fixed"](0, order_seed=1).batch(4).x, a.batch(4).x)


def test_held_out_samples_are_of_the_same_kind_and_of_no_batch():
    data = small()
    held_out = {tuple(row) for seed in range(4) for row in data.held_out(200, seed).x.tolist() if any(row)}
    for stream in (SyntheticStream(data, 200, 0), SyntheticStream(data, 200, 0, fixed_tokens=200)):
        assert torch.equal(stream.held_out(50, 3).x, data.held_out(50, 3).x)
        for _ in range(10):
            assert not held_out & {tuple(row) for row in next(stream).tolist()}
    x, codes = data.held_out(50)
    assert torch.allclose(x, codes @ data.atoms, atol=1e-6)
    assert not torch.equal(data.held_out(50, 0).x, data.held_out(50, 1).x)


def test_seeds_of_training_and_of_held_out_samples_never_meet():
    from saescope.activations.synthetic.data import _generator

    seeds = [_generator("batch", seed, i).initial_seed() for seed in range(3) for i in range(500)]
    assert {seed % 2 for seed in seeds} == {0}
    assert {_generator("held out", i, held_out=True).initial_seed() % 2 for i in range(50)} == {1}
    # all of a seed must fit into the 32 bits that the generator looks at, or parity would be no difference
    assert max(seeds) < 2**32
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: random_atoms(0, 4, seeded()), "at least 1"),
        (lambda: random_atoms(2, 4, seeded(), norms=[1.0]), "one per feature"),
        (lambda: random_atoms(2, 4, seeded(), norms=[1.0, 0.0]), "positive numbers"),
        (lambda: orthonormal_atoms(5, 4, seeded()), "at most 4 features"),
        (lambda: near_orthogonal_atoms(5, 4, seeded(), largest=0.5, mean=0.2), "not both"),
        (lambda: near_orthogonal_atoms(8, 4, seeded(), largest=0.1), "Welch bound"),
        (lambda: near_orthogonal_atoms(8, 4, seeded(), mean=0.9), "random start"),
        (lambda: near_orthogonal_atoms(8, 4, seeded(), mean=0.01, num_steps=20), "after 20 steps the mean"),
        (lambda: coherence(torch.ones(3)), "atoms as rows"),
        (lambda: Ones(scale=0.0), "positive number"),
        (lambda: FoldedNormal(sd=0.0), "sd must be above 0"),
        (lambda: small(magnitudes=Ones(scale=[1.0, 2.0])), "2 scales of magnitudes do not match 6"),
        (lambda: small(bias=torch.ones(3)), r"a number or \[4\]"),
        (lambda: small(noise=-1.0), "at least 0"),
        (lambda: small().sample(0, seeded()), "at least 1"),
        (lambda: SyntheticData(torch.zeros(2, 3), Bernoulli([0.5, 0.5])), "none of them 0"),
        (lambda: SyntheticData(torch.ones(2, 3), Bernoulli([0.5])), "2 atoms do not match the 1 features"),
        (lambda: SyntheticStream(small(), 0), "at least 1"),
        (lambda: SyntheticStream(small(), 8, fixed_tokens=7), "at most fixed_tokens = 7"),
    ],
)
def test_wrong_settings_are_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_dictionary_of_the_same_seed_does_not_begin_at_the_truth():
    """Both draw normal rows; drawn from one seed they would be the same rows, and every toy study would start solved."""
    from saescope import DictionaryConfig, ReLU

    for seed in range(3):
        atoms = random_atoms(12, 8, torch.Generator().manual_seed(seed))
        rows = ReLU(DictionaryConfig(d_in=8, d_sae=12), seed=seed).W_dec.detach()
        cosines = torch.nn.functional.normalize(atoms, dim=-1).float() @ rows.T
        assert (cosines.diagonal() < 0.99).all()
