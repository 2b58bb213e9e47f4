"""fit: rows of the contract's table of defects, one after another, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from saescope.concepts.explainers import BatchTopKSAE, JumpReLUSAE, MpSAE, TopKSAE, VanillaSAE
from saescope.dictionaries import JumpReLU

ALL = [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE, MpSAE]
D, C = 12, 40


class Split:
    split_points = ("layer.1", "layer.2")

    def get_latent_shape(self, inputs=None):
        return {name: torch.Size([1, 3, D]) for name in self.split_points}

    def get_split_activations(self, activations, split_point=None):
        if split_point not in activations:
            raise ValueError(f"no activations of {split_point!r}")
        return activations[split_point]


def make(cls, **kwargs):
    return cls(Split(), nb_concepts=C, split_point="layer.1", **kwargs)


def sparse(n, seed, l0=3):
    """Rows that are sums of three of 30 directions, with strengths from 2 to 6."""
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(30, D, generator=torch.Generator().manual_seed(99)), dim=-1)
    places = torch.rand(n, 30, generator=generator).topk(l0, dim=1).indices
    strengths = 2 + 4 * torch.rand(n, l0, generator=generator)
    return torch.zeros(n, 30).scatter(1, places, strengths) @ atoms


@pytest.fixture(scope="module")
def train():
    return sparse(2000, seed=1)


@pytest.fixture(scope="module")
def test():
    return sparse(1500, seed=2)


def l0_of(explainer, x):
    return float((explainer.encode_activations(x) != 0).sum(1).double().mean())


# 3: sparsity is built in


@pytest.mark.parametrize("cls", [VanillaSAE, JumpReLUSAE])
def test_penalised_concepts_are_sparse(cls, train, test):
    explainer = make(cls)
    logs = explainer.fit(train, batch_size=256, nb_epochs=10, lr=5e-3)
    assert l0_of(explainer, test) < 0.2 * C
    assert logs["r2"][-1] > 0.5
    dense = make(cls, **{"l1_coefficient" if cls is VanillaSAE else "l0_coefficient": 0.0})
    dense.fit(train, batch_size=256, nb_epochs=10, lr=5e-3)
    assert l0_of(dense, test) > 0.3 * C  # what the original does


def test_target_l0(train, test):
    explainer = make(JumpReLUSAE, target_l0=4)
    explainer.fit(train, batch_size=128, nb_epochs=30, lr=5e-3)
    assert l0_of(explainer, test) == pytest.approx(4, rel=0.25)


# 4, 5: BatchTopK


@pytest.mark.parametrize("batch_size", [64, 1024])
def test_k_is_per_row(batch_size, train, test):
    explainer = make(BatchTopKSAE, top_k=3)
    logs = explainer.fit(train, batch_size=batch_size, nb_epochs=4)
    assert logs["z_sparsity"] == pytest.approx([3.0] * 4, rel=0.01)
    assert l0_of(explainer, train) == pytest.approx(3, rel=1e-3)  # measured at the end, on all of these rows
    assert l0_of(explainer, test) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("n", [1, 65, 130])
def test_short_last_batches(n, train):
    for cls in ALL:
        for encoder in (None, "mlp_bn_1") if cls is not MpSAE else (None,):
            if n == 1 and encoder:
                continue
            explainer = make(cls, encoder_module=encoder)
            x = train[: n + 64 * (n == 1)]  # 65 = 64 + 1 rows: a last batch of one row
            logs = explainer.fit(x, batch_size=64, nb_epochs=2)
            assert all(map(math.isfinite, logs["avg_loss"]))
            assert sum(logs["skipped_batches"]) == 0


def test_threshold_momentum(train):
    """The running threshold after two steps is m s1 + (1 - m) s2; the last calibration is what counts."""
    smallest = []

    def watch(x, x_hat, pre_codes, codes, dictionary):
        smallest.append(float(codes.detach()[codes > 0].min()))
        return (x - x_hat).square().mean()

    explainer = make(BatchTopKSAE, top_k=3, threshold_momentum=0.75)
    model = explainer.concept_model
    running = []
    after_step = model.after_step
    model.after_step = lambda codes: (after_step(codes), running.append(float(model.dictionary.threshold)))
    explainer.fit(train[:256], batch_size=128, nb_epochs=1, criterion=watch)
    scale = D**0.5 / float(train[:256].norm(dim=1).mean())
    assert running == pytest.approx([scale * smallest[0], scale * (0.75 * smallest[0] + 0.25 * smallest[1])], rel=1e-5)
    assert l0_of(explainer, train[:256]) == pytest.approx(3, rel=1e-2)


# 6: the gradient of thresholds


def test_one_bandwidth_in_the_gradient_of_a_threshold():
    explainer = make(JumpReLUSAE, bandwidth=1e-3, initial_threshold=math.exp(-3))
    model = explainer.concept_model.double()
    dictionary = model.dictionary
    assert isinstance(dictionary, JumpReLU)
    theta = float(dictionary.threshold.detach()[0])
    pre = dictionary.threshold.detach()[None].clone()
    dictionary.activate(pre).sum().backward()
    assert theta == pytest.approx(math.exp(-3))
    torch.testing.assert_close(dictionary.threshold.grad, torch.full((C,), -theta / 1e-3).double(), rtol=1e-6, atol=0)


# 7: what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("use_amp", [False, True])
def test_batches_that_are_not_finite_are_passed_over_alone(cls, use_amp, value, train):
    batches = [x.clone() for x in train[:800].split(40)]
    bad = (0, 3, 4, 11, 17, 18)
    for i in bad:
        batches[i][i % 7, 2] = value
    seen = []

    def watch(x, x_hat, pre_codes, codes, dictionary):
        seen.append(x)
        return (x - x_hat).square().mean()

    explainer = make(cls, encoder_module=None if cls is MpSAE else "mlp_bn_1")
    logs = explainer.fit(batches, criterion=watch, nb_epochs=2, use_amp=use_amp)
    good = [x for i, x in enumerate(batches) if i not in bad]
    assert len(seen) == 2 * len(good)
    for x, wanted in zip(seen, good * 2, strict=True):
        torch.testing.assert_close(x, wanted, rtol=1e-5, atol=1e-5)
    assert logs["skipped_batches"] == [6, 6]
    assert logs["nan_fallbacks"] == [0, 0]
    assert len(logs["step_loss"]) == 28
    assert all(torch.isfinite(t).all() for t in explainer.concept_model.state_dict().values())


def test_a_loss_that_is_not_finite_moves_nothing(train):
    """The loss of the second batch and the gradient of the third are not finite; running statistics stay too."""
    states = []
    explainer = make(VanillaSAE, encoder_module="mlp_bn_1", l1_coefficient=0.0)
    model = explainer.concept_model

    def watch(x, x_hat, pre_codes, codes, dictionary):
        loss = (x - x_hat).square().mean()
        number = len(states)
        kept = [*model.parameters(), model.dictionary.encoder.last[1].running_mean]
        states.append([t.detach().clone() for t in kept])
        if number == 1:
            return loss * math.nan
        return loss + (1e38 * loss * 1e38 * 0 if number == 2 else 0)

    logs = explainer.fit(train[:160], criterion=watch, nb_epochs=1, batch_size=40)
    assert logs["skipped_batches"] == [2]
    for parameter in range(len(states[0]) - 1):
        assert torch.equal(states[1][parameter], states[2][parameter])
        assert torch.equal(states[2][parameter], states[3][parameter])
    assert not torch.equal(states[0][0], states[1][0])
    assert int(model.dictionary.encoder.last[1].num_batches_tracked) == 2  # of four forward passes


def amp_loss(bad, calls):
    """Not finite in bfloat16 on some batches (told by their first entry), as float16 overflows."""

    def loss(x, x_hat, pre_codes, codes, dictionary):
        in_bfloat16 = torch.is_autocast_enabled("cpu")
        number = round(float(x[0, 0]))
        calls.append((number, in_bfloat16))
        value = (x - x_hat).square().mean()
        return value * math.inf if in_bfloat16 and number in bad else value

    return loss


def numbered(train):
    batches = [x.clone() for x in train[:800].split(40)]
    for i, x in enumerate(batches):
        x[0, 0] = i
    return batches


def test_after_so_many_fallbacks_the_rest_is_in_float32(train):
    calls: list[tuple[int, bool]] = []
    logs = make(TopKSAE).fit(
        numbered(train), criterion=amp_loss({2, 5, 9, 12}, calls), nb_epochs=1, use_amp=True, max_nan_fallbacks=3
    )
    wanted = []
    for i in range(20):
        wanted += [(i, True), (i, False)] if i in (2, 5, 9) else [(i, i < 9)]
    assert calls == wanted  # every batch is seen; three twice, and from the third on float32 alone
    assert logs["nan_fallbacks"] == [3]
    assert logs["skipped_batches"] == [0]
    assert len(logs["step_loss"]) == 20


def test_no_limit_of_fallbacks(train):
    calls: list[tuple[int, bool]] = []
    logs = make(TopKSAE).fit(
        numbered(train), criterion=amp_loss(set(range(8)), calls), nb_epochs=1, use_amp=True, max_nan_fallbacks=None
    )
    assert logs["nan_fallbacks"] == [8]
    assert calls[-1] == (19, True)
    assert len(logs["step_loss"]) == 20


@pytest.mark.parametrize("cls", ALL)
def test_bfloat16_fits_as_float32_does(cls, train):
    losses = [
        make(cls).fit(train[:500], nb_epochs=3, batch_size=100, use_amp=amp)["avg_loss"][-1] for amp in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_an_epoch_without_a_usable_batch(train):
    with pytest.raises(ValueError, match="in every row"):
        make(TopKSAE).fit(train * math.nan)
    explainer = make(TopKSAE)
    with pytest.raises(ValueError, match="none of 2 batches"):
        explainer.fit(train, criterion=lambda x, x_hat, p, z, d: x_hat.mean() * math.nan)
    assert not explainer.is_fitted
    with pytest.raises(ValueError, match="norm"):
        make(TopKSAE).fit(torch.zeros(10, D))


# 8: logs


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("monitoring", [None, 1, 2])
def test_logs_always(cls, monitoring, train, capsys):
    logs = make(cls).fit(train[:500], nb_epochs=3, batch_size=200, monitoring=monitoring)
    per_epoch = ["avg_loss", "r2", "z_sparsity", "dead_features", "skipped_batches", "nan_fallbacks", "time_epoch"]
    assert {name: len(logs[name]) for name in per_epoch} == dict.fromkeys(per_epoch, 3)
    assert len(logs["lr"]) == len(logs["step_loss"]) == 9
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == (3 if monitoring else 0)
    assert all(f"epoch {i + 1}/3" in line and "loss" in line for i, line in enumerate(printed))
    assert ("dictionary_norms" in logs) == (monitoring == 2)
    if monitoring == 2:
        assert logs["dictionary_norms"] == pytest.approx([1.0] * 3)
        assert logs["dictionary_sparsity"] == [float(D)] * 3
        assert len(logs["z_l2"]) == len(logs["grad_norm"]) == 9
    for epoch in range(3):
        assert logs["avg_loss"][epoch] == pytest.approx(sum(logs["step_loss"][3 * epoch : 3 * epoch + 3]) / 3)


def test_r2_of_the_mean_is_zero():
    """With one scalar mean it would be near 1 on activations with offsets."""
    generator = torch.Generator().manual_seed(0)
    offsets = 10 * torch.randn(D, generator=generator)
    x = offsets + torch.randn(1000, D, generator=generator)
    explainer = make(VanillaSAE, decoder_bias=True)
    model = explainer.concept_model
    with torch.no_grad():
        model.dictionary.b_enc.fill_(-1e6)
    model.recipe.loss["l1_coefficient"] = 0.0
    logs = explainer.fit(
        x, nb_epochs=1, batch_size=100, lr=1e-12, warm_start=True, criterion=lambda x, x_hat, p, z, d: x_hat.mean()
    )
    assert logs["r2"] == pytest.approx([0.0], abs=1e-5)
    assert logs["dead_features"] == [1.0]


# 9, 10: optimizer and scheduler


def test_the_caller_s_dicts_stay(train):
    own, plan = {"betas": (0.5, 0.9)}, {"step_size": 1}
    explainers = []
    for lr in (1e-3, 1e-2):
        explainers.append(make(TopKSAE))
        explainers[-1].fit(
            train[:200], nb_epochs=1, lr=lr, optimizer_kwargs=own, scheduler_kwargs=plan,
            scheduler_class=torch.optim.lr_scheduler.StepLR,
        )  # fmt: skip
    assert own == {"betas": (0.5, 0.9)}
    assert plan == {"step_size": 1}
    assert not torch.equal(explainers[0].get_dictionary(), explainers[1].get_dictionary())


def test_optimizers(train):
    momentum = make(TopKSAE).fit(
        train, nb_epochs=2, optimizer_class=torch.optim.SGD, optimizer_kwargs={"momentum": 0.9}, lr=0.05
    )
    plain = make(TopKSAE).fit(train, nb_epochs=2, optimizer_class=torch.optim.SGD, lr=0.05)
    assert momentum["avg_loss"][1] < plain["avg_loss"][1] < plain["avg_loss"][0]
    same = [make(TopKSAE).fit(train, nb_epochs=2, **how) for how in ({}, {"optimizer_class": torch.optim.Adam})]
    assert same[0]["step_loss"] == same[1]["step_loss"]


def test_schedules_count_steps_or_epochs(train):
    how = {"scheduler_class": torch.optim.lr_scheduler.StepLR, "scheduler_kwargs": {"step_size": 2, "gamma": 0.5}}
    how |= {"nb_epochs": 4, "batch_size": 100, "lr": 0.01}
    steps = make(TopKSAE).fit(train[:300], **how)["lr"]
    assert steps == pytest.approx([0.01 * 0.5 ** (i // 2) for i in range(12)])
    epochs = make(TopKSAE).fit(train[:300], scheduler_unit="epoch", **how)["lr"]
    assert epochs == pytest.approx([0.01 * 0.5 ** (i // 6) for i in range(12)])


def test_plateaus_are_told_the_loss(train):
    how = {"factor": 0.1, "patience": 0, "threshold": 0.99}
    for unit, steps in (("step", [0.01, 0.01, 0.001, 0.0001]), ("epoch", [0.01, 0.01, 0.01, 0.01])):
        logs = make(TopKSAE).fit(
            train[:200], nb_epochs=2, batch_size=100, lr=0.01, scheduler_unit=unit, scheduler_kwargs=how,
            scheduler_class=torch.optim.lr_scheduler.ReduceLROnPlateau,
        )  # fmt: skip
        assert logs["lr"] == pytest.approx(steps)


def test_skipped_batches_do_not_turn_the_schedule(train):
    batches = list(train[:400].split(100))
    batches[0] = batches[0] * math.nan
    logs = make(TopKSAE).fit(
        batches[1:2] + batches, nb_epochs=1, lr=0.01, scheduler_class=torch.optim.lr_scheduler.StepLR,
        scheduler_kwargs={"step_size": 1, "gamma": 0.5},
    )  # fmt: skip
    assert logs["lr"] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])


# 11: overwrite, warm_start, seed


@pytest.mark.parametrize("cls", ALL)
def test_overwrite_is_a_fresh_fit(cls, train):
    how = {"nb_epochs": 2, "batch_size": 128}
    explainer, fresh = make(cls), make(cls)
    wanted = fresh.fit(train[:600], **how, seed=4)
    explainer.fit(train[600:900], lr=0.1)
    with pytest.raises(RuntimeError, match="overwrite=True"):
        explainer.fit(train[:600], **how)
    logs = explainer.fit(train[:600], **how, seed=4, overwrite=True)
    assert logs["step_loss"] == wanted["step_loss"]
    for name, tensor in fresh.concept_model.state_dict().items():
        assert torch.equal(tensor, explainer.concept_model.state_dict()[name]), name
    assert not torch.equal(make_and_fit(cls, train[:600], **how, seed=5), fresh.get_dictionary())


def make_and_fit(cls, x, **how):
    explainer = make(cls)
    explainer.fit(x, **how)
    return explainer.get_dictionary()


@pytest.mark.parametrize("cls", ALL)
def test_warm_start_goes_on(cls, train):
    explainer, train = make(cls), train[:600]
    first = explainer.fit(train, nb_epochs=10, batch_size=64)
    codes = explainer.encode_activations(train)
    more = explainer.fit(train, nb_epochs=1, batch_size=128, lr=1e-6, warm_start=True)
    again = explainer.encode_activations(train)
    assert (again - codes).norm() < 0.02 * codes.norm()  # the scale is folded away and back
    assert more["r2"][0] == pytest.approx(first["r2"][-1], abs=0.05)
    with pytest.raises(ValueError, match="one of them"):
        explainer.fit(train, overwrite=True, warm_start=True)


def test_scale_of_activations_changes_nothing_but_units(train):
    """Rows, and codes in units of activations, are the same at every scale (powers of two are exact)."""
    for cls in ALL:
        one, other = make(cls), make(cls)
        one.fit(train[:500], nb_epochs=2, batch_size=100)
        other.fit(train[:500] * 64, nb_epochs=2, batch_size=100)
        assert torch.equal(one.get_dictionary(), other.get_dictionary())
        assert torch.equal(64 * one.encode_activations(train), other.encode_activations(64 * train))


def test_random_numbers_of_the_caller_go_on(train):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    make(MpSAE, dropout=0.3).fit(train[:100], nb_epochs=1)
    assert torch.equal(torch.rand(4), wanted)
    first, again = (make_and_fit_pursuit(train) for _ in range(2))
    assert torch.equal(first, again)  # dropout is drawn from the seed


def make_and_fit_pursuit(train):
    explainer = make(MpSAE, dropout=0.3, k=3)
    explainer.fit(train[:300], nb_epochs=2, batch_size=100)
    return explainer.get_dictionary()


# 12: device


def test_device_of_fit_moves_the_model(train, capsys, monkeypatch):
    """Without another device: the move is seen, and undone."""
    explainer = make(TopKSAE)
    explainer.device = "meta"
    with pytest.raises(NotImplementedError):  # nothing can be computed there
        explainer.fit(train[:64], nb_epochs=1)
    explainer = make(TopKSAE)
    moved = []
    monkeypatch.setattr(type(explainer.concept_model), "to", lambda self, device: moved.append(device) or self)
    monkeypatch.setattr(type(explainer.concept_model), "reset", _stop)
    with pytest.raises(ValueError, match="far enough"):
        explainer.fit(train[:64], device="meta", monitoring=1)
    assert moved == ["meta"]
    assert "moves from cpu to meta" in capsys.readouterr().out


def _stop(self, seed):
    raise ValueError("far enough")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("cls", ALL)
def test_on_a_gpu(cls, train):
    explainer = make(cls)
    explainer.fit(train, nb_epochs=2, device="cuda", use_amp=True)
    assert explainer.device.type == "cuda"
    codes = explainer.encode_activations(train)
    assert codes.device.type == "cuda"
    explainer.device = "cpu"
    torch.testing.assert_close(explainer.encode_activations(train), codes.cpu(), rtol=1e-3, atol=1e-3)


# What fit takes


def test_the_same_rows_in_every_form(train):
    x = train[:300]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=100)
    forms = [
        list(x.split(100)),
        tuple((part,) for part in x.split(100)),
        loader,
        [{"layer.1": part, "layer.2": None} for part in x.split(100)],
    ]
    found = [make_and_fit(TopKSAE, form, nb_epochs=3) for form in forms]
    assert all(torch.equal(rows, found[0]) for rows in found)
    once = make_and_fit(TopKSAE, iter(x.split(100)), nb_epochs=1)
    assert torch.equal(once, make_and_fit(TopKSAE, list(x.split(100)), nb_epochs=1))
    assert torch.equal(make_and_fit(TopKSAE, x, nb_epochs=1), make_and_fit(TopKSAE, {"layer.1": x}, nb_epochs=1))


def test_order_is_new_in_each_epoch_and_drawn_from_the_seed(train):
    x = train[:64]

    def first_rows(seed):
        seen = []

        def watch(x, x_hat, pre_codes, codes, dictionary):
            seen.append(x)
            return (x - x_hat).square().mean()

        make(TopKSAE).fit(x, nb_epochs=2, batch_size=32, criterion=watch, seed=seed)
        return torch.stack([(x[None] - batch[:, None]).norm(dim=-1).argmin(1) for batch in seen])

    order = first_rows(0)
    assert sorted(order[:2].flatten().tolist()) == sorted(order[2:].flatten().tolist()) == list(range(64))
    assert not torch.equal(order[:2], order[2:])
    assert torch.equal(order, first_rows(0))
    assert not torch.equal(order, first_rows(1))


@pytest.mark.parametrize("form", ["stream", "batches"])
def test_batch_topk_on_batches(form, train, test):
    batches = list(train.split(100))
    explainer = make(BatchTopKSAE, top_k=3)
    if form == "stream":
        explainer.fit(iter(batches), nb_epochs=1)
    else:
        explainer.fit(batches, nb_epochs=3)
    assert l0_of(explainer, test) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    ("activations", "words"),
    [
        (torch.zeros(3, 4, D), "shape"),
        (torch.zeros(3, D + 1), "shape"),
        (torch.zeros(0, D), "at least one row"),
        (torch.zeros(3, D, dtype=torch.int64), "floating"),
        (torch.zeros(3, D).numpy(), "ndarray"),
        ("activations", "str"),
        (None, "NoneType"),
        ([], "no batches"),
        ([torch.zeros(3, D + 1)], "shape"),
        ([[1.0, 2.0]], "list"),
        (iter([torch.zeros(3, D)]), "nb_epochs"),
        ({"layer.2": torch.zeros(3, D)}, r"layer\.1"),
        ({"layer.1": [torch.zeros(3, D)]}, "list"),
    ],
)
def test_activations_that_are_none(activations, words):
    explainer = make(TopKSAE)
    before = explainer.concept_model.dictionary
    with pytest.raises(ValueError, match=words):
        explainer.fit(activations)
    assert not explainer.is_fitted
    assert explainer.concept_model.dictionary is before


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"nb_epochs": 0}, "nb_epochs"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": 1e-3, "optimizer_kwargs": {"lr": 1e-2}}, "two learning rates"),
        ({"optimizer_class": torch.optim.LBFGS}, "LBFGS"),
        ({"scheduler_unit": "batch"}, "scheduler_unit"),
        ({"scheduler_kwargs": {"step_size": 1}}, "without a scheduler_class"),
        ({"clip_grad": -1.0}, "clip_grad"),
        ({"max_nan_fallbacks": 0}, "max_nan_fallbacks"),
    ],
)
def test_settings_that_are_none(how, words, train):
    explainer = make(TopKSAE)
    explainer.fit(train[:50], nb_epochs=1)
    with pytest.raises(ValueError, match=words):
        explainer.fit(train, overwrite=True, **how)
    assert explainer.is_fitted  # nothing has changed


@pytest.mark.parametrize("how", [{"overwrite": True}, {"warm_start": True}])
def test_a_fit_that_fails_leaves_the_concepts_that_there_were(how, train):
    explainer = make(JumpReLUSAE)
    explainer.fit(train[:200], nb_epochs=1)
    codes = explainer.encode_activations(train).detach()

    def wrong(x, x_hat, pre_codes, codes, dictionary):
        raise ValueError("wrong at the first call")

    for more in ({"criterion": wrong}, {"optimizer_kwargs": {"momentun": 0.9}}):
        with pytest.raises((ValueError, TypeError), match=r"wrong|momentun"):
            explainer.fit(train, **how, **more)
        assert explainer.is_fitted
        again = explainer.encode_activations(train)
        torch.testing.assert_close(again, codes, rtol=1e-5, atol=1e-5)


def test_an_interrupted_fit_leaves_raw_units(train):
    """Whatever stops it, biases and thresholds are in units of activations, and the model is in evaluation mode."""
    calls = []

    def stops(x, x_hat, pre_codes, codes, dictionary):
        calls.append(codes.detach())
        if len(calls) == 5:
            raise KeyboardInterrupt
        return (x - x_hat).square().mean()

    explainer = make(JumpReLUSAE)
    with pytest.raises(KeyboardInterrupt):
        explainer.fit(train * 100, criterion=stops, batch_size=200)
    model = explainer.concept_model
    assert not explainer.is_fitted
    assert not model.training
    assert model.on_raw_activations
    share = (model.encode(train * 100)[1] > 0).double().mean()
    assert float(share) == pytest.approx(float((calls[-1] > 0).double().mean()), abs=0.05)
