"""L1 and p-annealing: token by token against the formulas, and the schedule of p over whole runs."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.training.losses import L1Config, L1Loss, loss_for
from saescope.training.losses.sparsity import AnnealedLp, power_sum

SHIFT = 1e-3  # of the smoothed power


def _plain(dictionary, x, *, weighted=True, p=1.0):
    """Squared error, share of variance, and penalty, token by token."""
    W_enc, W_dec, b_enc, b_dec = dictionary.encoder_rows, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec
    error = penalty = torch.zeros((), dtype=torch.float64)
    for token in x:
        x_hat = b_dec
        for i in range(dictionary.d_sae):
            given_in = token - b_dec if dictionary.config.apply_b_dec_to_input else token
            pre = (given_in * W_enc[i]).sum() + b_enc[i]
            if pre > 0:
                x_hat = x_hat + pre * W_dec[i]
                size = pre * (W_dec[i] ** 2).sum().sqrt() if weighted else pre
                penalty = penalty + ((size + SHIFT) ** p - SHIFT**p if p != 1 else size) / len(x)
        error = error + ((token - x_hat) ** 2).sum() / len(x)
    variance = sum(((token - x.mean(0)) ** 2).sum() for token in x) / len(x)
    return error, error / variance, penalty


@given(
    seed=st.integers(0, 10_000), coefficient=st.sampled_from([0.0, 0.7, 5.0]), weighted=st.booleans(),
    reconstruction=st.sampled_from(["mse", "nmse"]), apply=st.booleans(),
)  # fmt: skip
@settings(max_examples=15)
def test_l1_equals_the_plain_loss_with_its_gradients(
    make, tokens, batch_of, check_gradients, seed, coefficient, weighted, reconstruction, apply
):
    dictionary, x = make("relu", seed=seed, apply_b_dec_to_input=apply), tokens(seed=seed)
    config = L1Config(l1_coefficient=coefficient, decoder_norm=weighted, reconstruction=reconstruction)
    found = L1Loss(config)(dictionary, batch_of(dictionary, x, step=9, num_steps=10))
    mse, nmse, penalty = _plain(dictionary, x, weighted=weighted)
    total = (mse if reconstruction == "mse" else nmse) + coefficient * penalty
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    expected = {"mse": float(mse.detach()), "l1": float(penalty.detach())}
    if reconstruction == "nmse":
        expected["nmse"] = float(nmse.detach())
    assert {name: float(value) for name, value in found.parts.items()} == pytest.approx(expected, rel=1e-12)
    check_gradients(dictionary, found.total, total)


@given(seed=st.integers(0, 10_000), p=st.sampled_from([0.2, 0.5, 0.9]), weighted=st.booleans())
@settings(max_examples=12)
def test_lp_equals_the_plain_loss_with_its_gradients(make, tokens, batch_of, check_gradients, seed, p, weighted):
    dictionary, x = make("relu", seed=seed), tokens(seed=seed)
    loss = L1Loss(L1Config(l1_coefficient=2.0, decoder_norm=weighted, p_end=p, warmup_share=0.0))
    loss.load_state_dict({"lp": {"p": p, "scale": 1.75, "done": 20, "seen": []}})
    found = loss(dictionary, batch_of(dictionary, x, step=95, num_steps=100))
    mse, _, penalty = _plain(dictionary, x, weighted=weighted, p=p)
    total = mse + 2.0 * 1.75 * penalty
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)


def test_the_penalty_of_a_crosscoder_weighs_by_the_sum_of_norms(make, tokens, batch_of, check_gradients):
    dictionary, x = make("relu_crosscoder", source_widths=(1, 3)), tokens()
    found = loss_for(dictionary, {"l1_coefficient": 2.0, "warmup_share": 0.0})(dictionary, batch_of(dictionary, x))
    W = dictionary.W_dec
    total = torch.zeros((), dtype=torch.float64)
    for token in x:
        x_hat = dictionary.b_dec
        for i in range(dictionary.d_sae):
            pre = ((token - dictionary.b_dec) * dictionary.encoder_rows[i]).sum() + dictionary.b_enc[i]
            if pre > 0:
                x_hat = x_hat + pre * W[i]
                total = total + 2.0 * pre * ((W[i, :1] ** 2).sum().sqrt() + (W[i, 1:] ** 2).sum().sqrt())
        total = total + ((token - x_hat) ** 2).sum()
    torch.testing.assert_close(found.total, total / len(x), rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total / len(x))


def test_the_penalty_cannot_be_cheated_by_long_decoder_rows(make, tokens, batch_of):
    dictionary, x = make("relu"), tokens()
    batch = batch_of(dictionary, x, step=9, num_steps=10)
    before = L1Loss(L1Config())(dictionary, batch)
    with torch.no_grad():
        dictionary.W_dec *= 100
        dictionary.encoder_rows /= 100
        dictionary.b_enc /= 100
    after = L1Loss(L1Config())(dictionary, batch)
    torch.testing.assert_close(after.total, before.total, rtol=1e-10, atol=0)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.7, 1.0])
def test_the_power_has_finite_slopes_everywhere(p):
    f = torch.tensor([[0.0, 1e-300, 1e-12, 1e-6, 1e-3, 1.0, 1e6]], dtype=torch.float64, requires_grad=True)
    value = power_sum(f, p)
    value.backward()
    assert f.grad.isfinite().all()
    assert f.grad.max() <= p * SHIFT ** (p - 1) * (1 + 1e-9)
    assert f.grad.min() > 0
    # what does not fire costs nothing, and away from 0 it is the power
    assert abs(power_sum(torch.zeros(3, 4), p)) < 1e-7
    large = torch.tensor([[5.0, 80.0]], dtype=torch.float64)
    assert float(power_sum(large, p)) == pytest.approx(5.0**p + 80.0**p - 2 * SHIFT**p * (p != 1), rel=2e-4)


def test_gradients_stay_finite_where_nothing_fires(make, tokens, batch_of, gradients):
    dictionary, x = make("relu"), tokens()
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e3)
        dictionary.b_enc[0] = 1e-12 - float(
            ((x[0] - dictionary.b_dec) * dictionary.encoder_rows[0]).sum()
        )  # one activation of 1e-12
    loss = L1Loss(L1Config(p_end=0.2, warmup_share=0.0))
    loss.load_state_dict({"lp": {"p": 0.2, "scale": 1.0, "done": 20, "seen": []}})
    found = loss(dictionary, batch_of(dictionary, x))
    assert all(gradient.isfinite().all() for gradient in gradients(dictionary, found.total).values())


# The schedule of p


def _run(loss, dictionary, batch_of, draw, num_steps, skipped=()):
    """Drive a loss through a run; yields (p and scale that the step's loss used, those after it) and the batch."""
    term = loss.terms["lp"][0]
    rows = []
    for step in range(num_steps):
        batch = batch_of(dictionary, draw(step), step=step, num_steps=num_steps)
        before = term.p, term.scale
        loss(dictionary, batch)
        if step not in skipped:
            loss.after_step(batch)
        rows.append((before, (term.p, term.scale), batch))
    return rows


def _drawn(tokens):
    return lambda step: tokens(16, seed=step, scale=1 + 0.5 * math.sin(step))


@pytest.mark.parametrize(
    ("num_steps", "start", "end", "num", "p_end"),
    [(200, 0.3, 0.9, 10, 0.2), (200, 0.3, 1.0, 10, 0.2), (97, 0.0, 1.0, 20, 0.1), (61, 0.5, 0.77, 4, 0.9)],
)
def test_p_is_the_linspace_with_its_last_value(make, tokens, batch_of, num_steps, start, end, num, p_end):
    dictionary = make("relu")
    loss = L1Loss(L1Config(p_end=p_end, anneal_start=start, anneal_end=end, num_p_updates=num))
    rows = _run(loss, dictionary, batch_of, _drawn(tokens), num_steps)
    first = math.floor(Fraction(str(start)) * num_steps)
    last = min(math.floor(Fraction(str(end)) * num_steps), num_steps - 2)  # the last step is one at p_end
    due = [math.floor(first + Fraction((last - first) * i, num - 1)) for i in range(num)]
    values = np.linspace(1, p_end, num)
    for step, (_, (p, _), _) in enumerate(rows):
        made = sum(t <= step for t in due)
        assert p == pytest.approx(1.0 if made == 0 else values[made - 1], rel=1e-12), step
    seen = [p for p, _ in itertools.groupby(after[0] for _, after, _ in rows)]
    assert seen == pytest.approx(list(values), rel=1e-12)
    assert rows[-1][1][0] == pytest.approx(p_end, rel=1e-14)


def _sum_of_powers(dictionary, x, p):
    f = dictionary.encode(x).detach() * dictionary.W_dec.detach().norm(dim=-1)
    return sum(((v + SHIFT) ** p - SHIFT**p if p != 1 else v) for row in f.tolist() for v in row) / len(x)


@pytest.mark.parametrize("num_steps", [300, 75, 30])
def test_the_expected_penalty_is_the_same_on_both_sides_of_a_change(make, tokens, batch_of, num_steps):
    """Over the (at most ten) batches since the last change, scale times penalty is what it was."""
    dictionary = make("relu")
    loss = L1Loss(L1Config(p_end=0.2, anneal_start=0.2, anneal_end=0.9, num_p_updates=8))
    rows = _run(loss, dictionary, batch_of, _drawn(tokens), num_steps)
    recent, changes = [], 0
    for (p, scale), (next_p, next_scale), batch in rows:
        recent = [*recent[-9:], batch.x]
        if next_p != p:
            now = scale * sum(_sum_of_powers(dictionary, x, p) for x in recent)
            then = next_scale * sum(_sum_of_powers(dictionary, x, next_p) for x in recent)
            assert then == pytest.approx(now, rel=1e-9)
            changes, recent = changes + 1, []
        elif batch.step == num_steps // 5:  # the first update leaves p at 1, and the history begins anew
            assert next_scale == 1.0
            recent = []
    assert changes == 7


def test_the_penalty_of_an_unchanging_dictionary_never_changes(make, tokens, batch_of):
    dictionary = make("relu")
    loss = L1Loss(L1Config(p_end=0.2, num_p_updates=10))
    rows = _run(loss, dictionary, batch_of, lambda step: tokens(64), 100)
    values = [scale * _sum_of_powers(dictionary, batch.x, p) for _, (p, scale), batch in rows]
    assert values == pytest.approx([values[0]] * 100, rel=1e-9)
    assert rows[-1][1][1] > 2


@pytest.mark.parametrize(("num_steps", "settings"), [(8, {}), (60, {"anneal_start": 0.5, "anneal_end": 0.5})])
def test_it_does_not_jump_either_where_p_falls_by_several_values_at_once(make, tokens, batch_of, num_steps, settings):
    """In short runs, and where p falls at one moment, the coefficient is brought along as at any other change."""
    dictionary = make("relu")
    loss = L1Loss(L1Config(p_end=0.2, num_p_updates=20, **settings))
    rows = _run(loss, dictionary, batch_of, lambda step: tokens(64), num_steps)
    values = [scale * _sum_of_powers(dictionary, batch.x, p) for _, (p, scale), batch in rows]
    assert rows[-1][1][0] == pytest.approx(0.2)
    assert values == pytest.approx([values[0]] * num_steps, rel=1e-9)


@pytest.mark.parametrize("weighted", [True, False])
def test_p_that_ends_at_one_is_the_l1_run_bit_for_bit(make, tokens, batch_of, gradients, weighted):
    dictionary = make("relu").float()
    plain = L1Loss(L1Config(decoder_norm=weighted))
    annealed = L1Loss(L1Config(decoder_norm=weighted, p_end=1.0, num_p_updates=5))
    for step in range(40):
        batch = batch_of(dictionary, tokens(33, seed=step).float(), step=step, num_steps=40)
        a, b = plain(dictionary, batch), annealed(dictionary, batch)
        assert a.total.equal(b.total), step
        found, expected = gradients(dictionary, b.total), gradients(dictionary, a.total)
        assert all(found[name].equal(expected[name]) for name in found), step
        plain.after_step(batch)
        annealed.after_step(batch)


def test_steps_that_were_skipped_and_looks_leave_no_mark(make, tokens, batch_of):
    dictionary = make("relu")
    loss, again = (L1Loss(L1Config(p_end=0.2, num_p_updates=5)) for _ in range(2))
    for step in range(80):
        batch = batch_of(dictionary, tokens(seed=step), step=step, num_steps=80)
        spoilt = batch_of(dictionary, tokens(seed=1000 + step, scale=50), step=step, num_steps=80)
        loss(dictionary, batch)
        loss.after_step(batch)
        again(dictionary, spoilt)  # a step that is skipped: after_step never comes
        again(dictionary, batch)
        again.after_step(batch)
        again.after_step(batch)  # and without a loss in between nothing is remembered twice
        assert loss.state_dict() == again.state_dict(), step


@pytest.mark.parametrize("stop", [0, 10, 26, 27, 44, 79])
def test_the_state_goes_through_json_and_on_as_if_nothing_had_been(make, tokens, batch_of, stop):
    dictionary = make("relu")
    whole, first, second = (L1Loss(L1Config(p_end=0.2, num_p_updates=7)) for _ in range(3))
    for step in range(80):
        batch = batch_of(dictionary, tokens(seed=step), step=step, num_steps=80)
        expected = whole(dictionary, batch).total
        whole.after_step(batch)
        if step == stop:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        running = first if step < stop else second
        assert running(dictionary, batch).total.equal(expected), step
        running.after_step(batch)
    assert second.state_dict() == whole.state_dict()


def test_history_is_of_the_present_exponents_alone(make, tokens, batch_of):
    """After a change nothing is compared that was measured at other exponents, and never more than ten batches."""
    dictionary = make("relu")
    term = AnnealedLp(p_end=0.2, start=0.0, end=1.0, num_updates=4)
    lengths = []
    for step in range(61):
        batch = batch_of(dictionary, tokens(seed=step), step=step, num_steps=61)
        pre, f = dictionary.encode_in_training(batch.x)
        from saescope.training.losses import Codes

        term(dictionary, batch, Codes(pre, f, dictionary.decode(f)))
        term.after_step(batch)
        lengths.append(len(term.seen))
    assert max(lengths) == 10
    assert [step for step, n in enumerate(lengths) if n == 0] == [0, 19, 39, 59]
