"""The Gated loss token by token, and the frozen decoder of its auxiliary term."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.dictionaries import architecture
from saescope.training.losses import GatedConfig, GatedLoss, GateReconstruction, SumOfTerms, loss_for


def _plain(dictionary, x, target=None, *, weighted=True, p=1.0):
    """Reconstruction error, penalty on the gate, auxiliary error: token by token."""
    W_enc, W_dec, b_dec = dictionary.encoder_rows, dictionary.W_dec, dictionary.b_dec
    frozen_rows, frozen_bias = W_dec.detach().clone(), b_dec.detach().clone()
    error = penalty = auxiliary = torch.zeros((), dtype=torch.float64)
    for token, wanted in zip(x, x if target is None else target, strict=True):
        x_hat, from_gate = b_dec, frozen_bias
        if getattr(dictionary, "has_skip", False):
            x_hat = x_hat + token @ dictionary.W_skip.T
            from_gate = from_gate + (token @ dictionary.W_skip.T).detach()
        for i in range(dictionary.d_sae):
            u = ((token - b_dec if dictionary.config.apply_b_dec_to_input else token) * W_enc[i]).sum()
            gate = u + dictionary.b_gate[i]
            magnitude = dictionary.r_mag[i].exp() * u + dictionary.b_mag[i]
            if gate > 0:
                if magnitude > 0:
                    x_hat = x_hat + magnitude * W_dec[i]
                from_gate = from_gate + gate * frozen_rows[i]
                size = gate * (W_dec[i] ** 2).sum().sqrt() if weighted else gate
                penalty = penalty + (size if p == 1 else (size + 1e-3) ** p - 1e-3**p) / len(x)
        error = error + ((wanted - x_hat) ** 2).sum() / len(x)
        auxiliary = auxiliary + ((wanted - from_gate) ** 2).sum() / len(x)
    return error, penalty, auxiliary


@given(
    seed=st.integers(0, 10_000), weighted=st.booleans(), apply=st.booleans(), p=st.sampled_from([1.0, 0.3]),
    coefficient=st.sampled_from([0.0, 0.7, 5.0]),
)  # fmt: skip
@settings(max_examples=20)
def test_the_loss_equals_the_plain_one_with_its_gradients(
    make, tokens, batch_of, check_gradients, seed, weighted, apply, p, coefficient
):
    dictionary, x = make("gated", seed=seed, apply_b_dec_to_input=apply), tokens(seed=seed)
    config = GatedConfig(l1_coefficient=coefficient, decoder_norm=weighted, p_end=None if p == 1 else p)
    loss = GatedLoss(config)
    if p != 1:
        loss.load_state_dict({"lp": {"p": p, "scale": 1.0, "done": 20, "seen": []}})
    found = loss(dictionary, batch_of(dictionary, x, step=99, num_steps=100))
    error, penalty, auxiliary = _plain(dictionary, x, weighted=weighted, p=p)
    total = error + coefficient * penalty + auxiliary
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    expected = {"mse": float(error.detach()), "l1" if p == 1 else "lp": float(penalty.detach())}
    expected["gate"] = float(auxiliary.detach())
    assert {name: float(value) for name, value in found.parts.items()} == pytest.approx(expected, rel=1e-12)
    check_gradients(dictionary, found.total, total)


@pytest.mark.parametrize("name", ["gated_transcoder", "gated_skip_transcoder"])
def test_a_gated_transcoder_is_trained_on_its_target(make, tokens, batch_of, check_gradients, name):
    dictionary, x = make(name), tokens()
    target = tokens(6, 3, seed=4)
    found = loss_for(dictionary, {"warmup_share": 0.0})(dictionary, batch_of(dictionary, x, target))
    error, penalty, auxiliary = _plain(dictionary, x, target)
    total = error + 5.0 * penalty + auxiliary
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)


@pytest.mark.parametrize(
    ("name", "apply"),  # b_dec of a transcoder is never subtracted
    [(name, apply) for name in ("gated", "gated_crosscoder", "gated_archetypal") for apply in (True, False)]
    + [("gated_skip_transcoder", False)],
)
def test_the_auxiliary_term_leaves_the_decoder_alone(make, tokens, batch_of, gradients, name, apply):
    dictionary, x = make(name, apply_b_dec_to_input=apply), tokens()
    target = tokens(6, 3, seed=4) if "transcoder" in name else x
    found = SumOfTerms({"gate": (GateReconstruction(), 1.0)})(dictionary, batch_of(dictionary, x, target))
    got = gradients(dictionary, found.total)
    through = {"encoder_rows", "b_gate"} | ({"b_dec"} if apply else set())
    for parameter, gradient in got.items():
        assert bool(gradient.any()) == (parameter in through), parameter
    if apply:  # b_dec as what is taken off the input: minus the encoder times what the gates receive
        torch.testing.assert_close(got["b_dec"], -(got["b_gate"] @ dictionary.encoder_rows), rtol=1e-10, atol=1e-12)


def test_magnitudes_are_not_penalised(make, tokens, batch_of, gradients):
    """The penalty asks nothing of b_mag and r_mag: activations are not shrunk."""
    dictionary, batch = make("gated"), batch_of(make("gated"), tokens(), step=9, num_steps=10)
    with_it, without = (
        gradients(dictionary, GatedLoss(GatedConfig(l1_coefficient=c))(dictionary, batch).total) for c in (9.0, 0.0)
    )
    for name in ("b_mag", "r_mag", "b_dec"):
        if name != "b_dec":
            assert with_it[name].equal(without[name]), name
    assert not with_it["b_gate"].equal(without["b_gate"])


def test_other_architectures_have_no_gate(make, tokens, batch_of):
    for name in ("relu", "topk", "matching_pursuit"):
        dictionary = make(name)
        with pytest.raises((ValueError, AssertionError), match=f"can not train a {name} dictionary") as error:
            GatedLoss(GatedConfig())(dictionary, batch_of(dictionary, tokens()))
        assert error.type is ValueError
    assert isinstance(loss_for(architecture("gated")(make("gated").config)), GatedLoss)
