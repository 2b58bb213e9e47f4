"""Terms that bring dead features back, and the loss of the TopK family: against loops over tokens and features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.training.losses import (
    AuxK,
    AuxKConfig,
    AuxKLoss,
    GhostGradients,
    MultiTopK,
    PursuitConfig,
    PursuitLoss,
    Reanimation,
    ResidualRevival,
    SumOfTerms,
)

FAMILY = ["topk", "abs_topk", "batch_topk"]


def _zero():
    return torch.zeros((), dtype=torch.float64)


def _pre(dictionary, x):
    """One list of pre-activations per token, each a scalar with its graph."""
    b = dictionary.b_dec if dictionary.config.apply_b_dec_to_input else 0
    return [
        [((t - b) * dictionary.encoder_rows[i]).sum() + dictionary.b_enc[i] for i in range(dictionary.d_sae)] for t in x
    ]


def _codes(name, pre, k):
    """{feature: activation} per token, by the rule of each architecture, by sorting."""
    n = len(pre[0])
    if name == "abs_topk":
        return [{i: row[i] for i in sorted(range(n), key=lambda i: -abs(row[i].item()))[:k]} for row in pre]
    if name in ("topk", "ordered"):
        best = [sorted(range(n), key=lambda i: -row[i].item())[:k] for row in pre]
        return [{i: row[i] for i in chosen if row[i] > 0} for row, chosen in zip(pre, best, strict=True)]
    places = sorted(((b, i) for b in range(len(pre)) for i in range(n)), key=lambda p: -pre[p[0]][p[1]].item())
    codes = [{} for _ in pre]
    for b, i in places[: int(k * len(pre))]:
        if pre[b][i] > 0:
            codes[b][i] = pre[b][i]
    return codes


def _decode(dictionary, codes, bias):
    return [sum((v * dictionary.W_dec[i] for i, v in token.items()), start=bias) for token in codes]


def _share(answers, targets):
    """Squared error as a share of the targets' variance around their mean."""
    mean = sum(targets) / len(targets)
    error = sum((((a - t) ** 2).sum() for a, t in zip(answers, targets, strict=True)), start=_zero())
    return error / sum(((t - mean) ** 2).sum() for t in targets)


def _mean_square(answers, targets):
    return sum(((a - t) ** 2).sum() for a, t in zip(answers, targets, strict=True)) / len(targets)


def _auxk(name, dictionary, x, pre, x_hat, dead, k_aux):
    if not dead:
        return _zero()
    answers = []
    for row in pre:
        if name == "abs_topk":
            chosen = sorted(dead, key=lambda i: -abs(row[i].item()))[:k_aux]
            helping = {i: row[i] for i in chosen}
        else:
            chosen = sorted(dead, key=lambda i: -row[i].item())[:k_aux]
            helping = {i: row[i] for i in chosen if row[i] > 0}
        answers.append(
            sum((v * dictionary.W_dec[i] for i, v in helping.items()), start=torch.zeros(x.shape[1]).double())
        )
    return _share(answers, [(t - a).detach() for t, a in zip(x, x_hat, strict=True)])


@pytest.mark.parametrize("name", FAMILY)
@given(
    seed=st.integers(0, 10_000), dead=st.sets(st.integers(0, 8)), k_aux=st.one_of(st.none(), st.integers(1, 12)),
    coefficient=st.sampled_from([0.0, 1 / 32, 2.0]), multi=st.sampled_from([0.0, 0.125]), apply=st.booleans(),
    reconstruction=st.sampled_from(["mse", "nmse"]),
)  # fmt: skip
@settings(max_examples=10)
def test_the_loss_equals_the_plain_one_with_its_gradients(
    make, tokens, batch_of, check_gradients, name, seed, dead, k_aux, coefficient, multi, apply, reconstruction
):
    dictionary, x = make(name, seed=seed, apply_b_dec_to_input=apply), tokens(seed=seed)
    config = AuxKConfig(
        aux_coefficient=coefficient, k_aux=k_aux, multi_topk_coefficient=multi, reconstruction=reconstruction
    )
    found = AuxKLoss(config)(dictionary, batch_of(dictionary, x, dead=dead))
    pre = _pre(dictionary, x)
    x_hat = _decode(dictionary, _codes(name, pre, 2), dictionary.b_dec)
    error = (_mean_square if reconstruction == "mse" else _share)(x_hat, list(x))
    auxiliary = _auxk(name, dictionary, x, pre, x_hat, sorted(dead), 2 if k_aux is None else k_aux)
    total, parts = error + coefficient * auxiliary, {reconstruction: error, "auxk": auxiliary}
    if multi:
        wide = _decode(dictionary, _codes(name, pre, 8), dictionary.b_dec)
        parts["multi_topk"] = _share(wide, list(x))
        total = total + multi * parts["multi_topk"]
    parts["mse"] = _mean_square(x_hat, list(x))
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    assert {key: float(value) for key, value in found.parts.items()} == pytest.approx(
        {key: float(value.detach()) for key, value in parts.items()}, rel=1e-12
    )
    check_gradients(dictionary, found.total, total)


