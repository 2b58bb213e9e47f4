"""One step of fit for each class, against the same step written out in plain torch, in float64.

Gradient descent shows gradients as they are; Adam is checked beside it.
"""

from __future__ import annotations

import copy

import pytest
import torch

from saescope.concepts.explainers import BatchTopKSAE, JumpReLUSAE, MpSAE, SAELossClasses, TopKSAE, VanillaSAE

D, C, N, LR = 6, 14, 32, 0.02


class Split:
    split_points = ("layer.1",)

    def get_latent_shape(self, inputs=None):
        return {"layer.1": torch.Size([1, 3, D])}


@pytest.fixture(scope="module")
def x():
    return 3 + 4 * torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def start_and_end(cls, x, **how):
    """Weights before and after one step, and the logs."""
    kwargs = how.pop("made_with", {})
    explainer = cls(Split(), nb_concepts=C, **kwargs)
    explainer.concept_model.double()
    before = copy.deepcopy(explainer.concept_model)
    before.reset(0)
    logs = explainer.fit(x, nb_epochs=1, batch_size=N, lr=LR, monitoring=2, **how)
    return before.dictionary, explainer.concept_model.dictionary, logs


def tensors(dictionary):
    return {
        name: value.detach().clone().requires_grad_()
        for name in ("encoder_rows", "W_dec", "b_enc", "b_dec", "threshold")
        if isinstance(value := getattr(dictionary, name, None), torch.Tensor)
    }


def project(rows, gradient):
    unit = rows / rows.norm(dim=1, keepdim=True)
    return gradient - (gradient * unit).sum(1, keepdim=True) * unit


def step(parameters, loss, s, optimizer):
    """A step downhill on unit rows, and biases and thresholds back in raw units."""
    names = [name for name, value in parameters.items() if value.requires_grad]
    gradients = dict(
        zip(names, torch.autograd.grad(loss, [parameters[n] for n in names], allow_unused=True), strict=True)
    )
    return moved(parameters, gradients, s, optimizer), gradients


def moved(parameters, gradients, s, optimizer):
    after = {name: value.detach().clone() for name, value in parameters.items()}
    gradients["W_dec"] = project(after["W_dec"], gradients["W_dec"])
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        direction = gradient / (gradient.abs() + 1e-8) if optimizer == "adam" else gradient
        after[name] = after[name] - LR * direction
    if "threshold" in after:
        after["threshold"] = after["threshold"].clamp(min=0)
    after["W_dec"] = after["W_dec"] / after["W_dec"].norm(dim=1, keepdim=True)
    for name in ("b_enc", "b_dec", "threshold"):
        if name in after:
            after[name] = after[name] / s
    return after


def compare(after, dictionary, names):
    for name in names:
        torch.testing.assert_close(getattr(dictionary, name).detach(), after[name], rtol=1e-9, atol=1e-11)


def how_of(optimizer):
    return {"optimizer_class": torch.optim.SGD} if optimizer == "sgd" else {}


