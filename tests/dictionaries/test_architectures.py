"""What each architecture computes and every gradient of it, against formulas of the papers written out in numpy.

The gradients are chain rule by hand: with L = sum(A * x_hat) + sum(C * f), everything follows from the slope df/du, where
u = (x - b_dec) W_enc is the encoder's product, and from the slopes in an architecture's own parameters.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from saescope.dictionaries import Dictionary, TopKConfig

LINEAR = ["relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered", "group_max"]
PER_TOKEN = ["topk", "abs_topk", "ordered"]
PER_BATCH = ["batch_topk", "matryoshka"]


def _numpy(dictionary: Dictionary) -> dict[str, np.ndarray]:
    own = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
    return {name: tensor.detach().numpy() for name, tensor in own.items()}


def _products(p: dict[str, np.ndarray], x: np.ndarray, centred: bool) -> np.ndarray:
    """u[b, i] = sum_j (x[b, j] - b_dec[j]) W_enc[j, i], in loops."""
    u = np.zeros((len(x), len(p["encoder_rows"])))
    for b in range(len(x)):
        for i in range(u.shape[1]):
            for j in range(x.shape[1]):
                u[b, i] += (x[b, j] - (p["b_dec"][j] if centred else 0)) * p["encoder_rows"][i, j]
    return u


def _winners_per_token(rank: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros(rank.shape, bool)
    for b, row in enumerate(rank.tolist()):
        for i in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            mask[b, i] = True
    return mask


def _winners_of_batch(pre: np.ndarray, k: float) -> np.ndarray:
    cells = sorted(((-value, b, i) for (b, i), value in np.ndenumerate(pre)))[: int(k * len(pre))]
    mask = np.zeros(pre.shape, bool)
    for value, b, i in cells:
        mask[b, i] = -value > 0
    return mask


def _rule(
    name: str, dictionary: Dictionary, p: dict[str, np.ndarray], u: np.ndarray, training: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """f, df/du, and df/dq for the rule's own parameters q (all [B, d_sae])."""
    if name == "gated":
        scale = np.exp(p["r_mag"])
        magnitude = scale * u + p["b_mag"]
        mask = (u + p["b_gate"] > 0) & (magnitude > 0)
        own = {"b_mag": mask * 1.0, "r_mag": mask * scale * u, "b_gate": mask * 0.0}
        return mask * magnitude, mask * scale, own
    pre = u + p["b_enc"]
    own = {}
    if name == "relu":
        mask = pre > 0
    elif name == "jumprelu":
        mask = pre > p["threshold"]
        width = dictionary.config.bandwidth
        near = np.abs((pre - p["threshold"]) / width) < 0.5
        own["threshold"] = -(p["threshold"] / width) * near
    elif name == "group_max":
        size = -(-pre.shape[-1] // dictionary.config.k)
        mask = np.zeros_like(pre, dtype=bool)
        for first in range(0, pre.shape[-1], size):
            winner = first + pre[:, first : first + size].argmax(-1)
            mask[np.arange(len(pre)), winner] = pre[np.arange(len(pre)), winner] > 0
    elif name == "abs_topk":
        mask = _winners_per_token(np.abs(pre), dictionary.config.k)
    elif name in PER_TOKEN:
        mask = _winners_per_token(pre, dictionary.config.k) & (pre > 0)
    elif training:
        mask = _winners_of_batch(pre, dictionary.config.k)
    else:
        mask = pre > p["threshold"]
    return mask * pre, mask * 1.0, own | {"b_enc": mask * 1.0}


def _compare(name: str, dictionary: Dictionary, x: torch.Tensor, seed: int, training: bool) -> np.ndarray:
    centred = dictionary.config.apply_b_dec_to_input
    p = _numpy(dictionary)
    u = _products(p, x.numpy(), centred)
    f, slope, own = _rule(name, dictionary, p, u, training)
    x_hat = np.einsum("bi,ij->bj", f, p["W_dec"]) + p["b_dec"]

    random = np.random.default_rng(seed)
    A, C = random.normal(size=x_hat.shape), random.normal(size=f.shape)
    to_f = C + np.einsum("bj,ij->bi", A, p["W_dec"])
    to_u = to_f * slope
    expected = {
        "W_dec": np.einsum("bi,bj->ij", f, A),
        "b_dec": A.sum(0) - (np.einsum("bi,ij->j", to_u, p["encoder_rows"]) if centred else 0),
        "encoder_rows": np.einsum("bi,bj->ij", to_u, x.numpy() - (p["b_dec"] if centred else 0)),
        "x": np.einsum("bi,ij->bj", to_u, p["encoder_rows"]),
        **{q: (to_f * by).sum(0) for q, by in own.items()},
    }

    leaf = x.clone().requires_grad_()
    found_f = dictionary.activate_in_training(dictionary.pre_activations(leaf)) if training else dictionary.encode(leaf)
    found_x_hat = dictionary.decode(found_f)
    torch.testing.assert_close(found_f, torch.tensor(f), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_x_hat, torch.tensor(x_hat), rtol=1e-12, atol=1e-12)
    if not training:
        assert dictionary(x).equal(found_x_hat)
    dictionary.zero_grad()
    (torch.tensor(A) * found_x_hat).sum().add((torch.tensor(C) * found_f).sum()).backward()
    found = {"x": leaf.grad, **{q: parameter.grad for q, parameter in dictionary.named_parameters()}}
    assert set(found) == set(expected)
    for q, gradient in expected.items():
        got = torch.zeros(gradient.shape, dtype=torch.float64) if found[q] is None else found[q]
        torch.testing.assert_close(got, torch.tensor(gradient), rtol=1e-11, atol=1e-11, msg=f"gradient of {q}")
    return f


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", LINEAR)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 10), centred=st.booleans())
@profile(max_examples=8)
def test_forward_and_gradients_are_the_papers(make, tokens, name, training, seed, k, centred):
    own = {"k": k} if name in PER_TOKEN + PER_BATCH else {}
    own |= {"bandwidth": 0.8} if name == "jumprelu" else {}
    dictionary = make(name, seed=seed, apply_b_dec_to_input=centred, **own)
    _compare(name, dictionary, tokens(6, seed=seed), seed, training)


@pytest.mark.parametrize("name", PER_BATCH)
@pytest.mark.parametrize("k", [0.5, 1.4, 2.75])
def test_a_batch_shares_its_firings_also_where_k_is_no_whole_number(make, tokens, name, k):
    dictionary = make(name, k=k, d_sae=12)
    f = _compare(name, dictionary, tokens(10), 0, training=True)
    assert (f > 0).sum() == int(10 * k)
    assert len({int(count) for count in (f > 0).sum(1)}) > 1  # busy tokens take from quiet ones


def test_abs_topk_keeps_signs(make, tokens):
    dictionary = make("abs_topk")
    f = dictionary.encode(tokens(50))
    assert ((f != 0).sum(-1) == 3).all()
    assert (f > 0).any()
    assert (f < 0).any()
    assert dictionary.encode_sparse(tokens(50)).to_dense().equal(f)
    codes = dictionary.activate(torch.tensor([[1.0, -3.0, 2.0, 0.5, -2.5, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[0, -3, 2, 0, -2.5, 0, 0, 0, 0, 0]]


@given(seed=st.integers(0, 10_000))
@profile(max_examples=20)
def test_gated_is_a_jumprelu_in_units_of_magnitude(make, tokens, seed):
    """theta = b_mag - exp(r_mag) b_gate; a theta below 0 leaves the ReLU in charge."""
    gated = make("gated", seed=seed)
    x = tokens(20, seed=seed)
    u = (x - gated.b_dec) @ gated.encoder_rows.T
    v = gated.r_mag.exp() * u + gated.b_mag
    theta = gated.b_mag - gated.r_mag.exp() * gated.b_gate
    torch.testing.assert_close(gated.encode(x), v.relu() * (v > theta), rtol=1e-12, atol=1e-12)
    assert (theta > 0).any()

    jumprelu = make("jumprelu")
    with torch.no_grad():
        jumprelu.encoder_rows.copy_(gated.r_mag.exp()[:, None] * gated.encoder_rows)
        jumprelu.b_enc.copy_(gated.b_mag)
        jumprelu.b_dec.copy_(gated.b_dec)
        jumprelu.threshold.copy_(theta.clamp(min=0))
    torch.testing.assert_close(gated.encode(x), jumprelu.encode(x), rtol=1e-12, atol=1e-12)


def test_the_gates_own_activations(make, tokens):
    gated = make("gated")
    x = tokens()
    u = (x - gated.b_dec) @ gated.encoder_rows.T
    torch.testing.assert_close(gated.gate_activations(gated.pre_activations(x)), (u + gated.b_gate).clamp(min=0))


def test_topk_with_k_of_all_features_is_relu(make, tokens):
    assert make("topk", k=10, seed=4).encode(tokens()).equal(make("relu", seed=4).encode(tokens()))


@pytest.mark.parametrize("name", ["topk", "ordered"])
def test_topk_chooses_k_of_tied_features(make, name):
    f = make(name, d_sae=6, k=2).activate(
        torch.tensor([[1.0, 1.0, 1.0, 0.5, 1.0, -1.0], [2.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    )
    assert f[0].sort().values.tolist() == [0, 0, 0, 0, 1, 1]
    assert f[0, [3, 5]].tolist() == [0, 0]
    assert f[1, 0] == 2
    assert f[1].sort().values.tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("name", ["relu", "topk", "ordered", "batch_topk", "matryoshka", "jumprelu"])
def test_a_feature_fires_only_above_zero(make, name):
    dictionary = make(name, d_sae=4)
    if hasattr(dictionary, "threshold"):
        with torch.no_grad():
            dictionary.threshold.zero_()
    pre = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-0.0, -0.0, 0.0, -1.0], [-1.0, 7.0, -0.0, -2.0]])
    for f in (dictionary.activate(pre), dictionary.activate_in_training(pre)):
        assert (f > 0).tolist() == [[False] * 4, [False] * 4, [False, True, False, False]]  # fewer positives than k
        assert f.tolist() == [[0] * 4, [0] * 4, [0, 7, 0, 0]]


@pytest.mark.parametrize("name", ["relu", "topk", "ordered", "batch_topk", "matryoshka"])
def test_selected_features_with_nothing_to_say_get_no_gradient(make, name):
    pre = torch.tensor([[-1.0, 2.0, -0.5, -3.0]], requires_grad=True)
    make(name, d_sae=4).activate_in_training(pre).sum().backward()
    assert pre.grad.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("name", PER_TOKEN + PER_BATCH)
def test_training_may_let_another_number_fire_for_a_while(make, tokens, name):
    dictionary = make(name, k=2)
    pre = dictionary.pre_activations(tokens(8)) + 50  # all positive: k alone decides
    for k in (1, 5, 10):
        assert (dictionary.activate_in_training(pre, k) != 0).sum() == 8 * k
    assert (dictionary.activate_in_training(pre) != 0).sum() == 8 * 2


def test_matryoshka_widths():
    from saescope.dictionaries import MatryoshkaConfig

    assert MatryoshkaConfig(d_in=4, d_sae=64, k=2).widths == (4, 8, 16, 32, 64)
    assert MatryoshkaConfig(d_in=4, d_sae=3, k=1).widths == (1, 3)
    assert MatryoshkaConfig(d_in=4, d_sae=8, k=2, widths=[2, 8]).widths == (2, 8)
    for widths in ((2, 4), (4, 2, 8), (0, 8), (2, 2, 8), (8, 9)):
        with pytest.raises(ValueError, match="widths must rise from at least 1 to d_sae = 8"):
            MatryoshkaConfig(d_in=4, d_sae=8, k=2, widths=widths)


def test_a_width_that_is_no_whole_number_is_refused():
    from saescope.dictionaries import MatryoshkaConfig

    with pytest.raises(ValueError, match="widths"):
        MatryoshkaConfig(d_in=4, d_sae=8, k=2, widths=(2.5, 8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"d_in": 0, "d_sae": 4, "k": 1}, "d_in must be .*at least 1, got 0"),
        ({"d_in": 4, "d_sae": -2, "k": 1}, "d_sae must be .*at least 1, got -2"),
        ({"d_in": 4, "d_sae": 8.0, "k": 1}, r"d_sae must be a whole number .*got 8\.0"),
        ({"d_in": "4", "d_sae": 8, "k": 1}, "d_in must be a whole number .*got '4'"),
        ({"d_in": None, "d_sae": 8, "k": 1}, "d_in must be a whole number .*got None"),
        ({"d_in": 4, "d_sae": 8, "k": 0}, "k must be .*between 1 and d_sae = 8, got 0"),
        ({"d_in": 4, "d_sae": 8, "k": 9}, "k must be .*between 1 and d_sae = 8, got 9"),
        ({"d_in": 4, "d_sae": 8, "k": 2.0}, r"k must be a whole number .*got 2\.0"),
    ],
)
def test_impossible_sizes_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TopKConfig(**settings)


@pytest.mark.parametrize(
    ("name", "own", "words"),
    [
        ("batch_topk", {"k": 0}, "k must be above 0 and at most d_sae = 8, got 0"),
        ("batch_topk", {"k": 8.5}, r"at most d_sae = 8, got 8\.5"),
        ("batch_topk", {"k": math.nan}, "got nan"),
        ("batch_topk", {"k": True}, "got True"),
        ("batch_topk", {"k": "3"}, "got '3'"),
        ("jumprelu", {"bandwidth": 0.0}, "bandwidth must be positive, got 0.01 and 0.0"),
        ("jumprelu", {"initial_threshold": -0.1}, "initial_threshold must not be negative"),
        ("jumprelu", {"bandwidth": math.nan}, "bandwidth must be positive"),
        ("matching_pursuit", {"k": 0}, "k must be a whole number of at least 1"),
        ("matching_pursuit", {"k": 2.0}, "k must be a whole number of at least 1"),
        ("matching_pursuit", {"residual_threshold": -1.0}, "residual_threshold must not be negative"),
        ("matching_pursuit", {"residual_threshold": math.nan}, "residual_threshold must not be negative"),
    ],
)
def test_impossible_settings_are_refused(name, own, words):
    from saescope.dictionaries import architecture

    with pytest.raises(ValueError, match=words):
        architecture(name).Config(d_in=4, d_sae=8, **own)