def _aux_gradients(gradients, dictionary, batch):
    return gradients(dictionary, SumOfTerms({"auxk": (AuxK(), 1.0)})(dictionary, batch).total)


@pytest.mark.parametrize("name", FAMILY)
def test_auxk_reaches_the_rows_of_dead_features_and_no_others(make, tokens, batch_of, gradients, name):
    dictionary, x = make(name), tokens(12)
    with torch.no_grad():
        dictionary.b_enc += 20  # the living outdo the dead on every token
        dictionary.b_enc[[3, 7]] = 1.0
    assert not dictionary.encode_in_training(x)[1][:, [3, 7]].any()
    got = _aux_gradients(gradients, dictionary, batch_of(dictionary, x, dead=(3, 7)))
    for parameter in ("encoder_rows", "W_dec", "b_enc"):
        size = got[parameter].reshape(9, -1).abs().amax(-1)
        assert size[[3, 7]].min() > 1e-4, parameter
        assert not size[[0, 1, 2, 4, 5, 6, 8]].any(), parameter  # the residual is a target, not a path: exactly 0
    # the bias is reached through the dead features' input alone
    torch.testing.assert_close(got["b_dec"], -(got["b_enc"] @ dictionary.encoder_rows), rtol=1e-9, atol=1e-12)


def test_selected_features_below_zero_receive_nothing(make, tokens, batch_of, gradients):
    dictionary, x = make("topk"), tokens()
    with torch.no_grad():
        dictionary.b_enc[[3, 7]] = -1000.0
    got = _aux_gradients(gradients, dictionary, batch_of(dictionary, x, dead=(3, 7)))
    assert not any(gradient.any() for gradient in got.values())
    with torch.no_grad():  # one above and one below, both selected
        dictionary.b_enc[3] = 1000.0
    got = _aux_gradients(gradients, dictionary, batch_of(dictionary, x, dead=(3, 7)))
    assert got["b_enc"][3] != 0
    assert not got["encoder_rows"][7].any()
    assert not got["W_dec"][7].any()
    assert got["b_enc"][7] == 0


def test_a_shift_of_the_bias_is_no_business_of_auxk(make, tokens, batch_of):
    """Moving activations and b_dec together moves no residual; an answer that added b_dec would notice."""
    for name in FAMILY:
        dictionary, x = make(name), tokens()
        loss = AuxKLoss(AuxKConfig(aux_coefficient=1.0))
        before = loss(dictionary, batch_of(dictionary, x, dead=(1, 5, 6)))
        shift = torch.tensor([30.0, -20.0, 10.0, 5.0], dtype=torch.float64)
        with torch.no_grad():
            dictionary.b_dec += shift
        after = loss(dictionary, batch_of(dictionary, x + shift, dead=(1, 5, 6)))
        assert float(before.parts["auxk"]) > 0
        torch.testing.assert_close(after.parts["auxk"], before.parts["auxk"], rtol=1e-10, atol=0)
    # and where b_dec is not taken off the input, moving it alone shifts every residual by the same: the share of the
    # variance that dead features explain is of what they add to a constant, and they answer without the bias
    dictionary = make("topk", apply_b_dec_to_input=False)
    with torch.no_grad():
        dictionary.W_dec[[1, 5, 6]] = 0.0
    values = []
    for shift in (0.0, 7.0):
        with torch.no_grad():
            dictionary.b_dec += shift
        x = tokens()
        _, f = dictionary.encode_in_training(x)
        residual = x - dictionary.decode(f)
        expected = residual.square().sum() / (residual - residual.mean(0)).square().sum()
        found = loss(dictionary, batch_of(dictionary, x, dead=(1, 5, 6))).parts["auxk"]
        assert float(found) == pytest.approx(float(expected.detach()), rel=1e-12)
        values.append(float(found))


