"""JumpReLU losses: every gradient by hand, with the kernel formulas of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from saescope.training.losses import JumpReLULoss, JumpReLULossConfig


def _by_hand(dictionary, x, *, penalty, coefficient, target=None, scale=4.0, pre_act=0.0, dead=()):
    """Total and gradients, in loops over tokens and features, nothing differentiated by a machine.

    df/dpre = H(pre - theta); df/dtheta = -(theta / eps) K; dH/dtheta = -(1 / eps) K; K(u) = 1 for |u| < 1/2.
    """
    with torch.no_grad():
        W_enc, W_dec, b_enc, b_dec, theta = (
            t.detach() for t in (dictionary.encoder_rows, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec,
                                 dictionary.threshold)
        )  # fmt: skip
        theta = theta.tolist()
        eps, n, B = dictionary.config.bandwidth, dictionary.d_sae, len(x)
        apply = dictionary.config.apply_b_dec_to_input
        pre = [[float((t - b_dec if apply else t) @ W_enc[i] + b_enc[i]) for i in range(n)] for t in x]
        norms = [math.sqrt(float(W_dec[i] @ W_dec[i])) for i in range(n)]
        l0 = sum(p > theta[i] for row in pre for i, p in enumerate(row)) / B
        grads = {name: torch.zeros_like(tensor) for name, tensor in dictionary.named_parameters()}
        total, in_window = 0.0, [0, 0]
        if penalty == "step":
            total, push = coefficient * l0, coefficient  # dtotal/dL0
        elif penalty == "quadratic":
            total, push = coefficient * (l0 / target - 1) ** 2, coefficient * 2 * (l0 / target - 1) / target
        else:
            push = 0.0
        for b, token in enumerate(x):
            f = [p if p > theta[i] else 0.0 for i, p in enumerate(pre[b])]
            x_hat = b_dec.clone()
            for i in range(n):
                x_hat = x_hat + f[i] * W_dec[i]
            error = x_hat - token
            total += float(error @ error) / B
            grads["b_dec"] += 2 / B * error
            for i in range(n):
                d_f = 2 / B * float(error @ W_dec[i])
                grads["W_dec"][i] += 2 / B * f[i] * error
                if penalty == "tanh":
                    squashed = math.tanh(scale * f[i] * norms[i])
                    total += coefficient * squashed / B
                    slope = coefficient * (1 - squashed**2) * scale / B
                    d_f += slope * norms[i]
                    grads["W_dec"][i] += slope * f[i] * W_dec[i] / norms[i]
                d_pre = d_f if pre[b][i] > theta[i] else 0.0
                if abs((pre[b][i] - theta[i]) / eps) < 0.5:
                    in_window[int(pre[b][i] > theta[i])] += 1
                    grads["threshold"][i] += -theta[i] / eps * d_f - push / eps / B
                if i in dead and pre[b][i] < theta[i]:
                    gap = theta[i] - pre[b][i]
                    total += pre_act * gap * norms[i] / B
                    d_pre -= pre_act * norms[i] / B
                    grads["threshold"][i] += pre_act * norms[i] / B
                    grads["W_dec"][i] += pre_act * gap * W_dec[i] / norms[i] / B
                grads["encoder_rows"][i] += d_pre * (token - b_dec if apply else token)
                grads["b_enc"][i] += d_pre
                if apply:
                    grads["b_dec"] -= d_pre * W_enc[i]
    assert sum(in_window) > 0
    return float(total), grads, float(l0)


CASES = {
    "step": {"penalty": "step"},
    "quadratic": {"penalty": "quadratic", "target_l0": 2.5},
    "tanh": {"penalty": "tanh", "tanh_scale": 1.5},
    "pre_act": {"penalty": "step", "pre_act_coefficient": 0.3},
}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize(("seed", "apply"), [(0, True), (1, False), (2, True)])
def test_total_and_gradients_are_those_written_by_hand(make, tokens, batch_of, check_gradients, seed, case, apply):
    dictionary = make("jumprelu", seed=seed, apply_b_dec_to_input=apply, bandwidth=1.5)
    x, chosen = tokens(12, seed=seed), CASES[case]
    loss = JumpReLULoss(JumpReLULossConfig(l0_coefficient=0.8, **chosen))
    found = loss(dictionary, batch_of(dictionary, x, dead=(1, 4), step=9, num_steps=10))
    total, grads, l0 = _by_hand(
        dictionary, x, penalty=chosen["penalty"], coefficient=0.8, target=chosen.get("target_l0"),
        scale=chosen.get("tanh_scale", 4.0), pre_act=chosen.get("pre_act_coefficient", 0.0), dead=(1, 4),
    )  # fmt: skip
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-12)
    if chosen["penalty"] == "step":
        assert float(found.parts["step"]) == pytest.approx(l0, rel=1e-12)
    assert float(found.f.count_nonzero()) / len(x) == pytest.approx(l0)
    assert ("pre_act" in found.parts) == (case == "pre_act")
    check_gradients(dictionary, found.total, grads)


def test_the_count_pushes_thresholds_up_and_nothing_else(make, tokens, batch_of, gradients):
    dictionary, x = make("jumprelu"), tokens(40)
    batch = batch_of(dictionary, x, step=9, num_steps=10)
    with_it, without = (
        gradients(dictionary, JumpReLULoss(JumpReLULossConfig(l0_coefficient=c))(dictionary, batch).total)
        for c in (5.0, 0.0)
    )
    change = {name: with_it[name] - without[name] for name in with_it}
    assert change.pop("threshold").max() < 1e-12
    assert (with_it["threshold"] - without["threshold"]).min() < -0.5
    assert all(gradient.abs().max() < 1e-12 for gradient in change.values())


def test_both_sides_of_the_threshold_are_felt(make, tokens, batch_of, gradients):
    """A pre-activation just below its threshold counts as one just above: the step sees what the jump holds back."""
    pushes = {}
    for side in (-0.1, 0.1):
        dictionary = make("jumprelu", bandwidth=0.5)
        x = tokens(1)
        with torch.no_grad():
            dictionary.b_enc.fill_(-100.0)
            dictionary.b_enc[3] += 100 + dictionary.threshold[3] + side - dictionary.pre_activations(x)[0, 3] - 100
        batch = batch_of(dictionary, x, step=9, num_steps=10)
        strong, weak = (
            gradients(dictionary, JumpReLULoss(JumpReLULossConfig(l0_coefficient=c))(dictionary, batch).total)
            for c in (1.0, 0.0)
        )
        pushes[side] = float((strong["threshold"] - weak["threshold"])[3])
    assert pushes[-0.1] == pytest.approx(-1 / 0.5)
    assert pushes[0.1] == pytest.approx(-1 / 0.5)


def test_the_pre_activation_loss_reaches_dead_features_alone(make, tokens, batch_of, gradients):
    dictionary, x = make("jumprelu"), tokens()
    batch = batch_of(dictionary, x, dead=(2, 7))
    with_it, without = (
        gradients(dictionary, JumpReLULoss(JumpReLULossConfig(pre_act_coefficient=c))(dictionary, batch).total)
        for c in (3.0, 0.0)
    )
    for name in ("encoder_rows", "b_enc", "threshold", "W_dec"):
        change = (with_it[name] - without[name]).reshape(dictionary.d_sae, -1).abs().amax(-1)
        assert (change[[2, 7]] > 1e-3).all(), name
        assert change[[0, 1, 3, 4, 5, 6, 8]].max() < 1e-12, name


def test_the_quadratic_penalty_pulls_from_both_sides(make, tokens, batch_of, gradients):
    dictionary, x = make("jumprelu"), tokens(30)
    l0 = float((dictionary.encode(x) > 0).double().sum(-1).mean())
    batch = batch_of(dictionary, x, step=9, num_steps=10)
    for target, sign in ((l0 / 2, -1), (l0 * 2, 1)):
        config = {"penalty": "quadratic", "target_l0": target}
        strong, weak = (
            gradients(dictionary, JumpReLULoss(JumpReLULossConfig(l0_coefficient=c, **config))(dictionary, batch).total)
            for c in (50.0, 0.0)
        )
        assert torch.sign((strong["threshold"] - weak["threshold"]).sum()) == sign
    at_target = JumpReLULoss(JumpReLULossConfig(penalty="quadratic", target_l0=l0))(dictionary, batch)
    assert float(at_target.parts["quadratic"]) == pytest.approx(0.0, abs=1e-20)


def test_other_architectures_have_no_thresholds(make, tokens, batch_of):
    dictionary = make("relu")
    with pytest.raises(ValueError, match="can not train a relu dictionary; it is made for jumprelu"):
        JumpReLULoss(JumpReLULossConfig())(dictionary, batch_of(dictionary, tokens()))