def quantile_levels(pre, share):
    """What a share of the rows is above, per concept, midway between two rows, and not below 0."""
    rank = round((1 - share) * len(pre))
    return pre.sort(0).values[rank - 1 : rank + 1].mean(0).clamp_min(0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("bias", [False, True])
def test_vanilla(x, optimizer, bias):
    before, after, logs = start_and_end(
        VanillaSAE, x, made_with={"l1_coefficient": 0.3, "decoder_bias": bias}, **how_of(optimizer)
    )
    p = tensors(before)
    s = D**0.5 / x.norm(dim=1).mean()
    X = s * x
    p["b_dec"] = X.mean(0).requires_grad_() if bias else torch.zeros(D, dtype=x.dtype)
    with torch.no_grad():
        p["b_enc"] -= quantile_levels((X - p["b_dec"]) @ p["encoder_rows"].T, 0.1)
    f = ((X - p["b_dec"]) @ p["encoder_rows"].T + p["b_enc"]).relu()
    error = (f @ p["W_dec"] + p["b_dec"] - X).square().sum(1).mean()
    loss = error + 0.3 * (f * p["W_dec"].norm(dim=1)).sum(1).mean()
    wanted, gradients = step(p, loss, s, optimizer)
    compare(wanted, after, ("encoder_rows", "W_dec", "b_enc", "b_dec"))
    spread = (X - X.mean(0)).square().sum(1).mean()
    assert logs["avg_loss"] == pytest.approx([loss.item()], rel=1e-10)
    assert logs["step_loss"] == pytest.approx([loss.item()], rel=1e-10)
    assert logs["r2"] == pytest.approx([(1 - error / spread).item()], rel=1e-10)
    assert logs["z_sparsity"] == pytest.approx([float((f > 0).sum() / N)])
    assert logs["dead_features"] == pytest.approx([float((f <= 0).all(0).double().mean())])
    assert logs["z_l2"] == pytest.approx([(f / s).norm().item()])
    assert logs["grad_norm"] == pytest.approx([float(sum(g.square().sum() for g in gradients.values()) ** 0.5)])
    for name, gradient in gradients.items():
        assert logs[f"params_grad_norm_dictionary.{name}"] == pytest.approx([float(gradient.norm())])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_topk(x, optimizer):
    before, after, logs = start_and_end(TopKSAE, x, made_with={"top_k": 3}, **how_of(optimizer))
    p = tensors(before)
    s = D**0.5 / x.norm(dim=1).mean()
    X = s * x
    pre = X @ p["encoder_rows"].T + p["b_enc"]
    values, places = pre.topk(3, dim=1)
    f = torch.zeros_like(pre).scatter(1, places, values.relu())
    loss = (f @ p["W_dec"] - X).square().sum() / (X - X.mean(0)).square().sum()
    wanted, _ = step(p, loss, s, optimizer)
    compare(wanted, after, ("encoder_rows", "W_dec", "b_enc"))
    assert logs["avg_loss"] == pytest.approx([loss.item()], rel=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_batch_topk(x, optimizer):
    before, after, logs = start_and_end(BatchTopKSAE, x, made_with={"top_k": 2.5}, **how_of(optimizer))
    p = tensors(before)
    p.pop("threshold")
    s = D**0.5 / x.norm(dim=1).mean()
    X = s * x
    a = (X @ p["encoder_rows"].T + p["b_enc"]).relu()
    last_in = a.flatten().sort(descending=True).values[int(2.5 * N) - 1]
    f = a * (a >= last_in)
    loss = (f @ p["W_dec"] - X).square().sum() / (X - X.mean(0)).square().sum()
    wanted, _ = step(p, loss, s, optimizer)
    compare(wanted, after, ("encoder_rows", "W_dec", "b_enc"))
    assert logs["avg_loss"] == pytest.approx([loss.item()], rel=1e-10)
    assert logs["z_sparsity"] == [2.5]
    # the threshold of the end: between the last code that passes and the first that does not, at the final weights
    finally_ = (x @ wanted["encoder_rows"].T + wanted["b_enc"]).flatten().sort(descending=True).values
    assert float(after.threshold) == pytest.approx(float(finally_[79] + finally_[80]) / 2, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("target", [None, 3.0])
def test_jumprelu(x, optimizer, target):
    """The gradient of thresholds by the paper's formulas, in sums over rows."""
    width, coefficient = 0.8, 0.7
    more = {} if target is None else {"target_l0": target}
    before, after, logs = start_and_end(
        JumpReLUSAE, x, made_with={"bandwidth": width, "l0_coefficient": coefficient, **more}, **how_of(optimizer)
    )
    p = tensors(before)
    s = D**0.5 / x.norm(dim=1).mean()
    X = s * x
    pre = X @ p["encoder_rows"].T + p["b_enc"]
    theta = quantile_levels(pre.detach(), 0.1 if target is None else target / C)
    p["threshold"] = theta
    fires = (pre > theta).double()
    f = (pre * fires).detach().requires_grad_()
    error = (f @ p["W_dec"] - X).square().sum(1).mean()
    l0 = fires.sum(1).mean()
    # one step of one: the penalty has no warm-up
    penalty = coefficient * (l0 if target is None else (l0 / target - 1) ** 2)
    per_l0 = coefficient * (1.0 if target is None else 2 * (l0 / target - 1).item() / target)
    d_f, d_rows = torch.autograd.grad(error, [f, p["W_dec"]])
    near = ((pre - theta).abs() < width / 2).double().detach()
    d_pre = d_f * fires
    gradients = {
        "encoder_rows": d_pre.T @ X,
        "W_dec": d_rows,
        "b_enc": d_pre.sum(0),
        "threshold": (d_f * near).sum(0) * -theta / width - per_l0 / width * near.sum(0) / N,
    }
    assert near.sum() > 20
    wanted = moved(p, gradients, s, optimizer)
    compare(wanted, after, ("encoder_rows", "W_dec", "b_enc", "threshold"))
    assert logs["avg_loss"] == pytest.approx([(error + penalty).item()], rel=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pursuit(x, optimizer):
    before, after, logs = start_and_end(MpSAE, x, made_with={"k": 2}, **how_of(optimizer))
    p = {"W_dec": tensors(before)["W_dec"]}
    s = D**0.5 / x.norm(dim=1).mean()
    X = s * x
    rows = []
    for row in X:
        left, rebuilt = row, torch.zeros_like(row)
        for _ in range(2):
            best = int((p["W_dec"] @ left).argmax())
            value = (p["W_dec"][best] @ left).relu()
            left, rebuilt = left - value * p["W_dec"][best], rebuilt + value * p["W_dec"][best]
        rows.append(rebuilt)
    loss = (torch.stack(rows) - X).square().sum() / (X - X.mean(0)).square().sum()
    wanted, _ = step(p, loss, s, optimizer)
    compare(wanted, after, ("W_dec",))
    assert logs["avg_loss"] == pytest.approx([loss.item()], rel=1e-10)


def test_criterion_in_raw_units_with_the_architecture_s_penalty(x):
    """MSE in the place of the squared error: the loss divided by d s^2, and so the same minimum."""
    made = {"l1_coefficient": 0.3}
    before, after, logs = start_and_end(
        VanillaSAE, x, made_with=made, criterion=SAELossClasses.MSE, optimizer_class=torch.optim.SGD
    )
    p = tensors(before)
    p.pop("b_dec")
    s = D**0.5 / x.norm(dim=1).mean()
    X = s * x
    with torch.no_grad():
        p["b_enc"] -= quantile_levels(X @ p["encoder_rows"].T, 0.1)
    f = (X @ p["encoder_rows"].T + p["b_enc"]).relu()
    mse = ((f / s) @ p["W_dec"] - x).square().mean()
    loss = mse + 0.3 * (f * p["W_dec"].norm(dim=1)).sum(1).mean() / (D * s**2)
    wanted, _ = step(p, loss, s, "sgd")
    compare(wanted, after, ("encoder_rows", "W_dec", "b_enc"))
    assert logs["avg_loss"] == pytest.approx([loss.item()], rel=1e-10)
    own = start_and_end(VanillaSAE, x, made_with=made)[2]
    assert own["avg_loss"][0] == pytest.approx((loss * D * s**2).item(), rel=1e-10)


def test_clipping(x):
    free = start_and_end(TopKSAE, x, made_with={"top_k": 3}, optimizer_class=torch.optim.SGD)
    limit = free[2]["grad_norm"][0] / 4
    before, after, logs = start_and_end(
        TopKSAE, x, made_with={"top_k": 3}, optimizer_class=torch.optim.SGD, clip_grad=limit
    )
    assert logs["grad_norm"] == pytest.approx(free[2]["grad_norm"])  # as it was before
    whole = sum(logs[f"params_grad_norm_dictionary.{n}"][0] ** 2 for n in ("encoder_rows", "W_dec", "b_enc")) ** 0.5
    assert whole == pytest.approx(limit, rel=1e-5)
    clipped = (after.encoder_rows - before.encoder_rows).norm().item()
    assert clipped == pytest.approx((free[1].encoder_rows - free[0].encoder_rows).norm().item() / 4, rel=1e-5)