def test_without_dead_features_it_is_exactly_zero(make, tokens, batch_of, gradients):
    for name in FAMILY:
        dictionary, x = make(name), tokens()
        found = AuxKLoss(AuxKConfig(aux_coefficient=1e6))(dictionary, batch_of(dictionary, x))
        assert float(found.parts["auxk"]) == 0
        assert found.total.item() == float(found.parts["nmse"])


@pytest.mark.parametrize("name", FAMILY)
def test_a_perfect_reconstruction_leaves_no_nan(make, batch_of, tokens, gradients, name):
    dictionary = make(name)
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6 if name != "abs_topk" else 0.0)
    x = dictionary.b_dec.detach().expand(5, -1).clone()  # every token is the bias
    found = AuxKLoss(AuxKConfig(aux_coefficient=1.0))(dictionary, batch_of(dictionary, x, dead=(1, 2)))
    assert found.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(dictionary, found.total).values())


def test_k_aux_beyond_the_dead_takes_all_of_them_and_half_the_width_when_left_out(make, tokens, batch_of):
    dictionary, x = make("topk"), tokens()

    def auxk(k_aux, dead):
        return AuxKLoss(AuxKConfig(k_aux=k_aux))(dictionary, batch_of(dictionary, x, dead=dead)).parts["auxk"]

    assert auxk(3, (0, 4, 7)).equal(auxk(4, (0, 4, 7)))
    assert auxk(3, (0, 4, 7)).equal(auxk(999, (0, 4, 7)))
    assert auxk(None, range(9)).equal(auxk(2, range(9)))
    assert not auxk(None, range(9)).equal(auxk(3, range(9)))
    narrow = make("topk", d_in=1, d_sae=3, k=1)
    column = tokens(5, 1)
    left_out, one = (
        AuxKLoss(AuxKConfig(k_aux=k))(narrow, batch_of(narrow, column, dead=range(3))).parts["auxk"] for k in (None, 1)
    )
    assert left_out.equal(one)  # never none at all
    wide = make("topk_transcoder", d_out=6)
    target = tokens(6, 6, seed=1)
    found, three, two = (
        AuxKLoss(AuxKConfig(k_aux=k))(wide, batch_of(wide, x, target, dead=range(9))).parts["auxk"]
        for k in (None, 3, 2)
    )
    assert found.equal(three)  # of the width that is rebuilt
    assert not found.equal(two)


def test_the_loss_means_the_same_at_every_scale(make, tokens, batch_of):
    for name in FAMILY:
        dictionary, x = make(name), tokens()
        loss = AuxKLoss(AuxKConfig(multi_topk_coefficient=0.125))
        before = loss(dictionary, batch_of(dictionary, x, dead=(1, 5, 6)))
        with torch.no_grad():
            dictionary.b_dec *= 10
            dictionary.b_enc *= 10
        after = loss(dictionary, batch_of(dictionary, 10 * x, dead=(1, 5, 6)))
        torch.testing.assert_close(after.total, before.total, rtol=1e-12, atol=0)


def test_multi_topk_asks_for_no_more_features_than_there_are(make, tokens, batch_of):
    dictionary, x = make("topk", k=3), tokens()
    batch = batch_of(dictionary, x)
    all_of_them = SumOfTerms({"m": (MultiTopK(times=4), 1.0)})(dictionary, batch).total
    three_times = SumOfTerms({"m": (MultiTopK(times=3), 1.0)})(dictionary, batch).total
    assert all_of_them.equal(three_times)


def test_dead_features_are_trained_where_a_stranger_has_an_encoder(make, tokens, batch_of, check_gradients):
    """AuxK as a further term of a ReLU dictionary: the strongest dead pre-activations, rectified."""
    dictionary, x, dead = make("relu"), tokens(), [0, 2, 5, 8]
    found = SumOfTerms({"auxk": (AuxK(2), 1.0)})(dictionary, batch_of(dictionary, x, dead=dead)).total
    pre = _pre(dictionary, x)
    codes = [{i: v for i, v in enumerate(row) if v > 0} for row in pre]
    x_hat = _decode(dictionary, codes, dictionary.b_dec)
    total = _auxk("topk", dictionary, x, pre, x_hat, dead, 2)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found, total)


# Ghost gradients


