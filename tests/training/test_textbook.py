"""Coefficients of other conventions, converted: the same loss, and the same weights after training.

A textbook SAE takes means over all entries, ours is the sum over width and the mean over tokens. With N tokens, width d
and n features

    textbook    1/(N d) sum (x - x_hat)^2 + lambda 1/(N n) sum |f|
    times d     1/N sum (x - x_hat)^2     + (lambda d / n) 1/N sum |f|

which is ours with ``l1_coefficient = lambda d / n`` and ``decoder_norm = False``. Adam does not see the factor d, but
for its eps, which is multiplied by it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from saescope.dictionaries import DictionaryConfig, ReLU
from saescope.training import TrainingConfig, train
from saescope.training.losses import L1Config, L1Loss

D, N_FEATURES, BATCH, STEPS = 8, 24, 64, 200
LR, EPS, LAMBDA = 3e-3, 1e-8, 0.02


class TextbookSAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D, N_FEATURES), nn.Linear(N_FEATURES, D)

    def forward(self, x):
        f = torch.relu(self.encoder(x))
        return self.decoder(f), f


def _train_textbook(batches, dtype):
    torch.manual_seed(0)
    sae = TextbookSAE().to(dtype)
    with torch.no_grad():
        sae.decoder.bias.zero_()
    start = {name: value.detach().clone() for name, value in sae.named_parameters()}
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, eps=EPS)
    for x in batches:
        x_hat, f = sae(x)
        loss = ((x_hat - x) ** 2).mean() + LAMBDA * f.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sae, start


def _batches(dtype):
    generator = torch.Generator().manual_seed(1)
    atoms = torch.randn(16, D, generator=generator, dtype=torch.float64)
    for _ in range(STEPS):
        fires = torch.rand(BATCH, 16, generator=generator) < 0.15
        codes = fires * torch.rand(BATCH, 16, generator=generator, dtype=torch.float64)
        yield (codes @ atoms + 0.3).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_twenty_lines_of_a_textbook_train_to_the_same_weights(dtype, tolerance):
    textbook, start = _train_textbook(_batches(dtype), dtype)
    ours = ReLU(DictionaryConfig(d_in=D, d_sae=N_FEATURES, apply_b_dec_to_input=False)).to(dtype)
    with torch.no_grad():
        ours.encoder_rows.copy_(start["encoder.weight"])
        ours.b_enc.copy_(start["encoder.bias"])
        ours.W_dec.copy_(start["decoder.weight"].T)
    config = TrainingConfig(
        num_tokens=STEPS * BATCH, batch_size_tokens=BATCH, lr=LR, eps=EPS * D, num_warmup_steps=0, decay_share=0.0,
        max_grad_norm=None, unit_norm_decoder=False, normalization="none", b_dec_init="zero",
    )  # fmt: skip
    loss = L1Loss(L1Config(l1_coefficient=LAMBDA * D / N_FEATURES, decoder_norm=False, warmup_share=0.0))
    train(ours, _batches(dtype), config, loss=loss)
    for mine, theirs, first in (
        (ours.encoder_rows, textbook.encoder.weight, start["encoder.weight"]),
        (ours.b_enc, textbook.encoder.bias, start["encoder.bias"]),
        (ours.W_dec, textbook.decoder.weight.T, start["decoder.weight"].T),
        (ours.b_dec, textbook.decoder.bias, start["decoder.bias"]),
    ):
        assert float((mine - theirs).abs().max().detach()) < tolerance
        assert float((theirs - first).abs().max().detach()) > 0.05  # and they have gone somewhere


def _terms(make, tokens):
    """Squared errors [B, d], activations [B, n] and the batch, of a random ReLU dictionary."""
    dictionary, x = make("relu"), tokens(40)
    f = torch.relu((x - dictionary.b_dec) @ dictionary.encoder_rows.T + dictionary.b_enc)
    return dictionary, x, (f @ dictionary.W_dec + dictionary.b_dec - x) ** 2, f


def test_values_of_other_conventions_follow_from_ours(make, tokens, batch_of, gradients):
    dictionary, x, squares, f = _terms(make, tokens)
    B, d, n = len(x), 4, 9
    batch = batch_of(dictionary, x, step=9, num_steps=10)

    def ours(coefficient, **settings):
        config = L1Config(l1_coefficient=coefficient, decoder_norm=False, warmup_share=0.0, **settings)
        return L1Loss(config)(dictionary, batch).total

    # mean over all entries, of errors and of activations
    torch.testing.assert_close(d * (squares.mean() + 0.3 * f.mean()), ours(0.3 * d / n), rtol=1e-12, atol=0)
    # mean over all entries of errors, sum over features
    torch.testing.assert_close(d * (squares.mean() + 0.3 * f.sum(-1).mean()), ours(0.3 * d), rtol=1e-12, atol=0)
    # sum over the width, mean over tokens: the same
    torch.testing.assert_close(squares.sum(-1).mean() + 0.3 * f.sum(-1).mean(), ours(0.3), rtol=1e-12, atol=0)
    # sum over tokens as well: B times ours
    torch.testing.assert_close(squares.sum() + 0.3 * f.sum(), B * ours(0.3), rtol=1e-12, atol=0)
    # divided by the variance: our "nmse", with the penalty as it is, or ours with the penalty times the variance
    variance = (x - x.mean(0)).square().sum(-1).mean()
    divided = squares.sum(-1).mean() / variance + 0.3 * f.sum(-1).mean()
    torch.testing.assert_close(divided, ours(0.3, reconstruction="nmse"), rtol=1e-12, atol=0)
    torch.testing.assert_close(divided * variance, ours(0.3 * float(variance)), rtol=1e-12, atol=0)


def test_the_norm_that_is_not_squared_converts_at_one_point_alone(make, tokens, batch_of, gradients):
    """The gradient of the root of an error E is that of E over 2 sqrt(E): a coefficient lambda of a root over the batch
    is 2 sqrt(E) lambda of ours, at the error at hand."""
    dictionary, x, squares, f = _terms(make, tokens)
    error = squares.sum(-1).mean()
    root = error.sqrt() + 0.3 * f.sum(-1).mean()
    factor = 2 * math.sqrt(float(error.detach()))
    config = L1Config(l1_coefficient=0.3 * factor, decoder_norm=False, warmup_share=0.0)
    found = L1Loss(config)(dictionary, batch_of(dictionary, x, step=9, num_steps=10)).total
    a, b = gradients(dictionary, found), gradients(dictionary, root)
    for name, gradient in a.items():
        torch.testing.assert_close(gradient, factor * b[name], rtol=1e-9, atol=1e-10)
