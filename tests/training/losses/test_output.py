"""Losses that a caller brings."""

from __future__ import annotations

import functools

import pytest
import torch

from saescope.training.losses import FunctionLoss, OutputTerm, SquaredError, SumOfTerms


def test_a_function_gets_what_was_promised_and_its_gradient_comes_through(make, tokens, batch_of, check_gradients):
    dictionary, x, seen = make("topk"), tokens(), []

    def criterion(x, x_hat, pre, f, dictionary):
        seen.append((x, x_hat, pre, f, dictionary))
        return ((x - x_hat) ** 2).mean() + 0.1 * (f * pre).sum() + dictionary.b_enc.square().sum()

    found = FunctionLoss(criterion)(dictionary, batch_of(dictionary, x))
    pre = torch.stack([(t - dictionary.b_dec) @ dictionary.encoder_rows.T + dictionary.b_enc for t in x])
    f = torch.zeros_like(pre)
    for b in range(len(x)):
        for i in sorted(range(9), key=lambda i: -pre[b, i].item())[:2]:
            f[b, i] = pre[b, i].clamp(min=0)
    total = ((x - f @ dictionary.W_dec - dictionary.b_dec) ** 2).mean() + 0.1 * (f * pre).sum()
    total = total + dictionary.b_enc.square().sum()
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)
    assert set(found.parts) == {"criterion", "mse"}
    assert seen[0][0] is x
    assert seen[0][4] is dictionary


def test_a_function_for_a_transcoder_sees_its_target(make, tokens, batch_of):
    dictionary, x = make("transcoder"), tokens()
    target = tokens(6, 3, seed=3)
    given = []
    FunctionLoss(lambda x, x_hat, pre, f, d: given.append(x) or x_hat.sum())(
        dictionary, batch_of(dictionary, x, target)
    )
    assert given[0] is target


def test_matching_pursuit_has_no_pre_activations_to_give(make, tokens, batch_of):
    dictionary, given = make("matching_pursuit"), []
    FunctionLoss(lambda x, x_hat, pre, f, d: given.append(pre) or x_hat.sum())(
        dictionary, batch_of(dictionary, tokens())
    )
    assert given == [None]


def test_a_value_of_one_element_is_a_scalar(make, tokens, batch_of):
    dictionary = make("relu")
    found = FunctionLoss(lambda x, x_hat, pre, f, d: x_hat.sum()[None, None])(
        dictionary, batch_of(dictionary, tokens())
    )
    assert found.total.shape == ()
    assert set(found.parts) == {"<lambda>", "mse"}
    partial = functools.partial(lambda x, x_hat, pre, f, d, power: x_hat.pow(power).sum(), power=2)
    assert "loss" in FunctionLoss(partial)(dictionary, batch_of(dictionary, tokens())).parts


@pytest.mark.parametrize(("value", "words"), [(1.5, "a float"), (torch.zeros(3), r"a tensor of shape \[3\]")])
def test_something_else_than_a_scalar_is_refused(make, tokens, batch_of, value, words):
    dictionary = make("relu")
    with pytest.raises(TypeError, match=f"a loss function gives a scalar tensor, not {words}"):
        FunctionLoss(lambda x, x_hat, pre, f, d: value)(dictionary, batch_of(dictionary, tokens()))


def test_the_models_output_is_computed_from_the_reconstruction_and_the_context(make, tokens, batch_of, check_gradients):
    dictionary, x = make("relu"), tokens()
    unembed = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 1, 4, 1, 5, 9])

    def model(x_hat, context):
        return torch.nn.functional.cross_entropy(x_hat @ unembed, context["labels"])

    loss = SumOfTerms({"mse": (SquaredError(), 0.5), "output": (OutputTerm(model), 2.0)})
    found = loss(dictionary, batch_of(dictionary, x, context={"labels": labels}))
    total = torch.zeros((), dtype=torch.float64)
    for token, label in zip(x, labels, strict=True):
        pre = (token - dictionary.b_dec) @ dictionary.encoder_rows.T + dictionary.b_enc
        x_hat = pre.clamp(min=0) @ dictionary.W_dec + dictionary.b_dec
        logits = x_hat @ unembed
        total = total + 2.0 * (logits.exp().sum().log() - logits[label]) / 6 + 0.5 * ((token - x_hat) ** 2).sum() / 6
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)
    with pytest.raises(ValueError, match=r"needs a stream that gives the context .*TrainingBatch\(x, context="):
        loss(dictionary, batch_of(dictionary, x))