@given(seed=st.integers(0, 10_000), dead=st.sets(st.integers(0, 8), min_size=1))
@settings(max_examples=10)
def test_ghost_gradients_equal_the_plain_ones(make, tokens, batch_of, check_gradients, seed, dead):
    dictionary, x = make("relu", seed=seed), tokens(seed=seed, scale=0.5)
    found = SumOfTerms({"ghost": (GhostGradients(), 1.0)})(dictionary, batch_of(dictionary, x, dead=dead)).total
    pre = _pre(dictionary, x)
    x_hat = _decode(dictionary, [{i: v for i, v in enumerate(r) if v > 0} for r in pre], dictionary.b_dec)
    error, residual_square = _zero(), 0.0
    for token, row, answer in zip(x, pre, x_hat, strict=True):
        residual = (token - answer).detach()
        ghost = sum(row[i].exp() * dictionary.W_dec[i] for i in sorted(dead))
        factor = float((residual**2).sum().sqrt() / (2 * (ghost.detach() ** 2).sum().sqrt()))
        error = error + ((ghost * factor - residual) ** 2).sum() / len(x)
        residual_square += float((residual**2).sum()) / len(x)
    total = residual_square / float(error.detach()) * error
    torch.testing.assert_close(found, total, rtol=1e-10, atol=0)
    assert found.item() == pytest.approx(residual_square)  # of the size of the squared error
    check_gradients(dictionary, found, total, rtol=1e-8)


@pytest.mark.parametrize("term", [GhostGradients(), AuxK(), Reanimation(), ResidualRevival()])
def test_terms_on_dead_features_touch_no_living_one_and_are_zero_without_dead(make, tokens, batch_of, gradients, term):
    dictionary, x = make("topk"), tokens()
    got = gradients(
        dictionary, SumOfTerms({"term": (term, 1.0)})(dictionary, batch_of(dictionary, x, dead=(2, 4))).total
    )
    living = [0, 1, 3, 5, 6, 7, 8]
    for parameter in ("encoder_rows", "b_enc", "W_dec"):
        assert not got[parameter][living].any(), parameter
    assert got["W_dec"].any() or got["b_enc"].any()
    none = SumOfTerms({"mse": (term, 1.0), "x": (term, 1.0)})(dictionary, batch_of(dictionary, x))
    assert float(none.total.detach()) == 0


# Reanimation


def test_reanimation_is_minus_the_mean_pre_activation_of_the_dead(make, tokens, batch_of, check_gradients):
    dictionary, x = make("relu"), tokens()
    found = SumOfTerms({"r": (Reanimation(), 1.0)})(dictionary, batch_of(dictionary, x, dead=(4,))).total
    total = -sum(row[4] for row in _pre(dictionary, x)) / len(x)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found, total)


def _push(gradients, dictionary, batch, feature, term):
    return gradients(dictionary, SumOfTerms({"r": (term, 1.0)})(dictionary, batch).total)["b_enc"][feature]


def test_the_push_of_reanimation_does_not_depend_on_how_many_are_alive(make, tokens, batch_of, gradients):
    pushes = []
    for d_sae in (9, 18, 36):
        dictionary = make("relu", d_sae=d_sae)
        batch = batch_of(dictionary, tokens(), dead=(1, 4))
        pushes.append(float(_push(gradients, dictionary, batch, 1, Reanimation())))
    assert pushes == pytest.approx([pushes[0]] * 3)


def test_dead_features_share_one_push(make, tokens, batch_of, gradients):
    """It is a mean over dead features: each gets its share of the same whole."""
    dictionary = make("relu")
    pushes = [
        float(_push(gradients, dictionary, batch_of(dictionary, tokens(), dead=dead), 1, Reanimation()))
        for dead in ((1,), (1, 4), (1, 2, 3, 4, 5), tuple(range(9)))
    ]
    assert pushes == pytest.approx([pushes[0] / n for n in (1, 2, 5, 9)])


def test_reanimation_as_published_is_a_mean_over_everything(make, tokens, batch_of, check_gradients):
    dictionary, x = make("relu"), tokens()
    with torch.no_grad():
        dictionary.b_enc[[2, 6]] = -1e3  # silent in this batch
    found = SumOfTerms({"r": (Reanimation(as_published=True), 1.0)})(dictionary, batch_of(dictionary, x, dead=(0,)))
    pre = _pre(dictionary, x)
    silent = [i for i in range(9) if not any(row[i] > 0 for row in pre)]
    assert {2, 6} <= set(silent)
    assert len(silent) < 9
    total = -sum(row[i] for row in pre for i in silent) / (len(x) * 9)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)


