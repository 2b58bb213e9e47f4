"""The facade of concept explainers: what is made, what its codes, rows and errors are."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import saescope.concepts.explainers as room
from saescope.concepts.explainers import (
    DIFFERENCES,
    BatchTopKSAE,
    JumpReLUSAE,
    MpSAE,
    SAEExplainer,
    TopKSAE,
    TopKSAEConcepts,
    VanillaSAE,
    VanillaSAEConcepts,
)
from saescope.concepts.explainers.atoms import NORMALIZATIONS
from saescope.concepts.splitting import ModelWithSplitPoints
from saescope.dictionaries import AbsTopK, BatchTopK, JumpReLU, MatchingPursuit, ReLU, TopK, architecture
from saescope.dictionaries.normalization import LayerNorm, Whitening

ALL = [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE, MpSAE]
D, C = 8, 20


class Split:
    """What an explainer asks of a split model."""

    def __init__(self, widths=None):
        self.widths = widths or {"layer.1": D}
        self.split_points = list(self.widths)

    def get_latent_shape(self, inputs=None):
        return {name: torch.Size([1, 3, d]) for name, d in self.widths.items()}

    def get_split_activations(self, activations, split_point=None):
        if split_point not in activations:
            raise ValueError(f"no activations of {split_point!r}")
        return activations[split_point]


@pytest.fixture(scope="module")
def x():
    return 5 * torch.randn(200, D, generator=torch.Generator().manual_seed(3))


def fitted(cls, x, **kwargs):
    explainer = cls(Split(), nb_concepts=C, **kwargs)
    explainer.fit(x, nb_epochs=2, batch_size=64, lr=1e-2)
    return explainer


# What is made


def test_names_without_concepts_are_the_same_classes():
    for cls in ALL:
        assert cls.__name__.endswith("SAEConcepts")
        assert getattr(room, cls.__name__) is cls
        assert getattr(room, cls.__name__.removesuffix("Concepts")) is cls


def test_no_signature_has_a_default_that_calls_share():
    """Row 25."""
    for cls in (SAEExplainer, *ALL):
        for _, function in inspect.getmembers(cls, inspect.isfunction):
            for parameter in inspect.signature(function).parameters.values():
                assert not isinstance(parameter.default, dict | list | set), (cls, function, parameter)


def test_fit_has_the_arguments_of_the_contract():
    named = inspect.signature(SAEExplainer.fit).parameters
    wanted = [
        "use_amp", "batch_size", "criterion", "optimizer_class", "optimizer_kwargs", "scheduler_class", "scheduler_kwargs",
        "lr", "nb_epochs", "clip_grad", "monitoring", "device", "max_nan_fallbacks", "overwrite",
    ]  # fmt: skip
    assert set(wanted) <= set(named)
    assert all(named[name].kind is inspect.Parameter.KEYWORD_ONLY for name in wanted)
    assert (named["batch_size"].default, named["lr"].default, named["nb_epochs"].default) == (1024, 1e-3, 20)


@pytest.mark.parametrize(
    ("cls", "kind"),
    [(VanillaSAE, ReLU), (TopKSAE, TopK), (BatchTopKSAE, BatchTopK), (JumpReLUSAE, JumpReLU), (MpSAE, MatchingPursuit)],
)
def test_classes_are_dictionaries(cls, kind, x):
    explainer = fitted(cls, x)
    dictionary = explainer.dictionary
    assert type(dictionary) is kind
    assert (dictionary.d_in, dictionary.d_sae) == (D, C)
    torch.testing.assert_close(dictionary.encode(x), explainer.encode_activations(x), rtol=0, atol=0)
    rebuilt = explainer.decode_concepts(explainer.encode_activations(x))
    torch.testing.assert_close(dictionary(x), rebuilt, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"nb_concepts": 0}, ValueError, "nb_concepts"),
        ({"nb_concepts": 4, "split_point": "layer.9"}, ValueError, "layer.1"),
        ({"nb_concepts": 4, "top_m": 3}, TypeError, "top_m"),
        ({"nb_concepts": 4, "k": 3, "top_k": 4}, ValueError, "one number"),
        ({"nb_concepts": 4, "k": 5}, ValueError, "between 1 and"),
        ({"nb_concepts": 4, "encoder_module": "mlp_ln_4"}, ValueError, "mlp_ln_3"),
        ({"nb_concepts": 4, "encoder_module": "attention_1b"}, ValueError, "neighbour"),
        ({"nb_concepts": 4, "encoder_module": "resnet_3b"}, ValueError, "neighbour"),
        ({"nb_concepts": 4, "encoder_module": "identity"}, ValueError, "must be 8"),
        ({"nb_concepts": 4, "dictionary_params": {"normalisation": "l2"}}, ValueError, "normalization"),
        ({"nb_concepts": 4, "dictionary_params": {"normalization": "l3"}}, ValueError, "max_l2"),
        ({"nb_concepts": 4, "dictionary_params": {"use_multiplier": 2}}, ValueError, "use_multiplier"),
        ({"nb_concepts": 4, "dictionary_params": {"initializer": torch.zeros(3, D)}}, ValueError, "initializer"),
    ],
)
def test_constructor_refuses_in_words(kwargs, error, words):
    with pytest.raises(error, match=words):
        TopKSAE(Split(), **kwargs)


def test_other_constructor_errors():
    with pytest.raises(ValueError, match=r"a, b: say which"):
        VanillaSAE(Split({"a": 4, "b": 6}), nb_concepts=3)
    with pytest.raises(TypeError, match="TopKSAE"):
        SAEExplainer(Split(), nb_concepts=3)
    with pytest.raises(ValueError, match="no encoder"):
        MpSAE(Split(), nb_concepts=3, encoder_module="mlp_ln_1")
    for params in ({"normalization": "l1"}, {"use_multiplier": True}):
        with pytest.raises(ValueError, match="norm 1"):
            MpSAE(Split(), nb_concepts=3, dictionary_params=params)
    with pytest.raises(ValueError, match="dropout"):
        MpSAE(Split(), nb_concepts=3, dropout=1.0)
    with pytest.raises(ValueError, match="threshold_momentum"):
        BatchTopKSAE(Split(), nb_concepts=3, threshold_momentum=1.0)
    with pytest.raises(ValueError, match="l1_coefficient"):
        VanillaSAE(Split(), nb_concepts=3, l1_coefficient=-1.0)


def test_default_number_of_codes():
    assert [TopKSAE(Split(), nb_concepts=c).concept_model.dictionary.config.k for c in (5, 50, 4000)] == [1, 5, 32]
    assert BatchTopKSAE(Split(), nb_concepts=C, top_k=2.5).concept_model.dictionary.config.k == 2.5
    assert MpSAE(Split(), nb_concepts=C).concept_model.dictionary.config.k == 1


def test_split_point_can_be_moved_where_the_width_is_the_same():
    explainer = VanillaSAE(Split({"a": 4, "b": 6, "c": 4}), nb_concepts=3, split_point="a")
    explainer.split_point = "c"
    assert explainer.split_point == "c"
    with pytest.raises(ValueError, match="width 6"):
        explainer.split_point = "b"
    with pytest.raises(ValueError, match="not split at 'd'"):
        explainer.split_point = "d"
    assert explainer.split_point == "c"


def test_concept_model_can_not_be_replaced():
    explainer = VanillaSAE(Split(), nb_concepts=3)
    with pytest.raises(AttributeError):
        explainer.concept_model = None


# Before and after fit


@pytest.mark.parametrize("cls", ALL)
def test_guards(cls, x):
    explainer = cls(Split(), nb_concepts=C)
    assert not explainer.is_fitted
    calls = [
        lambda: explainer.encode_activations(x),
        lambda: explainer.decode_concepts(torch.zeros(1, C)),
        lambda: explainer.get_dictionary(),
        lambda: explainer.interpret(),
        lambda: explainer.dictionary,
        lambda: explainer.concept_output_gradient(["a text"]),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="not fitted"):
            call()
    explainer.fit(x, nb_epochs=1)
    assert explainer.is_fitted
    assert explainer.concept_model.fitted
    with pytest.raises(NotImplementedError, match="TopKInputs"):
        explainer.interpret("anything", at=3)
    assert explainer.has_differentiable_concept_encoder
    assert explainer.has_differentiable_concept_decoder


@pytest.mark.parametrize("cls", ALL)
def test_codes_and_rows(cls, x):
    explainer = fitted(cls, x)
    codes = explainer.encode_activations(x)
    rows = explainer.get_dictionary()
    assert codes.shape == (len(x), C)
    assert (codes >= 0).all()
    assert (codes > 0).any()
    assert rows.shape == (C, D)
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(C))
    torch.testing.assert_close(explainer.decode_concepts(codes), codes @ rows)
    torch.testing.assert_close(explainer.decode_concepts(torch.zeros(1, C)), torch.zeros(1, D))
    assert torch.equal(explainer.activations_to_concepts(x), codes)
    assert torch.equal(explainer.concepts_to_activations(codes), explainer.decode_concepts(codes))
    assert torch.equal(explainer.encode_activations({"layer.1": x, "layer.2": x[:1]}), codes)


@pytest.mark.parametrize("cls", ALL)
def test_decoder_bias_is_in_both_halves(cls, x):
    shifted = x + 40
    explainer = fitted(cls, shifted, decoder_bias=True)
    bias = explainer.decode_concepts(torch.zeros(1, C))
    assert (bias - shifted.mean(0)).norm() < 0.2 * shifted.mean(0).norm()  # it began there
    codes = explainer.encode_activations(shifted)
    torch.testing.assert_close(explainer.decode_concepts(codes), codes @ explainer.get_dictionary() + bias)
    torch.testing.assert_close(explainer.dictionary(shifted), explainer.decode_concepts(codes))


@pytest.mark.parametrize("cls", ALL)
def test_a_row_has_the_same_codes_alone_and_in_any_batch(cls, x):
    explainer = fitted(cls, x)
    together = explainer.encode_activations(x[:16])
    alone = torch.cat([explainer.encode_activations(row[None]) for row in x[:16]])
    backwards = explainer.encode_activations(x[:16].flip(0)).flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", ALL)
def test_encode_and_decode_pass_gradients(cls, x):
    explainer = fitted(cls, x)
    rows = x[:5].clone().requires_grad_()
    explainer.decode_concepts(explainer.encode_activations(rows)).sum().backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0


def test_pre_codes_come_second(x):
    explainer = fitted(TopKSAE, x, k=3)
    codes, pre = explainer.encode_activations(x, return_pre=True)
    values, places = pre.topk(3, dim=-1)
    torch.testing.assert_close(codes, torch.zeros_like(pre).scatter(-1, places, values.relu()))
    codes, pre = fitted(MpSAE, x).encode_activations(x, return_pre=True)
    assert pre is None


def test_half_precision_activations_are_read(x):
    explainer = fitted(VanillaSAE, x.half())
    torch.testing.assert_close(explainer.encode_activations(x.half()), explainer.encode_activations(x.half().float()))


def test_encode_and_decode_refuse_other_shapes(x):
    explainer = fitted(TopKSAE, x)
    for wrong in (x[0], x[None], x.long(), [1.0], None):
        with pytest.raises(ValueError, match="floating tensor"):
            explainer.encode_activations(wrong)
    with pytest.raises(ValueError, match="width"):
        explainer.encode_activations(x[:, :5])
    with pytest.raises(ValueError, match="20 concepts"):
        explainer.decode_concepts(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="layer"):
        explainer.encode_activations({"layer.7": x})


# Matching pursuit


def test_pursuit_has_no_parameters_but_its_atoms():
    """Row 21."""
    explainer = MpSAE(Split(), nb_concepts=C, k=3)
    assert sum(p.numel() for p in explainer.concept_model.parameters()) == C * D


def test_pursuit_takes_another_k_and_tells_energies(x):
    explainer = fitted(MpSAE, x, k=2)
    errors = []
    for k in (1, 2, 4):
        codes = explainer.encode_activations(x, k=k)
        assert (codes != 0).sum(1).max() <= k
        left = (x - explainer.decode_concepts(codes)).square().sum(1)
        energies = explainer.residual_energies(x, k)
        assert energies.shape == (len(x), k + 1)
        torch.testing.assert_close(energies[:, 0], x.square().sum(1))
        torch.testing.assert_close(energies[:, -1], left, rtol=1e-4, atol=1e-4)
        errors.append(float(left.detach().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(explainer.encode_activations(x), explainer.encode_activations(x, k=2))
    with pytest.raises(ValueError, match="k can not be chosen"):
        fitted(VanillaSAE, x).encode_activations(x, k=2)
    with pytest.raises(ValueError, match="whole number"):
        explainer.encode_activations(x, k=0)


def test_dropout_is_of_training_alone(x):
    """Row 2."""
    explainer = fitted(MpSAE, x, k=3, dropout=0.5)
    model = explainer.concept_model
    assert torch.equal(explainer.encode_activations(x), explainer.encode_activations(x))
    plain = explainer.dictionary
    assert type(plain) is MatchingPursuit
    torch.testing.assert_close(plain.encode(x), explainer.encode_activations(x))
    model.train()
    torch.manual_seed(0)
    first, second = model.encode(x)[1], model.encode(x)[1]
    assert not torch.equal(first, second)
    never = (first == 0).all(0)
    assert 0.2 * C < never.sum() < 0.8 * C  # about half the atoms sat out
    model.eval()
    assert model.dictionary.dropout == 0.5
    assert torch.equal(explainer.encode_activations(x), explainer.encode_activations(x))


def test_dropped_atoms_are_the_same_as_absent_ones(x):
    explainer = MpSAE(Split(), nb_concepts=C, k=3, dropout=0.4)
    model = explainer.concept_model.train()
    torch.manual_seed(5)
    _, codes = model.encode(x)
    torch.manual_seed(5)
    kept = (torch.rand(C, 1) >= 0.4).squeeze(1)
    smaller = MatchingPursuit(
        MatchingPursuit.Config(
            d_in=D, d_sae=int(kept.sum()), k=3, residual_threshold=0.0, stop_on_repeat=False, apply_b_dec_to_input=False
        )
    )
    with torch.no_grad():
        smaller.W_dec.copy_(model.dictionary.W_dec[kept])
    wanted = torch.zeros_like(codes)
    wanted[:, kept] = smaller.encode(x)
    torch.testing.assert_close(codes, wanted)


# Encoders


@pytest.mark.parametrize("name", ["mlp_ln_1", "mlp_ln_3", "mlp_bn_1", "mlp_bn_3"])
@pytest.mark.parametrize("cls", [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE])
def test_named_encoders(cls, name, x):
    """Row 1: with batch norm too, nothing depends on the batch after fit."""
    explainer = fitted(cls, x, encoder_module=name)
    model = explainer.concept_model
    assert not any(part.training for part in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    together = explainer.encode_activations(x)
    assert torch.equal(together, explainer.encode_activations(x))
    alone = torch.cat([explainer.encode_activations(row[None]) for row in x[:10]])
    torch.testing.assert_close(alone, together[:10], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm | nn.BatchNorm1d)]
    assert len(norms) == int(name[-1])
    assert all(isinstance(part, nn.BatchNorm1d) == ("bn" in name) for part in norms)
    with pytest.raises(ValueError, match="encoder_module"):
        _ = explainer.dictionary


def test_mlp_is_written_out(x):
    explainer = fitted(TopKSAE, x, encoder_module="mlp_ln_3")
    encoder, scale = explainer.concept_model.dictionary.encoder, explainer.concept_model.dictionary.input_scale
    torch.testing.assert_close(float(scale), D**0.5 / float(x.norm(dim=1).mean()))
    h = scale * x
    for linear, norm in encoder.hidden:
        h = h + norm(h @ linear.weight.T + linear.bias).relu()
    linear, norm = encoder.last
    wanted = norm(h @ linear.weight.T + linear.bias) / scale
    _, pre = explainer.encode_activations(x, return_pre=True)
    torch.testing.assert_close(pre, wanted)


def test_linear_is_the_architecture_s_own(x):
    named, plain = fitted(VanillaSAE, x, encoder_module="linear"), fitted(VanillaSAE, x)
    assert torch.equal(named.encode_activations(x), plain.encode_activations(x))


def test_identity_encoder(x):
    explainer = JumpReLUSAE(Split(), nb_concepts=D, encoder_module="identity")
    explainer.fit(x, nb_epochs=1)
    codes = explainer.encode_activations(x)
    threshold = explainer.concept_model.dictionary.threshold
    torch.testing.assert_close(codes, torch.where(x > threshold, x, 0.0))


def test_a_module_of_one_s_own_is_copied(x):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(D, C), nn.Dropout(0.3))
    before = module[0].weight.clone()
    explainer = fitted(TopKSAE, x, encoder_module=module)
    assert torch.equal(module[0].weight, before)
    assert not torch.equal(explainer.concept_model.dictionary.encoder[0].weight, before)
    assert torch.equal(explainer.encode_activations(x), explainer.encode_activations(x))
    first = explainer.encode_activations(x)
    explainer.fit(x, nb_epochs=2, batch_size=64, lr=1e-2, overwrite=True)
    assert torch.equal(explainer.encode_activations(x), first)


def test_a_module_of_another_width_is_refused(x):
    explainer = TopKSAE(Split(), nb_concepts=C, encoder_module=nn.Linear(D, C + 1))
    with pytest.raises(ValueError, match=r"shape \[64, 20\]"):
        explainer.fit(x, batch_size=64)


# Rows


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("name", list(NORMALIZATIONS))
def test_normalizations(name, multiplier, x):
    params = {"normalization": name, "use_multiplier": multiplier}
    explainer = fitted(VanillaSAE, x, dictionary_params=params)
    own, rows = explainer.concept_model.dictionary, explainer.get_dictionary()
    factor = float(own.log_scale.detach().exp()) if multiplier else 1.0
    assert not multiplier or factor != 1.0  # it was learned
    lengths = {
        "l2": rows.norm(dim=1) / factor,
        "l1": rows.abs().sum(1) / factor,
        "max_l2": rows.norm(dim=1).max() / factor,
        "max_l1": rows.abs().sum(1).max() / factor,
    }
    if name in lengths:
        torch.testing.assert_close(lengths[name], torch.ones_like(lengths[name]))
    else:
        assert (rows.norm(dim=1) - 1).abs().max() > 1e-3  # free
    codes = explainer.encode_activations(x)
    torch.testing.assert_close(explainer.decode_concepts(codes), codes @ rows)
    torch.testing.assert_close(explainer.dictionary(x), codes @ rows)


def test_a_function_as_normalization(x):
    explainer = fitted(
        TopKSAE, x, dictionary_params={"normalization": lambda w: w.abs() / w.abs().amax(-1, keepdim=True)}
    )
    rows = explainer.get_dictionary()
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.amax(1), torch.ones(C))


def test_initializers():
    rows = torch.randn(C, D, generator=torch.Generator().manual_seed(0))
    unit = rows / rows.norm(dim=1, keepdim=True)
    filling = [rows, lambda w: w.copy_(rows), lambda w: rows.clone()]
    for initializer in filling:
        own = TopKSAE(Split(), nb_concepts=C, dictionary_params={"initializer": initializer}).concept_model.dictionary
        torch.testing.assert_close(own.W_dec.detach(), unit)
        torch.testing.assert_close(own.encoder_rows.detach(), unit)
    model = TopKSAE(Split(), nb_concepts=C, dictionary_params={"initializer": nn.init.xavier_uniform_}).concept_model
    drawn = []
    for seed in (0, 0, 1):
        model.reset(seed)
        drawn.append(model.dictionary.W_dec)
    same, again, other = drawn
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


# Devices


def test_device_moves_everything(x):
    """A device without data stands for another one."""
    explainer = fitted(JumpReLUSAE, x)
    assert explainer.device == torch.device("cpu")
    explainer.device = "meta"
    assert explainer.device == torch.device("meta")
    assert {t.device.type for t in explainer.concept_model.state_dict().values()} == {"meta"}
    assert explainer.encode_activations(x).shape == (len(x), C)  # input goes where the model is
    assert explainer.decode_concepts(torch.zeros(3, C)).device.type == "meta"


def test_constructor_s_device():
    assert VanillaSAE(Split(), nb_concepts=3, device="meta").device.type == "meta"


# Dictionaries that exist


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("topk", "TopKSAEConcepts"),
        ("relu", "VanillaSAEConcepts"),
        ("gated", "SAEExplainer"),
        ("abs_topk", "SAEExplainer"),
    ],
)
def test_concepts_of_any_dictionary(name, made, x):
    kind = architecture(name)
    more = {"k": 3} if "topk" in name else {}
    dictionary = kind(kind.Config(d_in=D, d_sae=C, **more), seed=2)
    with torch.no_grad():
        dictionary.b_dec.fill_(0.7)
    explainer = SAEExplainer.from_dictionary(Split({"layer.0": 5, "layer.1": D}), dictionary, "layer.1")
    assert type(explainer).__name__ == made
    assert explainer.is_fitted
    assert explainer.split_point == "layer.1"
    assert explainer.dictionary is dictionary
    codes = explainer.encode_activations(x)
    assert torch.equal(codes, dictionary.encode(x))
    assert torch.equal(explainer.decode_concepts(codes), dictionary(x))
    torch.testing.assert_close(explainer.decode_concepts(codes), codes @ explainer.get_dictionary() + 0.7)


def test_whitened_dictionary_shows_the_rows_that_are_in_effect(x):
    dictionary = MatchingPursuit(MatchingPursuit.Config(d_in=D, d_sae=C, k=2))
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(D) + 0.2 * torch.randn(D, D, generator=generator)
    dictionary.input_normalization = Whitening(torch.ones(D), matrix, torch.linalg.inv(matrix))
    explainer = SAEExplainer.from_dictionary(Split(), dictionary)
    codes = explainer.encode_activations(x)
    nothing = explainer.decode_concepts(torch.zeros(1, C))
    torch.testing.assert_close(explainer.decode_concepts(codes), codes @ explainer.get_dictionary() + nothing)
    with pytest.raises(ValueError, match="keeps a normalisation"):
        explainer.fit(x, warm_start=True)


def test_dictionaries_that_are_no_concepts():
    topk = TopK(TopK.Config(d_in=D, d_sae=C, k=3))
    with pytest.raises(ValueError, match="width 9"):
        SAEExplainer.from_dictionary(Split({"layer.1": 9}), topk)
    with pytest.raises(ValueError, match="VanillaSAEConcepts is no topk"):
        VanillaSAEConcepts.from_dictionary(Split(), topk)
    assert type(TopKSAEConcepts.from_dictionary(Split(), topk)) is TopKSAEConcepts
    topk.input_normalization = LayerNorm()
    with pytest.raises(ValueError, match="needs the activation again"):
        SAEExplainer.from_dictionary(Split(), topk)
    for name, more in (("topk_transcoder", {"d_out": D}), ("topk_crosscoder", {"source_widths": (4, 4)})):
        kind = architecture(name)
        with pytest.raises(ValueError, match="does not rebuild"):
            SAEExplainer.from_dictionary(Split(), kind(kind.Config(d_in=D, d_sae=C, k=3, **more)))


def test_dictionary_trained_further(x):
    dictionary = AbsTopK(AbsTopK.Config(d_in=D, d_sae=C, k=3), seed=2)
    explainer = SAEExplainer.from_dictionary(Split(), dictionary)
    with pytest.raises(RuntimeError, match="warm_start"):
        explainer.fit(x)
    with pytest.raises(ValueError, match=r"saescope\.train"):
        explainer.fit(x, overwrite=True)
    before = (x - explainer.decode_concepts(explainer.encode_activations(x))).square().mean()
    explainer.fit(x, nb_epochs=5, batch_size=64, lr=1e-2, warm_start=True)
    after = (x - explainer.decode_concepts(explainer.encode_activations(x))).square().mean()
    assert after < 0.8 * before
    assert explainer.dictionary is dictionary


# The real split model


def test_on_a_split_classifier(classifier, reviews):
    model = ModelWithSplitPoints(classifier.model, split_points=[1], tokenizer=classifier.tokenizer, batch_size=32)
    point = model.split_points[0]
    activations = model.get_activations(reviews, model.activation_granularities.TOKEN)
    explainer = TopKSAE(model, nb_concepts=24, k=4)
    logs = explainer.fit(activations, nb_epochs=3, lr=1e-2)
    assert logs["avg_loss"][-1] < logs["avg_loss"][0]
    codes = explainer.encode_activations(activations)
    assert codes.shape == (len(activations[point]), 24)
    gradients = explainer.concept_output_gradient(
        reviews[:3], activation_granularity=model.activation_granularities.TOKEN
    )
    assert [g.shape[0] for g in gradients] == [3, 3, 3]
    assert all(g.shape[2] == 24 for g in gradients)


def test_differences_name_every_mended_defect():
    numbers = {row.number for row in DIFFERENCES if row.number is not None}
    assert numbers == {*range(1, 13), 21, 22, 24, 25}
    assert all(row.subject and row.there and row.here for row in DIFFERENCES)
