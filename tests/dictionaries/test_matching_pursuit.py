"""Matching pursuit against a loop over tokens and steps; its energies; where it stops; sparse codes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

Steps = list[tuple[int, torch.Tensor]]

NOTHING = 1e-13  # the product of a row that was just taken with what is left is rounding, of either sign


def _pursue_by_loops(
    rows: torch.Tensor, r: torch.Tensor, k: int, threshold: float = 0.0, stop_on_repeat: bool = False
) -> tuple[Steps, torch.Tensor]:
    """One token: (feature, value) of every step that was taken, and the residual; differentiable for fixed choices."""
    steps: Steps = []
    for _ in range(k):
        products = [sum(a * b for a, b in zip(r.tolist(), row, strict=True)) for row in rows.tolist()]
        i = max(range(len(rows)), key=lambda i: products[i])
        if products[i] < NOTHING:
            break
        v = (r * rows[i]).sum()
        r = r - v * rows[i]
        repeated = i in [earlier for earlier, _ in steps]
        steps.append((i, v))
        if float(r.detach().norm()) < threshold or (repeated and stop_on_repeat):
            break
    return steps, r


def _codes(steps: list[Steps], d_sae: int) -> torch.Tensor:
    f = []
    for token in steps:
        row = [torch.zeros((), dtype=torch.float64)] * d_sae
        for i, v in token:
            row[i] = row[i] + v
        f.append(torch.stack(row))
    return torch.stack(f)


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 9),
    threshold=st.sampled_from([0.0, 0.5, 2.0]),
    stop_on_repeat=st.booleans(),
    centred=st.booleans(),
)
@profile(max_examples=25)
def test_every_step_and_every_gradient(make, tokens, seed, k, threshold, stop_on_repeat, centred):
    dictionary = make(
        "matching_pursuit", seed=seed, k=k, residual_threshold=threshold, stop_on_repeat=stop_on_repeat,
        apply_b_dec_to_input=centred,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    A, C = (torch.randn(5, width, generator=random, dtype=torch.float64) for width in (6, 10))

    def objective(f: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        return (A * x_hat).sum() + (C * f).sum()

    x = tokens(5, seed=seed).requires_grad_()
    rows, bias = dictionary.W_dec, dictionary.b_dec
    plain = [_pursue_by_loops(rows, token - bias if centred else token, k, threshold, stop_on_repeat) for token in x]
    f = _codes([steps for steps, _ in plain], 10)
    x_hat = f @ rows + (bias if centred else 0)
    expected = torch.autograd.grad(objective(f, x_hat), (x, rows, bias), materialize_grads=True)

    found_f = dictionary.encode(x)
    torch.testing.assert_close(found_f, f, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(dictionary(x), x_hat, rtol=1e-11, atol=1e-12)
    found = torch.autograd.grad(objective(found_f, dictionary(x)), (x, rows, bias), materialize_grads=True)
    codes = dictionary.encode_sparse(x)
    sparse = torch.autograd.grad(
        objective(codes.to_dense(), dictionary.decode(codes)), (x, rows, bias), materialize_grads=True
    )

    pursuit = dictionary.pursue(x)
    # a step of nothing onto the row that was just taken has a gradient along that row, and no other
    rounding = bool(((pursuit.values > 0) & (pursuit.values < NOTHING)).any())
    for one, two, gradient in zip(found, sparse, expected, strict=True):
        for got in (one, two):
            difference = (got - gradient).detach()
            if rounding and got.shape == rows.shape:
                difference = difference - (difference * rows.detach()).sum(-1, keepdim=True) * rows.detach()
            assert float(difference.abs().max()) < 1e-10 * (1 + float(gradient.abs().max()))

    num_steps = pursuit.values.shape[1]  # fewer than k when every token has stopped
    assert max(len(steps) for steps, _ in plain) <= num_steps <= k
    assert pursuit.indices.shape == (5, num_steps)
    assert pursuit.residual_energies.shape == (5, num_steps + 1)
    for b, (steps, residual) in enumerate(plain):
        taken = len(steps)
        assert pursuit.indices[b, :taken].tolist() == [i for i, _ in steps]
        torch.testing.assert_close(
            pursuit.values[b, :taken],
            torch.stack([v for _, v in steps] or [x.new_zeros(())])[:taken],
            rtol=1e-10,
            atol=1e-12,
        )
        assert not (pursuit.values[b, taken:] >= NOTHING).any()
        torch.testing.assert_close(pursuit.residual[b], residual, rtol=1e-11, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences(make, tokens):
    """Away from ties a small change of the input changes no choice: the pursuit is a smooth map there."""
    dictionary = make("matching_pursuit", k=4, seed=8)
    x = tokens(3, seed=8).requires_grad_()
    rows = dictionary.W_dec.detach().clone().requires_grad_()

    def read(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        dictionary.W_dec.data = rows.data
        return torch.func.functional_call(dictionary, {"W_dec": rows}, (x,))

    assert torch.autograd.gradcheck(read, (x, rows))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("stop_on_repeat", [False, True])
@torch.no_grad()
def test_energy_is_accounted_for_at_every_step(make, tokens, dtype, tolerance, stop_on_repeat):
    dictionary = make(
        "matching_pursuit", d_in=24, d_sae=64, k=24, stop_on_repeat=stop_on_repeat, residual_threshold=0.0, dtype=dtype
    )
    x = tokens(200, 24).to(dtype)
    pursuit = dictionary.pursue(x)
    centred = x - dictionary.b_dec
    total = centred.double().square().sum(-1)
    energies, steps = pursuit.residual_energies.double(), pursuit.values.double().square()
    torch.testing.assert_close(energies[:, 0], total, rtol=tolerance, atol=0)
    assert steps.shape[1] == 24 or stop_on_repeat  # it ends when all tokens have stopped
    for s in range(steps.shape[1]):
        explained = steps[:, : s + 1].sum(-1) + energies[:, s + 1]
        assert float(((explained - total) / total).abs().max()) < tolerance, s
        assert (energies[:, s + 1] <= energies[:, s] * (1 + tolerance)).all()
    residual = pursuit.residual.double()
    assert float(((residual.square().sum(-1) - energies[:, -1]) / total).abs().max()) < tolerance
    left = (x - dictionary.decode(dictionary.encode(x))).double()
    assert float((left - residual).norm(dim=-1).div(total.sqrt()).max()) < 10 * tolerance
    assert dictionary.pursue(x).values.ge(0).all()


@torch.no_grad()
def test_a_row_that_was_taken_is_orthogonal_to_what_is_left(make, tokens):
    dictionary = make("matching_pursuit", d_sae=20, residual_threshold=0.0)
    for k in (1, 2, 3):
        pursuit = dictionary.pursue(tokens(30), k)
        last = dictionary.W_dec[pursuit.indices[:, -1]]
        live = pursuit.values[:, -1] > 0
        assert live.sum() > 20
        assert float((last * pursuit.residual).sum(-1)[live].abs().max()) < 1e-12


def test_the_number_of_steps_can_be_changed_at_inference(make, tokens):
    dictionary = make("matching_pursuit", d_sae=30, k=3, stop_on_repeat=False, residual_threshold=0.0)
    x = tokens(40)
    errors = []
    for k in range(1, 12):
        f = dictionary.encode(x, k)
        assert ((f > 0).sum(-1) <= k).all()
        errors.append((x - dictionary.decode(f)).square().sum(-1))
        assert torch.equal(f, dictionary.encode(x)) == (k == 3)
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer + 1e-12).all()
    assert (errors[-1] < 0.5 * errors[2]).float().mean() > 0.5
    for k in (0, -1):
        with pytest.raises(ValueError, match="at least one step"):
            dictionary.encode(x, k)


def test_an_atom_taken_twice_has_one_slot(make):
    """Two rows at 60 degrees, taken in turn: 2 * (1 + 1/4 + ...) would be rebuilt exactly in the end."""
    dictionary = make("matching_pursuit", d_in=2, d_sae=2, k=5, stop_on_repeat=False, residual_threshold=0.0)
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.5, 3**0.5 / 2]]))
        dictionary.b_dec.zero_()
    x = torch.tensor([[3.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    pursuit = dictionary.pursue(x[:1])
    assert pursuit.indices.tolist() == [[0, 1, 0, 1, 0]] or (pursuit.values > 0).sum() < 5
    codes = dictionary.encode_sparse(x)
    for indices, values in zip(codes.indices.tolist(), codes.values.tolist(), strict=True):
        used = [i for i, value in zip(indices, values, strict=True) if value]
        assert len(set(used)) == len(used)
    torch.testing.assert_close(codes.to_dense(), dictionary.encode(x), rtol=1e-15, atol=1e-15)
    assert not codes.indices[codes.values == 0].any()
    firings = codes.firings()
    assert len(firings.token) == int((dictionary.encode(x) > 0).sum())


def test_where_a_token_stops(make):
    rows = torch.eye(3, dtype=torch.float64)
    x = torch.tensor([[3.0, 2.0, 1.0], [3.0, 0.1, 0.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    def taken(**settings: object) -> list[int]:
        dictionary = make("matching_pursuit", d_in=3, d_sae=3, k=3, apply_b_dec_to_input=False, **settings)
        with torch.no_grad():
            dictionary.W_dec.copy_(rows)
        return (dictionary.pursue(x).values > 0).sum(-1).tolist()

    assert taken(residual_threshold=0.0) == [3, 2, 0, 0]
    assert taken(residual_threshold=0.2) == [3, 1, 0, 0]  # 0.1 is left of the second token
    assert taken(residual_threshold=1.5) == [2, 1, 0, 0]
    assert taken(residual_threshold=2.5) == [1, 1, 0, 0]


def test_the_step_that_repeats_is_the_last_and_counts(make, tokens):
    """As SAELens stops: the support no longer changed in that step, whose value is kept."""
    go_on = make("matching_pursuit", d_sae=8, k=12, stop_on_repeat=False, residual_threshold=0.0)
    stop = make("matching_pursuit", d_sae=8, k=12, stop_on_repeat=True, residual_threshold=0.0)
    stopped_early = 0
    all_steps, few_steps = go_on.pursue(tokens(60)), stop.pursue(tokens(60))
    for b in range(60):
        chosen = [i for i, v in zip(all_steps.indices[b].tolist(), all_steps.values[b].tolist(), strict=True) if v]
        first_repeat = next((s for s, i in enumerate(chosen) if i in chosen[:s]), len(chosen) - 1)
        values = few_steps.values[b]
        assert int((values > 0).sum()) == first_repeat + 1
        assert values[: first_repeat + 1].equal(all_steps.values[b, : first_repeat + 1])
        stopped_early += first_repeat + 1 < len(chosen)
    assert stopped_early > 10


def test_a_token_does_not_stop_because_another_did(make, tokens):
    dictionary = make("matching_pursuit", k=6, residual_threshold=0.5)
    x = torch.cat([tokens(6), torch.zeros(1, 6, dtype=torch.float64), dictionary.b_dec.detach()[None]])
    whole = dictionary.encode(x)
    for b in range(len(x)):
        torch.testing.assert_close(dictionary.encode(x[b : b + 1])[0], whole[b], rtol=1e-13, atol=1e-14)


def test_steps_default_to_the_width():
    from saescope.dictionaries import MatchingPursuitConfig

    assert MatchingPursuitConfig(d_in=7, d_sae=3).k == 7
    assert MatchingPursuitConfig(d_in=7, d_sae=3, k=2).k == 2


def test_there_is_no_activation_without_the_input(make, tokens):
    dictionary = make("matching_pursuit")
    assert dictionary.encoder_rows is None
    assert dictionary.b_enc is None
    assert dictionary.W_enc.equal(dictionary.W_dec.T)
    with pytest.raises(ValueError, match=r"no pre-activations.*use encode\(x\)"):
        dictionary.activate(tokens(2, 10))


def test_rows_longer_than_one_break_the_identity_as_they_must(make, tokens):
    """|r - (r d) d|^2 = |r|^2 - (r d)^2 (2 - |d|^2): the check above is one that can fail."""
    dictionary = make("matching_pursuit", k=1)
    longer = copy.deepcopy(dictionary)
    with torch.no_grad():
        longer.W_dec.mul_(1.3)
    x = tokens(20)
    pursuit = longer.pursue(x)
    products = ((x - longer.b_dec) * longer.W_dec[pursuit.indices[:, 0]]).sum(-1)
    expected = pursuit.residual_energies[:, 0] - products.relu() ** 2 * (2 - 1.3**2)
    torch.testing.assert_close(pursuit.residual_energies[:, 1], expected)
    longer.normalise_decoder()
    torch.testing.assert_close(longer.W_dec, F.normalize(dictionary.W_dec, dim=-1))