# Matching pursuit


def _pursue(dictionary, x):
    """Steps of a pursuit for one token, with their graph."""
    W = dictionary.W_dec
    residual, chosen = x - dictionary.b_dec, []
    for _ in range(dictionary.config.k):
        products = [float((residual * W[i]).sum().detach()) for i in range(dictionary.d_sae)]
        i = max(range(dictionary.d_sae), key=products.__getitem__)
        value = (residual * W[i]).sum()
        if value <= 0:
            break
        residual = residual - value * W[i]
        again = i in chosen
        chosen.append(i)
        if again or float((residual**2).sum().sqrt().detach()) < float(dictionary.residual_threshold):
            break
    return residual, chosen


@given(
    seed=st.integers(0, 10_000), dead=st.sets(st.integers(0, 8)), revival=st.sampled_from([0.0, 0.3]),
    reconstruction=st.sampled_from(["mse", "nmse"]),
)  # fmt: skip
@settings(max_examples=15)
def test_the_pursuit_loss_equals_the_plain_one_with_its_gradients(
    make, tokens, batch_of, check_gradients, seed, dead, revival, reconstruction
):
    dictionary, x = make("matching_pursuit", seed=seed, k=3), tokens(seed=seed)
    config = PursuitConfig(reconstruction=reconstruction, revival_coefficient=revival)
    found = PursuitLoss(config)(dictionary, batch_of(dictionary, x, dead=dead))
    residuals = [_pursue(dictionary, t)[0] for t in x]
    mse = sum((r**2).sum() for r in residuals) / len(x)
    error = mse / (((x - x.mean(0)) ** 2).sum() / len(x)) if reconstruction == "nmse" else mse
    pull = _zero()
    for r in residuals:
        for i in dead:
            pull = pull - (r.detach() * dictionary.W_dec[i]).sum() / (len(x) * len(dead))
    total = error + revival * pull
    torch.testing.assert_close(found.total, total, rtol=1e-11, atol=1e-14)
    check_gradients(dictionary, found.total, total)
    assert ("residual_revival" in found.parts) == bool(revival)


def test_the_revival_turns_dead_rows_alone(make, tokens, batch_of, gradients):
    dictionary, x = make("matching_pursuit"), tokens()
    batch = batch_of(dictionary, x, dead=(3, 8))
    found = SumOfTerms({"r": (ResidualRevival(), 1.0)})(dictionary, batch)
    got = gradients(dictionary, found.total)
    assert not got["b_dec"].any()
    assert got["W_dec"][[3, 8]].abs().amax(-1).min() > 1e-6
    assert not got["W_dec"][[0, 1, 2, 4, 5, 6, 7]].any()
    residual = torch.stack([_pursue(dictionary, t)[0].detach() for t in x])
    torch.testing.assert_close(got["W_dec"][3], -residual.mean(0) / 2, rtol=1e-10, atol=1e-12)


# The number of features over the training


def test_k_falls_to_k_and_no_further(make, tokens, batch_of):
    for name, start, share in (("topk", 8, 0.5), ("batch_topk", 6, 0.25), ("ordered", None, 0.3)):
        dictionary, x = make(name), tokens(40)
        settings = {"k_anneal_share": share} if name == "ordered" else {"k_start": start, "k_anneal_share": share}
        from saescope.training.losses import loss_for

        loss = loss_for(dictionary, settings)
        with torch.no_grad():
            dictionary.b_enc += 100  # everything would fire
        counts = [
            float(loss(dictionary, batch_of(dictionary, x, step=step, num_steps=20)).f.count_nonzero()) / 40
            for step in range(20)
        ]
        assert counts[0] == (start or 8)
        assert counts == sorted(counts, reverse=True)
        assert min(counts) == 2.0
        ends = next(step for step in range(20) if step / 20 >= share)
        assert counts[ends:] == [2.0] * (20 - ends)
        if name == "batch_topk":  # fractional k: linear down to 2
            assert counts[:5] == pytest.approx([2 + 4 * (1 - step / 20 / share) for step in range(5)], abs=1 / 40)


def test_more_features_than_there_are_is_all_of_them(make, tokens, batch_of):
    dictionary, x = make("topk"), tokens()
    with torch.no_grad():
        dictionary.b_enc += 100
    found = AuxKLoss(AuxKConfig(k_start=1000))(dictionary, batch_of(dictionary, x))
    assert float(found.f.count_nonzero()) == 9 * len(x)
