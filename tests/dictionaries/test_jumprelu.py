"""The estimated gradients of JumpReLU: the paper's kernel, and what its expectation is."""

from __future__ import annotations

import pytest
import torch

THETA, WIDTH = (0.5, 1.25, 0.0, 2.0), 0.3


@pytest.fixture
def jumprelu(make):
    dictionary = make("jumprelu", d_sae=4, bandwidth=WIDTH)
    with torch.no_grad():
        dictionary.threshold.copy_(torch.tensor(THETA))
    return dictionary


def test_forward_is_strict_at_the_threshold(jumprelu):
    pre = torch.tensor([[0.5, 1.3, 1e-9, -2.0], [0.51, 1.25, -1e-9, 2.5]], dtype=torch.float64)
    assert jumprelu.activate(pre).tolist() == [[0, 1.3, 1e-9, 0], [0.51, 0, 0, 2.5]]
    assert jumprelu.firing(pre).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert jumprelu.firing(pre).dtype == torch.float64


@pytest.mark.parametrize("shape", [(40, 4), (5, 8, 4), (2, 4, 5, 4)])
def test_both_gradients_are_the_papers_kernel(jumprelu, shape):
    generator = torch.Generator().manual_seed(0)
    offsets = (
        torch.linspace(-0.4, 0.4, 40, dtype=torch.float64)[:, None] + 0.003
    )  # both sides, in and out of the kernel
    pre = (jumprelu.threshold.detach() + offsets).view(shape).requires_grad_()
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    for read, of_theta, of_pre in (
        (jumprelu.activate, lambda theta: -theta / WIDTH, lambda above: float(above)),
        (jumprelu.firing, lambda theta: -1 / WIDTH, lambda above: 0.0),
    ):
        pre.grad = jumprelu.threshold.grad = None
        (weights * read(pre)).sum().backward()
        to_theta, to_pre = [0.0] * 4, []
        for row, w in zip(pre.reshape(-1, 4).tolist(), weights.reshape(-1, 4).tolist(), strict=True):
            for i in range(4):
                if abs((row[i] - THETA[i]) / WIDTH) < 0.5:
                    to_theta[i] += w[i] * of_theta(THETA[i])
                to_pre.append(w[i] * of_pre(row[i] > THETA[i]))
        torch.testing.assert_close(
            jumprelu.threshold.grad, torch.tensor(to_theta, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(pre.grad.flatten(), torch.tensor(to_pre, dtype=torch.float64), rtol=0, atol=0)


@pytest.mark.parametrize("read", ["activate", "firing"])
def test_a_token_without_a_batch_axis_has_the_same_gradient(jumprelu, read):
    pre = jumprelu.threshold.detach() + torch.tensor([0.01, -0.02, 0.03, 1.0], dtype=torch.float64)
    gradients = []
    for tokens in (pre[None], pre):
        jumprelu.threshold.grad = None
        getattr(jumprelu, read)(tokens).sum().backward()
        gradients.append(jumprelu.threshold.grad.clone())
    assert gradients[0][3] == 0
    assert gradients[0][0] != 0
    assert gradients[1].equal(gradients[0])


@pytest.mark.parametrize("i", [0, 1, 3])
def test_the_estimate_is_the_derivative_of_the_expectation(jumprelu, i):
    """Pre-activations evenly spread around theta: E f and E H are smooth in theta, and their slopes are known.

    d/dtheta of the integral of t from theta up is -theta, of the integral of 1 it is -1: the kernel's integral is 1.
    """
    spacing = 1e-4
    around = torch.arange(-1 + spacing / 2, 1, spacing, dtype=torch.float64)  # many times the kernel's width
    pre = THETA[i] + around[:, None].expand(-1, 4)
    for read, slope in ((jumprelu.activate, -THETA[i]), (jumprelu.firing, -1.0)):
        jumprelu.threshold.grad = None
        (spacing * read(pre)[:, i]).sum().backward()
        estimate = float(jumprelu.threshold.grad[i])
        assert estimate == pytest.approx(slope, rel=1e-3)
        sums = []
        for step in (-0.05, 0.05):
            with torch.no_grad():
                jumprelu.threshold[i] = THETA[i] + step
                sums.append(float(spacing * read(pre)[:, i].sum()))
                jumprelu.threshold[i] = THETA[i]
        assert estimate == pytest.approx((sums[1] - sums[0]) / 0.1, rel=2e-3)


def test_thresholds_are_kept_at_or_above_zero(jumprelu):
    with torch.no_grad():
        jumprelu.threshold.copy_(torch.tensor([-0.5, 0.25, -1e-9, 0.0]))
    jumprelu.constrain()
    assert jumprelu.threshold.tolist() == [0, 0.25, 0, 0]


def test_thresholds_begin_where_the_config_says(make):
    cls = type(make("jumprelu"))
    dictionary = cls(cls.Config(d_in=3, d_sae=4, initial_threshold=0.125))
    assert dictionary.threshold.tolist() == [0.125] * 4
